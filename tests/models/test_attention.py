"""The interval op against dense attention written out in float64, and the intervals against masks by definition."""

from __future__ import annotations

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.checks.oracle import dense, mask_by_definition
from jaxmm.models import attention as attn

B, T, H, K, D = 2, 88, 4, 2, 8  # T is no multiple of the block
BLOCK = 16


def assert_dense_in(attend, head: int, dtype, runs: list[int]):
    """A kernel, run step by step, equals dense attention, forward and backward, for heads of this width and in this
    dtype: one row of two documents and padding, of ``runs`` positions."""
    segments = np.repeat([1, 2, 0], runs).astype(np.int32)[None]
    rng = np.random.default_rng(head)
    inputs = [jnp.array(rng.normal(size=(1, segments.size, heads, head)), dtype) for heads in (2, 1, 1, 2)]

    @jax.jit
    def run(q, k, v, grad, start, end):
        call = functools.partial(attend, scale=head**-0.5, interpret=True)
        out, pull = jax.vjp(lambda q, k, v: call(q, k, v, start, end), q, k, v)
        return out, *pull(grad)

    found = run(*inputs, *attn.causal(segments))
    q, k, v, grad = inputs
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    for each, wanted in zip(found, dense(q, k, v, mask_by_definition(segments, causal=True), grad), strict=True):
        assert each.dtype == dtype
        assert np.abs(np.asarray(each, np.float64) - wanted).max() <= tolerance * np.abs(wanted).max()


def qkv(seed: int, t: int = T):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(B, t, heads, D)).astype(np.float32) for heads in (H, K, K, H)]


@functools.cache
def forward_and_gradients(group: int):
    """One compiled function for all layouts; with ``group`` queries a group, so that a small T has several."""

    def run(q, k, v, grad, start, end):
        out, pull = jax.vjp(lambda q, k, v: attn.attention(q, k, v, (start, end), block=BLOCK, group=group), q, k, v)
        return out, *pull(grad)

    shapes = [jax.ShapeDtypeStruct((B, T, heads, D), jnp.float32) for heads in (H, K, K, H)]
    return jax.jit(run).lower(*shapes, *[jax.ShapeDtypeStruct((B, T), jnp.int32)] * 2).compile()


def assert_equals_dense(intervals, mask_BTT, group: int, seed: int = 0):
    q, k, v, grad = qkv(seed)
    out, *grads = forward_and_gradients(group)(q, k, v, grad, *intervals)
    expected, *expected_grads = dense(q, k, v, mask_BTT, grad)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    for found, wanted in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert not np.asarray(out)[~mask_BTT.any(-1)].any(), "padding gives exactly 0"


