"""The interval attention backend for GPUs: three Pallas kernels (by Triton) that skip blocks forward and backward.

The forward one goes through the keys of a block of queries with a running softmax (FlashAttention-2, Dao, 2023); of the
backward ones, the first does so again for the queries' gradient, and the second goes through the queries of a block of
keys. Each knows from the intervals, on the device, where to begin and where to end.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxmm.models.kernels.interval_blocks import Logits
from jaxmm.models.kernels.ranges import ranges

_MASKED = -1e30  # finite, so that a row of masked logits gives no NaN
_EMPTY = _MASKED / 10  # the maximum of a query that sees nothing: exp(_MASKED - _EMPTY) is exactly 0
LARGEST_HEAD = 256
LARGEST_BLOCK = {"bfloat16": 64}  # else 32: Triton unrolls products of float32, and would compile them for minutes
# Bytes of a block of queries or keys. A backward kernel holds two in shared memory, and two more of each loop step that
# is under way (two are), beside squares of weights: about 100 of the 164 KiB that a program may have on an A100, or of
# 228 on an H100.
TILE = 2**14


class Kind(NamedTuple):
    """What is fixed when a kernel is compiled: sides of blocks, how logits are made, and whether steps are emulated."""

    block: int
    logits: Logits
    interpret: bool = False


def fused_attention(
    q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, *, scale: float, softcap: float = 0.0, interpret: bool = False
):  # fmt: skip
    """Softmax attention of T queries over S keys, in which query i sees the keys in [start_i, end_i).

    Heads of other than 16, 32, 64, 128 and 256 are padded to the next of these. Memory is linear in T and S.

    Args:
      interpret: run the kernels' steps one by one, anywhere.
    Returns:
      (B, T, H, D) in the dtype of ``q_BTHD``; an empty interval gives 0.
    Raises:
      ValueError: for heads wider than LARGEST_HEAD.
    """
    T, D = q_BTHD.shape[1], q_BTHD.shape[-1]
    if D > LARGEST_HEAD:
        raise ValueError(f"attention by 'fused' takes heads of at most {LARGEST_HEAD}, not {D}: use 'blocks'")
    width = max(16, pl.next_power_of_2(D))
    block = min(LARGEST_BLOCK.get(q_BTHD.dtype.name, 32), TILE // (width * q_BTHD.dtype.itemsize))
    kind = Kind(block, Logits(scale, softcap), interpret)

    def padded(x, width: int):
        rest = [(0, width - x.shape[-1])] if x.ndim == 4 else []
        return jnp.pad(x, ((0, 0), (0, -x.shape[1] % kind.block), *[(0, 0)] * (x.ndim - 2 - len(rest)), *rest))

    inputs = (padded(x, width) for x in (q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT))
    return _attention(*inputs, kind)[:, :T, :, :D]


def _dot(a, b, contract: tuple[int, int]):
    """Matmul over one dim of each, accumulated in float32; float32 is not rounded to TF32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(
        a, b, (((contract[0],), (contract[1],)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )  # fmt: skip


def _logits(q, k, start, end, first_key, kind: Logits, key_dim: int = 1):
    """Bent logits before masking, and where a query sees a key: (queries, keys), or with ``key_dim`` 0 transposed."""
    a, b = (q, k) if key_dim else (k, q)
    key = first_key + lax.broadcasted_iota(jnp.int32, (a.shape[0], b.shape[0]), key_dim)
    start, end = (jnp.expand_dims(x, key_dim) for x in (start, end))
    return kind.softcapped(_dot(a, b, (1, 1)) * kind.scale), (key >= start) & (key < end)


def _forward_kernel(q, k, v, start, end, first, last, out, lse, *, kind: Kind):
    block, queries, starts, ends = kind.block, q[...], start[...], end[...]

    def one_block(j, carry):
        acc, top, total = carry
        here = pl.ds(j * block, block)
        softcapped, seen = _logits(queries, k[here, :], starts, ends, j * block, kind.logits)
        softcapped = jnp.where(seen, softcapped, _MASKED)
        new_top = jnp.maximum(top, softcapped.max(1))
        p, shrink = jnp.exp(softcapped - new_top[:, None]), jnp.exp(top - new_top)
        acc = acc * shrink[:, None] + _dot(p.astype(v.dtype), v[here, :], (1, 0))
        return acc, new_top, total * shrink + p.sum(1)

    empty = jnp.full(starts.shape, _EMPTY, jnp.float32)
    begin = jnp.zeros(queries.shape, jnp.float32), empty, jnp.zeros(starts.shape, jnp.float32)
    acc, top, total = lax.fori_loop(first[0], last[0], one_block, begin)
    total = jnp.where(total == 0, 1.0, total)
    out[...] = (acc / total[:, None]).astype(out.dtype)
    lse[...] = top + jnp.log(total)


def _slopes(queries, keys, values, grads, starts, ends, lse, delta, first_key, kind: Kind, key_dim: int = 1):
    """The softmax's weights, and the gradient of the logits before they are scaled."""
    softcapped, seen = _logits(queries, keys, starts, ends, first_key, kind.logits, key_dim)
    lse, delta = (jnp.expand_dims(x, key_dim) for x in (lse, delta))
    p = jnp.where(seen, jnp.exp(softcapped - lse), 0.0)
    dp = _dot(*((grads, values) if key_dim else (values, grads)), (1, 1))
    return p, p * (dp - delta) * kind.logits.slope(softcapped)


def _query_kernel(q, k, v, start, end, first, last, grad, lse, delta, dq, *, kind: Kind):
    block = kind.block
    queries, grads = q[...], grad[...]
    fixed = start[...], end[...], lse[...], delta[...]

    def one_block(j, total):
        here = pl.ds(j * block, block)
        keys = k[here, :]
        _, ds = _slopes(queries, keys, v[here, :], grads, *fixed, j * block, kind)
        return total + _dot(ds.astype(keys.dtype), keys, (1, 0))

    total = lax.fori_loop(first[0], last[0], one_block, jnp.zeros(queries.shape, jnp.float32))
    dq[...] = (total * kind.logits.scale).astype(dq.dtype)


def _key_kernel(q, k, v, start, end, first, last, grad, lse, delta, dk, dv, *, kind: Kind):
    """One block of keys of one key-value head, and all query heads that share it.

    Heads and blocks of queries are one loop: whatever their number, a step loads one block of each. Weights are made
    transposed, so that they go into the next product as they are.
    """
    block, heads = kind.block, q.shape[1]
    keys, values = k[...], v[...]
    first_key = pl.program_id(0) * block

    def one_block(n, sums):
        dk, dv = sums
        here, head = pl.ds(lax.div(n, heads) * block, block), lax.rem(n, heads)
        queries, grads = q[here, head, :], grad[here, head, :]
        fixed = start[here], end[here], lse[head, here], delta[head, here]
        p, ds = _slopes(queries, keys, values, grads, *fixed, first_key, kind, key_dim=0)
        dv += _dot(p.astype(grads.dtype), grads, (1, 0))
        return dk + _dot(ds.astype(queries.dtype), queries, (1, 0)), dv

    zeros = jnp.zeros(keys.shape, jnp.float32)
    total_dk, total_dv = lax.fori_loop(first[0] * heads, last[0] * heads, one_block, (zeros, zeros))
    dk[...] = (total_dk * kind.logits.scale).astype(dk.dtype)
    dv[...] = total_dv.astype(dv.dtype)


def _specs(queries: tuple[int, ...], keys: tuple[int, ...], block: int) -> dict[str, pl.BlockSpec]:
    """What of an array one program of a grid of (blocks, heads, rows) sees, by the array's name."""
    T, H, D = queries[1:]
    S, K = keys[1:3]
    G = H // K
    return {
        # of a block of queries
        "q": pl.BlockSpec((None, block, None, D), lambda i, h, b: (b, i, h, 0)),
        "all_k": pl.BlockSpec((None, S, None, D), lambda i, h, b: (b, 0, h // G, 0)),
        "edge": pl.BlockSpec((None, block), lambda i, h, b: (b, i)),
        "sum": pl.BlockSpec((None, None, block), lambda i, h, b: (b, h, i)),
        # of a block of keys; heads are key-value heads
        "k": pl.BlockSpec((None, block, None, D), lambda j, h, b: (b, j, h, 0)),
        "all_q": pl.BlockSpec((None, T, G, D), lambda j, h, b: (b, 0, h, 0)),
        "all_edges": pl.BlockSpec((None, T), lambda j, h, b: (b, 0)),
        "all_sums": pl.BlockSpec((None, G, T), lambda j, h, b: (b, h, 0)),
        # of both
        "one": pl.BlockSpec((None, 1), lambda i, h, b: (b, i)),
    }


def _call(
    kernel: Any, kind: Kind, grid: tuple[int, ...], specs: list[Any], out_specs: Any, out_shape: Any, warps: int = 4
) -> Any:
    params = triton.CompilerParams(num_warps=warps, num_stages=2)
    return pl.pallas_call(
        functools.partial(kernel, kind=kind), grid=grid, in_specs=specs, out_specs=out_specs, out_shape=out_shape,
        interpret=kind.interpret, compiler_params=params, name=f"interval{kernel.__name__}",
    )  # fmt: skip


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, kind: Kind):
    return _forward(q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, kind)[0]


def _forward(q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, kind: Kind):
    B, T, H, _ = q_BTHD.shape
    meet = ranges(start_BT, end_BT, k_BSKD.shape[1], kind.block)
    spec = _specs(q_BTHD.shape, k_BSKD.shape, kind.block)
    names = ("q", "all_k", "all_k", "edge", "edge", "one", "one")
    shapes = [jax.ShapeDtypeStruct(q_BTHD.shape, q_BTHD.dtype), jax.ShapeDtypeStruct((B, H, T), jnp.float32)]
    run = _call(
        _forward_kernel, kind, (T // kind.block, H, B), [spec[n] for n in names], [spec["q"], spec["sum"]], shapes
    )  # fmt: skip
    out_BTHD, lse_BHT = run(q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, meet.first_key, meet.last_key)
    return out_BTHD, (q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, meet, out_BTHD, lse_BHT)


def _backward(kind: Kind, saved, grad_BTHD):
    q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, meet, out_BTHD, lse_BHT = saved
    B, T, H, D = q_BTHD.shape
    S, K = k_BSKD.shape[1:3]
    spec = _specs(q_BTHD.shape, k_BSKD.shape, kind.block)
    delta_BHT = jnp.einsum(
        "bthd,bthd->bht", out_BTHD, grad_BTHD, precision="highest", preferred_element_type=jnp.float32
    )  # fmt: skip
    inputs, sums = (q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT), (grad_BTHD, lse_BHT, delta_BHT)
    like_q, like_k = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q_BTHD, k_BSKD))
    names = ("q", "all_k", "all_k", "edge", "edge", "one", "one", "q", "sum", "sum")
    run = _call(_query_kernel, kind, (T // kind.block, H, B), [spec[n] for n in names], spec["q"], like_q)
    dq_BTHD = run(*inputs, meet.first_key, meet.last_key, *sums)
    names = ("all_q", "k", "k", "all_edges", "all_edges", "one", "one", "all_q", "all_sums", "all_sums")
    run = _call(
        _key_kernel, kind, (S // kind.block, K, B), [spec[n] for n in names], [spec["k"]] * 2, [like_k, like_k],
        warps=8 if D >= 128 else 4,  # of four warps its two sums take all registers, and some spill
    )  # fmt: skip
    dk_BSKD, dv_BSKD = run(*inputs, meet.first_query, meet.last_query, *sums)
    return dq_BTHD, dk_BSKD, dv_BSKD, None, None


_attention.defvjp(_forward, _backward)
