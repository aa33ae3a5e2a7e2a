"""The checkpoints of a run in an object store: sent when they are whole, fetched part by part, pruned.

A store renames nothing. A checkpoint there counts by its ``checksums.json``, the last of its objects to be written and
the first to be deleted; what has none is the rest of a save that was cut short.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import math
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from jaxmm.checkpoints import checksums
from jaxmm.checkpoints.checksums import METRICS, RECORD, STATE, Fault
from jaxmm.checkpoints.manager import METRIC_KEY
from jaxmm.checkpoints.stored_arrays import StoredArrays
from jaxmm.json_text import parse_json
from jaxmm.workdir.folder import has_saved, note_first_save
from jaxmm.workdir.objects import StoreError
from jaxmm.workdir.spool import CHECKPOINTS, Spool

WHY = "fault.txt"  # of a broken checkpoint, in the place of its record
_HELD = ".{}.read"  # in a spool that only reads: the lock of a checkpoint, of which processes may read the copy


class Stored:
    """The checkpoints in the store that a spool stands for. Only one process of a job writes.

    Args:
      spool: of the run.
      folder: of the spool, where a checkpoint that is fetched lies.
    """

    def __init__(self, spool: Spool, folder: Path) -> None:
        self.url = f"{spool.url}/{CHECKPOINTS}"
        self.folder = folder
        self._spool, self._objects = spool, spool.objects
        self._held: dict[int, IO[str]] = {}  # by step

    @classmethod
    def of(cls, folder: Path) -> Stored | None:
        """Those that belong to a folder of checkpoints; None where its workdir is an ordinary one."""
        spool = Spool.of(folder.parent) if folder.name == CHECKPOINTS else None
        return cls(spool, folder) if spool else None

    # What is there

    def steps(self) -> list[int]:
        """The steps of the checkpoints that have been written to their end, ascending."""
        return sorted(step for step, names in self._by_step().items() if RECORD in names)

    def look(self, step: int) -> Fault | None:
        """What is missing from a checkpoint."""
        try:
            names = self._by_step().get(step, set())  # none where a run has pruned it since it was listed
            data = self._objects.read(self._name(step, RECORD))
        except StoreError as error:
            return Fault(str(error), False)
        if data is None:
            return Fault(f"{RECORD} is missing", True)
        entries = checksums.parse_record(data)
        if entries is None:
            return checksums.RECORD_DIFFERS
        lost = sorted(set(entries) - names)
        return Fault(f"{lost[0]} is missing", True) if lost else None

    def fetch(self, step: int, part: str = "") -> Fault | None:
        """Copies the files of a checkpoint, or of one part of it, that are not here yet. Returns why it could not.

        In a spool that only reads, nobody removes them before ``release``.
        """
        try:
            with self._spool.alone():
                if self._spool.only_reads:
                    self._hold(step)
                    self._remove_gone()
                return self._fetch(step, part)
        except FileNotFoundError as error:
            return Fault(f"{error.filename} is missing", True)
        except StoreError as error:
            return Fault(str(error), False)

    def _fetch(self, step: int, part: str) -> Fault | None:
        local = self.folder / str(step)
        data = self._objects.read(self._name(step, RECORD))
        entries = checksums.parse_record(data or b"")
        if data is None or entries is None:
            return self.look(step)
        if not (local / RECORD).exists() or (local / RECORD).read_bytes() != data:  # of another save of this step
            shutil.rmtree(local, ignore_errors=True)
        local.mkdir(parents=True, exist_ok=True)
        (local / RECORD).write_bytes(data)
        wanted = checksums.of_part(entries, part)
        lacking = [name for name, entry in wanted.items() if not _is_there(local / name, entry.bytes)]
        self._objects.each(
            lambda name: self._objects.download(self._name(step, name), local / name, wanted[name].bytes), lacking
        )
        return None

    def _hold(self, step: int) -> None:
        if step not in self._held:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._held[step] = (self.folder / _HELD.format(step)).open("w")
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self._held[step], fcntl.LOCK_SH)

    def release(self) -> None:
        """Lets go of what was fetched: others may remove it once the store no longer has it."""
        while self._held:
            self._held.popitem()[1].close()

    def _remove_gone(self) -> None:
        """Removes the copies of checkpoints that the store no longer has, but those that are being read."""
        others = [step for step in local_steps(self.folder) if step not in self._held]
        for step in set(others) - set(self.steps()) if others else ():
            lock = self.folder / _HELD.format(step)
            with lock.open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                except OSError:  # a file system without locks
                    pass
                self.forget(step)
                lock.unlink()

    def compare(self, step: int, part: str, share: tuple[int, int]) -> Fault | None:
        """Compares the objects of a part with their checksums, and keeps nothing of them.

        Args:
          share: number and count: of several processes that compare together, each takes every count-th object.
        """
        try:
            entries = checksums.parse_record(self._objects.read(self._name(step, RECORD)) or b"")
            if entries is None:
                return self.look(step)
            for name in [name for name in entries if name.startswith(f"{part}/")][share[0] :: share[1]]:
                crc32 = 0
                for block in self._objects.blocks(self._name(step, name), entries[name].bytes):
                    crc32 = zlib.crc32(block, crc32)
                if crc32 != entries[name].crc32:
                    return Fault(f"the bytes of {name} are not those that were written", True, True)
        except FileNotFoundError as error:
            return Fault(f"{error.filename} is missing", True)
        except StoreError as error:
            return Fault(str(error), False)
        return None

    def arrays(self, step: int) -> StoredArrays:
        """The arrays of a checkpoint."""
        return StoredArrays(self._objects, self._name(step, f"{STATE}/"))

    def forget(self, step: int) -> None:
        """Removes what is here of a checkpoint."""
        shutil.rmtree(self.folder / str(step), ignore_errors=True)

    def has(self, step: int) -> bool:
        """Whether a checkpoint has been written to its end."""
        return self._objects.read(self._name(step, RECORD)) is not None

    def names(self, step: int) -> list[str]:
        """The objects of a step, by their names in its folder."""
        inside = self._name(step, "")
        return [name.removeprefix(inside) for name in self._objects.names(inside)]

    def read(self, step: int, name: str) -> bytes | None:
        """One object of a step; None where there is none."""
        return self._objects.read(self._name(step, name))

    def fetch_one(self, step: int, name: str) -> None:
        """Copies one file of a step."""
        self._objects.download(self._name(step, name), self.folder / str(step) / name)

    # Writing

    def write(self, step: int, name: str, data: bytes) -> None:
        """Puts one object of a step there."""
        self._objects.write(self._name(step, name), data)

    def delete(self, step: int, names: Iterable[str]) -> None:
        """Deletes objects of a step."""
        self._objects.delete_all(self._name(step, name) for name in names)

    def send_files(self, step: int, paths: Mapping[str, Path]) -> None:
        """Sends files by their names in the folder of a step."""
        self._objects.each(lambda name: self._objects.upload(paths[name], self._name(step, name)), paths)

    def join(self, step: int, parts: Sequence[str]) -> list[str]:
        """Writes one index over the array stores of a step's state. Returns the names of its files."""
        state = f"{STATE}/"
        self.delete(step, [name for name in self.names(step) if name.startswith((f"{state}manifest", f"{state}d/"))])
        self._objects.join_array_stores(self._name(step, state), [f"{part}/" for part in parts])
        return [name for name in self.names(step) if name.startswith((f"{state}manifest", f"{state}d/"))]

    def seal(self, step: int, record: str) -> None:
        """Makes a checkpoint count whose other files are there, after all small files that it counts on.

        Args:
          record: the text of its RECORD.
        """
        self._spool.send()
        self._objects.delete(self._name(step, WHY))
        self.write(step, RECORD, record.encode())

    def send(self, step: int) -> None:
        """Sends a checkpoint that is whole in the spool, after all small files that it counts on.

        Raises:
          StoreError: if the store refuses or is away; what is there of it does not count.
        """
        there, local = self._by_step().get(step, set()), self.folder / str(step)
        if RECORD in there:
            return
        self._objects.delete_all(self._name(step, name) for name in there)  # of a save that was cut short
        paths = {path.relative_to(local).as_posix(): path for path in local.rglob("*") if path.is_file()}
        paths.pop(RECORD, None)
        self.send_files(step, paths)
        self.seal(step, (local / RECORD).read_text())

    def send_left(self) -> None:
        """Sends the checkpoints that are whole here and newer than all that are there.

        Only for a spool that was the last to write. One process's part of a save that was not joined goes: it restores
        nothing, and the run would be taken for one that has saved.
        """
        there = self.steps()
        newest = max(there, default=-1)
        for step in local_steps(self.folder):
            if step not in there and not checksums.has_record(self.folder / str(step)):
                self.forget(step)
            is_whole = checksums.has_record(self.folder / str(step)) and not checksums.verify(self.folder / str(step))
            if step > newest and is_whole:
                self.send(step)

    def note_first_save(self) -> None:
        """Notes in the spool that the run has saved, if it was killed after its first save and before it noted that."""
        workdir, steps = self.folder.parent, self.steps()
        if steps and not has_saved(workdir):
            note_first_save(workdir, steps[0])

    def prune(self, keep: int, keep_best: int) -> None:
        """Deletes all but the newest ``keep`` and the ``keep_best`` with the lowest metrics."""
        steps = self.steps()
        scored = [(metric, -step) for step in steps if (metric := self._metric(step)) is not None]
        kept = {*steps[-keep:], *(-negative for _, negative in sorted(scored)[:keep_best])}
        for step in steps:
            if step not in kept:
                self._remove(step)

    def put_aside(self, step: int, why: str) -> None:
        """Takes its record from a broken checkpoint, which then no longer counts."""
        self._objects.write(self._name(step, WHY), f"{why}\n".encode())
        self._objects.delete(self._name(step, RECORD))
        self.forget(step)

    def remove_unfinished(self, but_broken_from: int, say: Callable[[str], None]) -> None:
        """Deletes what saves that were cut short have left, and the broken checkpoints of before a step."""
        for step, names in self._by_step().items():
            if RECORD in names or (WHY in names and step >= but_broken_from):
                continue
            self._remove(step)
            if WHY in names:
                say(f"removed {self.url}/{step}: it was broken, and step {but_broken_from} is saved")

    def _remove(self, step: int) -> None:
        names = self._objects.names(self._name(step, ""))
        record = self._name(step, RECORD)
        if record in names:
            self._objects.delete(record)
        self._objects.delete_all(name for name in names if name != record)

    def _metric(self, step: int) -> float | None:
        data = self._objects.read(self._name(step, f"{METRICS}/{METRICS}"))
        try:
            metric = float(parse_json(data)[METRIC_KEY]) if data else math.inf
        except (ValueError, LookupError, TypeError):
            return None
        return metric if math.isfinite(metric) else None

    def _by_step(self) -> dict[int, set[str]]:
        """The names of the objects of each step's folder."""
        found = collections.defaultdict[int, set[str]](set)
        for name in self._objects.names(f"{CHECKPOINTS}/"):
            _, step, *rest = name.split("/", 2)
            if rest and re.fullmatch("0|[1-9][0-9]*", step):
                found[int(step)].add(rest[0])
        return dict(found)

    @staticmethod
    def _name(step: int, name: str) -> str:
        return f"{CHECKPOINTS}/{step}/{name}"


def local_steps(folder: Path) -> list[int]:
    """The steps of the folders of checkpoints, ascending."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in paths if re.fullmatch("0|[1-9][0-9]*", path.name) and path.is_dir())


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size >= size
