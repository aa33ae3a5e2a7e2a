"""One attention op for every mask: query i sees the keys in [start_i, end_i). Also the intervals each kind of mask is.

A mask is two int32 vectors a row, never a T x T array. Packing leaks nothing because an interval never leaves its
segment; padding has the empty interval and gives 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
from jax import lax

from jaxmm import per_device, sharding, zigzag
from jaxmm.models.kernels import device
from jaxmm.models.kernels.interval_blocks import Logits, block_attention

Intervals = tuple[jax.Array, jax.Array]  # start and end, int32 (B, T)

# By name, what they are; each expresses any interval, or raises when it is traced.
BACKENDS = {
    "blocks": "XLA, anywhere", "splash": "JAX's Pallas kernels for TPUs", "fused": "Pallas kernels of ours for GPUs",
    "hopper": "Pallas kernels of ours for Hopper GPUs, never chosen by itself",
    "tokamax": "tokamax's Pallas kernels for Hopper GPUs, never chosen by itself",
    "flash3": "FlashAttention-3 for Hopper GPUs, causal masks and whole segments, never chosen by itself",
}  # fmt: skip
BESIDE = "blocks"  # takes heads of any width: "splash+blocks" is "splash", and this where heads are too wide for it
_PLATFORMS = {"splash": "tpu", "fused": "gpu", "hopper": "gpu", "tokamax": "gpu", "flash3": "gpu"}  # its only one
# What all intervals of a row are, as ``attention`` is told.
MASKS = {
    "any": "any intervals", "whole": "all of a segment start where it does, which windows do not",
    "causal": "whole, and none goes beyond its query", "runs": "each position sees all of its segment",
}  # fmt: skip
BLOCK, LARGEST_BLOCK = 64, 512  # positions; of "blocks"
_GROUPS = {"cpu": 64}  # queries that "blocks" computes at a time; elsewhere 1024


def choose_backend(name: str, platform: str, longest: int, dtype: str = "", heads: Collection[int] = ()) -> str:
    """Returns the backend to use: ``name``, or for '' the best one, which may be two ("splash+blocks").

    Args:
      platform: "cpu", "tpu" or "gpu"; "" for one that is not to be asked.
      longest: positions of the longest row in which some layer sees a window; 0 where none does.
      dtype: that is computed in, where it is known.
      heads: all widths of heads, where they are known.

    Raises:
      ValueError: if there is no such backend, or it cannot be it here.
    """
    if name not in (*BACKENDS, ""):
        raise ValueError(f"attention backend '{name}' is not one of {', '.join(BACKENDS)}")
    if platform and name and _PLATFORMS.get(name, platform) != platform:
        raise ValueError(
            f"attention backend '{name}' runs on {_PLATFORMS[name].upper()}s, not on {platform}: give '' for the best "
            f"here"
        )
    if platform and name in device.PACKAGES:
        device.require(name, dtype, max(heads, default=0))
    chosen = name or {"tpu": "splash", "gpu": "fused"}.get(platform, "blocks")
    if platform == "tpu" and chosen == "splash":
        from jaxmm.models.kernels.splash import LONGEST

        if name and longest > LONGEST:
            raise ValueError(f"'splash' takes windows in rows of at most {LONGEST} positions, not {longest}: give ''")
        chosen = "splash" if longest <= LONGEST else "blocks"
    wide = [head for head in heads if head > largest_head(chosen)]
    if wide and name:
        raise ValueError(f"'{name}' takes heads of at most {largest_head(name)}, not {max(wide)}: give ''")
    if not wide:
        return chosen
    return BESIDE if len(wide) == len(heads) else f"{chosen}+{BESIDE}"


def largest_head(backend: str) -> float:
    """Width of the widest head that a backend of BACKENDS takes."""
    if backend == "splash":
        from jaxmm.models.kernels import splash

        return splash.LARGEST_HEAD
    if backend == "fused":
        from jaxmm.models.kernels import fused

        return fused.LARGEST_HEAD
    return device.LARGEST_HEAD if backend in device.PACKAGES else math.inf


def for_head(backend: str, head: int) -> str:
    """The one of BACKENDS that computes heads of this width, of what ``choose_backend`` gave."""
    first, _, beside = backend.partition("+")
    return beside if beside and head > largest_head(first) else first


def in_words(backend: str) -> str:
    """What ``choose_backend`` gave, for people: "'splash', and heads wider than 256 by 'blocks'"."""
    first, _, beside = backend.partition("+")
    return f"'{first}'" + (f", and heads wider than {largest_head(first)} by '{beside}'" if beside else "")


def check_mask(backend: str, mask: str, softcap: float, is_split: bool = False) -> None:
    """Raises ValueError where a backend does not take a key of MASKS, soft-capped logits or rows split over devices."""
    if backend == "flash3":
        from jaxmm.models.kernels import flash3

        flash3.check(mask, softcap, is_split)


def block_of_tiles(tile: int) -> int:
    """The block for segments of ``tile`` positions each: an equal part of one, as large as a core's cache can hold.

    BLOCK where ``tile`` is 0, or has no such part.
    """
    parts = range(BLOCK // 2, min(tile, LARGEST_BLOCK) + 1)
    return max((part for part in parts if tile % part == 0), default=BLOCK)


def attention(
    q_BTHD, k_BTKD, v_BTKD, intervals: Intervals, *,
    scale: float = 0.0, softcap: float = 0.0, backend: str = "", block: int = BLOCK, group: int = 0,
    mask: str = "any",
):  # fmt: skip
    """Softmax attention over intervals, with grouped key-value heads (H a multiple of K).

    Rows may be sharded over the batch mesh axes and heads over ``tensor``: each device then works on its own. Where
    positions are sharded over ``context`` (``zigzag.shard``), each device computes its own queries against the
    keys of the whole row.

    Args:
      intervals: start and end, int32 (B, T), in the order of ``q_BTHD``, of keys in their true order; an empty interval
        (end <= start) gives 0.
      scale: of the logits; 0 is 1 / sqrt(D).
      softcap: bends logits to within plus and minus this by a tanh (Gemma 2); 0 does not.
      backend: one of BACKENDS, or two as ``choose_backend`` gives them; '' is "blocks".
      block: of "blocks", the side of the squares that are computed or skipped.
      group: of "blocks", queries that are computed at a time, 0 for the platform's best.
      mask: what is known of the intervals, a key of MASKS: where they are more than "any", "splash" takes rows of any
        length; "flash3" takes "causal" and "runs".
    Returns:
      (B, T, H, D) in the dtype of ``q_BTHD``.
    """
    T, H, K = q_BTHD.shape[1], q_BTHD.shape[2], k_BTKD.shape[2]
    if H % K:
        raise ValueError(f"{H} attention heads are no multiple of {K} key-value heads")
    if mask not in MASKS:
        raise ValueError(f"mask '{mask}' is not one of {', '.join(MASKS)}")
    scale = scale or q_BTHD.shape[-1] ** -0.5
    run: Callable[..., jax.Array]
    with_starts = False
    chosen = choose_backend(for_head(backend, q_BTHD.shape[-1]), "", T)
    if chosen == "splash":
        from jaxmm.models.kernels.splash import LONGEST, splash_attention

        run = functools.partial(splash_attention, scale=scale, softcap=softcap)
        with_starts = mask != "any" and T > LONGEST
    elif chosen == "fused":
        from jaxmm.models.kernels.fused import fused_attention

        run = functools.partial(fused_attention, scale=scale, softcap=softcap)
    elif chosen == "hopper":
        from jaxmm.models.kernels.hopper import hopper_attention

        run = functools.partial(hopper_attention, scale=scale, softcap=softcap)
    elif chosen == "tokamax":
        from jaxmm.models.kernels.tokamax import tokamax_attention

        run = functools.partial(tokamax_attention, scale=scale, softcap=softcap)
    elif chosen == "flash3":
        from jaxmm.models.kernels.flash3 import flash3_attention

        run = functools.partial(flash3_attention, scale=scale, softcap=softcap, mask=mask)
    else:
        block = min(block, -(-T // 16) * 16)
        group = group or _GROUPS.get(sharding.platform(), 1024)
        run = functools.partial(_by_blocks, block=block, group=group, logits=Logits(scale, softcap))
    return per_device.over_queries(run, K, with_starts=with_starts)(q_BTHD, k_BTKD, v_BTKD, *intervals)


def _by_blocks(q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, *, block: int, group: int, logits: Logits):
    """``block_attention`` for any length; queries that are a device's share of a row's are in two runs."""
    T, S = q_BTHD.shape[1], k_BSKD.shape[1]
    if T < S:
        starts = zigzag.own_chunks()
        chunk = T // len(starts)
        block, group = math.gcd(BLOCK if chunk % block else block, chunk), min(group, chunk)
        places_N = jnp.concatenate([start * (chunk // block) + jnp.arange(chunk // block) for start in starts])
    else:
        places_N = jnp.arange(-(-T // block))
    widths = ((0, 0), (0, -T % block), (0, 0), (0, 0))
    if T % block:
        q_BTHD, k_BSKD, v_BSKD = (jnp.pad(x, widths) for x in (q_BTHD, k_BSKD, v_BSKD))
        start_BT, end_BT = (jnp.pad(x, widths[:2]) for x in (start_BT, end_BT))
    out_BTHD = block_attention(
        q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, places_N.astype(jnp.int32), block, group, logits
    )  # fmt: skip
    return out_BTHD[:, :T]


def decode_attention(q_B1HD, k_BKCD, v_BKCD, intervals: Intervals, *, scale: float = 0.0, softcap: float = 0.0):
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
    logits_BKGC = kind.softcapped(jnp.einsum("bkgd,bkcd->bkgc", q_BKGD, k_BKCD, preferred_element_type=jnp.float32))
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


def bidirectional(segments_BT, *window_keys_BT) -> Intervals:
    """Every position sees its whole segment (vision towers); with keys, only its run of equal keys in it (windows)."""
    return _hide_padding(*runs(segments_BT, *window_keys_BT), segments_BT)


def causal(segments_BT, blocks_BT=None, window: int = 0, over_window: bool = False) -> Intervals:
    """Each position sees itself and what came before it in its segment.

    Args:
      segments_BT: 0 is padding.
      blocks_BT: runs of equal non-zero numbers see each other both ways (image blocks, prefixes): end is the block's.
      window: how many positions back are seen, itself included; 0 is all. It binds inside two-way blocks too.
      over_window: it does not: all of a block is seen, however long (PaliGemma 2).
    """
    index = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)[None]
    start, _ = runs(segments_BT)
    end = jnp.broadcast_to(index + 1, segments_BT.shape)
    if window:
        start = jnp.maximum(start, index - window + 1)
    if blocks_BT is not None:
        block_start, block_end = runs(segments_BT, blocks_BT)
        end = jnp.where(blocks_BT > 0, block_end, end)
        if over_window:
            start = jnp.where(blocks_BT > 0, jnp.minimum(start, block_start), start)
    return _hide_padding(start, end, segments_BT)
