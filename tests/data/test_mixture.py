"""Mixtures: shares of tokens that hold, caps that end a source, and shares that change at a step."""

from __future__ import annotations

from collections import Counter

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from made_index import BUDGETS, made, texts

from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.mixture import Position, Streams, Window, make_mixture
from jaxmm.data.packing.plan import Budgets, Origin, Plan
from jaxmm.errors import UserError


def plan_of(sources, stages, *, batch_size=4, window=16, seed=0, long="split", budgets=BUDGETS, origin=None, **caps):
    mixture = make_mixture(sources, stages, **caps)
    return Plan(sources, mixture, budgets, batch_size, seed, long, window, origin=origin or Origin())


def tokens_by_source(plan: Plan, start: int, stop: int) -> np.ndarray:
    """Tokens of each source in batches [start, stop)."""
    rows = plan.batch_arrays(start, stop).pieces
    return np.bincount(rows.source, rows.last - rows.first, len(plan.lengths))


@pytest.mark.parametrize(
    ("shares", "long"), [([1, 1], "split"), ([0.9, 0.1], "drop"), ([1, 1, 1], "truncate"), ([3, 1, 6], "drop")]
)
def test_shares_are_exact_at_window_ends_to_an_example(shares, long):
    sources = [made(i, 40 + 30 * i, f"s{i}", longest=20 + 20 * i) for i in range(len(shares))]
    plan = plan_of(sources, [(0, shares)], long=long, batch_size=1)
    plan.rows(0, 1000)
    ends = plan._table.starts[1:]
    total = np.zeros(len(shares))
    for start, end in zip([0, *ends], ends, strict=False):
        total += tokens_by_source(plan, start, end)
        wanted = total.sum() * np.array(shares) / np.sum(shares)
        # Each source has at most one example more than its share; what the others have more is missing from it.
        assert (np.abs(total - wanted) <= sum(s.tokens_E.max() for s in sources)).all()
    assert np.abs(total - wanted).max() / total.sum() < 0.005


def test_shares_hold_within_windows_too():
    # Rows of one long document each: a plain shuffle would be off by several percent in such a stretch.
    sources = [texts(np.full(500, 60), "a"), texts(np.full(500, 61), "b"), texts(np.full(500, 62), "c")]
    plan = plan_of(sources, [(0, [0.5, 0.3, 0.2])], window=2000, batch_size=10)
    for start in range(0, 150, 7):
        held = tokens_by_source(plan, start, start + 40)
        np.testing.assert_allclose(held / held.sum(), [0.5, 0.3, 0.2], atol=0.01)


def test_a_source_that_runs_out_leaves_its_share_to_the_others_in_proportion():
    sources = [texts(np.full(50, 16), "a"), texts(np.full(900, 16), "b"), texts(np.full(900, 16), "c")]
    plan = plan_of(sources, [(0, [0.5, 0.4, 0.1])], max_epochs={"a": 2, "b": 3, "c": 3}, batch_size=1)
    batches = plan.batches()
    whole = plan.batch_arrays(0, batches).pieces
    counts = Counter(zip(whole.source.tolist(), whole.example.tolist(), strict=True))
    assert counts == {(i, e): 2 if i == 0 else 3 for i, s in enumerate(sources) for e in range(len(s))}
    assert plan.run_out(10) == []
    assert plan.run_out(100) == ["a"]
    assert plan.run_out(batches) == ["a", "b", "c"]
    held = tokens_by_source(plan, 100, 500)
    np.testing.assert_allclose(held / held.sum(), [0, 0.8, 0.2], atol=0.01)
    with pytest.raises(IndexError, match=f"ends with batch {batches - 1}"):
        plan.batch(batches)


