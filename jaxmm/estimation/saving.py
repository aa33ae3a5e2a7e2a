"""What a save asks for: how fast a device's state must be copied to the host, so that steps hardly notice it."""

from __future__ import annotations

from typing import Any

from jaxmm.estimation.formula import shard_bytes

PART = 0.01  # of the time between two saves, that a save may take from the steps


def saved_bytes(state: Any, trainable: Any, *, has_base: bool) -> int:
    """Bytes of a checkpoint that lie on one device.

    Args:
      state: a TrainState of shapes with shardings.
      trainable: what of it learns.
      has_base: whether the model beneath its adapters lies elsewhere: checkpoints hold only what learns then.
    """
    params = trainable.split(state.params)[0] if has_base else state.params
    return shard_bytes(params) + shard_bytes(state.opt_state)


def saving(count: int, every: int, step_seconds: float) -> dict[str, Any]:
    """The forecast of a save; {} where the run has none before its end.

    A save holds the steps up for as long as the copy to the host takes; it is written beside them.

    Args:
      count: bytes of it on one device.
      every: steps from one to the next.
      step_seconds: the least time of a step.
    """
    if not every:
        return {}
    between = every * step_seconds
    return {"bytes": count, "every": every, "seconds_between": between, "copied_per_second": count / (PART * between)}
