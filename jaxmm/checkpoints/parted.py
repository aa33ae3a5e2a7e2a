"""Checkpoints of a job whose processes share no disk: each sends what it has written, and the store joins the parts.

Orbax has every process write its shards into an array store of its own, ``state/ocdbt.process_3``, and then writes one
index over them all. Without a shared disk the first process sees no other's: so each sends its own, and says by an
object which files these were; the first writes the index in the store, and then the record that makes it count.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from jaxmm.checkpoints import checksums
from jaxmm.checkpoints.checksums import RECORD, STATE, Entry
from jaxmm.checkpoints.stored import Stored
from jaxmm.workdir.objects import StoreAway

_LOOK = 0.5  # seconds between two looks for what other processes have sent


class Parts:
    """The parts of one job's checkpoints.

    Args:
      stored: where they go.
      index, count: of this process, and of all.
      job: a number that no other job has, so that nothing of a save that was cut short is taken for this one's.
    """

    def __init__(self, stored: Stored, index: int, count: int, job: int) -> None:
        self._stored, self._index, self._count, self._job = stored, index, count, job

    def send(self, step: int, patience: float) -> None:
        """Sends this process's part of a save that is complete here; the first process joins them all.

        Args:
          patience: seconds that the other processes may take longer.

        Raises:
          StoreError: if the store refuses or is away, or another process has not sent its part in time.
        """
        if self._index:
            self._send_own(step)
            part = self._part(self._index)
            self._wait(patience, f"the end of the save of step {step}", lambda: self._stored.read(step, part) is None)
            if not self._stored.has(step):
                raise StoreAway(f"process 0 has not ended the save of step {step}: its log says why")
            return
        folder = self._stored.folder / str(step)
        if not folder.is_dir():
            return  # the save has failed, which Orbax tells
        index_files = [STATE + "/manifest.ocdbt", *_names(folder, f"{STATE}/d/")]
        own = [name for name in _names(folder) if name not in (RECORD, *index_files)]
        entries = self._sent(step, {name: folder / name for name in own})
        parts = [self._part(number) for number in range(1, self._count)]
        self._wait(patience, f"parts of step {step}", lambda: set(parts) <= set(self._stored.names(step)))
        for part in parts:
            entries |= {name: Entry(*of) for name, of in json.loads(self._stored.read(step, part) or b"{}").items()}
        for name in index_files:
            (folder / name).unlink()
        for name in self._stored.join(step, [f"ocdbt.process_{number}" for number in range(self._count)]):
            self._stored.fetch_one(step, name)  # so that its checksum is of what the store has
            entries[name] = checksums.entry(folder / name)
        record = checksums.record_text(entries)
        self._stored.seal(step, record)
        (folder / RECORD).write_text(record)  # last: with it the folder would pass for a whole checkpoint

    def end(self, step: int) -> None:
        """Ends a save, by the first process: for the others it lasts until then, so that all list the same checkpoints
        after it, and none that is pruned meanwhile."""
        if not self._index:
            self._stored.delete(step, [self._part(number) for number in range(1, self._count)])

    def _send_own(self, step: int) -> None:
        folders = list(self._stored.folder.glob(f"{step}.*tmp*/{STATE}*/ocdbt.process_{self._index}"))
        paths = {f"{STATE}/{folder.name}/{name}": folder / name for folder in folders for name in _names(folder)}
        entries = self._sent(step, paths)
        self._stored.write(step, self._part(self._index), json.dumps(entries).encode())
        for left in self._stored.folder.glob("*"):  # this process's part alone restores nothing
            shutil.rmtree(left, ignore_errors=True)

    def _sent(self, step: int, paths: dict[str, Path]) -> dict[str, Entry]:
        """Sends files; what the record says of them."""
        self._stored.send_files(step, paths)
        return {name: checksums.entry(path) for name, path in paths.items()}

    def _part(self, number: int) -> str:
        return f"part-{self._job}-{number}.json"

    def _wait(self, patience: float, what: str, is_there: Callable[[], bool]) -> None:
        end = time.monotonic() + patience
        while not is_there():
            if time.monotonic() > end:
                raise StoreAway(f"{what} did not come from the other processes within {patience:.0f} s")
            time.sleep(_LOOK)


def _names(folder: Path, inside: str = "") -> list[str]:
    """The files of a folder, or of one in it, by their names in the first."""
    paths = sorted(path for path in (folder / inside).rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in paths]
