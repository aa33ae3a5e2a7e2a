"""The loss in chunks against log-softmax written out in float64, and the choice of target positions."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE

from jaxmm.checks.oracle import cross_entropy as plain
from jaxmm.data.assemble import empty_batch
from jaxmm.data.packing.plan import Budgets
from jaxmm.training.loss import LOGITS, batch_loss, cross_entropy, from_hidden, select_targets

B, R, D, V = 2, 21, 8, 37


def problem(seed: int):
    rng = np.random.default_rng(seed)
    x, head = rng.normal(size=(B, R, D)), rng.normal(size=(V, D))
    weights = rng.random((B, R)) * (rng.random((B, R)) < 0.6)
    return x.astype(np.float32), head.astype(np.float32), rng.integers(0, V, (B, R)), weights.astype(np.float32)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [4, 7, 512])  # no divisor, a divisor, more than there is
def test_loss_and_gradients_in_chunks_equal_log_softmax(chunk, z_loss):
    x, head, tokens, weights = problem(chunk)
    both = jax.jit(jax.value_and_grad(cross_entropy, (0, 1), has_aux=True), static_argnums=(4, 5))
    (total, terms), (dx, dhead) = both(x, head, tokens, weights, z_loss, chunk)
    expected, nll, expected_dx, expected_dhead = plain(x, head, tokens, weights, z_loss)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(terms.nll_BR, nll, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(terms.correct_BR, (x @ head.T).argmax(-1) == tokens)
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dhead, expected_dhead, rtol=1e-4, atol=1e-5)
    # The same without a gradient asked for, which is another program.
    alone, terms = cross_entropy(x, head, tokens, weights, z_loss, chunk)
    np.testing.assert_allclose(alone, expected, rtol=1e-5)
    np.testing.assert_allclose(terms.nll_BR, nll, rtol=1e-5, atol=1e-5)


def test_memory_beyond_the_head_and_its_gradient_does_not_grow_with_the_vocabulary():
    def temporary_bytes(vocab: int) -> int:
        shapes = (2, 1024, 8), (vocab, 8), (2, 1024), (2, 1024)
        dtypes = jnp.float32, jnp.float32, jnp.int32, jnp.float32
        args = [jax.ShapeDtypeStruct(*of) for of in zip(shapes, dtypes, strict=True)]
        step = jax.jit(jax.value_and_grad(lambda *args: cross_entropy(*args)[0], (0, 1)))
        return step.lower(*args).compile().memory_analysis().temp_size_in_bytes

    large = temporary_bytes(2**17) - 2 * 2**17 * 8 * 4  # its head and the gradient
    assert large <= temporary_bytes(2**13)
    assert large < 2.2 * LOGITS["cpu"]


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("softcap", [0.7, 3.0])  # the logits here reach 8
def test_loss_and_gradients_of_bent_logits_equal_those_of_autodiff(softcap, z_loss):
    x, head, tokens, weights = problem(5)

    def expected(x, head):
        logits = softcap * jnp.tanh(x @ head.T / softcap)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        nll = log_z - jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
        return (weights * (nll + z_loss * log_z**2)).sum(), nll

    def found(x, head):
        total, terms = cross_entropy(x, head, tokens, weights, z_loss, 7, softcap)
        return total, terms.nll_BR

    (total, nll), gradients = jax.value_and_grad(found, (0, 1), has_aux=True)(x, head)
    (wanted, wanted_nll), wanted_gradients = jax.value_and_grad(expected, (0, 1), has_aux=True)(x, head)
    np.testing.assert_allclose(total, wanted, rtol=1e-5)
    np.testing.assert_allclose(nll, wanted_nll, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients, wanted_gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found(x, head)[0], wanted, rtol=1e-5)  # without a gradient it is another program


def test_the_gradient_follows_what_the_loss_is_multiplied_by():
    x, head, tokens, weights = problem(3)
    dx = jax.grad(lambda x: 3 * cross_entropy(x, head, tokens, weights)[0])(x)
    np.testing.assert_allclose(dx, 3 * plain(x, head, tokens, weights, 0)[2], rtol=1e-4, atol=1e-5)


def test_bfloat16_states_give_a_float32_loss():
    x, head, tokens, weights = problem(4)
    total, _ = cross_entropy(jnp.asarray(x, jnp.bfloat16), head, tokens, weights)
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, plain(x, head, tokens, weights, 0)[0], rtol=2e-2)


def batch_with(weights_BT):
    T = weights_BT.shape[1]
    rng = np.random.default_rng(0)
    return empty_batch(B, Budgets(T, 4, 1, T), IMAGE)._replace(
        weights_BT=weights_BT.astype(np.float32),
        targets_BT=rng.integers(0, V, weights_BT.shape).astype(np.int32),
        sources_BT=rng.integers(0, 3, weights_BT.shape).astype(np.int32),
    )


@hypothesis.given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2 * 12, max_size=2 * 12))
def test_the_target_budget_holds_every_target_in_order(weights):
    batch = batch_with(np.array(weights).reshape(2, 12))
    budget = max(int((batch.weights_BT > 0).sum(1).max()), 1)
    hidden = np.arange(2 * 12, dtype=np.float32).reshape(2, 12, 1)
    chosen = select_targets(batch, budget)
    x_BRD, _ = from_hidden(hidden, None)(chosen.target_positions_BR)
    assert chosen.at_BR.shape == (2, budget)
    for b in range(2):
        at = np.flatnonzero(batch.weights_BT[b])
        np.testing.assert_array_equal(chosen.at_BR[b, : len(at)], at)
        np.testing.assert_array_equal(x_BRD[b, : len(at), 0], hidden[b, at, 0])
        np.testing.assert_array_equal(chosen.tokens_BR[b, : len(at)], batch.targets_BT[b, at])
        np.testing.assert_array_equal(chosen.sources_BR[b, : len(at)], batch.sources_BT[b, at])
        np.testing.assert_array_equal(chosen.weights_BR[b, : len(at)], batch.weights_BT[b, at])
        assert not np.any(chosen.weights_BR[b, len(at) :])


def test_a_budget_above_the_row_is_the_row():
    chosen = select_targets(batch_with(np.ones((2, 12))), 500)
    assert chosen.at_BR.shape == (2, 12)


def test_a_batch_without_targets_gives_zero_and_no_nan():
    batch = batch_with(np.zeros((2, 12)))
    hidden = jnp.ones((2, 12, D)) * 50
    head = jnp.ones((V, D))
    loss = jax.value_and_grad(lambda h, w: batch_loss(from_hidden(h, w), batch, 5, 1e-3)[0], (0, 1))
    total, grads = loss(hidden, head)
    assert float(total) == 0
    assert not any(np.any(g) for g in grads)
