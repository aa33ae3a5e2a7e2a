"""One attention op for every mask: query i sees the keys in [start_i, end_i). Also the intervals each kind of mask is.

A mask is two int32 vectors a row, never a T x T array. Packing leaks nothing because an interval never leaves its
segment; padding has the empty interval and gives 0.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxmm import sharding
from jaxmm.models.interval_blocks import Logits, block_attention

Intervals = tuple[jax.Array, jax.Array]  # start and end, int32 (B, T)

BACKENDS = ("blocks",)  # by name; each must express any interval or raise
_GROUPS = {"cpu": 64}  # queries computed at a time; elsewhere 1024


def choose_backend(name: str = "") -> str:
    """Returns the backend to use: ``name``, or for '' the best one for this platform."""
    if not name:
        return "blocks"
    if name not in BACKENDS:
        raise ValueError(f"attention backend '{name}' is not one of {', '.join(BACKENDS)}")
    return name


def attention(
    q_BTHD, k_BTKD, v_BTKD, intervals: Intervals, *,
    scale: float = 0.0, softcap: float = 0.0, backend: str = "", block: int = 64, group: int = 0,
):  # fmt: skip
    """Softmax attention over intervals, with grouped key-value heads (H a multiple of K).

    Rows may be sharded over the batch mesh axes and heads over ``tensor``: each device then works on its own.

    Args:
      intervals: start and end, int32 (B, T); an empty interval (end <= start) gives 0.
      scale: of the logits; 0 is 1 / sqrt(D).
      softcap: bends logits to within plus and minus this by a tanh (Gemma 2); 0 does not.
      backend: one of BACKENDS, '' for the platform's best.
      block: side of the square blocks that are computed or skipped.
      group: queries that are computed at a time, 0 for the platform's best.
    Returns:
      (B, T, H, D) in the dtype of ``q_BTHD``.
    """
    T, H, K = q_BTHD.shape[1], q_BTHD.shape[2], k_BTKD.shape[2]
    if H % K:
        raise ValueError(f"{H} attention heads are no multiple of {K} key-value heads")
    choose_backend(backend)
    block = min(block, -(-T // 16) * 16)
    padding = -T % block
    if padding:
        widths = ((0, 0), (0, padding), (0, 0), (0, 0))
        q_BTHD, k_BTKD, v_BTKD = (jnp.pad(x, widths) for x in (q_BTHD, k_BTKD, v_BTKD))
        start_BT, end_BT = (jnp.pad(x, widths[:2]) for x in intervals)
        intervals = start_BT, end_BT
    group = group or _GROUPS.get(jax.default_backend(), 1024)
    logits = Logits(scale or q_BTHD.shape[-1] ** -0.5, softcap)
    run = functools.partial(block_attention, block=block, group=group, logits=logits)
    out_BTHD = sharding.over_rows_and_heads(run, heads=K)(q_BTHD, k_BTKD, v_BTKD, *intervals)
    return out_BTHD[:, :T]


def attention_of_one(q_B1HD, k_BKCD, v_BKCD, intervals: Intervals, *, scale: float = 0.0, softcap: float = 0.0):
    """The same for one query a row, whose keys and values are a cache's, heads first: its logits, (B, H, C), are few
    enough to be held.

    Args:
      intervals: start and end in the cache, int32 (B, 1), never empty.
    Returns:
      (B, 1, H, D) in the dtype of ``q_B1HD``.
    """
    B, _, H, D = q_B1HD.shape
    K, C = k_BKCD.shape[1:3]
    kind = Logits(scale or D**-0.5, softcap)
    q_BKGD = (q_B1HD * jnp.asarray(kind.scale, q_B1HD.dtype)).reshape(B, K, H // K, D)
    logits_BKGC = kind.bent(jnp.einsum("bkgd,bkcd->bkgc", q_BKGD, k_BKCD, preferred_element_type=jnp.float32))
    keys = jnp.arange(C, dtype=jnp.int32)
    seen_BC = (keys >= intervals[0]) & (keys < intervals[1])
    p_BKGC = jax.nn.softmax(jnp.where(seen_BC[:, None, None], logits_BKGC, -jnp.inf), axis=-1)
    out = jnp.einsum("bkgc,bkcd->bkgd", p_BKGC.astype(v_BKCD.dtype), v_BKCD, preferred_element_type=jnp.float32)
    return out.reshape(B, 1, H, D).astype(q_B1HD.dtype)


def runs(keys_BT, *more_keys_BT) -> Intervals:
    """The interval of the run of equal keys that each position lies in. Equal keys need not be adjacent elsewhere."""
    T = keys_BT.shape[1]
    changed = jnp.zeros((keys_BT.shape[0], T - 1), bool)
    for keys in (keys_BT, *more_keys_BT):
        changed |= keys[:, 1:] != keys[:, :-1]
    edge = jnp.ones_like(changed[:, :1]) if T > 1 else jnp.ones(keys_BT.shape, bool)
    index = jnp.arange(T, dtype=jnp.int32)
    start = lax.cummax(jnp.where(jnp.concatenate([edge, changed], 1), index, 0), axis=1)
    end = lax.cummin(jnp.where(jnp.concatenate([changed, edge], 1), index + 1, T), axis=1, reverse=True)
    return start, end


def _hide_padding(start, end, segments_BT) -> Intervals:
    real = segments_BT > 0
    return jnp.where(real, start, 0), jnp.where(real, end, 0)


def two_way(segments_BT, *window_keys_BT) -> Intervals:
    """Every position sees its whole segment (vision towers); with keys, only its run of equal keys in it (windows)."""
    return _hide_padding(*runs(segments_BT, *window_keys_BT), segments_BT)


def causal(segments_BT, blocks_BT=None, window: int = 0) -> Intervals:
    """Each position sees itself and what came before it in its segment.

    Args:
      segments_BT: 0 is padding.
      blocks_BT: runs of equal non-zero numbers see each other both ways (image blocks, prefixes): end is the block's.
      window: how many positions back are seen, itself included; 0 is all. It binds inside two-way blocks too.
    """
    index = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)[None]
    start, _ = runs(segments_BT)
    end = jnp.broadcast_to(index + 1, segments_BT.shape)
    if window:
        start = jnp.maximum(start, index - window + 1)
    if blocks_BT is not None:
        _, block_end = runs(segments_BT, blocks_BT)
        end = jnp.where(blocks_BT > 0, block_end, end)
    return _hide_padding(start, end, segments_BT)
