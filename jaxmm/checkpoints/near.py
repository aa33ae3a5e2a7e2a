"""Near checkpoints: every few steps each process writes its own pieces into a folder of its node, and sends none.

A start goes on from the newest one that is whole over all processes, if it is newer than the shared one. A node that is
new, or whose bytes have changed, gets its pieces from processes that hold the same ones. The shared checkpoints in the
workdir stay what counts: a near one saves the steps since, no more.

``near.json`` in the workdir has the number of the run's life, which is another one after each start from a shared
checkpoint: parts of steps that were then done again are never taken for the run's.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax

from jaxmm.atomic import read_json, write_json
from jaxmm.checkpoints import checksums, near_part
from jaxmm.checkpoints.named import differences, named
from jaxmm.checkpoints.near_part import Head, Key, Part
from jaxmm.checkpoints.pieces import Piece, groups, here, holders, joined, shards
from jaxmm.errors import UserError
from jaxmm.runtime.barrier import Barrier
from jaxmm.sharding import sent
from jaxmm.workdir.folder import has_saved, local
from jaxmm.workdir.spool import name_of

FILE = "near.json"  # in the workdir
KEEP = 2


def forget(workdir: Path) -> None:
    """Ends the life of the run: its near checkpoints no longer count. For a start that saves none."""
    (workdir / FILE).unlink(missing_ok=True)


class Chosen(NamedTuple):
    """The near checkpoint that a start goes on from.

    Attributes:
      record: of the run.
      owners: by a part's number the process that has it, and has compared its bytes.
      lacking: the processes that have no part of their own.
    """

    key: Key
    record: dict[str, Any]
    owners: dict[int, int]
    lacking: list[int]


class Near:
    """The near checkpoints of one run; a context manager, whose end waits for the save in flight.

    In a job of several processes each calls every method, with the same arguments.

    Args:
      folder: ``config.checkpoint.near_dir``; '' is a folder of this user in the system's temporary one.
      workdir: of the run.
      mesh: sizes of its axes, by name.
      say: prints a line.
    """

    _numbers = itertools.count()  # of the instances, the same in all processes of a job

    def __init__(self, folder: str, workdir: Path, mesh: Mapping[str, int], say: Callable[[str], None]) -> None:
        name = name_of(workdir.resolve())
        asked = local("config.checkpoint.near_dir", folder)
        root = Path(asked) if asked else Path(tempfile.gettempdir()) / f"jaxmm-near-{os.getuid()}"
        short = re.sub(r"[^\w.-]", "_", name.rpartition("/")[2])[:60]
        self.folder = root.absolute() / f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        self._workdir, self._mesh, self._say = workdir, dict(mesh), say
        self._index, self._count = jax.process_index(), jax.process_count()
        self._barrier = Barrier(f"near checkpoints {next(self._numbers)}")
        self._run = self._start = 0  # numbers of the run's life, and of this start
        self._groups: list[list[int]] = []
        self._parts: dict[Key, dict[int, Part]] = {}  # that are whole here, by the number of the process that saved
        self._chosen: Chosen | None = None
        self._saving: threading.Thread | None = None
        self._error: Exception | None = None

    def __enter__(self) -> Near:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.wait()

    # Choosing

    def choose(self, shared: int) -> Chosen | None:
        """The newest near checkpoint that all parts of are together, and newer than the shared one; None for none.

        Reads no array onto a device. A part whose bytes are not those that were written does not count.

        Args:
          shared: the step of the shared checkpoint; 0 for none.
        """
        is_known = self._index == 0 and has_saved(self._workdir)
        number = read_json(self._workdir / FILE).get("run") if is_known else 0
        self._run = self._barrier.largest(number if isinstance(number, int) else 0, "near checkpoints")
        if not self._run:
            if any(self.folder.glob("[0-9]*")):
                self._say(f"near checkpoints in {self.folder} are of a run that {FILE} in the workdir does not name: "
                          f"passed over")  # fmt: skip
            return None
        self._parts = self._found(shared)
        while (chosen := self._newest()) and not self._compared(chosen):
            pass
        self._chosen = chosen
        if not self._index:
            self._say(self._told(chosen, shared))
        return chosen

    def _found(self, shared: int) -> dict[Key, dict[int, Part]]:
        """The parts on this node that this job may go on from, from the sizes of their files."""
        found: dict[Key, dict[int, Part]] = {}
        others = 0
        unfit: set[str] = set()
        for folder in sorted(self.folder.glob("[0-9]*")):
            part = Part.read(folder)
            fault = checksums.look(folder) if part else None
            if part is None or fault:
                why = fault.text if fault else f"its {near_part.HEAD} cannot be read"
                self._say(f"warning: ignoring the near checkpoint {folder}: {why}")
            elif part.head.run != self._run:
                others += 1
            elif part.head.step > shared:
                if why := self._unfit(part.head):
                    unfit.add(why)
                else:
                    found.setdefault(part.head.key, {})[part.head.number] = part
        for why in sorted(unfit):
            self._say(why)
        if others:
            self._say(f"near checkpoints in {self.folder} are of an earlier life of this run, or of another one in "
                      f"its place: passed over")  # fmt: skip
        return found

    def _unfit(self, head: Head) -> str:
        """Why this job cannot go on from a part, by its layout; '' where it can."""
        if (head.processes, head.mesh) == (self._count, self._mesh):
            return ""
        was, now = (
            f"{count} process{'es' * (count > 1)} on mesh {mesh}"
            for count, mesh in ((head.processes, head.mesh), (self._count, self._mesh))
        )
        return f"near checkpoint {head.step} was saved by {was}, and here are {now}: passed over"

    def _newest(self) -> Chosen | None:
        """The newest whole one of those that all processes have in ``_parts``."""
        listed = [[self._index, *key, number] for key, parts in self._parts.items() for number in parts]
        seers: dict[Key, dict[int, set[int]]] = {}
        for process, step, start, number in self._barrier.gathered(listed, "near checkpoints"):
            seers.setdefault(Key(step, start), {}).setdefault(number, set()).add(process)
        keys = sorted(seers)
        known = [rank for rank, key in enumerate(keys, 1) if self._is_whole(key, seers[key])]
        if not (rank := self._barrier.largest(max(known, default=0), "the newest near checkpoint")):
            return None
        key = keys[rank - 1]
        owners = {number: number if number in at else min(at) for number, at in sorted(seers[key].items())}
        lacking = [number for number in range(self._count) if number not in seers[key].get(number, ())]
        first = min(owners)  # of a part whose bytes its owner compares
        record = [self._parts[key][first].head.record] if owners[first] == self._index else []
        (of_run,) = self._barrier.gathered(record, "the record of a near checkpoint")
        return Chosen(key, of_run, owners, lacking)

    def _is_whole(self, key: Key, seers: Mapping[int, set[int]]) -> bool:
        """Whether some part has each piece; of a checkpoint of which this process has none it knows nothing."""
        parts = self._parts.get(key)
        if not parts:
            return False
        return all(seers.keys() & set(group) for group in next(iter(parts.values())).head.groups)

    def _compared(self, chosen: Chosen) -> bool:
        """Whether all bytes are those that were written; else the parts with others are forgotten."""
        parts = self._parts.get(chosen.key, {})
        faults = 0
        for number in [number for number, owner in chosen.owners.items() if owner == self._index]:
            if fault := checksums.verify(parts[number].folder):
                self._say(f"warning: ignoring the near checkpoint {parts[number].folder}: {fault.text}")
                del parts[number]
                faults += 1
        if not parts:
            self._parts.pop(chosen.key, None)
        return not self._barrier.largest(faults, "the bytes of a near checkpoint")

    def _told(self, chosen: Chosen | None, shared: int) -> str:
        of_shared = f"the shared one is of step {shared}" if shared else "no shared one can be used"
        if chosen is None:
            return f"no near checkpoint is whole and newer than the shared one: {of_shared}"
        few = ", ".join(map(str, chosen.lacking[:8])) + (" ..." if len(chosen.lacking) > 8 else "")
        way = f"; process{'es' * (len(chosen.lacking) > 1)} {few} had no part, and the others send theirs"
        many = f"{self._count} process{'es' * (self._count > 1)}"
        return (
            f"near checkpoint {chosen.key.step} of {many} is whole: going on from it; {of_shared}"
            f"{way if chosen.lacking else ''}"
        )

    def restore(self, abstract_state: Any) -> Any:
        """The state of the near checkpoint that was chosen, bit for bit.

        Args:
          abstract_state: as ``Checkpoints.restore`` takes it; each leaf has its sharding.

        Raises:
          UserError: if names, shapes or dtypes differ, or a part cannot be read any more.
        """
        assert self._chosen
        wanted, parts = named(abstract_state), self._parts.get(self._chosen.key, {})
        for part in parts.values():
            if found := differences(part.shapes(), wanted):
                raise UserError(
                    f"near checkpoint {part.folder} does not fit this run: {found[0]}; use the config and the version "
                    f"of jaxmm that it was saved with, or remove it to go on from the shared one"
                )
        own = parts.get(self._index)
        arrays = {}
        try:
            for name, leaf in wanted.items():
                values: dict[Piece, Any] = {}
                for piece, processes in sorted(holders(leaf).items()):
                    if own and self._index in processes:
                        values[piece] = own.piece(name, piece)
                    if processes & set(self._chosen.lacking):
                        values |= self._exchanged(name, leaf, piece, processes)
                arrays[name] = joined(leaf, values)
        except (OSError, LookupError) as error:
            raise UserError(f"near checkpoint {self.folder}/{self._chosen.key.step}.*: {error}; remove it to go on "
                            f"from the shared one") from error  # fmt: skip
        return jax.tree.unflatten(jax.tree.structure(abstract_state), arrays.values())

    def _exchanged(self, name: str, leaf: Any, piece: Piece, processes: set[int]) -> dict[Piece, Any]:
        """A piece that some process lacks, from one that has it; all processes take part."""
        assert self._chosen
        number = min(processes & self._chosen.owners.keys())
        source = self._chosen.owners[number]
        part = self._parts.get(self._chosen.key, {}).get(number) if source == self._index else None
        shape = [end - begin for begin, end in piece]
        values = sent(part.piece(name, piece) if part else None, shape, leaf.dtype, source)
        return {piece: values} if self._index in processes else {}

    # Saving

    def begin(self) -> None:
        """Begins to save: a life of the run of its own, unless it goes on from a near checkpoint.

        Raises:
          UserError: if nothing can be written in the folder.
        """
        with self._barrier.agreed("the folder of near checkpoints"):
            try:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                raise UserError(
                    f"{self.folder}: near checkpoints cannot be written there ({error.strerror}): name another folder "
                    f"by config.checkpoint.near_dir"
                ) from error
        is_new = not self._run or self._chosen is None
        number = secrets.randbelow(1 << 40) + 1 if self._index == 0 else 0
        self._start = self._barrier.largest(number, "the first near checkpoint")
        if is_new:
            self._run = self._start
            if self._index == 0:
                write_json(self._workdir / FILE, {"run": self._run})
        after = self._chosen.key if self._chosen else Key(-1, 0)
        for folder in self.folder.glob("*"):
            match = re.fullmatch(r"\.?(\d+)\.(\d+)\.\d+(\.half)?", folder.name)
            if match and int(match[2]) != self._start and (is_new or match[3] or int(match[1]) > after.step):
                shutil.rmtree(folder, ignore_errors=True)

    def save(self, step: int, state: Any, record: Mapping[str, Any]) -> None:
        """Saves in the background; returns once the arrays may be donated.

        A save that fails is told, and ends nothing. All processes must have waited for the save before (``wait``)
        when the first of them comes here: its end removes those before that one.

        Args:
          record: of the run; strict JSON.
        """
        arrays = named(state)
        self._groups = self._groups or groups(arrays.values())
        head = Head(
            self._run, step, self._start, self._index, self._count, self._mesh, self._groups,
            json.loads(json.dumps(record, allow_nan=False)),
        )  # fmt: skip
        for array in arrays.values():
            for data in shards(array).values():
                data.copy_to_host_async()
        pieces = {name: (jax.ShapeDtypeStruct(x.shape, x.dtype), here(x)) for name, x in arrays.items()}
        self._saving = threading.Thread(target=self._write, args=(head, pieces), daemon=True)
        self._saving.start()

    def _write(self, head: Head, pieces: dict[str, tuple[Any, Mapping[Piece, Any]]]) -> None:
        try:
            near_part.write(self.folder / head.name, head, pieces)
            steps = sorted({int(folder.name.partition(".")[0]) for folder in self.folder.glob(f"[0-9]*.{head.number}")})
            for folder in self.folder.glob("[0-9]*"):
                if len(steps) >= KEEP and int(folder.name.partition(".")[0]) < steps[-KEEP]:
                    shutil.rmtree(folder, ignore_errors=True)
        except Exception as error:  # one that is not told would pass for a save
            self._error = error

    def wait(self) -> None:
        """Returns when the save in flight has ended; one that failed is told."""
        if self._saving:
            self._saving.join()
        error, self._saving, self._error = self._error, None, None
        if error:
            self._say(f"warning: a near checkpoint could not be written in {self.folder} ({error}): the run goes on, "
                      f"and a restart goes on from an older one")  # fmt: skip

    def clear(self) -> None:
        """Removes all that is on this node: a shared checkpoint has it. All processes have waited before."""
        shutil.rmtree(self.folder, ignore_errors=True)
