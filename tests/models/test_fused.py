"""The GPU backend, its kernels run step by step, against dense attention in float64; and that it lowers for CUDA."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_attention import B, D, H, K, assert_dense_in

from jaxmm import sharding, zigzag
from jaxmm.checks.oracle import dense, mask_by_definition
from jaxmm.models import attention as attn
from jaxmm.models.kernels.fused import LARGEST_HEAD, TILE, fused_attention
from jaxmm.models.kernels.ranges import ranges

T = 150  # blocks of 32: five, the last one padded


def rows() -> np.ndarray:
    """Documents across the edges of blocks, one position long, and padding: at the end, between, and whole blocks."""
    segments = np.zeros((B, T), np.int32)
    segments[0, :50], segments[0, 50:51], segments[0, 51:140] = 1, 2, 3
    segments[1, :40], segments[1, 130:] = 1, 2
    return segments


@functools.cache
def forward_and_gradients(softcap: float):
    def run(q, k, v, grad, start, end):
        call = functools.partial(fused_attention, scale=D**-0.5, softcap=softcap, interpret=True)
        out, pull = jax.vjp(lambda q, k, v: call(q, k, v, start, end), q, k, v)
        return out, *pull(grad)

    return jax.jit(run)


def inputs(seed: int = 0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(B, T, heads, D)).astype(np.float32) for heads in (H, K, K, H)]


@pytest.mark.parametrize("kind", ["causal", "window", "images", "two-way"])
def test_every_kind_of_mask_equals_dense_attention(kind):
    segments = rows()
    blocks = np.where((np.arange(T) >= 60) & (np.arange(T) < 75), segments, 0)
    intervals, mask = {
        "causal": (attn.causal(segments), mask_by_definition(segments, causal=True)),
        "window": (attn.causal(segments, window=17), mask_by_definition(segments, causal=True, window=17)),
        "images": (
            attn.causal(segments, jnp.array(blocks)), mask_by_definition(segments, causal=True, blocks=blocks)
        ),
        "two-way": (attn.bidirectional(segments), mask_by_definition(segments, causal=False)),
    }[kind]  # fmt: skip
    q, k, v, grad = inputs()
    out, *grads = forward_and_gradients(0.0)(q, k, v, grad, *intervals)
    expected, *expected_grads = dense(q, k, v, mask, grad)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    for found, wanted in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert not np.asarray(out)[segments == 0].any()


def test_softcapped_logits_equal_dense_attention():
    segments = rows()
    q, k, v, grad = inputs(1)
    mask = mask_by_definition(segments, causal=True)
    found = forward_and_gradients(0.5)(q, k, v, grad, *attn.causal(segments))
    for each, wanted in zip(found, dense(q, k, v, mask, grad, softcap=0.5), strict=True):
        np.testing.assert_allclose(each, wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(found[0]) - dense(q, k, v, mask, grad)[0]).max() > 0.01, "it bends"


def test_a_row_of_nothing_but_padding_is_zeros_and_has_no_gradient():
    segments = rows()
    segments[1] = 0
    q, k, v, grad = inputs(2)
    found = forward_and_gradients(0.0)(q, k, v, grad, *attn.causal(segments))
    for each, wanted in zip(found, dense(q, k, v, mask_by_definition(segments, causal=True), grad), strict=True):
        np.testing.assert_allclose(each, wanted, rtol=1e-4, atol=1e-5)
        assert not np.asarray(each)[1].any()


@pytest.mark.parametrize(
    ("head", "dtype"), [(72, jnp.float32), (128, jnp.bfloat16), pytest.param(256, jnp.bfloat16, marks=pytest.mark.slow)]
)
def test_heads_of_other_widths_and_in_bfloat16_equal_dense_attention(head, dtype):
    assert_dense_in(fused_attention, head, dtype, [30, 33, 7])


def test_only_blocks_that_some_query_sees_are_met():
    start, end = (np.zeros((1, 128), np.int32) for _ in range(2))
    start[0, :10], end[0, :10] = 5, 20  # the first block of queries sees one block of keys
    start[0, 64:], end[0, 64:] = 64, 65  # the second sees one key of the second, and none sees the third
    found = ranges(jnp.array(start), jnp.array(end), 192, 64)
    assert [x.tolist() for x in found[:2]] == [[[0, 1]], [[1, 2]]]
    assert [x.tolist() for x in found[2:]] == [[[0, 1, 0]], [[1, 2, 0]]]


def lowered(length: int, head: int, dtype) -> str:
    shape = jax.ShapeDtypeStruct((2, length, 4, head), dtype)
    kv = jax.ShapeDtypeStruct((2, length, 2, head), dtype)
    edge = jax.ShapeDtypeStruct((2, length), jnp.int32)

    def loss(q, k, v, start, end):
        return fused_attention(q, k, v, start, end, scale=0.125, softcap=30.0).astype(jnp.float32).sum()

    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    with as_if_on_a_gpu():
        return step.trace(shape, kv, kv, edge, edge).lower(lowering_platforms=("cuda",)).as_text()


def as_if_on_a_gpu():
    """What newer releases of JAX need to lower for a GPU that is not here: to know which."""
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device))


@pytest.mark.parametrize(("head", "dtype"), [(64, jnp.bfloat16), (72, jnp.bfloat16), (128, jnp.float32)])
def test_it_lowers_for_cuda(head, dtype):
    assert lowered(256, head, dtype).count("__gpu$xla.gpu.triton") == 3, "forward, queries' and keys' gradient"


def products(jaxpr) -> list[int]:
    """Matmuls of each kernel."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            found.append(str(eqn.params["jaxpr"]).count("dot_general"))
        else:
            inner = (getattr(x, "jaxpr", x) for x in eqn.params.values())
            found += [n for x in inner if hasattr(x, "eqns") for n in products(x)]
    return found


