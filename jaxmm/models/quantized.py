"""Weights of linear maps in eight or four bits: QLoRA's formats (Dettmers et al., 2023).

Formats are those of bitsandbytes, so that an adapter learns over the same numbers in both. Its matrix is (outputs,
inputs), row by row; a kernel here is (*inputs, *outputs), so that a block runs along the kernel's flattened inputs. A
block ends with its row. In bitsandbytes it does not, which makes no difference where the inputs are a multiple of 64.

- "int8": each output has the largest absolute value of its weights, and each weight is a whole number of its 127ths.
- "nf4" (NormalFloat): a block of 64 weights has its largest absolute value, and each weight is one of 16 levels times
  it, two to a byte. These constants, less their mean, are 8-bit numbers themselves, in blocks of 256 ("double
  quantization", section 3).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jaxmm.models.parameters import parameter, zeros

KINDS = ("int8", "nf4")
BLOCK = 64  # weights with one constant
CONSTANTS = 256  # constants with one scale
_LEAST = float(np.finfo(np.float32).tiny)  # of a block's largest absolute value: a block of zeros stays one


def _steps(first: float, last: float, count: int) -> np.ndarray:
    """``count`` numbers at equal steps, float32: counted from the nearer end and rounded once, as PyTorch does."""
    start, stop, number = np.float32(first), np.float32(last), np.arange(count)
    step = np.float64((stop - start) / np.float32(count - 1))
    steps = np.where(number < count // 2, start + step * number, stop - step * (count - 1 - number))
    return steps.astype(np.float32)


def _normal_float() -> np.ndarray:
    """The 16 levels of NF4: quantiles of the normal distribution, 7 below 0, 0 itself, and 8 above (appendix E)."""
    last = 0.9677083  # the mean of 1 - 1/30 and of 1 - 1/32: the outermost of 15 and of 16 quantiles
    quantile = statistics.NormalDist().inv_cdf

    def above(count: int) -> list[float]:
        return [quantile(float(p)) for p in _steps(last, 0.5, count + 1)[:-1]]

    levels = np.array([*(-x for x in above(7)), 0.0, *above(8)], np.float32)
    return np.sort(levels / levels.max())


def _dynamic() -> np.ndarray:
    """The 256 numbers of the dynamic 8-bit type (Dettmers, 2015): of each power of ten, the fewer the smaller it is.

    From 1e-6 to 1 there are 1, 2, 4, ... 64 of each sign: the means of equal parts of 0.1 to 1, times the power.
    """
    positive = []
    for exponent in range(7):
        bounds = _steps(0.1, 1, 2**exponent + 1)
        positive.append(np.float32(10.0 ** (exponent - 6)) * ((bounds[:-1] + bounds[1:]) / 2))
    numbers = np.concatenate(positive)
    return np.sort(np.concatenate([-numbers, numbers, np.array([0, 1], np.float32)]))


LEVELS, DYNAMIC = _normal_float(), _dynamic()


class Part(NamedTuple):
    """One of the arrays that a kernel is held as: its shape, its logical axes and its dtype."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    dtype: Any


