"""Checkpoints of a run: each is one atomic whole of arrays and a small JSON record, restored onto any mesh.

Orbax writes and prunes them. A state travels as a flat ``{"params.decoder.embedding": array}``: so NamedTuples and
empty optimizer states need nothing special, a part of it is a prefix, and differences are told by name. What is on disk
is judged here: a checkpoint that was cut short, or lost a file later, is never chosen.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import jax
import tensorstore

from jaxmm.errors import StrandedError, UserError

if TYPE_CHECKING:  # importing it takes a third of a second: methods do, once a run has begun
    import orbax.checkpoint as ocp

PyTree = Any

STATE, META, METRICS = "state", "meta", "metrics"  # what a checkpoint holds: folders in the folder of its step
METRIC = "metric"

# Orbax narrates each save through absl, at WARNING and above by default; its errors reach us as exceptions anyway.
logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)


class Checkpoints:
    """The checkpoints in one folder; a context manager, whose end waits for the save in flight.

    Reading never changes the folder, so that ``evaluate`` can look at a run in progress. In a run of many processes
    each calls every method, with the same arguments.

    Args:
      folder: holds one folder a checkpoint, named by its step. Made by the first save.
      keep: how many of the newest checkpoints stay.
      keep_best: how many of those with the lowest metric stay, besides.
    """

    def __init__(self, folder: Path, keep: int = 2, keep_best: int = 1) -> None:
        if keep < 1 or keep_best < 0:
            raise UserError(f"checkpoints to keep: {keep} newest and {keep_best} best; keep at least the newest 1")
        self.folder = folder.absolute()
        self._keep, self._keep_best = keep, keep_best
        self._manager: ocp.CheckpointManager | None = None  # made by the first save
        self._saving: int | None = None
        self._faults: dict[int, str] = {}  # step -> what is wrong with it, '' for nothing

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not isinstance(error, StrandedError):  # saving waits for all processes
            self.close()

    # What is there

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, ascending. Waits for the save in flight."""
        self.wait()
        if not self.folder.is_dir():
            return []
        steps = sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal() and path.is_dir())
        for step in steps:
            if step not in self._faults:
                self._faults[step] = fault = _fault(self._path(step))
                if fault and jax.process_index() == 0:
                    print(f"warning: ignoring the incomplete checkpoint {self._path(step)}: {fault}", file=sys.stderr)
        return [step for step in steps if not self._faults[step]]

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step of the complete checkpoint with the lowest metric (the newest of equals), or None."""
        metrics = {step: value for step in self.steps() if (value := self._metric(step)) is not None}
        return min(metrics, key=lambda step: (metrics[step], -step), default=None)

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """The record saved with the checkpoint of ``step`` (default: the newest)."""
        import orbax.checkpoint as ocp

        path = self._path(self._chosen(step))
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
        scored = {METRIC: float(metric)} if metric is not None and math.isfinite(metric) else None
        self.wait()
        self._saving = step
        try:
            # force: Orbax skips a step below one it has seen, such as the first after falling back on an older step.
            manager.save(
                step,
                args=ocp.args.Composite(**{STATE: ocp.args.PyTreeSave(_flat(state)), META: ocp.args.JsonSave(record)}),
                metrics=scored,
                force=True,
            )
        except OSError as error:
            raise self._save_failed(step, error) from error

    def wait(self) -> None:
        """Returns when the save in flight is complete on disk. Raises UserError if it failed."""
        if self._manager is None or self._saving is None:
            return
        step, self._saving = self._saving, None
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:  # TensorStore raises ValueError for a full disk
            raise self._save_failed(step, error) from error

    def close(self) -> None:
        """Waits for the save in flight and ends Orbax's threads."""
        try:
            self.wait()
        finally:
            if self._manager is not None:
                self._manager.close()
                self._manager = None

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
        import orbax.checkpoint as ocp

        path = self._path(self._chosen(step))
        wanted = _flat(abstract, key)
        if not wanted:
            return abstract
        with ocp.PyTreeCheckpointer() as reader:
            saved = reader.metadata(path / STATE).item_metadata.tree
            if key:
                saved = {name: leaf for name, leaf in saved.items() if name == key or name.startswith(f"{key}.")}
            # Orbax itself would cast, crop or pad an array that differs.
            if differences := _differences(saved, wanted):
                more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
                raise UserError(
                    f"checkpoint {path} does not fit this run: {differences[0]}{more}; "
                    "use the config it was saved with, or another workdir"
                )
            try:
                restored = reader.restore(
                    path / STATE,
                    args=ocp.args.PyTreeRestore(
                        item=wanted,
                        restore_args={name: _restore_args(leaf) for name, leaf in wanted.items()},
                        partial_restore=True,
                    ),
                )
            except Exception as error:
                cause = error.__cause__ or error  # Orbax wraps TensorStore's in a bare Exception
                if not isinstance(cause, OSError | ValueError):
                    raise
                raise UserError(
                    f"checkpoint {path} cannot be read ({_first_line(cause)}); remove it to go on from an older one"
                ) from error
        return jax.tree.unflatten(jax.tree.structure(abstract), [restored[name] for name in wanted])

    # Parts

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def _chosen(self, step: int | None) -> int:
        steps = self.steps()
        if step is None and steps:
            return steps[-1]
        if step is None or step not in steps:
            have = ", ".join(map(str, steps)) or "none"
            which = "no complete checkpoint" if step is None else f"no complete checkpoint of step {step}"
            raise UserError(f"{self.folder} holds {which} (complete: {have}); train first, or give another workdir")
        return step

    def _metric(self, step: int) -> float | None:
        import orbax.checkpoint as ocp

        path = self._path(step) / METRICS
        if not (path / METRICS).is_file():
            return None
        return float(ocp.JsonCheckpointHandler(filename=METRICS).restore(path)[METRIC])

    def _writer(self) -> ocp.CheckpointManager:
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers

        if self._manager is None:
            self.steps()
            if jax.process_index() == 0:
                for step in (step for step, fault in self._faults.items() if fault):
                    # Left in its place, Orbax would count it, and refuse to save its step again.
                    aside = self.folder / f"{step}.incomplete"
                    shutil.rmtree(aside, ignore_errors=True)
                    self._path(step).rename(aside)
            self._faults = {step: fault for step, fault in self._faults.items() if not fault}
            self._manager = ocp.CheckpointManager(  # begins with a barrier, so that all processes list the same steps
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    best_fn=_read_metric,
                    best_mode="min",
                    preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                        [
                            checkpoint_managers.LatestN(self._keep),
                            checkpoint_managers.BestN(
                                get_metric_fn=_read_metric,
                                reverse=True,  # the last of the sorted are kept: the lowest
                                n=self._keep_best,
                                keep_checkpoints_without_metrics=False,
                            ),
                        ]
                    ),
                    cleanup_tmp_directories=True,  # what a killed save left
                ),
            )
        return self._manager

    def _save_failed(self, step: int, error: Exception) -> UserError:
        return UserError(f"the checkpoint of step {step} could not be saved in {self.folder}: {_first_line(error)}")


