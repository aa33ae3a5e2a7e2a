"""Matmuls of linear maps in float8, forward and backward: ``config.compute.matmul = "fp8"``.

Formats are those of Micikevicius et al. (2022, "FP8 Formats for Deep Learning", section 3): e4m3 for activations and
kernels, e5m2, which has more range, for gradients. Products are added up in float32.

Each row of an operand, which is all that one number of the result is a sum over, has a scale of its own, made of the
present numbers: a position's in the two products that follow positions, a feature's in the kernel's gradient, which is
a sum over positions. So there is no state, and no position's numbers depend on another's: a packed document has what it
has alone. It is the "rowwise" recipe of torchao.float8, but for its gradients, which are e4m3. That has it too that
scales are powers of two: multiplying by them loses nothing in any dtype, in whatever order.

XLA on GPUs hands a dot of float8 operands to cuBLASLt's FP8 kernels, with 1 for their own scales (``MatchFp8Param`` and
``CreateF8CustomCall`` in its gemm_rewriter.cc); ours are multiplied behind it. Before it, XLA takes only scalars.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

FORWARD, BACKWARD = jnp.float8_e4m3fn, jnp.float8_e5m2
_EXPONENT = 0x7F800000  # the exponent's bits of a float32
_LEAST = 2.0**-100  # of scales: a row of zeros stays one


@functools.partial(jax.tree_util.register_dataclass, data_fields=("kernel",), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Float8:
    """A kernel (*inputs, *outputs) that is to be multiplied by in float8.

    It is quantised from the dtype that it is held in, anew for each product.
    """

    kernel: jax.Array


def quantize(x: jax.Array, over: tuple[int, ...], dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Numbers in float8 and the scales that they are multiplied by to be x.

    Args:
      over: the dims of a row, that have one scale.
      dtype: FORWARD or BACKWARD.

    Returns:
      Numbers of x's shape, the nearest that the dtype has, and float32 scales with dims of 1 in the place of ``over``:
      the least powers of two above a row's largest absolute value over that of the dtype. What is not finite makes its
      row NaN.
    """
    wide = x.astype(jnp.float32)
    ratio = jnp.abs(wide).max(over, keepdims=True) * (1 / float(jnp.finfo(dtype).max))
    bits = lax.bitcast_convert_type(jnp.maximum(ratio, _LEAST), jnp.int32) & _EXPONENT
    scale = 2 * lax.bitcast_convert_type(bits, jnp.float32)
    return (wide * (1 / scale)).astype(dtype), scale


def mapped(x: jax.Array, kernel: jax.Array, inputs: int) -> jax.Array:
    """x (..., *inputs) times the kernel (*inputs, *outputs), in x's dtype."""
    over = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    return _multiplied(x, kernel, over, (FORWARD, FORWARD), x.dtype)


def of_input(dy: jax.Array, kernel: jax.Array, inputs: int) -> jax.Array:
    """The gradient of x, of that of the result (..., *outputs)."""
    over = tuple(range(dy.ndim - kernel.ndim + inputs, dy.ndim)), tuple(range(inputs, kernel.ndim))
    return _multiplied(dy, kernel, over, (BACKWARD, FORWARD), dy.dtype)


def of_kernel(x: jax.Array, dy: jax.Array, inputs: int) -> jax.Array:
    """The gradient of the kernel, float32."""
    rows = tuple(range(x.ndim - inputs))
    return _multiplied(x, dy, (rows, rows), (FORWARD, BACKWARD), jnp.float32)


def _multiplied(
    a: jax.Array, b: jax.Array, over: tuple[tuple[int, ...], tuple[int, ...]], dtypes: tuple[Any, Any], dtype: Any
) -> jax.Array:  # fmt: skip
    """a times b, summed over dims of each: those that are left of a, then those of b."""
    (a8, scale_a), (b8, scale_b) = (
        quantize(x, dims, narrow) for x, dims, narrow in zip((a, b), over, dtypes, strict=True)
    )  # fmt: skip
    y = lax.dot_general(a8, b8, (over, ((), ())), preferred_element_type=dtype)
    left_b = b.ndim - len(over[1])
    scale_a = jnp.squeeze(scale_a, over[0])
    scale_a = scale_a.reshape(*scale_a.shape, *[1] * left_b)
    return y * scale_a.astype(dtype) * jnp.squeeze(scale_b, over[1]).astype(dtype)
