"""The plan: every example once an epoch, no budget exceeded, no image cut, the same rows however asked for."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from conftest import IMAGE, picture, plain

from jaxmm.batch import TARGET
from jaxmm.data.plan import Budgets, Lengths, Pass, Piece, Plan, balanced_order, choose_budgets, cut, pack
from jaxmm.data.prepared import Columns
from jaxmm.errors import UserError

BUDGETS = Budgets(tokens=64, patches=96, items=4, targets=48)


class Made(Columns):
    """An index without content: plans need no more."""

    def __init__(self, name: str, tokens: list[int], images: list[list[tuple[int, int, int]]], flags: list[int]):
        """``images``: of each example, (before which token, height, width); ``flags``: one run an example."""
        flat = [one for each in images for one in each]
        self.meta = {"name": name, "labels": []}
        self.tokens_E = np.array(tokens, np.int32)
        self.labels_E = np.zeros(len(tokens), np.uint64)
        self.runs_E1 = np.arange(len(tokens) + 1)
        self.run_start_R = np.zeros(len(tokens), np.int32)
        self.run_flags_R = np.array(flags, np.uint8)
        self.images_E1 = np.cumsum([0, *map(len, images)])
        columns = np.array(flat, np.int32).reshape(-1, 3).T
        self.image_at_I, self.image_height_I, self.image_width_I = columns

    def read(self, example: int):
        class Named(NamedTuple):
            origin: str

        return Named(f"{self.meta['name']}, record {example}")


def made(seed: int, examples: int = 60, name: str = "made", longest: int = 50) -> Lengths:
    """Random examples, some longer than a row; each image stands between two separators of its own."""
    rng = np.random.default_rng(seed)
    tokens, images = [], []
    for _ in range(examples):
        spaces = rng.integers(1, longest // 2, rng.integers(1, 5))
        at = np.cumsum(spaces[:-1] + 2) - 1  # each image before its end separator
        images.append([(int(a), *map(int, rng.integers(4, 40, 2))) for a in at])
        tokens.append(int(spaces.sum()) + 2 * len(at))
    return Lengths(Made(name, tokens, images, rng.integers(0, 2, examples).tolist()), IMAGE)


def plan_of(sources, shares=None, seed: int = 0, long: str = "split", batch_size: int = 4, window: int = 16) -> Plan:
    return Plan(sources, shares or [1.0] * len(sources), BUDGETS, batch_size, seed, long, window)


def needs_of(lengths: Lengths, piece: Piece) -> np.ndarray:
    """What a piece holds, counted position by position from the index."""
    index = lengths.prepared
    images = range(*index.images_E1[piece.example : piece.example + 2])
    kinds: list[tuple[str, int]] = [("text", 0)] * int(index.tokens_E[piece.example])
    for i in reversed(images):
        kinds[index.image_at_I[i] : index.image_at_I[i]] = [("soft", i)] * int(lengths.slots_I[i])
    held = kinds[piece.first : piece.last]
    whole = {i for kind, i in held if kind == "soft"}
    for i in whole:
        assert held.count(("soft", i)) == lengths.slots_I[i], "an image is cut"
        first = kinds.index(("soft", i))
        assert piece.first < first, "an image without its start separator"
        assert first + lengths.slots_I[i] < piece.last, "an image without its end separator"
    is_target = index.run_flags_R[piece.example] & TARGET
    targets = sum(kind == "text" for kind, _ in held) if is_target else 0
    return np.array([len(held), sum(lengths.patches_I[i] for i in whole), len(whole), targets])


@hypothesis.given(st.integers(0, 1 << 30), st.sampled_from(["split", "truncate", "drop"]))
def test_no_budget_is_exceeded_and_no_image_is_cut(seed, long):
    source = made(seed)
    for row in plan_of([source], long=long).rows(0, 40):
        assert row
        assert (sum(needs_of(source, piece) for piece in row) <= np.array(BUDGETS)).all()


def split_whole(source: Lengths, pieces: list[Piece]) -> bool:
    """Whether the pieces of an example are all of it, without gap or overlap."""
    pieces = sorted(pieces, key=lambda p: p.first)
    ends = [0, *(p.last for p in pieces)]
    return [p.first for p in pieces] == ends[:-1] and ends[-1] == source.tokens_E[pieces[0].example]


@hypothesis.given(st.integers(0, 1 << 30), st.integers(1, 3))
def test_every_example_of_every_source_comes_exactly_once_an_epoch(seed, sources):
    lengths = [made(seed + i, 20 + 9 * i, f"s{i}") for i in range(sources)]
    plan = plan_of(lengths, shares=list(range(1, sources + 1)), seed=seed)
    rows = plan.rows(0, 200)
    starts, _ = plan._stream_starts[-1]  # examples taken from each source in the windows planned
    rows = plan.rows(0, plan._row_starts[-1])
    for i, source in enumerate(lengths):
        counts = Counter((p.example, p.first) for row in rows for p in row if p.source == i)
        epochs, rest = divmod(int(starts[i]), len(source))
        by_example = {e: {n for (x, _), n in counts.items() if x == e} for e in range(len(source))}
        times = [by_example[e] for e in range(len(source))]
        assert all(len(n) == 1 for n in times if n), "pieces of one example come together"
        found = [max(n, default=0) for n in times]
        assert sorted(found) == [epochs] * (len(source) - rest) + [epochs + 1] * rest
        named = Counter((p.example, p.first, p.epoch) for row in rows for p in row if p.source == i)
        assert set(named.values()) <= {1}, "an epoch has each piece once"
        assert max(p.epoch for row in rows for p in row if p.source == i) == (starts[i] - 1) // len(source)
        assert sum(found) == starts[i]


@hypothesis.given(st.integers(0, 1 << 30))
def test_split_loses_nothing_truncate_keeps_the_beginning_drop_leaves_out(seed):
    source = made(seed)
    every = np.arange(len(source))
    long = {int(e) for e in every if (source.needs(every[e : e + 1]) > np.array(BUDGETS)).any()}
    by_mode = {}
    for mode in ("split", "truncate", "drop"):
        pieces, needs = plan_of([source], long=mode).pieces(0, every, np.zeros_like(every))
        np.testing.assert_array_equal(needs, [needs_of(source, p) for p in pieces])
        by_mode[mode] = {e: [p for p in pieces if p.example == e] for e in range(len(source))}
    for e in range(len(source)):
        assert split_whole(source, by_mode["split"][e])
        assert (len(by_mode["split"][e]) > 1) == (e in long)
        assert by_mode["truncate"][e] == by_mode["split"][e][:1]
        assert by_mode["drop"][e] == ([] if e in long else by_mode["split"][e])


@hypothesis.given(st.integers(0, 1 << 30), st.permutations(range(12)))
def test_batch_k_is_a_function_of_k_alone(seed, asked):
    sources = [made(seed, 30, "a"), made(seed + 1, 50, "b")]
    in_order = [plan_of(sources, [1, 2], seed).batch(k) for k in range(12)]
    plan = plan_of(sources, [1, 2], seed)
    for k in asked:
        assert plan.batch(k) == in_order[k]
    fresh = plan_of([made(seed, 30, "a"), made(seed + 1, 50, "b")], [1, 2], seed)
    assert fresh.batch(11) == in_order[11]
    smaller = plan_of(sources, [1, 2], seed, batch_size=2)
    rows = sorted(row for k in range(24) for row in smaller.batch(k))
    assert rows == sorted(row for batch in in_order for row in batch), "the batch size only regroups the rows"


def test_the_order_differs_by_seed_and_by_epoch():
    source = made(0)
    assert plan_of([source], seed=1).batch(0) != plan_of([source], seed=2).batch(0)
    stream = plan_of([source])._streams[0]
    assert stream.epoch(0)[0].tolist() != stream.epoch(1)[0].tolist()


@pytest.mark.parametrize(
    ("shares", "long"), [([1, 1], "split"), ([0.9, 0.1], "drop"), ([1, 1, 1], "truncate"), ([3, 1, 6], "drop")]
)
def test_shares_of_tokens_hold_within_a_percent(shares, long):
    sources = [made(i, 40 + 30 * i, f"s{i}", longest=20 + 20 * i) for i in range(len(shares))]
    plan = plan_of(sources, shares, window=64, long=long)
    held = np.zeros(len(shares))
    for row in plan.rows(0, 3000):
        for piece in row:
            held[piece.source] += piece.last - piece.first
    np.testing.assert_allclose(held / held.sum(), np.array(shares) / np.sum(shares), atol=0.01)


@hypothesis.given(st.integers(0, 1 << 30))
def test_best_fit_leaves_no_two_rows_that_would_fit_one(seed):
    needs = made(seed).needs(np.arange(60))
    needs = needs[(needs <= np.array(BUDGETS)).all(1)]
    rows = pack(needs, BUDGETS)
    assert sorted(i for row in rows for i in row) == list(range(len(needs)))
    totals = [needs[row].sum(0) for row in rows]
    for i, a in enumerate(totals):
        assert (a <= np.array(BUDGETS)).all()
        # What opened a later row found no room in an earlier one.
        for row in rows[i + 1 :]:
            assert (a + needs[row[0]] > np.array(BUDGETS)).any()


def test_small_documents_fill_the_binding_budget():
    source = made(3, 400, longest=16)
    rows = plan_of([source], window=64).rows(0, 60)
    used = np.mean([sum(needs_of(source, p) for p in row) / np.array(BUDGETS) for row in rows], 0)
    assert used.max() > 0.93


@hypothesis.given(st.integers(0, 1 << 30), st.sampled_from([8, 16, 32]))
def test_every_power_of_two_split_of_a_batch_has_about_even_work(seed, rows):
    work = np.random.default_rng(seed).uniform(0.2, 1, rows)
    order = balanced_order(work)
    assert sorted(order) == list(range(rows))
    for parts in (2, 4):
        sums = work[order].reshape(parts, -1).sum(1)
        assert sums.max() - sums.min() <= work.max() * 1.01
    assert balanced_order(work) == order


def test_a_pass_covers_each_example_once_and_fills_up_with_empty_rows():
    sources = [made(4, 30, "a"), made(5, 45, "b")]
    found = Pass(sources, BUDGETS, 8)
    rows = [row for k in range(len(found)) for row in found.batch(k)]
    assert len(rows) == 8 * len(found)
    assert sum(not row for row in rows) < 8
    for i, source in enumerate(sources):
        for e in range(len(source)):
            assert split_whole(source, [p for row in rows for p in row if (p.source, p.example) == (i, e)])
    few = Pass(sources, BUDGETS, 8, examples=10)
    examples = {(p.source, p.example) for k in range(len(few)) for row in few.batch(k) for p in row}
    assert examples == {(i, e) for i in range(2) for e in range(10)}


@hypothesis.given(st.integers(0, 1 << 30))
def test_budgets_picked_from_the_index_hold_every_example_that_fits_a_row(seed):
    sources = [made(seed, 30, "a", longest=14), made(seed + 1, 30, "b")]
    budgets = choose_budgets(sources, [1, 1], 64, 0, 0, IMAGE.merge)
    assert budgets.tokens == 64
    assert budgets.patches % IMAGE.merge**2 == 0
    for source in sources:
        needs = source.needs(np.arange(len(source)))
        assert (needs[needs[:, 0] <= 64] <= np.array(budgets)).all()


def test_an_image_larger_than_a_row_is_one_line_with_its_file(lengths_of):
    source = lengths_of([plain("a"), plain(picture(24, 24))])
    with pytest.raises(UserError, match=r"made, record 1 has an image of 36 patches .*config.patch_budget 32"):
        Plan([source], [1], BUDGETS._replace(patches=32), 1, 0)
    with pytest.raises(UserError, match=r"config\.seq_len 10"):
        cut(source, 0, 1, BUDGETS._replace(tokens=10))
    kept = Plan([source], [1], BUDGETS._replace(patches=32), 1, 0, "drop").rows(0, 5)
    assert {p.example for row in kept for p in row} == {0}


def test_mistakes_are_one_line():
    source = made(0)
    with pytest.raises(UserError, match="long_documents 'cut' is not one of split, truncate, drop"):
        plan_of([source], long="cut")
    with pytest.raises(UserError, match="no example that fits a row"):
        Plan([made(1, 3)], [1], Budgets(1, 4, 1, 1), 1, 0, "drop")
    with pytest.raises(UserError, match="patch_budget 30 is no multiple"):
        choose_budgets([source], [1], 64, 30, 0, 2)
