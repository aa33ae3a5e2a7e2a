"""Computed orders: each number once, unlike for every key, and without a bias that a test would see."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxmm.data.packing.shuffle import Permutation, key_of, random_bits


@hypothesis.given(st.integers(1, 5000), st.integers(0, 1 << 64))
@hypothesis.example(1, 0)
@hypothesis.example(2, 0)
@hypothesis.example(3, 1)
def test_a_permutation_holds_each_number_once(size, key):
    assert sorted(Permutation(size, key)(np.arange(size)).tolist()) == list(range(size))


def test_any_part_of_an_order_is_that_part_of_the_whole():
    order = Permutation(100_003, 5)
    whole = order(np.arange(100_003))
    some = np.array([0, 100_002, 77, 50_000])
    np.testing.assert_array_equal(order(some), whole[some])
    np.testing.assert_array_equal(order(np.arange(500, 900)), whole[500:900])


def test_far_into_an_order_of_a_trillion_nothing_is_stored():
    order = Permutation(10**12, 3)
    found = order(np.arange(10**12 - 1000, 10**12))
    assert len(set(found.tolist())) == 1000
    assert found.min() >= 0
    assert found.max() < 10**12
    assert abs(found.mean() / 1e12 - 0.5) < 0.05


def test_orders_are_the_same_on_every_machine_and_release():
    assert Permutation(10, key_of(0, 1, 2))(np.arange(10)).tolist() == [2, 8, 5, 9, 6, 4, 7, 0, 1, 3]
    assert key_of(0) != key_of(0, 0)
    assert key_of(1, 2) != key_of(2, 1)
    assert int(random_bits(key_of(7), np.array([3]))[0]) == 14101764903667128534


def chi_square(counts: np.ndarray) -> float:
    """How many standard deviations the chi-square statistic of even counts lies above its mean."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return float((((counts - expected) ** 2).sum() / expected - freedom) / (2 * freedom) ** 0.5)


@pytest.mark.parametrize("size", [6, 20, 35])
def test_every_number_is_as_likely_at_every_place(size):
    counts, after = np.zeros((size, size)), np.zeros((size, size))
    for key in range(3000):
        order = Permutation(size, key_of(11, key))(np.arange(size))
        counts[np.arange(size), order] += 1
        after[order[:-1], order[1:]] += 1
    assert abs(chi_square(counts)) < 4
    assert abs(chi_square(after[~np.eye(size, dtype=bool)])) < 4, "who follows whom"


def test_an_order_of_many_has_no_trend_and_no_runs():
    size = 200_000
    order = Permutation(size, key_of(1, 2))(np.arange(size)).astype(float)
    noise = 5 / size**0.5
    assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < noise
    for lag in (1, 2, 447, 448):  # and about the sides of the network's square
        assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < noise
    assert abs((np.diff(order) > 0).mean() - 0.5) < noise
    other = Permutation(size, key_of(1, 3))(np.arange(size)).astype(float)
    assert abs(np.corrcoef(order, other)[0, 1]) < noise, "of two epochs"
    blocks = np.bincount(np.arange(size) // 2000 * 100 + order.astype(int) // 2000, minlength=10_000)
    assert abs(chi_square(blocks)) < 5
