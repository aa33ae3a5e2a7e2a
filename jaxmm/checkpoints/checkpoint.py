"""Checkpoints of a run: each is one atomic whole of arrays and a small JSON record, restored onto any mesh.

Orbax writes and prunes them. A state travels as a flat ``{"params.decoder.embedding": array}``: so NamedTuples and
empty optimizer states need nothing special, a part of it is a prefix, and differences are told by name. Which of them
are as they were written says ``inventory``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import jax

from jaxmm.checkpoints import checksums, disk_arrays
from jaxmm.checkpoints.checksums import META, STATE
from jaxmm.checkpoints.disk_arrays import check_fit, first_line
from jaxmm.checkpoints.inventory import Inventory
from jaxmm.checkpoints.manager import METRIC_KEY, make_manager
from jaxmm.checkpoints.named import is_within, named
from jaxmm.checkpoints.parted import Parts
from jaxmm.checkpoints.stored import Stored
from jaxmm.errors import StrandedError, UserError
from jaxmm.runtime.barrier import SECONDS, Barrier
from jaxmm.workdir.objects import StoreError

if TYPE_CHECKING:  # importing it takes a third of a second: methods do, once a run has begun
    import orbax.checkpoint as ocp

PyTree = Any

FILE_BYTES = 1 << 28  # about, of a file of arrays that goes to a store: some are in memory at once


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _told_best(step: int) -> str:
    return f"; the best by its evaluation loss is that of step {step} (--step=best)"


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
        self._on_save = on_save
        self._manager: ocp.CheckpointManager | None = None  # made by the first save
        self._saving: int | None = None
        self._stored = Stored.of(self.folder)  # where the workdir is in a store
        self._sending: threading.Thread | None = None
        self._unsent: Exception | None = None  # why the last save is not in the store
        self._parts: Parts | None = None  # of a job of several processes, none of which sees another's spool
        self._sealing, self._has_failed = 0, False  # its step, for Orbax's thread; whether the last save failed
        self._barrier = Barrier(f"checkpoints {next(self._numbers)}")
        self._inventory = Inventory(self.folder, self._stored, lambda: self._is_parted, self._barrier, say)
        self._say = say

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
        return self._inventory.place

    # What is there

    def steps(self) -> list[int]:
        """The steps of the checkpoints from which nothing is missing, ascending. Waits for the save in flight."""
        self.wait()
        return self._inventory.steps()

    def faults(self) -> dict[int, str]:
        """What is wrong with the others, by step."""
        self.wait()
        return self._inventory.faults()

    def latest(self) -> int | None:
        """The step of the newest checkpoint that is as it was written, bit for bit, or None.

        Raises:
          UserError: if there is one that cannot be read, and may be newer: nobody knows whether it is broken.
        """
        self.wait()
        return self._inventory.latest()

    def best(self) -> int | None:
        """The step of the intact checkpoint with the lowest metric (the newest of equals), or None."""
        self.wait()
        return self._inventory.best()

    def best_line(self) -> str:
        """Names the best checkpoint, '' where none was evaluated when it was saved."""
        best = self.best()
        return "" if best is None else _told_best(best)

    def closing_line(self) -> str:
        """Lists the checkpoints and names the best, '' where none was evaluated. By process 0 alone, which saw them
        written: another may see the folder as it was before the last of them."""
        self.wait()
        alone = Inventory(self.folder, self._stored, lambda: self._is_parted, None, self._say)
        return f"{', '.join(map(str, alone.steps()))}{_told_best(best)}" if (best := alone.best()) is not None else ""

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """The record saved with the checkpoint of ``step`` (default: the newest)."""
        import orbax.checkpoint as ocp

        self.wait()
        path = self._path(self._inventory.chosen(step, META))
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
            self._inventory.remove_broken(step)

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
        """Waits for the save in flight, ends Orbax's threads, and lets go of what was fetched."""
        try:
            self.wait()
        finally:
            if self._stored:
                self._stored.release()
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
        self.wait()
        step = self._inventory.chosen(step, STATE)
        wanted = named(abstract, key)
        if not wanted:
            return abstract
        if self._is_parted:
            restored = self._read_shards(step, wanted, key)
        else:
            restored = disk_arrays.read(self._path(step), wanted, key, self._inventory.told(step))
        return jax.tree.unflatten(jax.tree.structure(abstract), [restored[name] for name in wanted])

    def _read_shards(self, step: int, wanted: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        """From the store, as no process has the whole here."""
        assert self._stored
        arrays = self._stored.arrays(step)
        saved = {name: leaf for name, leaf in arrays.look(wanted).items() if is_within(name, key)}
        check_fit(saved, wanted, self._inventory.told(step))
        return arrays.read(wanted)

    # Parts

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def _writer(self) -> ocp.CheckpointManager:
        if self._manager is None:
            self.wait()
            self._inventory.put_aside_broken()
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

    def _save_failed(self, step: int, error: Exception) -> UserError:
        self._saving, self._has_failed = None, True
        return UserError(f"the checkpoint of step {step} could not be saved in {self.folder}: {first_line(error)}")
