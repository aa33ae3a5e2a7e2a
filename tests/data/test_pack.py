"""Packing: nothing over a budget, nothing lost, rows fuller than a greedy knapsack's; batches of even work."""

from __future__ import annotations

import tracemalloc
import zlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from made_index import BUDGETS, made

from jaxmm.data.packing.pack import assign, balanced_order, balanced_orders, ordered, pack


def best_fit(needs: np.ndarray, limits: np.ndarray) -> int:
    """Rows by the plain loop: the largest item first, to the fullest row with room."""
    room = np.zeros((0, len(limits)), np.int64)
    limits = np.maximum(limits, 1)
    parts = needs / limits
    for item in np.argsort(-parts.max(1), kind="stable"):
        fits = np.flatnonzero((room >= needs[item]).all(1))
        if not len(fits):
            room = np.concatenate([room, limits[None]])
            fits = np.array([len(room) - 1])
        row = fits[(room[fits] / limits).sum(1).argmin()]
        room[row] -= needs[item]
    return len(room)


@st.composite
def problems(draw):
    """Needs of any kind, each of which fits an empty row."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    count, budgets = draw(st.integers(1, 400)), draw(st.integers(1, 4))
    limits = rng.integers(1, draw(st.sampled_from([3, 64, 5000])), budgets)
    needs = (rng.random((count, budgets)) ** draw(st.sampled_from([0.2, 1, 4])) * (limits + 1)).astype(np.int64)
    needs[rng.random(needs.shape) < draw(st.sampled_from([0, 0.3, 0.95]))] = 0
    return np.minimum(needs, limits), limits


@hypothesis.given(problems())
@hypothesis.settings(max_examples=150)
def test_no_budget_is_exceeded_and_each_item_has_one_row(problem):
    needs, limits = problem
    row_of = assign(needs, limits)
    rows = int(row_of.max()) + 1
    assert set(row_of.tolist()) == set(range(rows)), "no row is empty"
    for j, limit in enumerate(limits):
        assert np.bincount(row_of, needs[:, j]).max() <= limit
    assert rows <= 1.01 * best_fit(needs, limits) + 1


def test_rows_of_pictures_and_text_are_those_that_runs_began_with():
    """Other rows need another number of ``plan.FORMAT``."""
    rng, held = np.random.default_rng(0), []
    for _ in range(20):
        needs = rng.integers(0, 12, (1500, 5)) ** 3 * rng.integers(0, 2, (1500, 5)) + [1, 0, 0, 0, 0]
        limits = np.maximum(needs.max(0), needs.sum(0) * rng.integers(5, 20, 5) // 1500)
        held.append(assign(needs, limits).astype("<i8"))
    assert zlib.crc32(np.concatenate(held).tobytes()) == 0x61E2EC32


def test_nothing_packs_into_no_rows():
    assert assign(np.zeros((0, 5), int), BUDGETS).tolist() == []
    assert pack(np.zeros((0, 5), int), BUDGETS) == []


@hypothesis.given(problems())
def test_pack_lists_the_items_that_assign_puts_in_each_row(problem):
    needs, limits = problem
    row_of = assign(needs, limits)
    rows = pack(needs, limits)
    assert [row_of[row].tolist() for row in rows] == [[r] * len(row) for r, row in enumerate(rows)]
    assert sum(map(len, rows)) == len(needs)


@hypothesis.given(st.integers(0, 1 << 30))
def test_mixed_documents_pack_about_as_tightly_as_one_by_one(seed):
    needs = made(seed, 200).needs(np.arange(200))
    needs = needs[(needs <= np.array(BUDGETS)).all(1)]
    assert int(assign(np.tile(needs, (5, 1)), BUDGETS).max()) + 1 <= 1.03 * best_fit(
        np.tile(needs, (5, 1)), np.array(BUDGETS)
    )


def lognormal(count: int, sigma: float, mean: float, longest: int) -> np.ndarray:
    drawn = np.random.default_rng(0).lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    return np.clip(np.rint(drawn), 1, longest).astype(np.int64)


@pytest.mark.parametrize(("count", "fill"), [(1500, 0.99), (1 << 15, 0.998)])
def test_rows_of_text_are_full(count, fill):
    lengths = lognormal(count, 0.8, 298, 2048)
    rows = int(assign(lengths[:, None], [2048]).max()) + 1
    assert lengths.sum() / (rows * 2048) >= fill


@pytest.mark.parametrize("ratio", [0.8, 1.2])
def test_the_budget_that_binds_is_full_and_the_other_is_not_in_its_way(ratio):
    rng, count = np.random.default_rng(1), 1 << 14
    images = rng.integers(0, 5, count)
    patches = np.where(np.arange(4) < images[:, None], rng.integers(16, 577, (count, 4)) * 4, 0).sum(1)
    tokens = lognormal(count, 0.9, 298, 4096) + patches // 4 + 2 * images
    limits = np.array([8192, patches.sum() * 8192 * ratio / tokens.sum(), 64, 8192]).astype(int)
    needs = np.minimum(np.stack([tokens, patches, images, tokens // 2], 1), limits)
    rows = int(assign(needs, limits).max()) + 1
    assert (needs.sum(0) / (rows * limits)).max() >= 0.995


def test_a_third_scarce_budget_is_in_the_way_of_few_rows():
    """Four budgets are nearly full at once: text and soft tokens, patches, tiles, and frames of recordings."""
    rng, count = np.random.default_rng(2), 1 << 14
    images, recordings, films = rng.integers(0, 5, count), rng.integers(0, 3, count), rng.integers(0, 2, count)
    frames = films * rng.integers(2, 31, count)
    patches = np.where(np.arange(4) < images[:, None], rng.integers(16, 577, (count, 4)) * 4, 0).sum(1)
    patches += frames * rng.integers(32, 128, count) * 4
    sound = np.where(np.arange(2) < recordings[:, None], rng.integers(100, 3001, (count, 2)), 0).sum(1)
    tokens = lognormal(count, 0.9, 298, 4096) + patches // 4 + sound // 4
    needs = np.stack([tokens, patches, images + frames, tokens // 20, np.zeros_like(tokens), sound], 1)
    limits = (needs.mean(0) * 16384 / tokens.mean() / [1, 0.95, 0.8, 0.1, 1, 0.85]).astype(int)
    rows = int(assign(needs, limits).max()) + 1
    assert tokens.sum() / (rows * 16384) >= 0.984


def test_ordered_is_a_stable_sort():
    keys = np.random.default_rng(0).integers(-50, 50, 1000)
    np.testing.assert_array_equal(ordered(keys), np.argsort(keys, kind="stable"))
    assert ordered(keys[:0]).tolist() == []


@hypothesis.given(st.integers(0, 1 << 30), st.sampled_from([8, 16, 32]))
def test_every_power_of_two_split_of_a_batch_has_about_even_work(seed, rows):
    work = np.random.default_rng(seed).uniform(0.2, 1, rows)
    order = balanced_order(work)
    assert sorted(order) == list(range(rows))
    for parts in (2, 4):
        sums = work[order].reshape(parts, -1).sum(1)
        assert sums.max() - sums.min() <= work.max() * 1.01
    assert balanced_order(work) == order


@pytest.mark.parametrize("rows", [1, 3, 6, 8])
def test_the_order_of_a_batch_does_not_depend_on_the_batches_beside_it(rows):
    work = np.random.default_rng(2).integers(0, 4, (5, rows)).astype(float)  # with many ties
    found = balanced_orders(work)
    assert found.tolist() == [balanced_order(one) for one in work]
    assert np.sort(found, axis=1).tolist() == [list(range(rows))] * 5


def test_ordering_a_batch_takes_memory_in_proportion_to_its_rows():
    work = np.random.default_rng(0).random((1, 8192))
    tracemalloc.start()
    balanced_orders(work)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 * work.nbytes, "thousands of processes have tens of thousands of rows"
