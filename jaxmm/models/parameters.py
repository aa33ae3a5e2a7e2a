"""Parameters of a model, each with its logical axes and its initialiser."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Initializer = Callable[..., jax.Array]
_SHAPES_ONLY = contextvars.ContextVar("shapes only", default=False)

zeros = jax.nn.initializers.zeros
ones = jax.nn.initializers.ones
# LeCun's: variance 1 / fan-in, with the fan counted over `in_axis`.
fan_in = jax.nn.initializers.variance_scaling


def parameter(
    rngs: nnx.Rngs, shape: Sequence[int], axes: Sequence[str | None], init: Initializer, inputs: int = 0,
    copies: int = 0, layers: Sequence[int] = (), dtype: Any = jnp.float32,
) -> nnx.Param:  # fmt: skip
    """Declares one parameter: its shape, its logical axes, its initialiser and its dtype.

    Args:
      axes: a name or None for each dim (see ``sharding.RULES``).
      inputs: of a linear map, how many leading dims it takes in, the others it gives out; 0 for all else.
      copies: how many dims before those number maps of their own: 1 for experts.
      layers: dims of stacked layers that stand before those of ``shape``; they have no axes.
    """
    if len(shape) != len(axes):
        raise ValueError(f"parameter of shape {tuple(shape)} has logical axes {tuple(axes)}")
    init = zeros if _SHAPES_ONLY.get() else init
    return nnx.Param(init(rngs.params(), (*layers, *shape), dtype), axes=tuple(axes), inputs=inputs, copies=copies)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Parameters declared here are zeros: where only their shapes are asked for, initialisers take long to trace."""
    token = _SHAPES_ONLY.set(True)
    try:
        yield
    finally:
        _SHAPES_ONLY.reset(token)
