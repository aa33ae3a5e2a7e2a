"""Which blocks of queries and of keys meet, from the intervals: what kernels that skip blocks go through."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Ranges(NamedTuple):
    """Which blocks meet: int32 (B, blocks) each, ends not included."""

    first_key: jax.Array  # of a block of queries
    last_key: jax.Array
    first_query: jax.Array  # of a block of keys
    last_query: jax.Array


def ranges(start_BT, end_BT, keys: int, block: int, key_block: int = 0) -> Ranges:
    """Ranges of blocks of ``block`` queries and ``key_block`` keys (0: as many), of which T and ``keys`` are multiples.

    Args:
      start_BT, end_BT: of each query's interval of keys, the end not included; an empty one meets no block.
      keys: positions of a row of keys.
    """
    B, T = start_BT.shape
    key_block = key_block or block
    is_seeing = end_BT > start_BT

    def by_block(x, fill: int):
        return jnp.where(is_seeing, x, fill).reshape(B, T // block, block)

    first_key = by_block(start_BT, keys).min(-1) // key_block
    last_key = -(-by_block(end_BT, 0).max(-1) // key_block)
    at = jnp.arange(keys // key_block)
    meets_Bnm = (at >= first_key[..., None]) & (at < last_key[..., None])
    first_query = jnp.argmax(meets_Bnm, 1)
    last_query = jnp.where(meets_Bnm.any(1), T // block - jnp.argmax(meets_Bnm[:, ::-1], 1), 0)
    return Ranges(*(x.astype(jnp.int32) for x in (first_key, last_key, first_query, last_query)))