@hypothesis.given(st.integers(0, 1 << 30), st.sampled_from([0.5, 1, 2.25]), st.integers(1, 5))
def test_with_epochs_the_plan_ends_after_so_many_passes_and_fills_up_with_empty_rows(seed, epochs, batch_size):
    sources = [made(seed, 20, "a"), made(seed + 1, 33, "b")]
    plan = plan_of(sources, [(0, [1, 2])], epochs=epochs, batch_size=batch_size, seed=seed)
    batches = plan.batches()
    rows = [row for k in range(batches) for row in plan.batch(k)]
    assert len(rows) == batches * batch_size
    assert sum(not row for row in rows) < batch_size
    for i, source in enumerate(sources):
        pieces = [p for row in rows for p in row if p.source == i]
        begun = Counter(p.example for p in pieces if p.first == 0)
        assert begun.total() == round(epochs * len(source))
        assert set(begun.values()) <= {int(epochs), -int(-epochs // 1)}
        assert max(Counter((p.example, p.first, p.epoch) for p in pieces).values()) == 1


def test_a_cap_uses_the_same_examples_each_epoch_in_other_orders():
    source = texts(np.full(100, 16), "a")
    streams = Streams([source], make_mixture([source], [(0, [1])], max_examples={"a": 30}), BUDGETS, 0, "split")
    first, epochs = streams.examples(0, 0, 30)
    second, _ = streams.examples(0, 30, 60)
    assert set(epochs.tolist()) == {0}
    assert len(set(first.tolist())) == 30
    assert set(first.tolist()) == set(second.tolist()) != set(range(30))
    assert first.tolist() != second.tolist()
    other = Streams([source], make_mixture([source], [(0, [1])], max_examples={"a": 30}), BUDGETS, 1, "split")
    assert set(other.examples(0, 0, 30)[0].tolist()) != set(first.tolist())


def test_shares_change_at_their_step():
    sources = [texts(np.full(300, n), name) for n, name in ((16, "a"), (17, "b"), (15, "c"))]
    stages = [(0, [1, 0, 1]), (50, [1, 3, 0]), (60, [0, 1, 0])]
    plan = plan_of(sources, stages, batch_size=8, window=100)
    shares = []
    for start, stop in ((0, 49), (51, 59), (61, 90)):
        held = tokens_by_source(plan, start, stop)
        shares.append(held / held.sum())
    np.testing.assert_allclose(shares[0], [0.5, 0, 0.5], atol=0.02)
    np.testing.assert_allclose(shares[1], [0.25, 0.75, 0], atol=0.05)
    np.testing.assert_allclose(shares[2], [0, 1, 0], atol=0.001)
    assert any(abs(start - 400) <= 2 for start in plan._table.starts), "a window begins at the step, to a row or two"
    assert any(abs(start - 480) <= 2 for start in plan._table.starts)


def test_where_a_stage_has_nothing_left_the_next_one_begins():
    sources = [texts(np.full(20, 16), "a"), texts(np.full(40, 16), "b")]
    plan = plan_of(sources, [(0, [1, 0]), (1000, [0, 1])], epochs=1, batch_size=2)
    assert plan.batches() < 12
    assert tokens_by_source(plan, 0, plan.batches()).tolist() == [20 * 16, 40 * 16]


def test_a_plan_goes_on_from_what_another_one_has_seen():
    sources = [texts(np.full(200, 16), "a"), texts(np.full(300, 16), "b")]
    before = plan_of(sources, [(0, [1, 1])], epochs=1)
    seen = before.seen(20)
    assert sum(seen) == sum(p.first == 0 for k in range(20) for row in before.batch(k) for p in row)
    after = plan_of(sources, [(0, [1, 3])], epochs=1, origin=Origin(20, seen))
    left = Counter(p.source for k in range(20, after.batches()) for row in after.batch(k) for p in row)
    assert [left[i] + seen[i] for i in range(2)] == [200, 300]
    with pytest.raises(ValueError, match="before the plan's first batch, 20"):
        after.batch(19)


def test_a_draw_takes_no_more_than_it_must():
    source = texts(np.full(100, 10), "a")
    streams = Streams([source], make_mixture([source], [(0, [1])]), BUDGETS, 0, "split")
    drawn, position = streams.draw(Position((3,), (0.0,)), Window(95), 0)
    assert len(drawn.pieces.source) == 10
    assert position == Position((13,), (-5.0,))
    drawn, position = streams.draw(position, Window(4), 0)
    assert len(drawn.pieces.source) == 0
    assert position == Position((13,), (-1.0,))


def test_a_capped_source_of_nothing_but_long_documents_is_refused():
    source = texts([*np.full(50, 900), 5], "a")
    mixture = make_mixture([source], [(0, [1])], max_examples={"a": 3})
    with pytest.raises(UserError, match="'a' has no example that fits a row among the 3 that are used of it"):
        Plan([source], mixture, Budgets(64, 4, 1, 64), 1, 0, "drop").batch(0)


def shares_over_any_ten_million(sources: list[Lengths], shares: list[float], row: int) -> float:
    """How far, at most, a share over 10M tokens is from what was asked, in batches of 16 rows over 100M tokens."""
    plan = Plan(sources, shares, Budgets(row, 4, 1, row), 16, 0)
    held = np.array([tokens_by_source(plan, k, k + 1) for k in range(100_000_000 // (16 * row))])
    total = np.concatenate([[np.zeros(len(shares))], np.cumsum(held, 0)])
    width = 10_000_000 // (16 * row)
    some = total[width:] - total[:-width]
    return float(np.abs(some / some.sum(1, keepdims=True) - np.array(shares) / np.sum(shares)).max())


@pytest.mark.parametrize("row", [2048, 16384])
def test_shares_hold_within_a_percent_over_any_ten_million_tokens(row):
    rng = np.random.default_rng(0)
    sources = [
        texts(np.clip(rng.lognormal(5.5, 0.9, 3000), 1, row), "chats"),
        texts(np.clip(rng.lognormal(8.5, 0.6, 500), 1, row), "books"),
        texts(np.clip(rng.lognormal(4, 0.5, 1000), 1, row), "captions"),
    ]
    assert shares_over_any_ten_million(sources, [0.55, 0.4, 0.05], row) < 0.01
