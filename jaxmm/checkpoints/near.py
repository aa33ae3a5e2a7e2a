"""Near checkpoints: every few steps each process writes its own pieces into a folder of its node, and sends none.

A start goes on from the newest one that is whole over all processes, if it is newer than the shared one. A node that is
new, or whose bytes have changed, gets its pieces from processes that hold the same ones. The shared checkpoints in the
workdir stay what counts: a near one saves the steps since, no more.

``near.json`` in the workdir has the number of the run, by which its folder on a node is named, and that of its life,
which is another one after each start from a shared checkpoint: parts of steps that were then done again are never taken
for the run's.
"""

from __future__ import annotations

import itertools
import json
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxmm.atomic import read_json, write_json
from jaxmm.checkpoints import checksums, near_part
from jaxmm.checkpoints.named import differences, named
from jaxmm.checkpoints.near_folder import NearFolder
from jaxmm.checkpoints.near_part import Head, Key, Part
from jaxmm.checkpoints.pieces import Piece, groups, here, holders, joined, places, shards
from jaxmm.errors import UserError
from jaxmm.runtime.barrier import Barrier
from jaxmm.sharding import sent
from jaxmm.workdir.folder import has_saved
from jaxmm.workdir.spool import name_of

FILE = "near.json"  # in the workdir
KEEP = 2


def forget(workdir: Path) -> None:
    """Ends the life of the run: its near checkpoints no longer count. For a start that saves none."""
    if is_alive(workdir):
        write_json(workdir / FILE, {"id": _number(workdir, "id")})


def is_alive(workdir: Path) -> bool:
    """Whether near checkpoints of the run may count."""
    return bool(_number(workdir, "run"))


def _number(workdir: Path, key: str) -> int:
    """Of ``near.json``; 0 where there is none."""
    number = read_json(workdir / FILE).get(key)
    return number if isinstance(number, int) and number > 0 else 0


def _drawn() -> int:
    return secrets.randbelow(1 << 40) + 1


class Chosen(NamedTuple):
    """The near checkpoint that a start goes on from.

    Attributes:
      record: of the run.
      owners: by a part's place the process that has it, and has compared its bytes.
      lacking: the processes that have no part of their own.
    """

    key: Key
    record: dict[str, Any]
    owners: dict[int, int]
    lacking: list[int]