def parts(kind: str, shape: Sequence[int], axes: Sequence[str | None], inputs: int) -> dict[str, Part]:
    """What a kernel (*inputs, *outputs) is held as, by name; of one layer.

    Dims of inputs and outputs keep their axes, so that what is held is split over a mesh as the kernel is.

    Args:
      kind: one of KINDS.
      inputs: how many dims are inputs.
    """
    into, out = tuple(shape[:inputs]), tuple(shape[inputs:])
    if kind == "int8":
        return {
            "codes": Part((*into, *out), tuple(axes), jnp.int8),
            "absmax": Part(out, tuple(axes[inputs:]), jnp.float32),
        }
    blocks = -(-math.prod(into) // BLOCK)
    return {
        "codes": Part((*into[:-1], -(-into[-1] // 2), *out), tuple(axes), jnp.uint8),
        "absmax": Part((blocks, *out), (axes[0], *axes[inputs:]), jnp.uint8),
        "scales": Part((-(-blocks * math.prod(out) // CONSTANTS),), (None,), jnp.float32),
        "mean": Part((), (), jnp.float32),
    }


def quantize(kernel: jax.Array, inputs: int, kind: str) -> dict[str, jax.Array]:
    """The arrays that ``parts`` describes, of a kernel (*inputs, *outputs)."""
    wide = kernel.astype(jnp.float32)
    if kind == "int8":
        absmax = jnp.abs(wide).max(tuple(range(inputs)))
        return {"codes": jnp.round(wide * (127 / jnp.maximum(absmax, _LEAST))).astype(jnp.int8), "absmax": absmax}
    into, out = kernel.shape[:inputs], kernel.shape[inputs:]
    blocks_KSO = _blocks(wide.reshape(math.prod(into), -1))
    absmax_KO = jnp.abs(blocks_KSO).max(1)
    scaled = jnp.clip(blocks_KSO * (1 / jnp.maximum(absmax_KO, _LEAST))[:, None], -1, 1)
    nearest = sum((scaled > bound).astype(jnp.uint8) for bound in _between(LEVELS))
    codes = nearest.reshape(-1, scaled.shape[-1])[: math.prod(into)].reshape(kernel.shape)
    return {"codes": _packed(codes, inputs), **_quantized_constants(absmax_KO, out)}


def _quantized_constants(absmax_KO: jax.Array, out: tuple[int, ...]) -> dict[str, jax.Array]:
    mean = _mean(absmax_KO)
    flat = (absmax_KO - mean).T.reshape(-1)  # in the order of bitsandbytes
    groups = jnp.pad(flat, (0, -len(flat) % CONSTANTS)).reshape(-1, CONSTANTS)
    scales = jnp.abs(groups).max(1)
    scaled = jnp.clip(groups * (1 / jnp.maximum(scales, _LEAST))[:, None], -1, 1)
    codes = jnp.searchsorted(jnp.asarray(_between(DYNAMIC)), scaled.reshape(-1)[: len(flat)]).astype(jnp.uint8)
    absmax = codes.reshape(absmax_KO.shape[::-1]).T.reshape(absmax_KO.shape[0], *out)
    return {"absmax": absmax, "scales": scales, "mean": mean}


def _mean(x: jax.Array) -> jax.Array:
    """The mean of numbers from 0, by whole numbers of a small part of the largest: so that it is the same to the bit
    however the numbers are dealt over devices, and in which order they are added up."""
    half = min(32 - x.size.bit_length(), 11)  # bits, so many that the sum of x.size of them is a uint32
    largest, one = jnp.where(x.max() > 0, x.max(), 1.0), 2 ** (2 * half - 1)
    whole = jnp.round(x * (one / largest)).astype(jnp.uint32)
    upper, lower = (part.sum(dtype=jnp.uint32).astype(jnp.float32) for part in (whole >> half, whole & (2**half - 1)))
    return (upper * 2**half + lower) / x.size * (largest / one)


def dequantize(
    arrays: Mapping[str, jax.Array], kind: str, shape: Sequence[int], inputs: int, dtype: Any
) -> jax.Array:  # fmt: skip
    """The kernel of this shape, one layer's, computed in float32 and given as ``dtype``."""
    if kind == "int8":
        return (arrays["codes"].astype(jnp.float32) * (arrays["absmax"] / 127)).astype(dtype)
    total, count = math.prod(shape[:inputs]), math.prod(shape[inputs:])
    absmax_KO = _constants(arrays, count)
    levels = _at(LEVELS, _unpacked(arrays["codes"], inputs, shape[inputs - 1])).reshape(total, count)
    return (_blocks(levels) * absmax_KO[:, None]).reshape(-1, count)[:total].reshape(shape).astype(dtype)


def _constants(arrays: Mapping[str, jax.Array], count: int) -> jax.Array:
    """The largest absolute values of blocks, float32 (blocks, outputs)."""
    codes_KO = arrays["absmax"].reshape(-1, count)
    blocks = len(codes_KO)
    group_KO = (jnp.arange(count) * blocks + jnp.arange(blocks)[:, None]) // CONSTANTS
    return _at(DYNAMIC, codes_KO) * arrays["scales"][group_KO] + arrays["mean"]


def _blocks(wide: jax.Array) -> jax.Array:
    """(inputs, outputs) as (blocks, BLOCK, outputs), the last block filled with zeros."""
    total, count = wide.shape
    return jnp.pad(wide, ((0, -total % BLOCK), (0, 0))).reshape(-1, BLOCK, count)


def _between(numbers: np.ndarray) -> np.ndarray:
    """The middles between neighbours, float32: above them the larger one is nearer."""
    return (numbers[:-1] + numbers[1:]) / 2


def _packed(codes: jax.Array, inputs: int) -> jax.Array:
    """Two to a byte along the last dim of inputs, the first in the upper bits; of an odd dim the last has half one."""
    dim = inputs - 1
    codes = jnp.pad(codes, [(0, size % 2 if n == dim else 0) for n, size in enumerate(codes.shape)])
    first, second = (lax.slice_in_dim(codes, start, None, 2, dim) for start in (0, 1))
    return (first << 4) | second


def _unpacked(codes: jax.Array, inputs: int, size: int) -> jax.Array:
    """The inverse of ``_packed``; ``size``: of the last dim of inputs."""
    dim = inputs - 1
    both = jnp.stack([codes >> 4, codes & 15], inputs)
    both = both.reshape(*codes.shape[:dim], 2 * codes.shape[dim], *codes.shape[inputs:])
    return lax.slice_in_dim(both, 0, size, axis=dim)


def _at(table: np.ndarray, codes: jax.Array) -> jax.Array:
    """``table[codes]``.

    Not by choices between scalars, however fast these are: their broadcasts are the same in each layer, so that JAX
    makes them before the loop over layers, sixteen arrays of a kernel's size.
    """
    return jnp.asarray(table).at[codes].get(mode="promise_in_bounds")


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["kind", "shape", "inputs"]
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A kernel as it is held; of stacked layers or of experts, where its arrays have leading dims of them.

    Attributes:
      arrays: by the names of ``parts``.
      kind: one of KINDS.
      shape, inputs: of one kernel, and how many of its dims are inputs.
    """

    arrays: dict[str, jax.Array]
    kind: str
    shape: tuple[int, ...]
    inputs: int

    def dequantized(self, dtype: Any) -> jax.Array:
        """The kernel of one layer."""
        return dequantize(self.arrays, self.kind, self.shape, self.inputs, dtype)


Kernel = jax.Array | Quantized


def as_array(kernel: Kernel, dtype: Any) -> jax.Array:
    """A kernel of one layer as an array of this dtype."""
    return kernel.dequantized(dtype) if isinstance(kernel, Quantized) else kernel.astype(dtype)


def over_layers(f: Callable[..., Any], layers: Sequence[int], *trees: Any) -> Any:
    """``f`` of each layer of trees of arrays that have these leading dims, one after the other."""
    if not layers:
        return f(*trees)
    return lax.map(lambda each: over_layers(f, layers[1:], *each), trees)


class QuantizedKernel(nnx.Module):
    """The parameters in the place of a kernel; zeros until ``frozen.hold`` has filled them."""

    def __init__(
        self, shape: Sequence[int], axes: Sequence[str | None], inputs: int, kind: str, *, rngs: nnx.Rngs,
        copies: int = 0,
    ):  # fmt: skip
        """``shape`` may have leading dims of stacked layers, which ``axes`` lack; ``copies``: dims of experts behind
        these, each with a kernel of its own."""
        layers, dims = tuple(shape[: len(shape) - len(axes)]), tuple(shape[len(shape) - len(axes) :])
        each, self.shape = dims[:copies], dims[copies:]
        self.inputs, self.kind = inputs, kind
        self.names = tuple(parts(kind, self.shape, axes[copies:], inputs))
        for name, part in parts(kind, self.shape, axes[copies:], inputs).items():
            shape, of_part = (*each, *part.shape), (*axes[:copies], *part.axes)
            setattr(self, name, parameter(rngs, shape, of_part, zeros, layers=layers, dtype=part.dtype))

    def value(self) -> Quantized:
        return Quantized({name: getattr(self, name)[...] for name in self.names}, self.kind, self.shape, self.inputs)