@st.composite
def run_numbers(draw, zeros: bool = True):
    """(B, T) int32: runs of equal numbers, each number once, 0 (padding, or no block) anywhere between them."""
    rows = []
    for _ in range(B):
        lengths = draw(st.lists(st.integers(1, 40), min_size=T // 40 + 1, max_size=30))
        real = draw(st.lists(st.booleans() if zeros else st.just(True), min_size=len(lengths), max_size=len(lengths)))
        numbers = np.where(real, np.cumsum(real), 0)
        row = np.repeat(numbers, lengths)[:T]
        rows.append(np.pad(row, (0, T - len(row))))
    return np.stack(rows).astype(np.int32)


@pytest.mark.parametrize("group", [32, 1024])
@hypothesis.given(run_numbers(), st.sampled_from([0, 1, 7, 30]))
def test_causal_attention_in_windows_equals_dense_attention(group, segments, window):
    mask = mask_by_definition(segments, causal=True, window=window)
    assert_equals_dense(attn.causal(jnp.array(segments), window=window), mask, group)


@hypothesis.given(run_numbers(), run_numbers(), st.sampled_from([0, 9]), st.booleans())
def test_two_way_blocks_within_causal_attention_equal_dense_attention(segments, blocks, window, over_window):
    mask = mask_by_definition(segments, causal=True, blocks=blocks, window=window, over_window=over_window)
    assert_equals_dense(attn.causal(jnp.array(segments), jnp.array(blocks), window, over_window), mask, 32)


@hypothesis.given(run_numbers(), st.one_of(st.none(), run_numbers(zeros=False)))
def test_two_way_attention_and_its_windows_equal_dense_attention(segments, keys):
    mask = mask_by_definition(segments, causal=False, keys=keys)
    assert_equals_dense(attn.bidirectional(jnp.array(segments), *([] if keys is None else [jnp.array(keys)])), mask, 32)


@pytest.mark.parametrize("t", [1, 65, 130])
def test_any_length_works_with_the_blocks_of_its_choice(t):
    segments = np.ones((B, t), np.int32)
    q, k, v, grad = qkv(t, t)
    out = jax.jit(lambda q, k, v, s: attn.attention(q, k, v, attn.causal(s)))(q, k, v, segments)
    np.testing.assert_allclose(out, dense(q, k, v, mask_by_definition(segments, causal=True), grad)[0], atol=1e-5)


def test_large_logits_overflow_nothing():
    q, k, v, grad = qkv(0)
    segments = np.repeat([[1, 2]], B, 0).repeat(T // 2, 1).astype(np.int32)
    out, *grads = forward_and_gradients(32)(300 * q, k, v, grad, *attn.causal(jnp.array(segments)))
    expected = dense(300 * q, k, v, mask_by_definition(segments, causal=True), grad)[0]
    np.testing.assert_allclose(out, expected, atol=1e-3)
    assert all(np.isfinite(g).all() for g in grads)


def compiled_temporary_bytes(t: int) -> int:
    def loss(q, k, v, segments):
        return attn.attention(q, k, v, attn.causal(segments)).sum()

    shapes = [jax.ShapeDtypeStruct((1, t, heads, 32), jnp.float32) for heads in (4, 2, 2)]
    segments = jax.ShapeDtypeStruct((1, t), jnp.int32)
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*shapes, segments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("lengths", [(2048, 8192), pytest.param((8192, 32768), marks=pytest.mark.slow)])
def test_compiled_memory_grows_linearly(lengths):
    short, long = lengths
    few, many = compiled_temporary_bytes(short), compiled_temporary_bytes(long)
    assert few > 0
    assert many < 1.25 * long / short * few
    assert many < long * long * 4 / 2, "no T x T array of one head, let alone four"


def test_a_backend_that_does_not_exist_raises():
    q, k, v, _ = qkv(0)
    with pytest.raises(ValueError, match="backend 'cudnnn' is not one of blocks, splash"):
        attn.attention(q, k, v, attn.causal(jnp.ones((B, T), jnp.int32)), backend="cudnnn")


def test_heads_that_do_not_group_raise():
    q, k, v, _ = qkv(0)
    with pytest.raises(ValueError, match="3 attention heads are no multiple of 2"):
        attn.attention(q[:, :, :3], k, v, attn.causal(jnp.ones((B, T), jnp.int32)))


@pytest.mark.parametrize(("scale", "cap"), [(0.7, 0.0), (0.0, 1.5), (0.9, 0.8)])
def test_scaled_and_capped_logits_give_the_numbers_of_autodiff(scale, cap):
    """Against the plain formula, differentiated by JAX in float64."""
    q, k, v, grad = qkv(4)
    segments = np.repeat(np.array([1, 1, 2, 0], np.int32), T // 4)[None].repeat(B, 0)
    mask = mask_by_definition(segments, causal=True)

    def plain(q, k, v):
        k, v = (jnp.repeat(x, H // K, 2) for x in (k, v))
        logits = jnp.einsum("bthd,bshd->bhts", q, k) * (scale or D**-0.5)
        logits = cap * jnp.tanh(logits / cap) if cap else logits
        p = jax.nn.softmax(jnp.where(mask[:, None], logits, -1e30), -1) * mask.any(-1)[:, None, :, None]
        return jnp.einsum("bhts,bshd->bthd", p, v)

    def ours(q, k, v):
        return attn.attention(q, k, v, attn.causal(jnp.asarray(segments)), scale=scale, softcap=cap, block=BLOCK)

    with jax.enable_x64(True):
        wanted, pull = jax.vjp(plain, *(x.astype(np.float64) for x in (q, k, v)))
        wanted = [wanted, *pull(grad.astype(np.float64))]
    found, pull = jax.vjp(ours, q, k, v)
    for a, b in zip([found, *pull(grad)], wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(
    ("tile", "block"), [(0, 64), (196, 196), (1024, 512), (577, 64), (1025, 205), (9, 64), (256, 256)]
)
def test_the_block_of_tiles_is_an_equal_part_of_one(tile, block):
    assert attn.block_of_tiles(tile) == block


def test_tiles_cut_at_their_edges_give_what_any_block_gives():
    tile = 44
    segments = np.repeat([[1, 2]], tile, axis=1).repeat(B, 0).astype(np.int32)
    segments[1, tile:] = 0
    q, k, v, grad = qkv(3)
    wanted = dense(q, k, v, mask_by_definition(segments, causal=False), grad)
    block = attn.block_of_tiles(tile)
    assert tile == block

    def run(q, k, v):
        return attn.attention(q, k, v, attn.bidirectional(jnp.asarray(segments)), block=block, group=block)

    out, pull = jax.jit(lambda q, k, v: jax.vjp(run, q, k, v))(q, k, v)
    for found, want in zip((out, *pull(grad)), wanted, strict=True):
        np.testing.assert_allclose(found, want, atol=1e-5)
