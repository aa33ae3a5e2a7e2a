"""The interval attention backend for TPUs: JAX's splash kernel, told on the device which keys each query sees.

Splash (``jax.experimental.pallas.ops.tpu``) skips blocks by a ``MaskInfo`` that is meant to be made of a mask known
beforehand. Here it is made of the batch's own intervals, and they are all the mask there is: a query's start and end
travel in its ``q_sequence``, and a mask function reads them there. In rows too long for both to fit, only the end does,
and starts are segment ids.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as mask_info

from jaxmm.errors import UserError

LANES = 128
LARGEST_BLOCK = 512
LARGEST_HEAD = 256  # in float32, on every kind; of 512 a block and its sums are more than v4 and v5p have memory for
_BITS = 16  # of an end in q_sequence; the start has the others
PAIRS = 1 << 16  # of blocks of queries and of keys, whose tables fit a core's scalar memory of 1 MiB
LONGEST = 1 << _BITS  # keys of a row whose intervals may start anywhere


def splash_attention(
    q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, start_BS=None, *,
    scale: float, softcap: float = 0.0, interpret: bool = False,
):  # fmt: skip
    """Softmax attention of T queries over S keys, in which query i sees the keys in [start_i, end_i).

    Memory is linear in T and S.

    Args:
      start_BS: where the interval of each key, as a query, starts; -1 where that is empty. Given, a query sees the keys
        of its interval whose start is its own: all of them, where a segment's intervals start where it does.
      interpret: run the kernel's steps one by one, anywhere.
    Returns:
      (B, T, H, D) in the dtype of ``q_BTHD``; an empty interval gives 0.
    Raises:
      ValueError: for heads wider than LARGEST_HEAD, or more keys than LONGEST without ``start_BS``.
      UserError: for more pairs of blocks than PAIRS: 131,072 queries by as many keys.
    """
    T, S, D = q_BTHD.shape[1], k_BSKD.shape[1], q_BTHD.shape[-1]
    if D > LARGEST_HEAD:
        raise ValueError(f"attention by 'splash' takes heads of at most {LARGEST_HEAD}, not {D}: use 'blocks'")
    if S > LONGEST and start_BS is None:
        raise ValueError(f"attention by 'splash' takes windows among at most {LONGEST} keys, not {S}: use 'blocks'")
    block_q, block_k = _block(T), _block(S)
    if (pairs := -(-T // block_q) * -(-S // block_k)) > PAIRS:
        raise UserError(  # before compiling; how long rows of patches are is only known when the data is
            f"attention by 'splash' takes at most {PAIRS} pairs of blocks, and {T} queries by {S} keys are {pairs}: "
            f"split rows over config.mesh.context, or use 'blocks'"
        )
    q_BTHD, k_BSKD, v_BSKD = (
        _padded(x, block) for x, block in ((q_BTHD, block_q), (k_BSKD, block_k), (v_BSKD, block_k))
    )
    is_seeing = _padded(end_BT > start_BT, block_q)
    # Queries that see nothing see one key all the same, which saves the kernel from an empty sum; 0 is put there after.
    one = jnp.minimum(jnp.arange(is_seeing.shape[1], dtype=jnp.int32), S - 1)
    start_BT = jnp.where(is_seeing, _padded(start_BT, block_q), one)
    last_BT = jnp.where(is_seeing, _padded(end_BT, block_q) - 1, one)
    sizes = splash.BlockSizes(
        block_q=block_q, block_kv=block_k, block_kv_compute=block_k,
        block_q_dkv=block_q, block_kv_dkv=block_k, block_kv_dkv_compute=block_k,
        block_q_dq=block_q, block_kv_dq=block_k,  # two kernels: one that does both needs memory for every block of dq
    )  # fmt: skip

    packed_BT, is_seen, segments = (start_BT << _BITS) | last_BT, _is_between, None
    if start_BS is not None:
        packed_BT, is_seen = last_BT, _is_before
        own_BT = jnp.where(is_seeing, start_BT, start_BS[:, one])
        segments = splash.SegmentIds(own_BT, jnp.pad(start_BS, ((0, 0), (0, k_BSKD.shape[1] - S)), constant_values=-2))

    def of_row(q_HTD, k_KSD, v_KSD, start_T, last_T, packed_T, segments):
        by_query, by_key = _mask_infos(start_T, last_T, packed_T, k_KSD.shape[1], block_q, block_k)
        kernel = splash.SplashAttentionKernel(
            by_query, by_query, by_key, block_sizes=sizes, is_mqa=False, save_residuals=False,
            mask_value=splash.DEFAULT_MASK_VALUE, attn_logits_soft_cap=softcap or None, residual_checkpoint_name=None,
            mask_function=is_seen, interpret=interpret,
        )  # fmt: skip
        return kernel(q_HTD, k_KSD, v_KSD, segments)

    heads_first = functools.partial(jnp.swapaxes, axis1=1, axis2=2)
    q_BHTD, k_BKSD, v_BKSD = map(heads_first, (q_BTHD * jnp.asarray(scale, q_BTHD.dtype), k_BSKD, v_BSKD))
    # Row by row: a batch of rows is a loop over the kernel alone, behind which all that it saves, 128 times as much of
    # its logarithms as is kept, stands in memory for all rows.
    rows = q_BHTD, k_BKSD, v_BKSD, start_BT, last_BT, packed_BT, segments
    out_BHTD = jax.lax.map(lambda row: of_row(*row), rows)
    out_BTHD = jnp.where(is_seeing[..., None, None], heads_first(out_BHTD), 0)
    return out_BTHD[:, :T]


def _block(length: int) -> int:
    """The side of blocks: the largest for which padding a row to a multiple of it adds no more than an eighth."""
    lanes = -(-length // LANES)
    return LANES * next(n for n in range(min(lanes, LARGEST_BLOCK // LANES), 0, -1) if 8 * (-lanes % n) <= lanes)


def _padded(x, block: int):
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), *[(0, 0)] * (x.ndim - 2)))


def _is_before(last, key):
    """The mask beside segment ids: ``last`` is a query's last key."""
    return key <= last


