"""Controls what XLA:CPU writes to memory, and what it computes again.

XLA:CPU evaluates a fused sum anew for each consumer; a residual's cotangent has one for every later layer. All of this
changes speed and memory alone, and ``JAXMM_CPU_TUNING=0`` turns it off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jaxmm.runtime.jax_internals import TUNED


def barrier(tree: Any) -> Any:
    """The same arrays; XLA on a CPU neither fuses across this, nor finds equal work on its other side.

    Only in programs compiled with ``jax_internals.step_options``: by itself XLA drops the barrier there before it
    fuses. On other platforms there is none.
    """
    return lax.platform_dependent(tree, cpu=lax.optimization_barrier, default=lambda tree: tree)


@jax.custom_vjp
def _materialized(x: jax.Array) -> jax.Array:
    return barrier(x)


_materialized.defvjp(lambda x: (barrier(x), None), lambda _, dx: (barrier(dx),))


def materialize(x: jax.Array) -> jax.Array:
    """x, which a CPU writes out here, and its cotangent too."""
    return _materialized(x) if TUNED else x


def recompute(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """``f`` of arrays, which keeps these alone for its backward pass.

    For what is elementwise but for sums over few numbers: to compute it again is cheaper than to write and to read it.
    """
    if not TUNED:
        return f

    @jax.custom_vjp
    def wrapped(*args: jax.Array) -> jax.Array:
        return f(*args)

    def backward(args: tuple[jax.Array, ...], dy: jax.Array) -> tuple[jax.Array, ...]:
        args, dy = barrier((args, dy))  # tied to dy, that it is not made ahead of time
        return jax.vjp(f, *args)[1](dy)

    wrapped.defvjp(lambda *args: (f(*args), args), backward)
    return wrapped
