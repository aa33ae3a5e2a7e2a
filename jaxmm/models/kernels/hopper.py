"""The interval attention backend for Hopper GPUs: three Pallas kernels by Mosaic that skip blocks, as ``fused`` does.

In each program two warpgroups compute, and a third loads blocks for them by the tensor memory accelerator, a few steps
ahead (FlashAttention-3, Shah et al., 2024). Steps go from the first block that some query of the program sees to the
last one. Exponentials are powers of 2, which are one instruction.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as mgpu

from jaxmm.models.kernels import device
from jaxmm.models.kernels.interval_blocks import Logits
from jaxmm.models.kernels.ranges import ranges
from jaxmm.models.kernels.warpgroups import (
    COLUMNS,
    GROUPS,
    ROWS,
    STEPS,
    TILE,
    Loads,
    along,
    compute_steps,
    full,
    iota,
    load,
    plus_product,
    split,
    times_transposed,
)

BLOCK = 64  # positions of a warpgroup
PROGRAM = BLOCK * GROUPS  # positions of a program
_MASKED = -1e30  # finite, so that a row of masked logits gives no NaN
_EMPTY = _MASKED / 10  # the maximum of a query that sees nothing: 2^(_MASKED - _EMPTY) is exactly 0
_LOG2E = math.log2(math.e)


class Kind(NamedTuple):
    """What is fixed when a kernel is compiled: how logits are made, and how it is interpreted (None: it is not)."""

    logits: Logits
    interpret: Any = None


def hopper_attention(
    q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, *, scale: float, softcap: float = 0.0, interpret: Any = None
):  # fmt: skip
    """Softmax attention of T queries over S keys, in which query i sees the keys in [start_i, end_i).

    Heads of other than 64 and 128 are padded to the next of these. Memory is linear in T and S.

    Args:
      interpret: parameters of Mosaic's interpreter, which runs the kernels' threads, copies and barriers anywhere. Its
        products are plain ones.
    Returns:
      (B, T, H, D) in the dtype of ``q_BTHD``; an empty interval gives 0.
    Raises:
      ValueError: for what ``device.require`` does not take: two sums of more than 128 numbers a key are more than a
        warpgroup has registers for.
    """
    T, D = q_BTHD.shape[1], q_BTHD.shape[-1]
    device.require("hopper", q_BTHD.dtype.name, D)

    def padded(x):
        rest = [(0, 0), (0, -D % 64)] if x.ndim == 4 else []
        return jnp.pad(x, ((0, 0), (0, -x.shape[1] % PROGRAM), *rest))

    inputs = (padded(x) for x in (q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT))
    return _attention(*inputs, Kind(Logits(scale, softcap), interpret))[:, :T, :, :D]


def _logits(products, starts, ends, first_key, query_dim: int, kind: Kind):
    """Softcapped logits, not yet masked, and where a query sees a key: of a tile with queries along ``query_dim``."""
    shape = products.shape
    key = first_key + iota(shape, 1 - query_dim, kind.interpret)
    seen = (key >= along(starts, shape, query_dim)) & (key < along(ends, shape, query_dim))
    return kind.logits.softcapped(products * kind.logits.scale), seen


def _blocks_of_keys(k, v, head, places: tuple[Any, Any], loaded, free) -> Loads:
    """The blocks of keys and values of a row (T, K, D) that one key-value head has, a step each."""
    length = places[0].shape[1]

    def sources(j):
        here = pl.ds(j * length, length)
        return k.at[here, head], v.at[here, head]

    return Loads(sources, places, loaded, free)


def _forward_kernel(q, k, v, start, end, first, last, out, lse, own, blocks, waits, *, kind: Kind, sharing: int):
    b, h, i = (lax.axis_index(name) for name in ("row", "head", "block"))
    kv_head = lax.div(h, jnp.int32(sharing))
    begin, stop = first[b, i], last[b, i]
    (queries2, starts2, ends2, sums2), (keys, values), (own_loaded, *of_blocks) = own, blocks, waits
    loads = _blocks_of_keys(k.at[b], v.at[b], kv_head, (keys, values), *of_blocks)

    def compute(group) -> None:
        here = pl.ds(i * PROGRAM + group * BLOCK, BLOCK)
        queries, sums = queries2.at[group], sums2.at[group]
        ready = own_loaded.at[group]
        mgpu.copy_gmem_to_smem(q.at[b, here, h], queries, ready)
        mgpu.copy_gmem_to_smem(start.at[b, here], starts2.at[group], ready)
        mgpu.copy_gmem_to_smem(end.at[b, here], ends2.at[group], ready)
        mgpu.barrier_wait(ready)
        starts, ends = (load(x.at[group], ROWS, kind.interpret) for x in (starts2, ends2))

        def one_block(j, slot, carry):
            acc, top, total = carry
            products = times_transposed(queries, keys.at[slot], kind.interpret)
            capped, seen = _logits(products, starts, ends, j * keys.shape[1], 0, kind)
            capped = jnp.where(seen, capped * _LOG2E, _MASKED)
            new_top = jnp.maximum(top, capped.max(1))
            p = jnp.exp2(capped - along(new_top, capped.shape, 0))
            shrink = jnp.exp2(top - new_top)
            acc *= along(shrink, acc.shape, 0)
            return plus_product(acc, p, values.at[slot], kind.interpret), new_top, total * shrink + p.sum(1)

        zeros = full((BLOCK,), 0.0, ROWS, kind.interpret)
        carry = full(queries.shape, 0.0, TILE, kind.interpret), full((BLOCK,), _EMPTY, ROWS, kind.interpret), zeros
        acc, top, total = compute_steps(loads, begin, stop, one_block, carry)
        total = jnp.where(total == 0, 1.0, total)
        queries[...] = (acc / along(total, acc.shape, 0)).astype(queries.dtype)
        sums[...] = top + jnp.log2(total)
        mgpu.commit_smem()
        mgpu.copy_smem_to_gmem(queries, out.at[b, here, h])
        mgpu.copy_smem_to_gmem(sums, lse.at[b, h, here])
        mgpu.wait_smem_to_gmem(0)

    split(loads, begin, stop, compute)


def _slopes(products, grad_products, of_queries: list[Any], first_key, query_dim: int, kind: Kind):
    """The softmax's weights, and the gradient of the logits before they are scaled.

    Args:
      of_queries: their starts, ends, logarithms of sums to base 2, and products of output and its gradient.
    """
    starts, ends, lse, delta = of_queries
    capped, seen = _logits(products, starts, ends, first_key, query_dim, kind)
    shape = products.shape
    p = jnp.where(seen, jnp.exp2(capped * _LOG2E - along(lse, shape, query_dim)), 0.0)
    return p, p * (grad_products - along(delta, shape, query_dim)) * kind.logits.slope(capped)


def _query_kernel(
    q, k, v, start, end, first, last, grad, lse, delta, dq, own, blocks, waits, *, kind: Kind, sharing: int
):  # fmt: skip
    b, h, i = (lax.axis_index(name) for name in ("row", "head", "block"))
    kv_head = lax.div(h, jnp.int32(sharing))
    begin, stop = first[b, i], last[b, i]
    (queries2, grads2, *edges2), (keys, values), (own_loaded, *of_blocks) = own, blocks, waits
    loads = _blocks_of_keys(k.at[b], v.at[b], kv_head, (keys, values), *of_blocks)

    def compute(group) -> None:
        here = pl.ds(i * PROGRAM + group * BLOCK, BLOCK)
        queries, grads = queries2.at[group], grads2.at[group]
        ready = own_loaded.at[group]
        mgpu.copy_gmem_to_smem(q.at[b, here, h], queries, ready)
        mgpu.copy_gmem_to_smem(grad.at[b, here, h], grads, ready)
        for source, place in zip((start.at[b], end.at[b], lse.at[b, h], delta.at[b, h]), edges2, strict=True):
            mgpu.copy_gmem_to_smem(source.at[here], place.at[group], ready)
        mgpu.barrier_wait(ready)
        edges = [load(x.at[group], ROWS, kind.interpret) for x in edges2]

        def one_block(j, slot, total):
            products = times_transposed(queries, keys.at[slot], kind.interpret)
            grad_products = times_transposed(grads, values.at[slot], kind.interpret)
            _, ds = _slopes(products, grad_products, edges, j * keys.shape[1], 0, kind)
            return plus_product(total, ds, keys.at[slot], kind.interpret)

        total = compute_steps(loads, begin, stop, one_block, full(queries.shape, 0.0, TILE, kind.interpret))
        queries[...] = (total * kind.logits.scale).astype(queries.dtype)
        mgpu.commit_smem()
        mgpu.copy_smem_to_gmem(queries, dq.at[b, here, h])
        mgpu.wait_smem_to_gmem(0)

    split(loads, begin, stop, compute)


def _key_kernel(
    q, k, v, start, end, first, last, grad, lse, delta, dk, dv, own, blocks, waits, *, kind: Kind, sharing: int
):  # fmt: skip
    """Two blocks of keys of one key-value head, and all query heads that share it.

    Heads and blocks of queries are one loop. Tiles are made transposed, so that they go into the next product as they
    are.
    """
    b, h, i = (lax.axis_index(name) for name in ("row", "head", "block"))
    heads = jnp.int32(sharing)
    begin, stop = first[b, i] * heads, last[b, i] * heads
    (keys2, values2), (queries, grads, *edges), (own_loaded, loaded, free) = own, blocks, waits

    def sources(n):
        here, head = pl.ds(lax.div(n, heads) * BLOCK, BLOCK), h * heads + lax.rem(n, heads)
        ends = start.at[b, here], end.at[b, here], lse.at[b, head, here], delta.at[b, head, here]
        return q.at[b, here, head], grad.at[b, here, head], *ends

    loads = Loads(sources, (queries, grads, *edges), loaded, free)

    def compute(group) -> None:
        first_key = i * PROGRAM + group * BLOCK
        here = pl.ds(first_key, BLOCK)
        keys, values = keys2.at[group], values2.at[group]
        ready = own_loaded.at[group]
        mgpu.copy_gmem_to_smem(k.at[b, here, h], keys, ready)
        mgpu.copy_gmem_to_smem(v.at[b, here, h], values, ready)
        mgpu.barrier_wait(ready)

        def one_block(n, slot, sums):
            del n
            products = times_transposed(keys, queries.at[slot], kind.interpret)
            grad_products = times_transposed(values, grads.at[slot], kind.interpret)
            of_queries = [load(x.at[slot], COLUMNS, kind.interpret) for x in edges]
            p, ds = _slopes(products, grad_products, of_queries, first_key, 1, kind)
            total_dk = plus_product(sums[0], ds, queries.at[slot], kind.interpret)
            return total_dk, plus_product(sums[1], p, grads.at[slot], kind.interpret)

        zeros = full(keys.shape, 0.0, TILE, kind.interpret)
        total_dk, total_dv = compute_steps(loads, begin, stop, one_block, (zeros, zeros))
        keys[...] = (total_dk * kind.logits.scale).astype(keys.dtype)
        values[...] = total_dv.astype(values.dtype)
        mgpu.commit_smem()
        mgpu.copy_smem_to_gmem(keys, dk.at[b, here, h])
        mgpu.copy_smem_to_gmem(values, dv.at[b, here, h])
        mgpu.wait_smem_to_gmem(0)

    split(loads, begin, stop, compute)


def _tile(number: int, block: int, width: int, dtype: Any) -> Any:
    """Blocks in shared memory as matmuls read them."""
    transforms = mgpu.TilingTransform((8, 64)), mgpu.SwizzleTransform(128)
    return mgpu.SMEM((number, block, width), dtype, transforms=transforms)


def _edges(number: int, dtypes: tuple[Any, ...]) -> list[Any]:
    return [mgpu.SMEM((number, BLOCK), dtype) for dtype in dtypes]


def _call(
    kernel: Any,
    kind: Kind,
    grid: tuple[int, int, int],
    sharing: int,
    out: Any,
    own: list[Any],
    copies: int,
    blocks: Any,
) -> Any:
    """A kernel over a grid of (heads, blocks of PROGRAM positions, rows).

    Args:
      own: what a warpgroup holds throughout, of which it loads the first ``copies``.
      blocks: what is loaded step by step.
    """
    waits = (
        mgpu.Barrier(num_arrivals=copies, num_barriers=GROUPS),
        mgpu.Barrier(num_arrivals=len(blocks), num_barriers=STEPS),
        mgpu.Barrier(num_arrivals=GROUPS, num_barriers=STEPS),
    )
    return mgpu.kernel(
        functools.partial(kernel, kind=kind, sharing=sharing), out_type=out, scratch_types=[own, blocks, waits],
        grid=grid, grid_names=("head", "block", "row"), num_threads=GROUPS + 1, thread_name="group",
        compiler_params=mgpu.CompilerParams(approx_math=not kind.logits.cap), interpret=kind.interpret,
    )  # fmt: skip


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, kind: Kind):
    return _forward(q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, kind)[0]


def _forward(q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, kind: Kind):
    B, T, H, D = q_BTHD.shape
    S, K = k_BSKD.shape[1:3]
    meet = ranges(start_BT, end_BT, S, PROGRAM)
    dtype = q_BTHD.dtype
    out = [jax.ShapeDtypeStruct(q_BTHD.shape, dtype), jax.ShapeDtypeStruct((B, H, T), jnp.float32)]
    own = [_tile(GROUPS, BLOCK, D, dtype), *_edges(GROUPS, (jnp.int32, jnp.int32, jnp.float32))]
    blocks = [_tile(STEPS, PROGRAM, D, dtype)] * 2
    run = _call(_forward_kernel, kind, (H, T // PROGRAM, B), H // K, out, own, 3, blocks)
    out_BTHD, lse_BHT = run(q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, meet.first_key, meet.last_key)
    return out_BTHD, (q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, out_BTHD, lse_BHT)


def _backward(kind: Kind, saved, grad_BTHD):
    q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT, out_BTHD, lse_BHT = saved
    B, T, H, D = q_BTHD.shape
    S, K = k_BSKD.shape[1:3]
    dtype, edges = q_BTHD.dtype, (jnp.int32, jnp.int32, jnp.float32, jnp.float32)
    delta_BHT = jnp.einsum("bthd,bthd->bht", out_BTHD, grad_BTHD, preferred_element_type=jnp.float32)
    inputs, sums = (q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT), (grad_BTHD, lse_BHT, delta_BHT)
    like_q, like_k = (jax.ShapeDtypeStruct(x.shape, dtype) for x in (q_BTHD, k_BSKD))
    own, blocks = [_tile(GROUPS, BLOCK, D, dtype)] * 2, [_tile(STEPS, BLOCK, D, dtype)] * 2
    meet = ranges(start_BT, end_BT, S, PROGRAM, BLOCK)
    run = _call(
        _query_kernel, kind, (H, T // PROGRAM, B), H // K, like_q, [*own, *_edges(GROUPS, edges)], 6, blocks
    )  # fmt: skip
    dq_BTHD = run(*inputs, meet.first_key, meet.last_key, *sums)
    meet = ranges(start_BT, end_BT, S, BLOCK, PROGRAM)
    run = _call(
        _key_kernel, kind, (K, S // PROGRAM, B), H // K, [like_k] * 2, own, 2, [*blocks, *_edges(STEPS, edges)]
    )  # fmt: skip
    dk_BSKD, dv_BSKD = run(*inputs, meet.first_query, meet.last_query, *sums)
    return dq_BTHD, dk_BSKD, dv_BSKD, None, None


_attention.defvjp(_forward, _backward)
