"""Recurrent layers: by chunks as position by position, packed as alone, step by step as at once, on one device as on
eight."""

from __future__ import annotations

import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxmm import sharding
from jaxmm.models import recurrent
from jaxmm.models.delta_rule import delta_rule

H, D, V = 4, 6, 5
CHUNK, LONGEST, ROW = 8, 24, 80  # documents of 1 to 3 chunks
LAYERS = {
    "convolution": (recurrent.ShortConvolution, recurrent.ConvolutionSpec(16, kernel=3, bias=True)),
    "deltanet": (recurrent.GatedDeltaNet, recurrent.GatedDeltaNetSpec(16, 2, 4, key_dim=6, value_dim=5, kernel=4)),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def plain_rule(q_TKD, k_TKD, v_THV, decay_TH, rate_TH, is_first_T):
    """The rule as it is defined, a position at a time; at the first one of a document the state is empty."""
    q_THD, k_THD = (jnp.repeat(x / jnp.sqrt((x**2).sum(-1, keepdims=True) + 1e-6), H // x.shape[1], 1)
                    for x in (q_TKD, k_TKD))  # fmt: skip

    def position(state_HDV, inputs):
        q_HD, k_HD, v_HV, decay_H, rate_H, is_first = inputs
        state_HDV = jnp.where(is_first, 0, state_HDV) * jnp.exp(decay_H)[:, None, None]
        moved_HV = rate_H[:, None] * (v_HV - (k_HD[..., None] * state_HDV).sum(1))
        state_HDV += k_HD[..., None] * moved_HV[:, None]
        return state_HDV, (q_HD[..., None] * state_HDV).sum(1) / D**0.5

    start = jnp.zeros((H, D, V), v_THV.dtype)
    return lax.scan(position, start, (q_THD, k_THD, v_THV, decay_TH, rate_TH, is_first_T))[1]


def drawn(seed: int, *lead: int, heads: int = 2):
    """q, k, v, decays, rates and a cotangent."""
    rng = np.random.default_rng(seed)
    normal = lambda *dims: rng.normal(size=(*lead, *dims)).astype(np.float32)  # noqa: E731
    decay = -(rng.uniform(size=(*lead, H)).astype(np.float32) ** 3)
    rate = rng.uniform(size=(*lead, H)).astype(np.float32)
    return normal(heads, D), normal(heads, D), normal(H, V), decay, rate, normal(H, V)


def with_gradients(f):
    """``f(*inputs)`` and the gradients of its inputs for a cotangent that comes last."""

    def run(*inputs):
        out, pull = jax.vjp(f, *inputs[:-1])
        return out, *pull(inputs[-1])

    return run


@functools.cache
def compiled_rule(group: int, chunk: int = CHUNK):
    def run(*inputs):
        *inputs, segments = inputs
        return with_gradients(lambda *inputs: delta_rule(*inputs, segments, chunk=chunk, group=group)[0])(*inputs)

    return jax.jit(run)


@jax.jit
def compiled_plain(*inputs):
    *inputs, is_first = inputs
    return with_gradients(lambda *inputs: plain_rule(*inputs, is_first))(*inputs)


def assert_by_chunks_as_plain(inputs, lengths, group: int = 1, chunk: int = CHUNK):
    """Documents in one row, values and gradients, against the plain rule in float64."""
    segments = np.repeat(np.arange(1, len(lengths) + 1), lengths).astype(np.int32)
    found = compiled_rule(group, chunk)(*(x[None] for x in (*inputs, segments)))
    with jax.enable_x64(True):
        wanted = compiled_plain(*(np.asarray(x, np.float64) for x in inputs), np.diff(segments, prepend=0) > 0)
    for each, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(each[0], want, atol=1e-5 * max(1, np.abs(want).max()))


@pytest.mark.parametrize(("heads", "group"), [(1, 1), (4, 2)])
def test_chunks_give_what_the_rule_gives_position_by_position(heads, group):
    assert_by_chunks_as_plain(drawn(heads, 53, heads=heads), [21, 1, 7, 24], group)


def test_strong_and_no_decay_side_by_side_round_nothing_away_and_give_finite_gradients():
    q, k, v, decay, rate, grad = drawn(5, 53)
    decay = np.random.default_rng(5).choice([-30, -1e-6, 0], decay.shape, p=[0.1, 0.5, 0.4]).astype(np.float32)
    assert_by_chunks_as_plain((q, k, v, decay, rate, grad), [31, 22])
    decay[:, 1:3] = -1e4
    assert_by_chunks_as_plain((q, k, v, decay, rate, grad), [31, 22])


def test_equal_keys_lose_no_digits():
    """A product of powers would: those of the chunk's triangular matrix grow as binomials do."""
    q, k, v, decay, rate, grad = drawn(5, 53)
    assert_by_chunks_as_plain((q, k[:1].repeat(53, 0), v, 0 * decay, 1 + 0 * rate, grad), [53], chunk=64)


@st.composite
def packed_lengths(draw, longest: int, row: int):
    """Lengths of documents and of the padding behind each, which fit in a row."""
    lengths, left = [], row
    while left > 1 and len(lengths) < 6:
        length = draw(st.integers(1, min(longest, left)))
        gap = draw(st.sampled_from([0, 0, 1, 5]))
        lengths.append((length, min(gap, left - length)))
        left -= sum(lengths[-1])
    return lengths


def packed_segments(lengths, row: int):
    """int32 (1, row), and where the documents start. Two documents of one number lie apart, by padding or another."""
    segments, starts, at = np.zeros((1, row), np.int32), [], 0
    for number, (length, gap) in enumerate(lengths):
        segments[0, at : at + length] = number % 2 + 1
        starts.append(at)
        at += length + gap
    return segments, starts


def alone(x, lengths, starts, longest: int):
    """Rows (6, longest, ...) of one document each; the rest is 0."""
    rows = np.zeros((6, longest, *x.shape[2:]), x.dtype)
    for row, start, (length, _) in zip(rows, starts, lengths, strict=False):
        row[:length] = x[0, start : start + length]
    return rows


def assert_alone_as_packed(packed, by_itself, lengths, starts):
    """And padding has 0."""
    found, wanted = np.array(packed, copy=True), np.asarray(by_itself)
    scale = max(1, np.abs(found).max())
    for row, start, (length, _) in zip(wanted, starts, lengths, strict=False):
        np.testing.assert_allclose(found[0, start : start + length], row[:length], atol=1e-5 * scale)
        found[0, start : start + length] = 0
    assert not found.any()


@hypothesis.given(packed_lengths(LONGEST, ROW), st.integers(0, 99))
def test_packed_documents_give_what_each_gives_alone_and_padding_is_inert(lengths, seed):
    segments, starts = packed_segments(lengths, ROW)
    inputs = drawn(seed, 1, ROW)
    found = compiled_rule(2)(*inputs, segments)
    apart = [alone(x, lengths, starts, LONGEST) for x in (*inputs, segments)]
    for each, want in zip(found, compiled_rule(1)(*apart), strict=True):
        assert_alone_as_packed(each, want, lengths, starts)


@functools.cache
def layer(name: str):
    """A layer whose parameters are all drawn, as (graph, parameters)."""
    kind, spec = LAYERS[name]
    graph, params = nnx.split(kind(spec, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    return graph, jax.tree.map(lambda x: jnp.asarray(x + 0.3 * rng.normal(size=x.shape), jnp.float32), params)


@functools.cache
def run_layer(name: str, method: str = "__call__"):
    graph = layer(name)[0]
    return jax.jit(lambda params, *inputs: getattr(nnx.merge(graph, params), method)(*inputs))


@functools.cache
def layer_with_gradients(name: str):
    def run(params, x, grad, segments):
        return with_gradients(lambda params, x: run_layer(name)(params, x, segments))(params, x, grad)

    return jax.jit(run)


@each_layer
@hypothesis.settings(max_examples=6)
@hypothesis.given(lengths=packed_lengths(192, 320), seed=st.integers(0, 99))
def test_a_layer_gives_packed_documents_what_each_gives_alone(name, lengths, seed):
    segments, starts = packed_segments(lengths, 320)
    x, grad = np.random.default_rng(seed).normal(size=(2, 1, 320, 16)).astype(np.float32)
    params, run = layer(name)[1], layer_with_gradients(name)
    if name == "convolution":  # the bias of the map that leads out reaches padding
        grad = grad * (segments > 0)[..., None]
    out, d_params, d_x = run(params, x, grad, segments)
    apart = [alone(each, lengths, starts, 192) for each in (x, grad, segments)]
    out_alone, d_params_alone, d_x_alone = run(params, *apart)
    real = (segments > 0)[..., None]
    assert_alone_as_packed(np.where(real, out, 0), out_alone, lengths, starts)
    assert_alone_as_packed(d_x, d_x_alone, lengths, starts)
    for found, wanted in zip(jax.tree.leaves(d_params), jax.tree.leaves(d_params_alone), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5 * max(1, np.abs(wanted).max()))


@each_layer
def test_step_by_step_gives_what_comes_at_once(name):
    """Rows of several lengths go on from their prefill; one of none, from an empty state."""
    params, lengths, T, more = layer(name)[1], [70, 2, 0], 72, 4
    x = np.random.default_rng(1).normal(size=(3, T + more, 16)).astype(np.float32)
    wanted = run_layer(name)(params, x, np.ones((3, T + more), np.int32))
    segments = (np.arange(T) < np.array(lengths)[:, None]).astype(np.int32)
    out, state = run_layer(name, "prefill")(params, x[:, :T], segments)
    assert not any(np.asarray(held[2]).any() for held in state), "a row of no document has the empty state"
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(out[row, :length], wanted[row, :length], atol=1e-5)
    for n in range(more):
        at = np.array(lengths) + n
        out, state = run_layer(name, "step")(params, x[np.arange(3), at][:, None], state)
        np.testing.assert_allclose(out[:, 0], wanted[np.arange(3), at], atol=1e-5)


def test_eight_devices_give_the_numbers_of_one():
    params, run = layer("deltanet")[1], layer_with_gradients("deltanet")
    x, grad = np.random.default_rng(2).normal(size=(2, 4, 72, 16)).astype(np.float32)
    segments = np.repeat([[1, 2, 0]], 4, 0).repeat([40, 29, 3], 1).astype(np.int32)
    one = run(params, x, grad, segments)
    with jax.set_mesh(sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        eight = jax.jit(lambda *inputs: layer_with_gradients("deltanet").__wrapped__(*inputs))(
            params, x, grad, segments
        )
    for found, wanted in zip(jax.tree.leaves(eight), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))


@each_layer
def test_rows_split_over_context_are_refused(name):
    graph, params = layer(name)
    with (
        jax.set_mesh(sharding.make_mesh({"data": 4, "context": 2})),
        pytest.raises(ValueError, match=r"split.* 64 positions: make context 1"),
    ):
        nnx.merge(graph, params)(jnp.ones((4, 64, 16)), jnp.ones((4, 64), jnp.int32))


def test_a_convolution_that_sees_more_than_the_row_and_in_bfloat16_is_the_plain_sum():
    rng = np.random.default_rng(3)
    x, weights = rng.normal(size=(1, 3, 4)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    wanted = [sum(weights[4 - back] * x[0, t - back] for back in range(t + 1)) for t in range(3)]
    np.testing.assert_allclose(recurrent.convolved(x, weights, np.ones((1, 3), np.int32))[0], wanted, atol=1e-6)
    narrow = recurrent.convolved(jnp.asarray(x, jnp.bfloat16), weights, np.ones((1, 3), np.int32))
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow[0].astype(np.float32), wanted, atol=0.05)


def multiply_adds(jaxpr) -> int:
    """Of the matmuls of a traced function."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (over, _), _ = equation.params["dimension_numbers"]
            inputs = [equation.invars[0].aval.shape[dim] for dim in over]
            total += equation.outvars[0].aval.size * math.prod(inputs)
        total += sum(multiply_adds(inner) for inner in equation.params.values() if hasattr(inner, "eqns"))
    return total


@each_layer
def test_multiply_adds_of_a_position_are_those_of_a_step(name):
    graph, params = layer(name)
    run = lambda params, method, *inputs: getattr(nnx.merge(graph, params), method)(*inputs)  # noqa: E731
    x_B1D = jnp.ones((1, 1, 16))
    _, state = run(params, "prefill", x_B1D, jnp.ones((1, 1), jnp.int32))
    step = jax.make_jaxpr(lambda params, x, state: run(params, "step", x, state))(params, x_B1D, state)
    spec, channels = LAYERS[name][1], 16 if name == "convolution" else 2 * 2 * 6 + 4 * 5
    assert spec.multiplications() == multiply_adds(step) + spec.kernel * channels


@pytest.mark.slow
def test_compiled_memory_grows_linearly():
    def bytes_at(t: int) -> int:
        def loss(*inputs):
            return delta_rule(*inputs)[0].sum()

        shapes = [jax.ShapeDtypeStruct((1, t, *dims), jnp.float32) for dims in ((2, 32), (2, 32), (4, 32), (4,), (4,))]
        segments = jax.ShapeDtypeStruct((1, t), jnp.int32)
        compiled = jax.jit(jax.grad(loss, (0, 1, 2, 3, 4))).lower(*shapes, segments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert 0 < bytes_at(8192) < 1.25 * 4 * bytes_at(2048)


@pytest.mark.parametrize(
    ("spec", "changes", "said"),
    [
        (LAYERS["convolution"][1], {"kernel": 0}, "short convolution kernel is 0: it must be an integer, 1 or above"),
        (LAYERS["deltanet"][1], {"key_heads": 3}, "4 DeltaNet value_heads are no multiple of 3 key_heads"),
        (LAYERS["deltanet"][1], {"norm_eps": 0}, "DeltaNet norm_eps is 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(spec, changes, said):
    with pytest.raises(ValueError, match=said):
        type(spec)(**{**vars(spec), **changes})


def test_chunks_and_heads_that_do_not_divide_are_refused():
    inputs = drawn(0, 1, 9)[:5]
    with pytest.raises(ValueError, match="a chunk of 24 positions is no power of two"):
        delta_rule(*inputs, np.ones((1, 9), np.int32), chunk=24)
    with pytest.raises(ValueError, match="3 heads of values are no multiple of 2 heads of keys"):
        delta_rule(*inputs[:2], inputs[2][:, :, :3], *inputs[3:], np.ones((1, 9), np.int32))
