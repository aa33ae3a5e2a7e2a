"""The TPU backend, its kernels run step by step, against dense attention in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_attention import B, D, H, K, dense, mask_by_definition

from jaxmm.models import attention as attn
from jaxmm.models.splash import LANES, LONGEST, _block, _mask_infos, splash_attention

T = 300  # several blocks of queries, and padding


def rows() -> np.ndarray:
    """Documents across the edges of blocks, one position long, and padding: at the end, between, and whole blocks."""
    segments = np.zeros((B, T), np.int32)
    segments[0, :100], segments[0, 100:101], segments[0, 101:280] = 1, 2, 3
    segments[1, :90], segments[1, 270:] = 1, 2
    return segments


@functools.cache
def forward_and_gradients(softcap: float):
    def run(q, k, v, grad, start, end):
        call = functools.partial(splash_attention, scale=D**-0.5, softcap=softcap, interpret=True)
        out, pull = jax.vjp(lambda q, k, v: call(q, k, v, start, end), q, k, v)
        return out, *pull(grad)

    return jax.jit(run)


def inputs(seed: int = 0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(B, T, heads, D)).astype(np.float32) for heads in (H, K, K, H)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("jaxmm.models.splash.LARGEST_BLOCK", LANES)


@pytest.mark.parametrize("kind", ["causal", "window", "images", "two-way"])
def test_every_kind_of_mask_equals_dense_attention(kind):
    segments = rows()
    blocks = np.where((np.arange(T) >= 120) & (np.arange(T) < 150), segments, 0)
    intervals, mask = {
        "causal": (attn.causal(segments), mask_by_definition(segments, causal=True)),
        "window": (attn.causal(segments, window=17), mask_by_definition(segments, causal=True, window=17)),
        "images": (
            attn.causal(segments, jnp.array(blocks)), mask_by_definition(segments, causal=True, blocks=blocks)
        ),
        "two-way": (attn.two_way(segments), mask_by_definition(segments, causal=False)),
    }[kind]  # fmt: skip
    q, k, v, grad = inputs()
    out, *grads = forward_and_gradients(0.0)(q, k, v, grad, *intervals)
    expected, *expected_grads = dense(q, k, v, mask, grad)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    for found, wanted in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert not np.asarray(out)[segments == 0].any()


def test_bent_logits_are_those_of_the_backend_in_xla():
    intervals = attn.causal(rows())
    q, k, v, grad = inputs(1)
    out, *grads = forward_and_gradients(0.5)(q, k, v, grad, *intervals)
    expected, pull = jax.vjp(lambda q, k, v: attn.attention(q, k, v, intervals, softcap=0.5), q, k, v)
    assert (
        np.abs(np.asarray(expected) - np.asarray(forward_and_gradients(0.0)(q, k, v, grad, *intervals)[0])).max() > 0.01
    )
    for found, wanted in zip((out, *grads), (expected, *pull(jnp.array(grad))), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_only_blocks_that_some_query_sees_are_met():
    start = np.repeat([0, 256, 512], [256, 256, 256]).astype(np.int32)
    by_query, by_key = _mask_infos(jnp.array(start), jnp.arange(768), 768, LANES, LANES)
    met = np.asarray(by_query.block_mask[0])
    np.testing.assert_array_equal(met, np.kron(np.eye(3), [[1, 0], [1, 1]]))
    np.testing.assert_array_equal(by_key.block_mask, by_query.block_mask)


@pytest.mark.parametrize(("length", "block"), [(1, 128), (300, 384), (512, 512), (640, 128), (4096 + 128, 512)])
def test_padding_to_blocks_adds_at_most_an_eighth_to_a_row_of_many(length, block, monkeypatch):
    monkeypatch.setattr("jaxmm.models.splash.LARGEST_BLOCK", 512)
    assert _block(length) == block


def test_what_the_kernel_cannot_do_raises_when_it_is_traced():
    shapes = [jax.ShapeDtypeStruct((1, LONGEST + 128, 1, 64), jnp.float32)] * 3
    edges = [jax.ShapeDtypeStruct((1, LONGEST + 128), jnp.int32)] * 2
    with pytest.raises(ValueError, match="at most 65536 keys a row, not 65664: use 'blocks'"):
        jax.eval_shape(functools.partial(splash_attention, scale=1.0), *shapes, *edges)
    with pytest.raises(ValueError, match="'splash' runs on TPUs, not on cpu"):
        attn.choose_backend("splash", "cpu", 128)
    with pytest.raises(ValueError, match="'fused' runs on GPUs, not on tpu"):
        attn.choose_backend("fused", "tpu", 128)


def test_the_best_backend_is_chosen_by_platform_and_length():
    assert attn.choose_backend("", "tpu", 8192) == "splash"
    assert attn.choose_backend("", "tpu", LONGEST + 1) == "blocks"
    assert attn.choose_backend("", "gpu", LONGEST + 1) == "fused"
    assert attn.choose_backend("", "cpu", 8192) == "blocks"
    assert attn.choose_backend("blocks", "tpu", 8192) == "blocks"
    with pytest.raises(ValueError, match="at most 65536 positions or patches, not 65537"):
        attn.choose_backend("splash", "tpu", LONGEST + 1)
