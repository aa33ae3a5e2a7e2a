"""Draws against the distribution they are of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.inference.sampling import GREEDY, Sampling, choose, penalized

P = np.array([0.05, 0.4, 0.25, 0.2, 0.1])
DRAWS = 20_000


@jax.jit
def drawn(sampling, written=0):
    logits = jnp.tile(jnp.log(jnp.asarray(P, jnp.float32)), (DRAWS, 1))
    return choose(logits, sampling, jnp.arange(DRAWS), written)


def shares(sampling) -> np.ndarray:
    return np.bincount(np.asarray(drawn(sampling)), minlength=len(P)) / DRAWS


def assert_shares(found, wanted):
    np.testing.assert_array_equal(found[wanted == 0], 0)
    np.testing.assert_allclose(found, wanted, atol=4 * np.sqrt(0.25 / DRAWS))  # four standard deviations


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_is_the_power_of_the_probabilities(temperature):
    wanted = P ** (1 / temperature)
    assert_shares(shares(Sampling(temperature, 1.0, 1)), wanted / wanted.sum())


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.01, [1]), (0.39, [1]), (0.41, [1, 2]), (0.66, [1, 2, 3]), (0.9, [1, 2, 3, 4])]
)
def test_top_p_keeps_the_likeliest_that_reach_it(top_p, kept):
    wanted = np.where(np.isin(np.arange(len(P)), kept), P, 0)
    assert_shares(shares(Sampling(1.0, top_p, 2)), wanted / wanted.sum())


def test_top_p_is_of_the_probabilities_that_the_temperature_gave():
    wanted = P**2 / (P**2).sum()  # 0.01, 0.59, 0.23, ...: two of them reach 0.7, of the plain ones three
    wanted = np.where(np.isin(np.arange(len(P)), [1, 2]), wanted, 0)
    assert_shares(shares(Sampling(0.5, 0.7, 3)), wanted / wanted.sum())


def test_temperature_0_is_the_likeliest_token():
    assert set(np.asarray(drawn(GREEDY)).tolist()) == {1}


def test_draws_are_a_function_of_seed_prompt_and_token():
    first = np.asarray(drawn(Sampling(1.0, 1.0, 1)))
    np.testing.assert_array_equal(first, drawn(Sampling(1.0, 1.0, 1)))
    assert not np.array_equal(first, drawn(Sampling(1.0, 1.0, 2)))
    assert not np.array_equal(first, drawn(Sampling(1.0, 1.0, 1), 1))
    alone = choose(jnp.log(jnp.asarray(P, jnp.float32))[None], Sampling(1.0, 1.0, 1), jnp.array([7]), 0)
    assert int(alone[0]) == first[7]


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1.0, 1.0, 4, top_k=2), [1, 2]),
        (Sampling(1.0, 1.0, 4, top_k=99), [0, 1, 2, 3, 4]),
        (Sampling(1.0, 1.0, 4, min_p=0.45), [1, 2, 3]),
        (Sampling(1.0, 0.6, 4, top_k=2), [1]),  # of the two that are left the first has 0.62
    ],
)
def test_top_k_and_min_p_keep_the_likeliest(sampling, kept):
    wanted = np.where(np.isin(np.arange(len(P)), kept), P, 0)
    assert_shares(shares(sampling), wanted / wanted.sum())


def test_a_repetition_penalty_makes_what_was_there_less_likely_and_1_changes_no_bit():
    logits = jnp.array([[2.0, -2.0, 3.0, 0.5]])
    seen = jnp.array([[True, True, False, False]])
    np.testing.assert_array_equal(penalized(logits, seen, 2.0), [[1.0, -4.0, 3.0, 0.5]])
    np.testing.assert_array_equal(penalized(logits, seen, 1.0), logits)
