"""The attention backend by FlashAttention-3's kernels for Hopper GPUs (pip install dew-flash-attn-cu13).

They take segments by their offsets and skip, forward and backward, what lies outside: of our masks the causal one and
that in which all of a segment is seen. The rows of a device are laid end to end as one sequence of segments.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxmm.models.kernels import device

PADDING = 128  # positions: runs of padding are cut into segments of so many, whose work is then that of their length
MASKS = {"causal": True, "runs": False}  # of ``attention``, and whether they are causal


def flash3_attention(
    q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, *, scale: float, softcap: float = 0.0, mask: str = "any"
):  # fmt: skip
    """Softmax attention in which each query sees what ``mask`` says of its segment.

    Args:
      mask: a key of MASKS: what the intervals are.
    Returns:
      (B, T, H, D) in the dtype of ``q_BTHD``; an empty interval gives 0.
    Raises:
      ValueError: for other masks, soft-capped logits, a part of a row's queries, and what ``device.require`` does not
        take.
    """
    B, T, _, D = q_BTHD.shape
    device.require("flash3", q_BTHD.dtype.name, D)
    check(mask, softcap, k_BSKD.shape[1] != T)
    from dew_flash_attn import flash_mha_varlen

    seen_BT = end_BT > start_BT
    offsets = offsets_of(start_BT, seen_BT)
    q_NHD, k_NKD, v_NKD = (x.reshape(B * T, *x.shape[2:]) for x in (q_BTHD, k_BSKD, v_BSKD))
    out_NHD = flash_mha_varlen(q_NHD, k_NKD, v_NKD, offsets, T, scale, MASKS[mask])
    return jnp.where(seen_BT[:, :, None, None], out_NHD.reshape(q_BTHD.shape), 0)


def check(mask: str, softcap: float, is_split: bool) -> None:
    """Raises ValueError for masks and logits that it does not take, and for rows that are split over devices."""
    if mask not in MASKS:
        raise ValueError(
            "attention by 'flash3' takes causal masks, and segments that are seen whole: for windows, and for images "
            "or prefixes that see themselves both ways, use 'fused'"
        )
    if softcap:
        raise ValueError("attention by 'flash3' takes no soft-cap of logits: use 'fused'")
    if is_split:
        raise ValueError("attention by 'flash3' takes whole rows, which config.mesh.context splits: use 'fused'")


def offsets_of(start_BT, seen_BT):
    """Where segments begin in rows that are laid end to end, int32 (B * T + 1,): as many as there could be.

    Those that there are not are empty, at the end.

    Args:
      start_BT: where a position's segment starts in its row.
      seen_BT: whether it is no padding.
    """
    index = jnp.arange(start_BT.shape[1], dtype=jnp.int32)
    behind_BT = jnp.pad(seen_BT[:, :-1], ((0, 0), (1, 0)))
    begins_BT = jnp.where(seen_BT, start_BT == index, behind_BT | (index % PADDING == 0))
    total = begins_BT.size
    (places,) = jnp.nonzero(begins_BT.reshape(-1), size=total, fill_value=total)
    return jnp.append(places, total).astype(jnp.int32)
