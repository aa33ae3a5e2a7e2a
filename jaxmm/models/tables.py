"""Tables over the vocabulary: what tokens are embedded by, and what hidden states are projected by; and their adapters.

An adapter of a table is a low-rank update like that of a linear map from the vocabulary: of the embedding with tokens
as one-hot vectors, of the projection transposed. A table that is both has one adapter for both.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmm.models.embedding import look_up
from jaxmm.models.lora import Lora

TABLES = (("decoder", "embedding"), ("decoder", "head"))


class TableAdapters(nnx.Module):
    """The adapters of a decoder's tables; None without one."""

    embedding: Lora | None = None
    head: Lora | None = None


class AdaptedHead(NamedTuple):
    """The vocabulary projection with an adapter: table_VD + into_Vr @ out_rD, whose scale is in ``out_rD``."""

    table_VD: jax.Array
    into_Vr: jax.Array
    out_rD: jax.Array


Head = jax.Array | AdaptedHead  # the vocabulary projection (V, D), as it is held


def looked_up(lora: Lora, tokens_BT, dtype) -> jax.Array:
    """What an adapter adds to the embeddings of tokens, (B, T, D)."""
    low_BTr = look_up(lora.into[...], tokens_BT, dtype)
    return jnp.asarray(lora.scale, dtype) * (low_BTr @ lora.out[...].astype(dtype))


def adapted(table_VD, lora: Lora | None) -> Head:
    """A table as the vocabulary projection, with its adapter."""
    return table_VD if lora is None else AdaptedHead(table_VD, lora.into[...], lora.scale * lora.out[...])


def terms(x: jax.Array, head: Head) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Vectors (..., D or r) in the dtype of x, and tables (V, D or r): their products add up to ``x @ head.T``."""
    if not isinstance(head, AdaptedHead):
        return (x,), (head,)
    return (x, x @ head.out_rD.T.astype(x.dtype)), (head.table_VD, head.into_Vr)


def dense(head: Head) -> jax.Array:
    """The projection as one table, (V, D); with an adapter in float32, as its update is lost in a rounded table."""
    if not isinstance(head, AdaptedHead):
        return head
    return head.table_VD.astype(jnp.float32) + head.into_Vr @ head.out_rD
