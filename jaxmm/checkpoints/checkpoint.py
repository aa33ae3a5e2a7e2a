"""Checkpoints of a run: each is one atomic whole of arrays and a small JSON record, restored onto any mesh.

Orbax writes and prunes them. A state travels as a flat ``{"params.decoder.embedding": array}``: so NamedTuples and
empty optimizer states need nothing special, a part of it is a prefix, and differences are told by name. One that was
cut short, lost a file or changed a bit later (``checksums``) is never chosen; one that cannot be read is never touched.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import jax

from jaxmm.checkpoints import checksums
from jaxmm.checkpoints.checksums import META, METRICS, STATE, Fault
from jaxmm.checkpoints.manager import METRIC_KEY, make_manager, restore_args
from jaxmm.checkpoints.named import differences, is_within, named
from jaxmm.checkpoints.parted import Parts
from jaxmm.checkpoints.stored import Stored, local_steps
from jaxmm.errors import StrandedError, UserError
from jaxmm.runtime.barrier import SECONDS, Barrier
from jaxmm.workdir.objects import StoreError

if TYPE_CHECKING:  # importing it takes a third of a second: methods do, once a run has begun
    import orbax.checkpoint as ocp

PyTree = Any

ASIDE, WHY = ".incomplete", "fault.txt"  # what a broken checkpoint's name ends with, and a file in it that says why
FILE_BYTES = 1 << 28  # about, of a file of arrays that goes to a store: some are in memory at once


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Checkpoints:
    """The checkpoints in one folder; a context manager, whose end waits for the save in flight.

    Reading never changes the folder, so that ``evaluate`` can look at a run in progress. In a run of many processes
    each calls every method, with the same arguments.

    Args:
      folder: holds one folder a checkpoint, named by its step. Made by the first save.
      keep: how many of the newest checkpoints stay.
      keep_best: how many of those with the lowest metric stay, besides.
      on_save: called with the step of each save that is complete on disk.
      say: prints a line.
    """

    _numbers = itertools.count()  # of the instances, the same in all processes of a job

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        keep_best: int = 1,
        on_save: Callable[[int], None] = lambda step: None,
        say: Callable[[str], None] = _to_stderr,
    ) -> None:
        if keep < 1 or keep_best < 0:
            raise UserError(f"checkpoints to keep: {keep} newest and {keep_best} best; keep at least the newest 1")
        self.folder = folder.resolve()  # TensorStore takes no path with '..'
        self._keep, self._keep_best = keep, keep_best
        self._on_save, self._say = on_save, say
        self._manager: ocp.CheckpointManager | None = None  # made by the first save
        self._saving: int | None = None
        self._stored = Stored.of(self.folder)  # where the workdir is in a store
        self._sending: threading.Thread | None = None
        self._unsent: Exception | None = None  # why the last save is not in the store
        self._parts: Parts | None = None  # of a job of several processes, none of which sees another's spool
        self._sealing, self._has_failed = 0, False  # its step, for Orbax's thread; whether the last save failed
        self._faults: dict[int, Fault | None] = {}
        self._verified: set[tuple[int, str]] = set()  # (step, part) whose bytes were found to be those written
        self._barrier = Barrier(f"checkpoints {next(self._numbers)}")

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not isinstance(error, StrandedError):  # saving waits for all processes
            self.close()

    @property
    def _is_parted(self) -> bool:
        """Whether no process has a whole checkpoint, as several write to a store."""
        return self._stored is not None and jax.process_count() > 1

    @property
    def place(self) -> str:
        """The folder, or its URL in a store."""
        return self._stored.url if self._stored else str(self.folder)

    # What is there

    def steps(self) -> list[int]:
        """The steps of the checkpoints from which nothing is missing, ascending. Waits for the save in flight."""
        return [step for step, fault in self._look().items() if not fault]

    def faults(self) -> dict[int, str]:
        """What is wrong with the others, by step."""
        return {step: fault.text for step, fault in self._look().items() if fault}

    def latest(self) -> int | None:
        """The step of the newest checkpoint that is as it was written, bit for bit, or None.

        Raises:
          UserError: if there is one that cannot be read, and may be newer: nobody knows whether it is broken.
        """
        for step in reversed(self._look()):
            fault = self._faults[step] or self._verify(step)
            if not fault:
                return step
            if not fault.is_proven:
                raise self._cannot_be_read(step, fault.text)
        return None

    def best(self) -> int | None:
        """The step of the intact checkpoint with the lowest metric (the newest of equals), or None."""
        metrics = {step: value for step in self.steps() if (value := self._metric(step)) is not None}
        by_metric = sorted(metrics, key=lambda step: (metrics[step], -step))
        return next((step for step in by_metric if not self._verify(step)), None)

    def best_line(self) -> str:
        """Names the best checkpoint, '' where none was evaluated when it was saved."""
        best = self.best()
        return "" if best is None else f"; the best by its evaluation loss is that of step {best} (--step=best)"

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """The record saved with the checkpoint of ``step`` (default: the newest)."""
        import orbax.checkpoint as ocp

        path = self._path(self._chosen(step, META))
        return dict(ocp.JsonCheckpointHandler().restore(path / META))

    # Saving

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any], metric: float | None = None) -> None:
        """Saves in the background; returns once the arrays may be donated. A step that is already saved stays as it is.

        Args:
          step: the checkpoint's name.
          state: any pytree of jax.Arrays.
          meta: strict JSON.
          metric: lower is better. None or not finite: never among the best.

        Raises:
          UserError: this save could not start, or the one before it failed.
        """
        import orbax.checkpoint as ocp

        record = json.loads(json.dumps(meta, allow_nan=False))  # fails here, not in the background
        manager = self._writer()
        if step in manager.all_steps():
            return
        scored = {METRIC_KEY: float(metric)} if metric is not None and math.isfinite(metric) else None
        self.wait()
        self._saving = self._sealing = step
        self._has_failed = False
        size = FILE_BYTES if self._stored else None
        try:
            # force: Orbax skips a step below one it has seen, such as the first after falling back on an older step.
            manager.save(
                step,
                args=ocp.args.Composite(
                    **{
                        STATE: ocp.args.PyTreeSave(named(state), ocdbt_target_data_file_size=size),
                        META: ocp.args.JsonSave(record),
                    }
                ),
                metrics=scored,
                custom_metadata=checksums.PROMISE,
                force=True,
            )
        except (OSError, ValueError) as error:
            raise self._save_failed(step, error) from error
        if self._stored:
            self._sending = threading.Thread(target=self._send, args=(manager, self._stored, step), daemon=True)
            self._sending.start()

    def wait(self) -> None:
        """Returns when the save in flight is complete on disk. Raises UserError if it failed."""
        if self._manager is None or self._saving is None:
            return
        step, self._saving = self._saving, None
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:  # TensorStore raises ValueError for a full disk
            raise self._save_failed(step, error) from error
        if self._stored:
            self._wait_for_store(self._stored, step)
        if jax.process_index() == 0:
            self._on_save(step)
            self._clean(step)

    def _send(self, manager: ocp.CheckpointManager, stored: Stored, step: int) -> None:
        """Sends the save in flight to the store once it is whole here; in a thread."""
        while manager.is_saving_in_progress():
            time.sleep(0.02)
        try:
            if self._parts:
                self._parts.send(step, SECONDS)
            elif self._path(step).is_dir():  # else it has failed, which the manager tells
                stored.send(step)
            if jax.process_index() == 0:
                stored.prune(self._keep, self._keep_best)
            if self._parts:
                self._parts.end(step)
        except Exception as error:  # one that is not told would pass for a save
            self._unsent = error

    def _wait_for_store(self, stored: Stored, step: int) -> None:
        """Returns when the save is in the store."""
        if self._sending:
            self._sending.join()
        error, self._sending, self._unsent = self._unsent, None, None
        if error and not isinstance(error, StoreError | OSError):
            raise error
        if error:
            way = (
                f"; it is whole in {self._path(step)}, and the same command on this machine sends it first"
                if self._parts is None
                else ""
            )
            raise UserError(f"the checkpoint of step {step} is not in {stored.url}: {error}{way}") from error

    def settle(self) -> None:
        """What ``wait`` does, if the save in flight is complete already."""
        if self._manager is None or self._saving is None or self._manager.is_saving_in_progress():
            return
        if self._stored and (jax.process_count() > 1 or (self._sending and self._sending.is_alive())):
            return  # processes meet where they wait for the store
        self.wait()

    def close(self) -> None:
        """Waits for the save in flight and ends Orbax's threads."""
        try:
            self.wait()
        finally:
            manager, self._manager = self._manager, None
            # Orbax says once more why a save failed.
            with contextlib.suppress(OSError, ValueError) if self._has_failed else contextlib.nullcontext():
                if manager is not None:
                    manager.close()

    # Restoring

    def restore(self, abstract_state: PyTree, step: int | None = None) -> PyTree:
        """Restores the whole state.

        Args:
          abstract_state: the saved structure with jax.ShapeDtypeStructs (or arrays) for leaves, each with the sharding
            to restore onto: any mesh, of any number of devices; without one, the default device.
          step: default: the newest.

        Returns:
          The structure of ``abstract_state``, bit-equal to what was saved.

        Raises:
          UserError: there is no such checkpoint, it cannot be read, or names, shapes or dtypes differ.
        """
        return self._restore(abstract_state, "", step)

    def restore_part(self, abstract_part: PyTree, key: str, step: int | None = None) -> PyTree:
        """Restores only ``state[key]`` ("params", or deeper: "params.vision"); no other array is read."""
        return self._restore(abstract_part, key, step)

    def _restore(self, abstract: PyTree, key: str, step: int | None) -> PyTree:
        path = self._path(self._chosen(step, STATE))
        wanted = named(abstract, key)
        if not wanted:
            return abstract
        read = self._read_shards if self._is_parted else self._read_whole
        restored = read(path, wanted, key)
        return jax.tree.unflatten(jax.tree.structure(abstract), [restored[name] for name in wanted])

    def _read_shards(self, path: Path, wanted: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        """From the store, as no process has the whole here."""
        assert self._stored
        arrays = self._stored.arrays(int(path.name))
        saved = {name: leaf for name, leaf in arrays.look(wanted).items() if is_within(name, key)}
        self._check_fit(path, saved, wanted)
        return arrays.read(wanted)

    def _read_whole(self, path: Path, wanted: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        import orbax.checkpoint as ocp

        with ocp.PyTreeCheckpointer() as reader:
            saved = reader.metadata(path / STATE).item_metadata.tree
            saved = {name: leaf for name, leaf in saved.items() if is_within(name, key)}
            # Orbax itself would cast, crop or pad an array that differs.
            self._check_fit(path, saved, wanted)
            try:
                return reader.restore(
                    path / STATE,
                    args=ocp.args.PyTreeRestore(
                        item=wanted,
                        restore_args={name: restore_args(leaf) for name, leaf in wanted.items()},
                        partial_restore=True,
                    ),
                )
            except Exception as error:
                cause = error.__cause__ or error  # Orbax wraps TensorStore's in a bare Exception
                if not isinstance(cause, OSError | ValueError):
                    raise
                raise UserError(
                    f"checkpoint {self._told(int(path.name))} cannot be read ({_first_line(cause)}); remove it to go "
                    f"on from an older one"
                ) from error

    def _check_fit(self, path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        if found := differences(saved, wanted):
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise UserError(
                f"checkpoint {self._told(int(path.name))} does not fit this run: {found[0]}{more}; "
                "use the config it was saved with, or another workdir"
            )

    # Parts

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def _told(self, step: int) -> str:
        return f"{self.place}/{step}"

    def _look(self) -> dict[int, Fault | None]:
        """What is missing from each checkpoint, by step, ascending; a line for each fault that is new."""
        self.wait()
        steps = self._stored.steps() if self._stored else local_steps(self.folder)
        for step in steps:
            if step not in self._faults:
                fault = self._stored.look(step) if self._stored else checksums.look(self._path(step))
                self._note(step, fault, told=jax.process_index() == 0)
        self._faults = {step: self._faults[step] for step in steps}
        return self._faults

    def _verify(self, step: int, part: str = "") -> Fault | None:
        """Compares the checkpoint's bytes with their checksums, each process some of its files."""
        if fault := self._faults[step]:
            return fault
        if {(step, part), (step, "")} & self._verified:
            return None
        path = self._path(step)
        own = self._compared(step, part)
        worst = self._barrier.largest(0 if not own else 1 if own.is_proven else 2, f"the reading of {path}")
        fault = own or (
            Fault("a file that another process read is not as it was written", worst == 1, True) if worst else None
        )
        self._note(step, fault, told=own is not None)
        if not fault:
            self._verified.add((step, part))
            if part != META and jax.process_index() == 0 and not checksums.has_record(path):
                self._say(f"checkpoint {path} has no checksums (version 0.1 wrote none): it is taken as it is")
        return fault

    def _compared(self, step: int, part: str) -> Fault | None:
        """What differs in this process's share of the files; from a store they are fetched first."""
        path = self._path(step)
        if not self._stored:
            return checksums.verify(path, part, (jax.process_index(), jax.process_count()))
        if self._is_parted and part in ("", STATE):
            share = (jax.process_index(), jax.process_count())
            return self._compared(step, META) or self._stored.compare(step, STATE, share)
        if fault := self._stored.fetch(step, part):
            return fault
        if fault := checksums.verify(path, part):
            self._stored.forget(step)  # it may be this copy that has changed
            fault = self._stored.fetch(step, part) or checksums.verify(path, part)
        return fault

    def _note(self, step: int, fault: Fault | None, told: bool) -> None:
        self._faults[step] = fault
        if fault and told:
            kind = "unreadable" if not fault.is_proven else "damaged" if fault.differs else "incomplete"
            aside = f"takes away its {checksums.RECORD}" if self._stored else f"renames it to {step}{ASIDE}"
            way = f" (the next save {aside})" if fault.is_proven else ""
            self._say(f"warning: ignoring the {kind} checkpoint {self._told(step)}: {fault.text}{way}")

    def _cannot_be_read(self, step: int, why: str) -> UserError:
        older = max((other for other in self.steps() if other < step), default=None)
        way = f"move it to another folder to go on from step {older}" if older is not None else "give another --workdir"
        return UserError(
            f"checkpoint {self._told(step)} cannot be read ({why}), which does not prove it broken: nothing was "
            f"changed; mend that, or {way}"
        )

    def _chosen(self, step: int | None, part: str) -> int:
        """The step, or the newest intact one; what is read of it has its checksums."""
        if step is None and (latest := self.latest()) is not None:
            return latest
        steps = self.steps()
        if step in steps and (fault := self._verify(step, part)):
            if not fault.is_proven:
                raise self._cannot_be_read(step, fault.text)
            steps = self.steps()
        if step is None or step not in steps:
            bad = "".join(f"; {n} cannot be read: {text}" for n, text in [*self.faults().items()][-3:])
            have = (", ".join(map(str, steps)) or "none") + bad
            which = "no complete checkpoint" if step is None else f"no complete checkpoint of step {step}"
            raise UserError(f"{self.place} holds {which} (complete: {have}); train first, or give another workdir")
        return step

    def _metric(self, step: int) -> float | None:
        import orbax.checkpoint as ocp

        path = self._path(step) / METRICS
        if self._stored and self._stored.fetch(step, METRICS):
            return None
        if not (path / METRICS).is_file() or self._verify(step, METRICS):
            return None
        return float(ocp.JsonCheckpointHandler(filename=METRICS).restore(path)[METRIC_KEY])

    def _writer(self) -> ocp.CheckpointManager:
        if self._manager is None:
            self._look()
            if jax.process_index() == 0:
                for step in (step for step, fault in self._faults.items() if fault and fault.is_proven):
                    self._put_aside(step)
                if self._stored:
                    self._stored.remove_unfinished(0, self._say)
            if self._stored:  # what is here in part, or of a save that the store has not
                for step in local_steps(self.folder):
                    if self._is_parted or (step, "") not in self._verified:
                        self._stored.forget(step)
            self._faults = {step: fault for step, fault in self._faults.items() if not (fault and fault.is_proven)}
            if self._stored and self._is_parted:
                number = secrets.randbelow(1 << 40) + 1 if jax.process_index() == 0 else 0
                job = self._barrier.largest(number, "the first save")
                self._parts = Parts(self._stored, jax.process_index(), jax.process_count(), job)
            self._manager = make_manager(
                self.folder, self._keep, self._keep_best, self._seal, shares_disk=self._parts is None
            )  # fmt: skip
        return self._manager

    def _seal(self) -> None:
        """Writes the checksums of the save in flight, in Orbax's thread, before the rename that makes it count.

        Process 0 reads all files, also the others', from the file system that they share. Where they share none, its
        folder is a part, which no record may call whole: a kill before the others' parts are joined to it leaves it.
        """
        if self._has_failed:
            raise OSError("a part of this save has failed")
        if jax.process_index() == 0 and self._parts is None:
            half = [path for path in self.folder.glob(f"{self._sealing}.*-tmp*") if path.is_dir()]
            folder = half[0] if half else self._path(self._sealing)
            checksums.wait_for_promise(folder)
            checksums.write_record(folder)

    def _put_aside(self, step: int) -> None:
        """Renames a broken checkpoint: in its place Orbax would count it, and refuse to save its step again."""
        aside, fault = self.folder / f"{step}{ASIDE}", self._faults[step]
        if self._stored:
            self._stored.put_aside(step, fault.text if fault else "")
            return
        shutil.rmtree(aside, ignore_errors=True)
        self._path(step).rename(aside)
        with contextlib.suppress(OSError):
            (aside / WHY).write_text(f"{fault.text if fault else ''}\n")

    def _clean(self, saved: int) -> None:
        """Removes the broken checkpoints of before a step that is saved. One that may be whole stays."""
        if self._stored:
            self._stored.remove_unfinished(saved, self._say)
            return
        for aside in self.folder.glob(f"*{ASIDE}"):
            step = aside.name.removesuffix(ASIDE)
            if step.isdecimal() and int(step) < saved:
                fault = checksums.look(aside)
                if (aside / WHY).exists() or (fault and fault.is_proven):
                    shutil.rmtree(aside, ignore_errors=True)
                    self._say(f"removed {aside}: it was broken, and step {saved} is saved")

    def _save_failed(self, step: int, error: Exception) -> UserError:
        self._saving, self._has_failed = None, True
        return UserError(f"the checkpoint of step {step} could not be saved in {self.folder}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 240 else f"{line[:100]} ... {line[-130:]}"  # the system's reason comes last
