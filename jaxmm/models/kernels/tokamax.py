"""The interval attention backend by tokamax's kernels for Hopper GPUs (pip install tokamax, 0.0.17).

Its masks can be intervals, but its public functions do not take such a mask: what is imported here is private, and the
extra keeps to one release. Forward it skips blocks of keys that no query of a block sees; backward it visits all.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from jax import lax

from jaxmm.models.kernels import device

BLOCK = 256  # positions that no block size of its configs for these GPUs exceeds: there is no part of a block


def tokamax_attention(
    q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, *, scale: float, softcap: float = 0.0, implementation: str = "mosaic_gpu"
):  # fmt: skip
    """Softmax attention of T queries over S keys, in which query i sees the keys in [start_i, end_i).

    Args:
      implementation: tokamax's name of what computes; "xla" runs anywhere, and holds all logits.
    Returns:
      (B, T, H, D) in the dtype of ``q_BTHD``; an empty interval gives 0.
    Raises:
      ValueError: for what ``device.require`` does not take.
    """
    if implementation == "mosaic_gpu":
        device.require("tokamax", q_BTHD.dtype.name, q_BTHD.shape[-1])
    from tokamax._src.ops.attention.api import IMPLEMENTATIONS
    from tokamax._src.ops.attention.base import Mask

    T = q_BTHD.shape[1]
    seen_BT = end_BT > start_BT
    # A block of queries meets the keys from its smallest start on. So where nothing is seen, the interval stays at the
    # start of the document before, and is empty there.
    from_BT = lax.cummax(jnp.where(seen_BT, start_BT, 0), axis=1)
    start_BT, end_BT = jnp.where(seen_BT, start_BT, from_BT), jnp.where(seen_BT, end_BT, from_BT)

    def padded(x, mode="constant"):
        return jnp.pad(x, ((0, 0), (0, -x.shape[1] % BLOCK), *[(0, 0)] * (x.ndim - 2)), mode=mode)

    # Padding queries see what the last one does, and nothing comes of it.
    mask = Mask(k_start=padded(start_BT, "edge")[:, None], k_end=padded(end_BT, "edge")[:, None])
    run = functools.partial(IMPLEMENTATIONS[implementation], mask=mask, logits_scale=scale)
    out_BTHD = run(padded(q_BTHD), padded(k_BSKD), padded(v_BSKD), logits_soft_cap=softcap or None)[:, :T]
    return jnp.where(seen_BT[:, :, None, None], out_BTHD, 0)  # XLA's has the mean of all values there
