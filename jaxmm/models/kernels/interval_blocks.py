"""The interval attention backend that runs everywhere: blocks of keys that no query needs are never touched.

The rows of a batch are laid end to end as one long sequence with intervals of their own, and its query blocks are taken
in groups. A group meets the keys one diagonal at a time: at offset o, the query block whose place is n meets key block
n - o. All blocks of a group thus meet one contiguous slab of keys in one batched matmul, and the loop runs only over
the offsets that some query of the group can see. Where the queries are some of a row's, their places say which. The
softmax is the running one of Milakov and Gimelshein (2018) and FlashAttention-2 (Dao, 2023); memory is linear in T,
work follows the area of the mask.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_MASKED = -1e30  # finite, so that a row of masked logits gives no NaN
_EMPTY = _MASKED / 10  # a query that sees nothing keeps this maximum: exp(_MASKED - _EMPTY) is exactly 0


class _Grid(NamedTuple):
    """How the B * T queries are cut: ``groups`` groups of ``size`` blocks of ``block`` positions."""

    block: int
    size: int
    groups: int


class _Inputs(NamedTuple):
    """Blocked copies of the inputs, heads first (K key-value heads with G query heads each, n blocks of b)."""

    q_KnGbD: jax.Array  # scaled, the heads of a key-value head side by side
    k_KmbD: jax.Array  # with size - 1 empty blocks before and after
    v_KmbD: jax.Array
    start_nb: jax.Array  # intervals over the long sequence
    end_nb: jax.Array
    place: jax.Array  # (groups,): of a group's first block; the others follow it
    first_offset: jax.Array  # (groups,): smallest and largest + 1 offset that some query of a group sees
    last_offset: jax.Array


class Logits(NamedTuple):
    """How logits come from products of queries and keys: times ``scale``, then softcapped to +-``cap`` (0: not)."""

    scale: float
    cap: float = 0.0

    def softcapped(self, x):
        return self.cap * jnp.tanh(x / self.cap) if self.cap else x

    def slope(self, softcapped):
        """The derivative of ``softcapped`` where it has that value."""
        return 1 - jnp.square(softcapped / self.cap) if self.cap else 1.0


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def block_attention(q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, places_N, block: int, group: int, logits: Logits):
    """Softmax attention in which query i sees the keys in [start_i, end_i); T and S must be multiples of ``block``.

    Args:
      places_N: int32 (T / block,), among which block of keys each block of queries stands: arange where queries and
        keys are the same positions. Any places are right; where many blocks follow each other, little is done twice.
      group: at most how many queries meet their keys in one matmul. Few skip finely and stay in a core's cache; many
        fill a wide device.

    Returns (B, T, H, D) in the dtype of ``q_BTHD``; logits and sums are float32. An empty interval gives 0.
    """
    return _forward(q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, places_N, block, group, logits)[0]


def _grid(rows: int, length: int, block: int, group: int, is_whole: bool) -> _Grid:
    """``is_whole``: the places of all rows follow each other, and a group may reach from one row into the next."""
    blocks = rows * length // block
    within = blocks if is_whole else length // block
    size = min(within, max(1, group // block))
    while within % size:
        size -= 1
    return _Grid(block, size, blocks // size)


def _blocked(x_BTHD, grid: _Grid, kv_heads: int):
    """(B, T, H, D) to (K, n, G * b, D): the query heads of one key-value head share a matmul."""
    B, T, H, D = x_BTHD.shape
    blocks = B * T // grid.block
    x = x_BTHD.reshape(blocks, grid.block, kv_heads, H // kv_heads, D)
    return x.transpose(2, 0, 3, 1, 4).reshape(kv_heads, blocks, -1, D)


def _unblocked(x_KnGbD, grid: _Grid, shape):
    H, D = shape[2:]
    K, blocks = x_KnGbD.shape[:2]
    x = x_KnGbD.reshape(K, blocks, H // K, grid.block, D)
    return x.transpose(1, 3, 0, 2, 4).reshape(shape)


def _prepare(q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, places_N, grid: _Grid, scale: float) -> _Inputs:
    B = q_BTHD.shape[0]
    S, K = k_BSKD.shape[1:3]
    row = jnp.arange(B, dtype=jnp.int32)[:, None] * S
    start_nb, end_nb = ((x + row).reshape(-1, grid.block) for x in (start_BT, end_BT))
    place_n = (places_N + row // grid.block).reshape(grid.groups, grid.size)[:, 0]
    index = (place_n[:, None] + jnp.arange(grid.size, dtype=jnp.int32)).reshape(-1)
    visible = end_nb > start_nb
    far = B * S // grid.block + grid.size
    largest = jnp.where(visible, index[:, None] - start_nb // grid.block, -far).max(-1)
    smallest = jnp.where(visible, index[:, None] - (end_nb - 1) // grid.block, far).min(-1)
    margin = ((0, 0), (grid.size - 1, grid.size - 1), (0, 0), (0, 0))
    return _Inputs(
        q_KnGbD=_blocked(q_BTHD * jnp.asarray(scale, q_BTHD.dtype), grid, K),
        k_KmbD=jnp.pad(_blocked(k_BSKD, grid, K), margin),
        v_KmbD=jnp.pad(_blocked(v_BSKD, grid, K), margin),
        start_nb=start_nb,
        end_nb=end_nb,
        place=place_n,
        first_offset=smallest.reshape(grid.groups, -1).min(-1),
        last_offset=largest.reshape(grid.groups, -1).max(-1) + 1,
    )


def _slab(x_KmbD, first, size: int):
    """``size`` consecutive blocks of every head, from block ``first`` on."""
    return lax.dynamic_slice_in_dim(x_KmbD, first, size, axis=1)


def _dot(a, b, contract: tuple[int, int]):
    """Matmul of (K, size, x, y) arrays over one of their last two dims, accumulated in float32."""
    dims = (((contract[0],), (contract[1],)), ((0, 1), (0, 1)))
    return lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _masked(logits, inputs: _Inputs, g, offset, fill: float):
    """Logits (K, size, G * b, b) of the query blocks of group ``g``, ``fill`` where a key is not visible."""
    K, size, Gb, b = logits.shape
    start, end = (lax.dynamic_slice_in_dim(x, g * size, size)[..., None] for x in (inputs.start_nb, inputs.end_nb))
    keys = (inputs.place[g] - offset + jnp.arange(size))[:, None, None] * b + jnp.arange(b)
    mask = (keys >= start) & (keys < end)
    by_head = jnp.where(mask[None, :, None], logits.reshape(K, size, Gb // b, b, b), fill)
    return by_head.reshape(logits.shape)


def _forward(q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, places_N, block: int, group: int, kind: Logits):
    B, T = q_BTHD.shape[:2]
    grid = _grid(B, T, block, group, is_whole=k_BSKD.shape[1] == T)
    inputs = _prepare(q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, places_N, grid, kind.scale)
    size = grid.size

    def one_group(g):
        first = g * size
        q = _slab(inputs.q_KnGbD, first, size)

        def one_offset(carry):
            offset, acc, top, total = carry
            slab = inputs.place[g] - offset + size - 1  # in the padded keys
            logits = kind.softcapped(_dot(q, _slab(inputs.k_KmbD, slab, size), (3, 3)))
            logits = _masked(logits, inputs, g, offset, _MASKED)
            new_top = jnp.maximum(top, logits.max(-1))
            p = jnp.exp(logits - new_top[..., None])
            scale = jnp.exp(top - new_top)
            pv = _dot(p.astype(v_BSKD.dtype), _slab(inputs.v_KmbD, slab, size), (3, 2))
            return offset + 1, acc * scale[..., None] + pv, new_top, total * scale + p.sum(-1)

        zeros = jnp.zeros(q.shape[:-1], jnp.float32)
        start = inputs.first_offset[g], jnp.zeros(q.shape, jnp.float32), zeros + _EMPTY, zeros
        _, acc, top, total = lax.while_loop(lambda c: c[0] < inputs.last_offset[g], one_offset, start)
        total = jnp.where(total == 0, 1.0, total)
        return (acc / total[..., None]).astype(q_BTHD.dtype), top + jnp.log(total)

    out, lse = lax.map(one_group, jnp.arange(grid.groups))  # (groups, K, size, G * b[, D])
    out_KnGbD, lse_KnGb = (jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:]) for x in (out, lse))
    return _unblocked(out_KnGbD, grid, q_BTHD.shape), (inputs, out_KnGbD, lse_KnGb)


def _backward(block: int, group: int, kind: Logits, saved, grad_BTHD):
    inputs, out_KnGbD, lse_KnGb = saved
    B, _, _, D = grad_BTHD.shape
    K, dtype = inputs.q_KnGbD.shape[0], inputs.q_KnGbD.dtype
    M = inputs.k_KmbD.shape[1]  # blocks of keys, with the empty ones
    size = inputs.q_KnGbD.shape[1] // inputs.place.shape[0]
    grid = _Grid(block, size, inputs.place.shape[0])
    grad_KnGbD = _blocked(grad_BTHD, grid, K)
    delta_KnGb = (grad_KnGbD.astype(jnp.float32) * out_KnGbD.astype(jnp.float32)).sum(-1)

    def one_group(sums, g):
        first = g * size
        q, grad = _slab(inputs.q_KnGbD, first, size), _slab(grad_KnGbD, first, size)
        lse, delta = (_slab(x, first, size)[..., None] for x in (lse_KnGb, delta_KnGb))

        def one_offset(carry):
            offset, dq, dk_KmbD, dv_KmbD = carry
            slab = inputs.place[g] - offset + size - 1
            k, v = _slab(inputs.k_KmbD, slab, size), _slab(inputs.v_KmbD, slab, size)
            softcapped = kind.softcapped(_dot(q, k, (3, 3)))
            p = jnp.exp(_masked(softcapped, inputs, g, offset, _MASKED) - lse)
            ds = (p * (_dot(grad, v, (3, 3)) - delta) * kind.slope(softcapped)).astype(dtype)
            dk = _slab(dk_KmbD, slab, size) + _dot(ds, q, (2, 2))
            dv = _slab(dv_KmbD, slab, size) + _dot(p.astype(dtype), grad, (2, 2))
            dk_KmbD = lax.dynamic_update_slice_in_dim(dk_KmbD, dk, slab, axis=1)
            dv_KmbD = lax.dynamic_update_slice_in_dim(dv_KmbD, dv, slab, axis=1)
            return offset + 1, dq + _dot(ds, k, (3, 2)), dk_KmbD, dv_KmbD

        start = inputs.first_offset[g], jnp.zeros(q.shape, jnp.float32), *sums
        _, dq, *sums = lax.while_loop(lambda c: c[0] < inputs.last_offset[g], one_offset, start)
        return tuple(sums), (dq * kind.scale).astype(dtype)

    zeros = jnp.zeros(inputs.k_KmbD.shape, jnp.float32)
    (dk_KmbD, dv_KmbD), dq = lax.scan(one_group, (zeros, zeros), jnp.arange(grid.groups))
    dq_KnGbD = jnp.moveaxis(dq, 0, 1).reshape(inputs.q_KnGbD.shape)
    inside = slice(size - 1, M - size + 1)
    keys = B, (M - 2 * size + 2) * block // B, K, D
    dk_BSKD, dv_BSKD = (_unblocked(x[:, inside].astype(dtype), grid, keys) for x in (dk_KmbD, dv_KmbD))
    return _unblocked(dq_KnGbD, grid, grad_BTHD.shape), dk_BSKD, dv_BSKD, None, None, None


block_attention.defvjp(_forward, _backward)
