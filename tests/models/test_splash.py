"""The TPU backend, its kernels run step by step, against dense attention in float64."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from test_attention import B, D, H, K, assert_dense_in

from jaxmm import sharding, zigzag
from jaxmm.checks.oracle import dense, mask_by_definition
from jaxmm.errors import UserError
from jaxmm.models import attention as attn
from jaxmm.models.kernels.splash import LANES, LARGEST_HEAD, LONGEST, _block, _mask_infos, splash_attention

T = 300  # several blocks of queries, and padding


def rows() -> np.ndarray:
    """Documents across the edges of blocks, one position long, and padding: at the end, between, and whole blocks."""
    segments = np.zeros((B, T), np.int32)
    segments[0, :100], segments[0, 100:101], segments[0, 101:280] = 1, 2, 3
    segments[1, :90], segments[1, 270:] = 1, 2
    return segments


@functools.cache
def forward_and_gradients(softcap: float, with_starts: bool = False):
    def run(q, k, v, grad, start, end):
        call = functools.partial(splash_attention, scale=D**-0.5, softcap=softcap, interpret=True)
        starts = [jnp.where(end > start, start, -1)] if with_starts else []
        out, pull = jax.vjp(lambda q, k, v: call(q, k, v, start, end, *starts), q, k, v)
        return out, *pull(grad)

    return jax.jit(run)


def inputs(seed: int = 0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(B, T, heads, D)).astype(np.float32) for heads in (H, K, K, H)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("jaxmm.models.kernels.splash.LARGEST_BLOCK", LANES)


@pytest.mark.parametrize(
    ("kind", "with_starts"),
    [*[(kind, False) for kind in ("causal", "window", "images", "two-way")],
     ("causal", True), *[pytest.param(kind, True, marks=pytest.mark.slow) for kind in ("images", "two-way")]],
)  # fmt: skip
def test_every_kind_of_mask_equals_dense_attention(kind, with_starts):
    segments = rows()
    blocks = np.where((np.arange(T) >= 120) & (np.arange(T) < 150), segments, 0)
    intervals, mask = {
        "causal": (attn.causal(segments), mask_by_definition(segments, causal=True)),
        "window": (attn.causal(segments, window=17), mask_by_definition(segments, causal=True, window=17)),
        "images": (
            attn.causal(segments, jnp.array(blocks)), mask_by_definition(segments, causal=True, blocks=blocks)
        ),
        "two-way": (attn.bidirectional(segments), mask_by_definition(segments, causal=False)),
    }[kind]  # fmt: skip
    q, k, v, grad = inputs()
    out, *grads = forward_and_gradients(0.0, with_starts)(q, k, v, grad, *intervals)
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
    ("head", "dtype"), [(72, jnp.float32), pytest.param(256, jnp.bfloat16, marks=pytest.mark.slow)]
)
def test_heads_of_other_widths_and_in_bfloat16_equal_dense_attention(head, dtype):
    assert_dense_in(splash_attention, head, dtype, [90, 93, 17])


def test_only_blocks_that_some_query_sees_are_met():
    start = np.repeat([0, 256, 512], [256, 256, 256]).astype(np.int32)
    by_query, by_key = _mask_infos(jnp.array(start), jnp.arange(768), jnp.arange(768), 768, LANES, LANES)
    met = np.asarray(by_query.block_mask[0])
    np.testing.assert_array_equal(met, np.kron(np.eye(3), [[1, 0], [1, 1]]))
    np.testing.assert_array_equal(by_key.block_mask, by_query.block_mask)


@pytest.mark.parametrize(("head", "dtype"), [(72, jnp.bfloat16), (128, jnp.bfloat16), (64, jnp.float32)])
def test_it_lowers_for_tpus(head, dtype):
    def gradients(q, k, v, start, end):
        def total(q, k, v):
            return splash_attention(q, k, v, start, end, scale=1.0).astype(jnp.float32).sum()

        return jax.grad(total, argnums=(0, 1, 2))(q, k, v)

    shapes = [jax.ShapeDtypeStruct((1, 512, heads, head), dtype) for heads in (4, 2, 2)]
    edges = [jax.ShapeDtypeStruct((1, 512), jnp.int32)] * 2
    text = export.export(jax.jit(gradients), platforms=["tpu"])(*shapes, *edges).mlir_module()
    assert text.count("tpu_custom_call") == 3, "forward, queries' and keys' gradient"


@pytest.mark.parametrize(("length", "block"), [(1, 128), (300, 384), (512, 512), (640, 128), (4096 + 128, 512)])
def test_padding_to_blocks_adds_at_most_an_eighth_to_a_row_of_many(length, block, monkeypatch):
    monkeypatch.setattr("jaxmm.models.kernels.splash.LARGEST_BLOCK", 512)
    assert _block(length) == block


def test_nothing_grows_with_the_square_of_the_row():
    length, heads = 32768, 4
    shapes = [jax.ShapeDtypeStruct((2, length, n, 64), jnp.bfloat16) for n in (heads, 2, 2)]
    edges = [jax.ShapeDtypeStruct((2, length), jnp.int32)] * 2

    def loss(q, k, v, start, end):
        return splash_attention(q, k, v, start, end, scale=0.125, softcap=30.0).astype(jnp.float32).sum()

    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    text = step.trace(*shapes, *edges).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") == 3, "forward, queries' and keys' gradient"
    largest = max(
        np.prod([int(n) for n in dims.split("x")]) for dims in re.findall(r"tensor<([\dx]+)x(?:f32|bf16|i32|i1)>", text)
    )
    assert largest <= length * heads * LANES, "no array is larger than lanes for each query of one row, of two"


@pytest.mark.parametrize("longest", [LONGEST, LANES], ids=["packed", "long"])
def test_devices_run_it_on_their_own_rows_heads_and_queries(monkeypatch, longest):
    monkeypatch.setattr(
        "jaxmm.models.kernels.splash.splash_attention", functools.partial(splash_attention, interpret=True)
    )
    monkeypatch.setattr("jaxmm.models.kernels.splash.LONGEST", longest)
    length = 2 * LANES
    rng = np.random.default_rng(2)
    inputs = [jnp.array(rng.normal(size=(2, length, heads, D)), jnp.float32) for heads in (4, 2, 2, 4)]
    segments = np.repeat([[1, 2], [1, 0]], [100, length - 100], axis=1).astype(np.int32)

    def run(q, k, v, grad, *intervals):
        def dealt(q, k, v):
            dealt_qkv = map(zigzag.shard, (q, k, v))
            edges = tuple(map(zigzag.shard, intervals))
            return zigzag.unshard(attn.attention(*dealt_qkv, edges, backend="splash", mask="whole"))

        out, pull = jax.vjp(dealt, q, k, v)
        return out, *pull(grad)

    wanted = dense(*inputs[:3], mask_by_definition(segments, causal=True), inputs[3])
    with jax.set_mesh(sharding.make_mesh({"data": 2, "tensor": 2, "context": 2})):
        found = jax.jit(run)(*inputs, *attn.causal(segments))
    for each, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(each, expected, rtol=1e-4, atol=1e-5)


def test_what_the_kernel_cannot_do_raises_when_it_is_traced():
    shapes = [jax.ShapeDtypeStruct((1, LONGEST + 128, 1, 64), jnp.float32)] * 3
    edges = [jax.ShapeDtypeStruct((1, LONGEST + 128), jnp.int32)] * 2
    with pytest.raises(ValueError, match="windows among at most 65536 keys, not 65664: use 'blocks'"):
        jax.eval_shape(functools.partial(splash_attention, scale=1.0), *shapes, *edges)
    shapes = [jax.ShapeDtypeStruct((1, LANES, 1, LARGEST_HEAD + 1), jnp.float32)] * 3
    edges = [jax.ShapeDtypeStruct((1, LANES), jnp.int32)] * 2
    with pytest.raises(ValueError, match=f"heads of at most {LARGEST_HEAD}, not {LARGEST_HEAD + 1}: use 'blocks'"):
        jax.eval_shape(functools.partial(splash_attention, scale=1.0), *shapes, *edges)
    length = 512 * LANES
    shapes = [jax.ShapeDtypeStruct((1, length, 1, 64), jnp.float32)] * 3
    edges = [jax.ShapeDtypeStruct((1, length), jnp.int32)] * 3
    with pytest.raises(UserError, match=r"at most 65536 pairs of blocks, .* are 262144: split rows over"):
        jax.eval_shape(functools.partial(splash_attention, scale=1.0), *shapes, *edges)
    with pytest.raises(ValueError, match="'splash' runs on TPUs, not on cpu"):
        attn.choose_backend("splash", "cpu", 128)
    with pytest.raises(ValueError, match="'fused' runs on GPUs, not on tpu"):
        attn.choose_backend("fused", "tpu", 128)


def test_the_best_backend_is_chosen_by_platform_and_length_of_windowed_rows():
    assert attn.choose_backend("", "tpu", 8192) == "splash"
    assert attn.choose_backend("", "tpu", LONGEST + 1) == "blocks"
    assert attn.choose_backend("", "gpu", LONGEST + 1) == "fused"
    assert attn.choose_backend("", "cpu", 8192) == "blocks"
    assert attn.choose_backend("blocks", "tpu", 8192) == "blocks"
    with pytest.raises(ValueError, match="windows in rows of at most 65536 positions, not 65537"):
        attn.choose_backend("splash", "tpu", LONGEST + 1)


@pytest.mark.parametrize(("platform", "kernels"), [("tpu", "splash"), ("gpu", "fused")])
def test_heads_that_the_kernels_do_not_take_are_left_to_blocks(platform, kernels):
    chosen = functools.partial(attn.choose_backend, platform=platform, longest=8192)
    assert chosen("", heads={64, LARGEST_HEAD}) == kernels
    assert chosen("", heads={2 * LARGEST_HEAD}) == "blocks"
    both = chosen("", heads={72, 256, 512})  # as in Gemma 4
    assert (attn.for_head(both, 256), attn.for_head(both, 512)) == (kernels, "blocks")
    assert attn.in_words(both) == f"'{kernels}', and heads wider than 256 by 'blocks'"
    with pytest.raises(ValueError, match=f"'{kernels}' takes heads of at most 256, not 512: give ''"):
        chosen(kernels, heads={72, 512})
    shapes = [jax.ShapeDtypeStruct((1, 64, 2, 2 * LARGEST_HEAD), jnp.float32)] * 3
    edges = [jax.ShapeDtypeStruct((1, 64), jnp.int32)] * 2
    traced = jax.eval_shape(lambda q, k, v, *edges: attn.attention(q, k, v, edges, backend=both), *shapes, *edges)
    assert traced.shape == shapes[0].shape
