"""Muon and AdamW with warm-up, decay and per-part rates, over the trainable parts of the parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jaxmm.models.adapters import is_factor
from jaxmm.models.tree import matches
from jaxmm.training.quantized_moments import quantize_moments

Dims = tuple[int, ...]

# Names of config.optimizer.name; training/program.py gives make_optimizer what each needs.
OPTIMIZERS = ("muon", "adamw")
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


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", key)) for key in path)


def decays(path: tuple) -> bool:
    """Whether weight decay applies: to matrices; not to biases, norms, embeddings or position tables."""
    names = _names(path)
    return names[-1] in ("kernel", "head", "router") or (is_factor(names) and names[-1] in ("into", "out"))


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's own coefficients
NEWTON_SCHULZ_STEPS = 5
MUON_RMS = 0.2  # of an update, as AdamW's: one rate and one decay serve both (Liu et al., 2025, section 2.2)


def _muon(kernel_dims: Mapping[tuple[str, ...], tuple[Dims, Dims]]) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024): momentum, made orthogonal by Newton-Schulz steps, at AdamW's size."""

    def dims(tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: contrib.MuonDimensionNumbers(*kernel_dims[_names(path)]), tree
        )

    muon = contrib.scale_by_muon(NEWTON_SCHULZ, ns_steps=NEWTON_SCHULZ_STEPS, weight_dimension_numbers=dims)

    def update(updates, state, params=None):
        # Given coefficients by step, optax loops over the steps: the program is a fifth as long.
        by_step = jnp.tile(state.ns_coeffs, (NEWTON_SCHULZ_STEPS, 1))
        updates, after = muon.update(updates, state._replace(ns_coeffs=by_step), params)
        return updates, after._replace(ns_coeffs=state.ns_coeffs)

    def scale(updates, state, params=None):
        del params

        def of(path, x):
            longest = max(math.prod(x.shape[d] for d in side) for side in kernel_dims[_names(path)])
            return x * (MUON_RMS * longest**0.5)

        return jax.tree_util.tree_map_with_path(of, updates), state

    return optax.chain(
        optax.GradientTransformation(muon.init, update),
        optax.GradientTransformation(lambda params: optax.EmptyState(), scale),
    )


def make_optimizer(
    schedule: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    clip: float = 1.0,
    rates: Mapping[str, float] | None = None,
    kernel_dims: Mapping[tuple[str, ...], tuple[Dims, Dims]] | None = None,
    moments: str = "float32",
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, 2019), or Muon where ``kernel_dims`` says so.

    Both clip the global norm, decay decoupled from the gradient, and multiply some parameters' rates by a factor. A
    part without any gradient in a step (the tower, in one of text alone) stays as it is in it: weight decay would
    shrink it, and Muon would go on along an old momentum, at full size.

    Args:
      b1, b2, eps: of AdamW alone; Muon's momentum is 0.95.
      clip: largest global gradient norm; 0 does not clip.
      rates: multiples of the scheduled rate by patterns of paths (``tree.matches``). Of those that mean a
        parameter the last counts; 1 where none does.
      kernel_dims: the parameters that Muon updates, by path, with the dims they take in and give out.
      moments: what they are held as, one of ``quantized_moments.MOMENTS``; they are computed in float32.
    """
    factors, maps = dict(rates or {}), dict(kernel_dims or {})

    def decay_mask(params):
        return jax.tree_util.tree_map_with_path(lambda path, x: decays(path), params)

    def rule(params):
        return jax.tree_util.tree_map_with_path(lambda path, x: "muon" if _names(path) in maps else "adam", params)

    def scale(updates, state, params=None, *, has_gradient):
        del params

        def of(path, x):
            name = _names(path)
            meant = [factor for pattern, factor in factors.items() if matches(name, pattern)]
            return x * jnp.where(has_gradient[name[0]], meant[-1] if meant else 1.0, 0.0)

        return jax.tree_util.tree_map_with_path(of, updates), state

    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=jnp.float32)
    chain = optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        quantize_moments(optax.partition({"muon": _muon(maps), "adam": adam}, rule) if maps else adam, moments),
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
        optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), scale),
        optax.scale_by_learning_rate(schedule),
    )

    def update(grads, state, params=None):
        has_gradient = {part: optax.tree.norm(tree) > 0 for part, tree in grads.items()}  # the step has the norms too
        return chain.update(grads, state, params, has_gradient=has_gradient)

    return optax.GradientTransformation(chain.init, update)
