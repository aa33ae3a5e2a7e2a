"""Rows of one device to slots of others, and back: an all-to-all of unequal slices, of which none is dropped.

``lax.ragged_all_to_all`` sends them. XLA on CPU has no such operation: there each device gathers the rows of all, and
picks its own.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxmm import sharding


class Slices(NamedTuple):
    """What the P devices of an axis send each other, alike on all of them: H slices from each to each.

    Attributes:
      begin_PPH: int32, the first row of a slice on the device that sends it, [sender, receiver, slice].
      size_PPH: its rows.
      land_PPH: where it lands on the device that gets it.
    """

    begin_PPH: jax.Array
    size_PPH: jax.Array
    land_PPH: jax.Array

    def reversed(self) -> Slices:
        """The way back of each slice."""
        begin, size, land = (x.swapaxes(0, 1) for x in self)
        return Slices(land, size, begin)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def exchange(x_SD: jax.Array, slices: Slices, rows: int, axis: str) -> jax.Array:
    """The rows that a device gets, (rows, D), with zeros where no slice lands; inside a ``shard_map``.

    Args:
      x_SD: the rows that it has.
      axis: of the mesh.
    """
    me = lax.axis_index(axis)
    if sharding.platform() == "cpu":
        return _picked(lax.all_gather(x_SD, axis), Slices(*(x[:, me] for x in slices)), rows)
    begin, size, land = (x[me].reshape(-1) for x in slices)
    empty = jnp.zeros((rows, x_SD.shape[1]), x_SD.dtype)
    got = slices.size_PPH[:, me].reshape(-1)
    return lax.ragged_all_to_all(x_SD, empty, begin, size, land, got, axis_name=axis)


def _picked(x_PSD: jax.Array, mine: Slices, rows: int) -> jax.Array:
    """The rows of slices (P, H) that one device gets, from the rows of all devices."""
    P, S, D = x_PSD.shape
    begin, size, land = (x.reshape(-1) for x in mine)
    order = jnp.lexsort((size, land))  # of slices that land at one place, all but the last are empty
    row_R = jnp.arange(rows)
    slice_R = order[jnp.maximum(jnp.searchsorted(land[order], row_R, side="right") - 1, 0)]
    inside_R = row_R - land[slice_R]
    source_R = slice_R // (len(size) // P) * S + begin[slice_R] + inside_R
    source_R = jnp.where((inside_R >= 0) & (inside_R < size[slice_R]), source_R, P * S)
    return jnp.take(x_PSD.reshape(P * S, D), source_R, axis=0, mode="fill", fill_value=0)


exchange.defvjp(
    lambda x_SD, slices, rows, axis: (exchange(x_SD, slices, rows, axis), (slices, x_SD.shape[0])),
    lambda rows, axis, saved, dy_RD: (exchange(dy_RD, saved[0].reversed(), saved[1], axis), None),
)
