"""AdamW with warm-up, decay and per-part rates, over the trainable parts of the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("cosine", "wsd", "constant")


def make_schedule(
    *, rate: float, steps: int, warmup: int, name: str = "cosine", end_factor: float = 0.0, decay_fraction: float = 0.2
) -> optax.Schedule:
    """The learning rate by step.

    Args:
      rate: its peak.
      steps: length of the run.
      warmup: steps of linear rise from 0.
      name: "cosine" to ``end_factor * rate``; "wsd": constant, then a linear fall over the last ``decay_fraction``;
        "constant".
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule '{name}' is not one of {', '.join(SCHEDULES)}")
    warmup = min(warmup, steps)
    rise = optax.linear_schedule(rate / max(warmup, 1), rate, max(warmup - 1, 1))
    rest = max(steps - warmup, 1)
    if name == "cosine":
        after = optax.cosine_decay_schedule(rate, rest, alpha=end_factor)
    elif name == "wsd":
        fall = max(int(steps * decay_fraction), 1)
        after = optax.join_schedules(
            [optax.constant_schedule(rate), optax.linear_schedule(rate, rate * end_factor, fall)], [max(rest - fall, 0)]
        )
    else:
        after = optax.constant_schedule(rate)
    return optax.join_schedules([rise, after], [warmup])


def split_frozen(params: Mapping[str, Any], frozen: tuple[str, ...]) -> tuple[dict, dict]:
    """The trainable and the frozen parts: no gradient is taken, and no optimizer state held, for the latter."""
    unknown = sorted(set(frozen) - set(params))
    if unknown:
        raise ValueError(f"cannot freeze '{unknown[0]}': the parts are {', '.join(params)}")
    return {k: v for k, v in params.items() if k not in frozen}, {k: v for k, v in params.items() if k in frozen}


def decays(path: tuple) -> bool:
    """Whether weight decay applies: to matrices; not to biases, norms, embeddings or position tables."""
    return str(getattr(path[-1], "key", path[-1])) in ("kernel", "head")


def make_optimizer(
    schedule: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    clip: float = 1.0,
    part_rates: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, 2019): global-norm clip, decoupled decay, each part's rate a multiple of the whole.

    Args:
      clip: largest global gradient norm; 0 does not clip.
      part_rates: multiple of the scheduled rate by part (``vision``, ``connector``, ``decoder``); 1 where not named.
    """
    rates = dict(part_rates or {})

    def decay_mask(params):
        return jax.tree_util.tree_map_with_path(lambda path, x: decays(path), params)

    def scale_parts(updates, state, params=None):
        del params
        return {part: optax.tree.scale(rates.get(part, 1.0), tree) for part, tree in updates.items()}, state

    return optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=jnp.float32),
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
        optax.GradientTransformation(lambda params: optax.EmptyState(), scale_parts),
        optax.scale_by_learning_rate(schedule),
    )
