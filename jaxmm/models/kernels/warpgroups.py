"""What the kernels for Hopper GPUs are made of: tiles of a warpgroup, and blocks that one loads ahead for the others.

Mosaic's interpreter has no form for layouts, nor for matmuls with an operand in registers: what needs them has two
here, and all else of the kernels is the same in both.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as mgpu

GROUPS = 2  # warpgroups that compute
STEPS = 2  # blocks that are held in shared memory
TILE = mgpu.Layout.WGMMA
ROWS, COLUMNS = TILE.reduce(1), TILE.reduce(0)  # a number for each row of a tile, for each column
# jax 0.10 asks for an index, later releases take none.
_NO_INDEX = ((),) if "idx" in inspect.signature(mgpu.load).parameters else ()
_REGISTERS = 232, 40  # a thread's, of those that compute and of the one that loads


def full(shape: tuple[int, ...], value: float, layout: Any, interpret: Any):
    """A tile (rows, columns), or a number for each row or column, of one value: float32, in registers."""
    x = jnp.full(shape, value, jnp.float32)
    return x if interpret else mgpu.layout_cast(x, layout)


def load(ref: Any, layout: Any, interpret: Any):
    """Numbers of shared memory, one for each row (ROWS) or column (COLUMNS) of a tile, in registers."""
    return ref[...] if interpret else mgpu.load(ref, *_NO_INDEX, layout=layout)


def iota(shape: tuple[int, int], dim: int, interpret: Any):
    """A tile of int32 that counts along ``dim``."""
    if interpret:
        return lax.broadcasted_iota(jnp.int32, shape, dim)
    return mgpu.broadcasted_iota(jnp.int32, shape, dim, layout=TILE)


def times_transposed(a: Any, b: Any, interpret: Any):
    """a @ b.T of two blocks in shared memory, in float32."""
    if interpret:
        return lax.dot_general(a[...], b[...], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)

    def product(out):
        mgpu.wgmma(out, a, mgpu.transpose_ref(b, (1, 0)))
        return out[...]

    return pl.run_scoped(product, mgpu.ACC((a.shape[0], b.shape[0]), jnp.float32))


def plus_product(total, a, b: Any, interpret: Any):
    """total + a @ b, of ``a`` in registers and a block in shared memory."""
    a = a.astype(b.dtype)
    if interpret:
        total = total + jnp.dot(a, b[...], preferred_element_type=jnp.float32)
        # Copies come after plain reads only behind a fence, as newer interpreters check; a matmul of a warpgroup reads
        # as copies write.
        mgpu.commit_smem()
        return total
    return pl.run_state(lambda out: mgpu.wgmma(out, a, b))(mgpu.ACC.init(total))


def along(x, shape: tuple[int, ...], dim: int):
    """A number for each row (``dim`` 0) or column, over a tile."""
    return lax.broadcast_in_dim(x, shape, [dim])


class Loads(NamedTuple):
    """What is loaded a few steps ahead: blocks of global memory, where they go, and the barriers on both sides."""

    sources: Callable[[Any], tuple[Any, ...]]  # of a step: one for each place
    places: tuple[Any, ...]  # (STEPS, ...)
    loaded: Any  # barriers: a slot's blocks are there
    free: Any  # a slot's blocks are no longer needed


def _slot(step):
    return lax.rem(step, jnp.int32(STEPS))


def _load_steps(loads: Loads, first, last) -> None:
    """The part of the warpgroup that loads."""
    mgpu.set_max_registers(_REGISTERS[1], action="decrease")

    def one_step(n, _):
        slot = _slot(n)
        pl.when(n >= STEPS)(lambda: mgpu.barrier_wait(loads.free.at[slot]))
        for source, place in zip(loads.sources(first + n), loads.places, strict=True):
            mgpu.copy_gmem_to_smem(source, place.at[slot], loads.loaded.at[slot])

    lax.fori_loop(jnp.int32(0), last - first, one_step, None)


def compute_steps(loads: Loads, first, last, one_step: Callable[[Any, Any, Any], Any], begin: Any) -> Any:
    """The part of those that compute: ``one_step(step, slot, carry) -> carry``."""
    steps = last - first

    def one(n, carry):
        slot = _slot(n)
        mgpu.barrier_wait(loads.loaded.at[slot])
        carry = one_step(first + n, slot, carry)
        pl.when(n + STEPS < steps)(lambda: mgpu.barrier_arrive(loads.free.at[slot]))
        return carry

    return lax.fori_loop(jnp.int32(0), steps, one, begin)


def split(loads: Loads, first, last, compute: Callable[[Any], None]) -> None:
    """Gives each warpgroup its part: ``compute(group)`` to those that compute, steps [first, last) to the other."""
    group = lax.axis_index("group")
    pl.when(group == GROUPS)(lambda: _load_steps(loads, first, last))

    @pl.when(group < GROUPS)
    def _() -> None:
        mgpu.set_max_registers(_REGISTERS[0], action="increase")
        compute(group)