class Near:
    """The near checkpoints of one run; a context manager, whose end waits for the save in flight.

    In a job of several processes each makes one and calls every method, with the same arguments. A process goes by its
    place in the mesh, not by its number in the job, which the next start may give to another machine.

    Args:
      folder: ``config.checkpoint.near_dir``; '' is a folder of this user in the system's temporary one.
      workdir: of the run.
      mesh: of the run.
      say: prints a line.

    Raises:
      UserError: if nothing can be written in the folder.
    """

    _numbers = itertools.count()  # of the instances, the same in all processes of a job

    def __init__(self, folder: str, workdir: Path, mesh: Mesh, say: Callable[[str], None]) -> None:
        self._workdir, self._mesh, self._say = workdir, dict(mesh.shape), say
        self._index, self._count = jax.process_index(), jax.process_count()
        processes = [device.process_index for device in mesh.devices.flat]
        self._places = places(processes)  # by process
        self._dealt = [self._places[process] for process in processes]  # by device of the mesh
        self._barrier = Barrier(f"near checkpoints {next(self._numbers)}")
        number = (_number(workdir, "id") or _drawn()) if self._index == 0 else 0
        self._id = self._barrier.largest(number, "the folder of near checkpoints")
        self._folder = NearFolder(folder, name_of(workdir.resolve()), self._id)
        with self._barrier.agreed("the folder of near checkpoints"):
            self._folder.check()
        self._run = self._start = 0  # numbers of the run's life, and of this start
        self._groups: list[list[int]] = []
        self._parts: dict[Key, dict[int, Part]] = {}  # that are whole here, by their places
        self._chosen: Chosen | None = None
        self._saving: threading.Thread | None = None
        self._error: Exception | None = None

    def __enter__(self) -> Near:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.wait()

    @property
    def folder(self) -> Path:
        """Of this run, on this node."""
        return self._folder.path

    # Choosing

    def choose(self, shared: int) -> Chosen | None:
        """The newest near checkpoint that all parts of are together, and newer than the shared one; None for none.

        Reads no array onto a device. A part whose bytes are not those that were written does not count.

        Args:
          shared: the step of the shared checkpoint; 0 for none.
        """
        if line := self._folder.others_line():
            self._say(line)
        is_known = self._index == 0 and has_saved(self._workdir)
        self._run = self._barrier.largest(_number(self._workdir, "run") if is_known else 0, "near checkpoints")
        if not self._run:
            if self._folder.parts():
                self._say(f"near checkpoints in {self.folder} no longer count: passed over")
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
        parts: dict[Key, dict[int, Part]] = {}
        others = 0
        unfit: set[str] = set()
        for folder in self._folder.parts():
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
                    parts.setdefault(part.head.key, {})[part.head.place] = part
        for why in sorted(unfit):
            self._say(why)
        if others:
            self._say(f"near checkpoints in {self.folder} are of an earlier life of this run: passed over")
        return parts

    def _unfit(self, head: Head) -> str:
        """Why this job cannot go on from a part, by its layout; '' where it can."""
        if (head.processes, head.mesh, head.dealt) == (self._count, self._mesh, self._dealt):
            return ""
        if (head.processes, head.mesh) == (self._count, self._mesh):
            return (
                f"near checkpoint {head.step} was saved by processes that had other devices of the mesh than they "
                f"have here: passed over"
            )
        was, now = (
            f"{count} process{'es' * (count > 1)} on mesh {mesh}"
            for count, mesh in ((head.processes, head.mesh), (self._count, self._mesh))
        )
        return f"near checkpoint {head.step} was saved by {was}, and here are {now}: passed over"

    def _newest(self) -> Chosen | None:
        """The newest whole one of those that all processes have in ``_parts``."""
        listed = [[self._index, *key, place] for key, parts in self._parts.items() for place in parts]
        seers: dict[Key, dict[int, set[int]]] = {}
        for process, step, start, place in self._barrier.gathered(listed, "near checkpoints"):
            seers.setdefault(Key(step, start), {}).setdefault(place, set()).add(process)
        keys = sorted(seers)
        known = [rank for rank, key in enumerate(keys, 1) if self._is_whole(key, seers[key])]
        if not (rank := self._barrier.largest(max(known, default=0), "the newest near checkpoint")):
            return None
        key = keys[rank - 1]
        at_place = {place: process for process, place in self._places.items()}
        owners = {
            place: at_place[place] if at_place[place] in at else min(at) for place, at in sorted(seers[key].items())
        }
        lacking = [
            process for process in range(self._count) if process not in seers[key].get(self._places[process], ())
        ]
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
        for place in [place for place, owner in chosen.owners.items() if owner == self._index]:
            if fault := checksums.verify(parts[place].folder):
                self._say(f"warning: ignoring the near checkpoint {parts[place].folder}: {fault.text}")
                del parts[place]
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
            if differing := differences(part.shapes(), wanted):
                raise UserError(
                    f"near checkpoint {part.folder} does not fit this run: {differing[0]}; use the config and the "
                    f"version of jaxmm that it was saved with, or remove it to go on from the shared one"
                )
        own = parts.get(self._places[self._index])
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
            why = "its arrays are cut otherwise than those of this run" if isinstance(error, LookupError) else error
            raise UserError(f"near checkpoint {self.folder}/{self._chosen.key.step}.*: {why}; remove it to go on from "
                            f"the shared one") from error  # fmt: skip
        return jax.tree.unflatten(jax.tree.structure(abstract_state), arrays.values())

    def _exchanged(self, name: str, leaf: Any, piece: Piece, processes: set[int]) -> dict[Piece, Any]:
        """A piece that some process lacks, from one that has it; all processes take part."""
        assert self._chosen
        place = min({self._places[process] for process in processes} & self._chosen.owners.keys())
        source = self._chosen.owners[place]
        part = self._parts.get(self._chosen.key, {}).get(place) if source == self._index else None
        shape = [end - begin for begin, end in piece]
        values = sent(part.piece(name, piece) if part else None, shape, leaf.dtype, source)
        return {piece: values} if self._index in processes else {}

    # Saving

    def begin(self) -> None:
        """Begins to save: a life of the run of its own, unless it goes on from a near checkpoint."""
        is_new = not self._run or self._chosen is None
        self._start = self._barrier.largest(_drawn() if self._index == 0 else 0, "the first near checkpoint")
        if is_new:
            self._run = self._start
            if self._index == 0:
                write_json(self._workdir / FILE, {"id": self._id, "run": self._run})
        self._folder.make()
        self._folder.remove_others(self._start, -1 if is_new or not self._chosen else self._chosen.key.step)

    def save(self, step: int, state: Any, record: Mapping[str, Any]) -> None:
        """Saves in the background; returns once the arrays may be donated.

        A save that fails is told, and ends nothing. All processes must have waited for the save before (``wait``)
        when the first of them comes here: its end removes those before that one.

        Args:
          record: of the run; strict JSON.
        """
        arrays = named(state)
        self._groups = self._groups or groups(arrays.values(), self._places)
        head = Head(
            self._run, step, self._start, self._places[self._index], self._count, self._mesh, self._dealt, self._groups,
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
            self._folder.keep_newest(KEEP, head.place)
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

    def clear(self, step: int) -> None:
        """Removes what a shared checkpoint of this step has from this node. All processes have waited before."""
        self._folder.remove(up_to=step)
