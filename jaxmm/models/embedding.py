"""Embedding lookup in a sharded table: gathers the table once, and sums its gradient once."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxmm import sharding, zigzag


def look_up(table_VD, index_BT, dtype) -> jax.Array:
    """``table[index]`` as ``dtype``, (B, T, D); the gradient of the table is summed in float32.

    Each device looks up its own rows of ``index_BT``. The table is a parameter by ("vocab", "embed").
    """
    mesh = jax.sharding.get_abstract_mesh()
    dtype = jnp.dtype(dtype)
    if mesh.empty or mesh.size == 1:
        return _taken(table_VD, index_BT, dtype, "")
    rows, positions = sharding.partition(("rows", zigzag.positions_axis(index_BT.shape[1])), index_BT.shape, mesh)
    manual = {*(rows or ()), *((positions,) if positions else ())}
    if all(mesh.shape[axis] == 1 for axis in manual):  # XLA fails on a table split over another axis alone
        return _taken(table_VD, index_BT, dtype, "")
    (_, axis) = sharding.partition(("vocab", "embed"), table_VD.shape, mesh)
    axis = axis if axis in manual and mesh.shape[axis] > 1 else None
    run = jax.shard_map(
        functools.partial(_taken, dtype=dtype, axis=axis or ""),
        in_specs=(PartitionSpec(None, axis), PartitionSpec(rows, positions)),
        out_specs=PartitionSpec(rows, positions, None),
        axis_names=manual,
        check_vma=False,
    )
    return run(table_VD, index_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _taken(table_VD, index_BT, dtype: Any, axis: str):
    """The rows, on one device; ``axis`` is the mesh axis that the width of its part of the table is split over."""
    table_VD = table_VD.astype(dtype)
    whole_VD = lax.all_gather(table_VD, axis, axis=1, tiled=True) if axis else table_VD
    return jnp.take(whole_VD, index_BT, axis=0)


def _forward(table_VD, index_BT, dtype: Any, axis: str):
    return _taken(table_VD, index_BT, dtype, axis), (index_BT, jnp.zeros((len(table_VD), 0), table_VD.dtype))


def _backward(dtype: Any, axis: str, saved, grad_BTD):
    index_BT, empty = saved
    grad_VD = jnp.zeros((len(empty), grad_BTD.shape[-1]), jnp.float32).at[index_BT].add(grad_BTD.astype(jnp.float32))
    if axis:
        grad_VD = lax.psum_scatter(grad_VD, axis, scatter_dimension=1, tiled=True)
    return grad_VD.astype(empty.dtype), None


_taken.defvjp(_forward, _backward)