def _read_metric(metrics: Mapping[str, float]) -> float:
    return metrics[METRIC]


def _flat(tree: PyTree, prefix: str = "") -> dict[str, Any]:
    """The leaves of a tree by their dotted path. In the tree's own order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    flat = {".".join(filter(None, (prefix, name))): leaf for name, (_, leaf) in zip(names, leaves, strict=True)}
    if len(flat) != len(leaves):
        raise ValueError(f"two leaves of the state share a dotted path: {sorted(names)}")
    return flat


def _restore_args(leaf: Any) -> ocp.ArrayRestoreArgs:
    import orbax.checkpoint as ocp

    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=tuple(leaf.shape), dtype=leaf.dtype)


def _differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    def kind(leaf: Any) -> str:
        return f"{leaf.dtype}{list(leaf.shape)}"

    lines = [f"{name} is not in it" for name in wanted if name not in saved]
    lines += [f"{name} is only in it" for name in saved if name not in wanted]
    both = [name for name in wanted if name in saved and kind(saved[name]) != kind(wanted[name])]
    return lines + [f"{name} is {kind(saved[name])} there and {kind(wanted[name])} here" for name in both]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _fault(path: Path) -> str:
    """What is missing from the checkpoint at ``path``, or '' if it is complete.

    A save cut short leaves no folder of this name (Orbax renames it last). This finds what a crash of the machine, a
    half copy or a half removal leaves: the array store's own index says which bytes of which files it needs.
    """
    needed = ["_CHECKPOINT_METADATA", f"{META}/metadata", f"{STATE}/_METADATA"]
    optional = [f"{METRICS}/{METRICS}", f"{STATE}/_sharding", f"{STATE}/array_metadatas/*"]
    found = [str(file.relative_to(path)) for pattern in optional for file in path.glob(pattern)]
    for name in (*needed, *found):
        try:
            json.loads((path / name).read_text())
        except (OSError, ValueError):
            return f"{name} is missing or cut short"
    try:
        store = tensorstore.KvStore.open({"driver": "file", "path": f"{path / STATE}/"}).result()
        nodes = [tensorstore.ocdbt.dump(store).result()["versions"][-1]["root"]["location"]]
        ends: dict[str, int] = {}  # file -> bytes it must have
        while nodes:
            for place in (node := nodes.pop(), *_values(tensorstore.ocdbt.dump(store, node).result(), nodes)):
                _, base, file, offset, length = place.split(":")
                name = f"{STATE}/{unquote(base)}{unquote(file)}"
                ends[name] = max(ends.get(name, 0), int(offset) + int(length))
    except (OSError, ValueError, LookupError) as error:
        return f"the index of {STATE} cannot be read ({_first_line(error)[:120]})"
    for name, end in ends.items():
        if not (path / name).is_file() or (path / name).stat().st_size < end:
            return f"{name} is missing or cut short"
    return ""


def _values(node: Mapping[str, Any], nodes: list[str]) -> list[str]:
    """Where a node of the index keeps its values; appends its child nodes to ``nodes``."""
    nodes += [entry["location"] for entry in node["entries"] if "location" in entry]
    return [entry["indirect_value"] for entry in node["entries"] if "indirect_value" in entry]
