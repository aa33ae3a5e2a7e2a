"""Low-rank updates of linear maps: LoRA (Hu et al., 2021), and DoRA (Liu et al., 2024)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxmm.models.materialize import barrier
from jaxmm.models.parameters import ones, parameter, zeros
from jaxmm.models.quantized import Kernel, Quantized, as_array

KINDS = ("lora", "rslora", "dora")
T = TypeVar("T")


@functools.partial(jax.tree_util.register_dataclass, data_fields=("kernel", "into", "out"), meta_fields=("scale",))
@dataclasses.dataclass(frozen=True)
class Adapted:
    """A kernel with its low-rank update, to be multiplied by as one.

    The sum is made of few numbers, beside those that go through it. In float32 it loses nothing; in bfloat16 it would
    round small updates away.

    Attributes:
      kernel: (*inputs, *outputs), as it is held.
      into, out: (*inputs, rank) and (rank, *outputs).
    """

    kernel: Kernel
    into: jax.Array
    out: jax.Array
    scale: float

    def summed(self, dtype: Any) -> jax.Array:
        """The map (*inputs, *outputs)."""
        update = lax.dot_general(self.into, self.out, (((self.into.ndim - 1,), (0,)), ((), ())))
        return as_array(self.kernel, dtype) + (self.scale * update).astype(dtype)

    def tied(self, others: T) -> tuple[Adapted, T]:
        """Itself and other arrays: the sum is not made, on a CPU, before all of these are there.

        A plain kernel is left out: behind a barrier a layer's slice of it would be written, to be read again.
        """
        held = self.kernel if isinstance(self.kernel, Quantized) else None
        held, into, out, others = barrier((held, self.into, self.out, others))
        return Adapted(self.kernel if held is None else held, into, out, self.scale), others


class Lora(nnx.Module):
    """A low-rank update of one linear map, or of a stack of them: its kernel plus ``scale`` times into @ out.

    Attributes:
      into: (*inputs, rank), A of the paper, transposed; out: (rank, *outputs), its B. Zeros until ``adapters.begin``.
      first_into, first_out: factors like these that stay as they began, and whose product is taken away again, so that
        an adapter that begins with other numbers than zeros changes nothing; None where ``out`` begins with zeros.
      magnitude: of DoRA, (*outputs): the length that each output's column of the sum is scaled to.
      noise: of dropout, uint32 (2,): the data of a random key, which the training step sets.
    """

    def __init__(
        self, shape: Sequence[int], axes: Sequence[str | None], inputs: int, *, rank: int, scale: float, kind: str,
        has_first: bool, dropout: float, rngs: nnx.Rngs, copies: int = 0,
    ):  # fmt: skip
        """``shape`` and ``axes`` are the kernel's, but for leading dims of stacked layers, which the axes lack.

        ``copies``: how many dims of experts come before the inputs; each expert has its own factors, and neither DoRA
        nor dropout.
        """
        layers = tuple(shape[: len(shape) - len(axes)])
        dims, split = tuple(shape[len(layers) :]), copies + inputs
        self.inputs, self.copies, self.scale, self.dropout = inputs, copies, scale, dropout

        def declared(shape: Sequence[int], axes: Sequence[str | None], init: Any) -> nnx.Param:
            return parameter(rngs, shape, axes, init, layers=layers)

        into = (*dims[:split], rank), (*axes[:split], None)
        out = (*dims[:copies], rank, *dims[split:]), (*axes[:copies], None, *axes[split:])
        self.into, self.out = declared(*into, zeros), declared(*out, zeros)
        self.first_into = declared(*into, zeros) if has_first else None
        self.first_out = declared(*out, zeros) if has_first else None
        self.magnitude = declared(dims[split:], axes[split:], ones) if kind == "dora" else None
        self.noise = declared((2,), (None,), zeros) if dropout else None

    def factors(self) -> tuple[jax.Array, jax.Array]:
        """What the update is the product of: (*inputs, rank) and (rank, *outputs), or of twice the rank; of experts all
        of theirs."""
        if self.first_into is None or self.first_out is None:
            return self.into[...], self.out[...]
        both = jax.vmap(with_first) if self.copies else with_first
        return both(self.into[...], self.out[...], self.first_into[...], self.first_out[...])

    def dropped(self, x: jax.Array) -> jax.Array:
        """What goes into the factors: x, of which in training a part is dropped."""
        if self.noise is None:
            return x
        key = jax.random.wrap_key_data(lax.stop_gradient(self.noise[...]).astype(jnp.uint32))
        kept = jax.random.bernoulli(key, 1 - self.dropout, x.shape)
        return jnp.where(kept, x / (1 - self.dropout), 0).astype(x.dtype)

    def added(self, y: jax.Array, low: jax.Array, kernel: Kernel) -> jax.Array:
        """The adapted map.

        Args:
          y: (..., *outputs), of the kernel alone, without a bias.
          low: (..., rank), of the first of ``factors``.
          kernel: (*inputs, *outputs).
        """
        out = self.factors()[1].astype(y.dtype)
        y = y + jnp.asarray(self.scale, y.dtype) * lax.dot_general(low, out, (((low.ndim - 1,), (0,)), ((), ())))
        return self.scaled(y, kernel)

    def scaled(self, y: jax.Array, kernel: Kernel) -> jax.Array:
        """What the kernel and its update give, (..., *outputs), with the lengths that DoRA gives the outputs."""
        if self.magnitude is None:
            return y
        # The norm counts as a constant in the backward pass, as in the paper, section 4.3.
        constant = lax.stop_gradient(self.factors())  # before the sum, so that nothing of it is kept
        norm = column_norms(as_array(lax.stop_gradient(kernel), jnp.float32), *constant, self.scale, self.inputs)
        return y * (self.magnitude[...] / norm).astype(y.dtype)


def with_first(
    into: jax.Array, out: jax.Array, first_into: jax.Array, first_out: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Factors of into @ out - first_into @ first_out."""
    return jnp.concatenate([into, first_into], -1), jnp.concatenate([out, -first_out], 0)


def scale_of(kind: str, rank: int, alpha: float) -> float:
    """What the product of the factors is multiplied by; "rslora" is Kalajdzievski's (2023)."""
    return alpha / (math.sqrt(rank) if kind == "rslora" else rank)


def alpha_of(kind: str, rank: int, scale: float) -> float:
    """The alpha that gives this scale: the inverse of ``scale_of``, whole where it is whole but for rounding."""
    alpha = scale * (math.sqrt(rank) if kind == "rslora" else rank)
    return float(round(alpha)) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha


def column_norms(kernel: jax.Array, into: jax.Array, out: jax.Array, scale: float, inputs: int) -> jax.Array:
    """Lengths (*outputs) of the columns of kernel + scale * into @ out, float32, without making the sum."""
    over, outputs = tuple(range(inputs)), kernel.shape[inputs:]
    wide, into, out = (x.astype(jnp.float32) for x in (kernel, into, out))
    flat = out.reshape(out.shape[0], -1)
    cross = jnp.tensordot(into, wide, (over, over)).reshape(flat.shape)  # (rank, outputs)
    gram = jnp.tensordot(into, into, (over, over))
    squares = jnp.square(wide).sum(over).reshape(-1) + 2 * scale * (cross * flat).sum(0)
    squares = squares + scale**2 * (flat * (gram @ flat)).sum(0)
    return jnp.sqrt(jnp.maximum(squares, 1e-30)).reshape(outputs)
