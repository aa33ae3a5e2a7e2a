"""What a step writes to memory and what it computes again, where XLA left to itself chooses badly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax


def barrier(tree: Any) -> Any:
    """The same arrays; XLA on a CPU neither fuses across this, nor finds equal work on its other side.

    Only in programs that are compiled with ``lowered.step_options``: by itself XLA drops the barrier there before it
    fuses. On other platforms there is none.
    """
    return lax.platform_dependent(tree, cpu=lax.optimization_barrier, default=lambda tree: tree)


@jax.custom_vjp
def materialize(x: jax.Array) -> jax.Array:
    """x, which a CPU writes out here, and its cotangent too.

    XLA computes a sum again for each of its readers. The cotangent of a residual stream is one long sum: each reader in
    each layer added up what all layers behind it gave.
    """
    return barrier(x)


materialize.defvjp(lambda x: (barrier(x), None), lambda _, dx: (barrier(dx),))


def recompute(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """``f`` of arrays, which keeps these alone for its backward pass.

    For what is elementwise but for sums over few numbers: to compute it again is cheaper than to write and to read it.
    """

    @jax.custom_vjp
    def wrapped(*args: jax.Array) -> jax.Array:
        return f(*args)

    def backward(args: tuple[jax.Array, ...], dy: jax.Array) -> tuple[jax.Array, ...]:
        args, dy = barrier((args, dy))  # tied to dy, that it is not made ahead of time
        return jax.vjp(f, *args)[1](dy)

    wrapped.defvjp(lambda *args: (f(*args), args), backward)
    return wrapped
