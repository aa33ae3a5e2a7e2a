"""Orbax as checkpoints use it: a manager with our policies, how arrays lie on disk, and what of its output is kept."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from jaxmm.checkpoints.checksums import META, STATE
from jaxmm.runtime.jax_internals import orbax_array_handler

if TYPE_CHECKING:  # importing it takes a third of a second: a run that has begun does
    import orbax.checkpoint as ocp

METRIC_KEY = "metric"
# Of a replicated array each device writes a part if that has so many bytes. Below it one device writes the whole:
# parts of parts are a program each to compile, while the step waits.
SLICED_BYTES = 1 << 20

_original_hook = sys.unraisablehook


def _without_closed_loops(unraisable: sys.UnraisableHookArgs) -> None:
    """TensorStore tells a failed save's event loop, which Orbax has closed, of every write: hundreds of tracebacks."""
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
        _original_hook(unraisable)


# Orbax narrates each save through absl, at WARNING and above by default; its errors reach us as exceptions anyway.
logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)
# Of a save that fails, one error reaches us and is told; asyncio prints the others when they are collected.
logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())


def make_manager(
    folder: Path, keep: int, keep_best: int, before_rename: Callable[[], None], shares_disk: bool = True
) -> ocp.CheckpointManager:
    """A manager that saves in the background. It begins with a barrier, so that all processes list the same steps.

    Args:
      keep: how many of the newest checkpoints stay.
      keep_best: how many of those with the lowest metric stay, besides.
      before_rename: called in Orbax's thread when the files of a save are whole, before the rename that makes it count.
      shares_disk: whether all processes write into one folder.
    """
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers

    sys.unraisablehook = _without_closed_loops
    policies = [
        checkpoint_managers.LatestN(keep),
        checkpoint_managers.BestN(
            get_metric_fn=_read_metric,
            reverse=True,  # the last of the sorted are kept: the lowest
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        ),
    ]
    return ocp.CheckpointManager(
        folder,
        handler_registry=_handlers(shares_disk),
        options=ocp.CheckpointManagerOptions(
            best_fn=_read_metric,
            best_mode="min",
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,  # what a killed save left
            async_options=ocp.AsyncOptions(post_finalization_callback=before_rename),
        ),
    )


def _read_metric(metrics: Mapping[str, float]) -> float:
    return metrics[METRIC_KEY]


def _handlers(shares_disk: bool) -> ocp.handlers.CheckpointHandlerRegistry:
    """How the items of a checkpoint are written and read."""
    import orbax.checkpoint as ocp

    types = ocp.type_handlers.create_type_handler_registry((jax.Array, orbax_array_handler(SLICED_BYTES, shares_disk)))
    state, meta = ocp.PyTreeCheckpointHandler(type_handler_registry=types), ocp.JsonCheckpointHandler()
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item, args, handler in (
        (STATE, ocp.args.PyTreeSave, state), (STATE, ocp.args.PyTreeRestore, state),
        (META, ocp.args.JsonSave, meta), (META, ocp.args.JsonRestore, meta),
    ):  # fmt: skip
        handlers.add(item, args, handler)
    return handlers


def restore_args(leaf: Any) -> ocp.ArrayRestoreArgs:
    """How an array of this shape, dtype and sharding is read; without a sharding on the first device."""
    import orbax.checkpoint as ocp

    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=tuple(leaf.shape), dtype=leaf.dtype)
