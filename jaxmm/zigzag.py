"""Zigzag order of positions over the mesh's ``context`` axis.

Of the 2 * C chunks of a row, device r of C holds chunks r and 2 * C - 1 - r. The later a query, the more keys it sees
in causal attention, so that this balances the work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmm.sharding import constrain

CHUNK = 16  # a chunk's length is a multiple of it


def _context(mesh: Any = None) -> int:
    mesh = mesh or jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["context"]


def positions_axis(length: int) -> str | None:
    """The logical axis of the positions of rows of this length: "positions" where they can be sharded, else None."""
    return "positions" if length % multiple(_context()) == 0 else None


def _order(C: int) -> np.ndarray:
    """The chunks in the order in which devices hold them."""
    return np.array([chunk for r in range(C) for chunk in (r, 2 * C - 1 - r)])


def _in_order(x: jax.Array, order: np.ndarray) -> jax.Array:
    chunks = x.reshape(x.shape[0], len(order), -1, *x.shape[2:])
    return chunks[:, order].reshape(x.shape)


def multiple(context: int) -> int:
    """What a row's length must be a multiple of to be sharded over a ``context`` axis of this size; 1 if that is -1."""
    return 2 * context * CHUNK if context > 1 else 1


def report_whole_rows(mesh: Mesh, lengths: Mapping[str, int]) -> list[str]:
    """One line for each length of a row, by its config key, that ``context`` does not split."""
    needed = multiple(mesh.shape["context"])
    return [
        f"not split over mesh axis 'context': rows of {length}; give config.{key} as a multiple of {needed}"
        for key, length in lengths.items()
        if length % needed
    ]


def shard(x: jax.Array) -> jax.Array:
    """Puts (B, T, ...) in the zigzag order of devices; as it is where positions are not sharded."""
    if _context() == 1 or not positions_axis(x.shape[1]):
        return x
    return constrain(_in_order(x, _order(_context())), "rows", "positions", *[None] * (x.ndim - 2))


def unshard(x: jax.Array, mesh: Any = None) -> jax.Array:
    """The inverse of ``shard``."""
    if _context(mesh) == 1 or not positions_axis(x.shape[1]):
        return x
    return _in_order(x, np.argsort(_order(_context(mesh))))


def are_sharded(length: int) -> bool:
    """Whether the positions of rows of this length are sharded over several devices."""
    return _context() > 1 and positions_axis(length) is not None


def as_rows(x: jax.Array) -> jax.Array:
    """Makes each device's part of a zigzag-sharded row a row of its own: (B, T, ...) to (B * C, T / C, ...)."""
    if not are_sharded(x.shape[1]):
        return x
    return constrain(x.reshape(x.shape[0] * _context(), -1, *x.shape[2:]), "row_parts", *[None] * (x.ndim - 1))


def own_chunks() -> list[Any]:
    """The numbers of the chunks that a device holds; for code that each device runs on its own."""
    r = jax.lax.axis_index("context")
    return [r, 2 * _context() - 1 - r]
