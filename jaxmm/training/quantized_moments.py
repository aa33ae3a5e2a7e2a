"""Optimizer moments held in fewer bits than they are computed in.

Moments are decoded to float32 for each update and encoded after it. Rounding is stochastic (Gupta et al., 2015): an
average whose steps are finer than the format still moves, by the right amount in the mean. Eight bits are a float8
(four of exponent, three of fraction) with one scale a row, after the blockwise optimizers of Dettmers et al. (2022); of
the second moment the square root is held, which halves its range.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

MOMENTS = ("float32", "bfloat16", "float8")
_FLOAT8 = jnp.float8_e4m3fn
_LARGEST, _SMALLEST = 448.0, 2.0**-9  # of float8, besides 0


class Stored(NamedTuple):
    """An optimizer's state with its moments encoded.

    Attributes:
      state: the optimizer's own; matrices among its moments are bfloat16, or uint8 that are the bits of a float8.
      scales: float32 (..., 1) by the place among the leaves of ``state``, of float8 alone.
      updates: int32, how many there were.
    """

    state: Any
    scales: dict[str, jax.Array]
    updates: jax.Array


def quantize_moments(inner: optax.GradientTransformation, kind: str) -> optax.GradientTransformation:
    """``inner`` with its moments of two dims and more held as ``kind``; vectors and counters stay as they are.

    Raises:
      ValueError: if ``kind`` is not one of MOMENTS.
    """
    if kind not in MOMENTS:
        raise ValueError(f"moments '{kind}' are not one of {', '.join(MOMENTS)}")
    if kind == "float32":
        return inner

    def encoded(state: Any, count: jax.Array) -> Stored:
        leaves, tree = jax.tree_util.tree_flatten_with_path(state)
        scales: dict[str, jax.Array] = {}
        codes = []
        for i, (path, x) in enumerate(leaves):
            if not _is_moment(x):
                codes.append(x)
                continue
            noise = _noise(x.shape, count, i)
            if kind == "bfloat16":
                codes.append(_rounded(x, noise, 16).astype(jnp.bfloat16))
            else:
                code, scales[str(i)] = to_float8(jnp.sqrt(x) if _is_square(path) else x, noise, _is_square(path))
                codes.append(code)
        return Stored(jax.tree_util.tree_unflatten(tree, codes), scales, count)

    def decoded(stored: Stored) -> Any:
        leaves, tree = jax.tree_util.tree_flatten_with_path(stored.state)
        held = []
        for i, (path, x) in enumerate(leaves):
            if str(i) in stored.scales:
                wide = from_float8(x, stored.scales[str(i)])
                held.append(jnp.square(wide) if _is_square(path) else wide)
            else:
                held.append(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x)
        return jax.tree_util.tree_unflatten(tree, held)

    def init(params: Any) -> Stored:
        return encoded(inner.init(params), jnp.int32(0))

    def update(updates: Any, stored: Stored, params: Any = None) -> tuple[Any, Stored]:
        updates, state = inner.update(updates, decoded(stored), params)
        return updates, encoded(state, stored.updates + 1)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def to_float8(x: jax.Array, noise: jax.Array, is_square: bool = False) -> tuple[jax.Array, jax.Array]:
    """Encodes (..., D) as uint8 of the same shape, and scales (..., 1).

    Args:
      noise: uint32 of the same shape.
      is_square: what is not 0 is at least the smallest code: a second moment that vanished would divide by nothing.
    """
    scale = jnp.abs(x).max(-1, keepdims=True) / _LARGEST
    small = x / jnp.where(scale > 0, scale, 1.0)
    code = jnp.clip(_rounded(small, noise, 20), -_LARGEST, _LARGEST)
    if is_square:
        code = jnp.where(small > 0, jnp.maximum(code, _SMALLEST), 0.0)
    return lax.bitcast_convert_type(code.astype(_FLOAT8), jnp.uint8), scale


def from_float8(code: jax.Array, scale: jax.Array) -> jax.Array:
    """The inverse of ``to_float8``: float32."""
    return lax.bitcast_convert_type(code, _FLOAT8).astype(jnp.float32) * scale


def _is_moment(x: jax.Array) -> bool:
    return x.dtype == jnp.float32 and x.ndim > 1


def _is_square(path: tuple) -> bool:
    """Whether a leaf of the state is a second moment, by optax's name of it."""
    return any(getattr(key, "name", "") == "nu" for key in path)


def _rounded(x: jax.Array, noise: jax.Array, dropped: int) -> jax.Array:
    """float32 with its last ``dropped`` bits 0: rounded up as often as they are near to the next number above."""
    bits = lax.bitcast_convert_type(x, jnp.uint32) + (noise >> (32 - dropped))
    return lax.bitcast_convert_type(bits & jnp.uint32(2**32 - 2**dropped), jnp.float32)


def _noise(shape: tuple[int, ...], count: jax.Array, leaf: int) -> jax.Array:
    """uint32 numbers that look random, of the place alone: the same on every mesh (a finaliser of MurmurHash3)."""
    place = jnp.zeros(shape, jnp.uint32)
    for dim in range(len(shape)):
        stride = math.prod(shape[dim + 1 :]) % 2**32
        place += lax.broadcasted_iota(jnp.uint32, shape, dim) * jnp.uint32(stride)
    x = place * jnp.uint32(0x9E3779B9) + (count.astype(jnp.uint32) * 1024 + leaf) * jnp.uint32(0x85EBCA77)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)