def _is_between(bounds, key):
    """The mask: ``bounds`` is a query's start, then its last key."""
    return (key >= jax.lax.shift_right_logical(bounds, _BITS)) & (key <= bounds & (LONGEST - 1))


def _mask_infos(
    start_T, last_T, packed_T, keys: int, block_q: int, block_k: int
) -> tuple[mask_info.MaskInfo, mask_info.MaskInfo]:  # fmt: skip
    """Which blocks of keys a block of queries meets, and which comes next: for the kernels that go through keys, and
    for the one that goes through queries.

    A block of queries meets all blocks from the first that one of them sees to the last. ``packed_T`` is what the mask
    is told of each query.
    """
    queries_n, keys_m = (jnp.arange(n // b, dtype=jnp.int32) for n, b in ((len(start_T), block_q), (keys, block_k)))
    first_n = start_T.reshape(-1, block_q).min(1) // block_k
    last_n = last_T.reshape(-1, block_q).max(1) // block_k
    meets_nm = (keys_m >= first_n[:, None]) & (keys_m <= last_n[:, None])
    next_key_nm = jnp.clip(keys_m, first_n[:, None], last_n[:, None])
    first_m = jnp.argmax(meets_nm, 0).astype(jnp.int32)
    last_m = len(queries_n) - 1 - jnp.argmax(meets_nm[::-1], 0).astype(jnp.int32)
    next_query_nm = jnp.clip(queries_n[:, None], first_m, last_m)

    def info(next_nm) -> mask_info.MaskInfo:
        return mask_info.MaskInfo(
            data_next=next_nm[None], mask_next=None, block_mask=meets_nm[None].astype(jnp.int32),
            partial_mask_blocks=None, q_sequence=packed_T,
        )  # fmt: skip

    return info(next_key_nm), info(next_query_nm)