@pytest.mark.parametrize("heads", [2, 16])
def test_a_step_of_a_kernel_holds_one_block_of_queries_however_many_heads_share_a_key(heads):
    """As many as there are heads would need more shared memory than any GPU has."""
    q = jax.ShapeDtypeStruct((1, 256, heads, 64), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16)
    edge = jax.ShapeDtypeStruct((1, 256), jnp.int32)

    def gradients(q, k, v, start, end):
        return jax.grad(lambda *qkv: fused_attention(*qkv, start, end, scale=1.0).sum(), (0, 1, 2))(q, k, v)

    assert products(jax.make_jaxpr(gradients)(q, k, k, edge, edge).jaxpr) == [2, 3, 4]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("head", [16, 72, 128, 256])
def test_a_block_is_no_larger_than_shared_memory_can_hold_several_of(head, dtype, monkeypatch):
    seen = []

    def keep(q, k, v, start, end, kind):
        seen.append((kind.block, q))
        return q

    monkeypatch.setattr("jaxmm.models.kernels.fused._attention", keep)
    x, edge = jnp.zeros((1, 100, 1, head), dtype), jnp.zeros((1, 100), jnp.int32)
    fused_attention(x, x, x, edge, edge, scale=1.0)
    ((block, q),) = seen
    assert block * q.shape[-1] * q.dtype.itemsize <= TILE
    assert block >= 16, "the least that a product of Triton's takes"
    assert q.shape[1] % block == 0


def test_nothing_grows_with_the_square_of_the_row():
    largest = max(
        np.prod([int(n) for n in dims.split("x")])
        for dims in re.findall(r"tensor<([\dx]+)x(?:f32|bf16)>", lowered(32768, 64, jnp.bfloat16))
    )
    assert largest <= 2 * 32768 * 4 * 64, "no array is larger than the queries"


def test_a_head_that_is_too_wide_is_refused_when_traced():
    shape = jax.ShapeDtypeStruct((1, 64, 1, LARGEST_HEAD + 1), jnp.float32)
    edge = jax.ShapeDtypeStruct((1, 64), jnp.int32)
    with pytest.raises(ValueError, match="heads of at most 256, not 257: use 'blocks'"):
        jax.eval_shape(functools.partial(fused_attention, scale=1.0), shape, shape, shape, edge, edge)


def test_devices_run_it_on_their_own_rows_heads_and_queries(monkeypatch):
    monkeypatch.setattr(
        "jaxmm.models.kernels.fused.fused_attention", functools.partial(fused_attention, interpret=True)
    )
    rng = np.random.default_rng(2)
    q, k, v = (jnp.array(rng.normal(size=(4, 128, heads, D)), jnp.float32) for heads in (4, 2, 2))
    intervals = attn.causal(np.repeat([[1, 2]], 64, 1).repeat(4, 0).astype(np.int32))
    expected = attn.attention(q, k, v, intervals)
    with jax.set_mesh(sharding.make_mesh({"data": 2, "tensor": 2, "context": 2})):

        def dealt(q, k, v, *intervals):
            q, k, v, *intervals = map(zigzag.shard, (q, k, v, *intervals))
            return zigzag.unshard(attn.attention(q, k, v, tuple(intervals), backend="fused"))

        found = jax.jit(dealt)(q, k, v, *intervals)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
