"""The plan: every example once an epoch, no budget exceeded, no image cut, the same rows however asked for."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from conftest import IMAGE
from made_index import BUDGETS, Made, is_whole, made, needs_of, texts

from jaxmm.batch import TARGET
from jaxmm.data.packing import plan as plan_module
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.mixture import Streams
from jaxmm.data.packing.plan import Budgets, Pass, Plan, choose_budgets, make_mixture
from jaxmm.errors import UserError

ROOT = Path(__file__).parents[2]


def plan_of(sources, shares=None, seed: int = 0, long: str = "split", batch_size: int = 4, window: int = 16, **more):
    return Plan(sources, shares or [1.0] * len(sources), BUDGETS, batch_size, seed, long, window, **more)


@hypothesis.given(st.integers(0, 1 << 30), st.sampled_from(["split", "truncate", "drop"]))
def test_no_budget_is_exceeded_and_no_image_is_cut(seed, long):
    source = made(seed)
    for row in plan_of([source], long=long).rows(0, 40):
        assert row
        assert (sum(needs_of(source, piece) for piece in row) <= np.array(BUDGETS)).all()


@hypothesis.given(st.integers(0, 1 << 30), st.integers(1, 3))
def test_every_example_of_every_source_comes_exactly_once_an_epoch(seed, sources):
    lengths = [made(seed + i, 20 + 9 * i, f"s{i}") for i in range(sources)]
    plan = plan_of(lengths, shares=list(range(1, sources + 1)), seed=seed)
    plan.rows(0, 200)
    taken = plan._table.position(len(plan._table.starts) - 1).taken  # examples of each source in the windows planned
    rows = plan.rows(0, plan._table.starts[-1])
    for i, source in enumerate(lengths):
        pieces = [p for row in rows for p in row if p.source == i]
        assert max(Counter((p.example, p.first, p.epoch) for p in pieces).values()) == 1, "an epoch has each piece once"
        epochs, rest = divmod(taken[i], len(source))
        for epoch in range(epochs + bool(rest)):
            held = {e: [p for p in pieces if (p.example, p.epoch) == (e, epoch)] for e in range(len(source))}
            assert sum(map(bool, held.values())) == (len(source) if epoch < epochs else rest)
            assert all(is_whole(source, p) for p in held.values() if p), "pieces of one example come together"
        assert max(p.epoch for p in pieces) == (taken[i] - 1) // len(source)


@hypothesis.given(st.integers(0, 1 << 30), st.permutations(range(12)))
def test_batch_k_is_a_function_of_k_alone(seed, asked):
    sources = [made(seed, 30, "a"), made(seed + 1, 50, "b")]
    in_order = [plan_of(sources, [1, 2], seed).batch(k) for k in range(12)]
    plan = plan_of(sources, [1, 2], seed)
    for k in asked:
        assert plan.batch(k) == in_order[k]
    fresh = plan_of([made(seed, 30, "a"), made(seed + 1, 50, "b")], [1, 2], seed)
    assert fresh.batch(11) == in_order[11]
    assert pickle.loads(pickle.dumps(fresh)).batch(3) == in_order[3], "in a worker process"
    smaller = plan_of(sources, [1, 2], seed, batch_size=2)
    rows = sorted(row for k in range(24) for row in smaller.batch(k))
    assert rows == sorted(row for batch in in_order for row in batch), "the batch size only regroups the rows"


def test_arrays_of_many_batches_are_the_batches_one_by_one():
    sources = [made(3, 30, "a"), made(4, 50, "b")]
    plan = plan_of(sources)
    many = plan.batch_arrays(2, 13).listed()
    assert many == [row for k in range(2, 13) for row in plan.batch(k)]
    work = [sum((p.last - p.first) ** 2 for p in row) for row in many]
    np.testing.assert_array_equal(plan.batch_arrays(2, 13).work(), work)


def test_the_order_differs_by_seed_source_and_epoch():
    source = made(0)
    assert plan_of([source], seed=1).batch(0) != plan_of([source], seed=2).batch(0)
    streams = Streams([source, source], make_mixture([source, source], [(0, [1, 1])]), BUDGETS, 0, "split")
    orders = [tuple(streams.examples(i, 60 * e, 60 * e + 60)[0]) for i in range(2) for e in range(50)]
    assert len(set(orders)) == 100
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(60))}


def test_small_documents_fill_the_binding_budget():
    source = made(3, 400, longest=16)
    rows = plan_of([source], window=64).rows(0, 60)
    used = np.mean([sum(needs_of(source, p) for p in row) / np.maximum(BUDGETS, 1) for row in rows], 0)
    assert used.max() > 0.95


def test_a_pass_covers_each_example_once_and_fills_up_with_empty_rows():
    sources = [made(4, 30, "a"), made(5, 45, "b")]
    found = Pass(sources, BUDGETS, 8)
    rows = [row for k in range(len(found)) for row in found.batch(k)]
    assert len(rows) == 8 * len(found)
    assert sum(not row for row in rows) < 8
    for i, source in enumerate(sources):
        for e in range(len(source)):
            assert is_whole(source, [p for row in rows for p in row if (p.source, p.example) == (i, e)])
    few = Pass(sources, BUDGETS, 8, examples=10)
    examples = {(p.source, p.example) for k in range(len(few)) for row in few.batch(k) for p in row}
    assert examples == {(i, e) for i in range(2) for e in range(10)}


def windows_planned(monkeypatch) -> list[int]:
    """A list that grows by each window that is planned."""
    planned: list[int] = []
    original = Plan._plan_window

    def noted(self, window):
        planned.append(window)
        return original(self, window)

    monkeypatch.setattr(Plan, "_plan_window", noted)
    return planned


def test_with_its_table_on_disk_a_plan_plans_no_earlier_window_again(tmp_path, monkeypatch):
    sources = [made(1, 40, "a"), made(2, 50, "b")]
    first = plan_of(sources, table=tmp_path)
    wanted = [first.batch(k) for k in range(60)]
    assert len(first._table.starts) > 12
    first.save()
    planned = windows_planned(monkeypatch)
    again = plan_of([made(1, 40, "a"), made(2, 50, "b")], table=tmp_path)
    window = int(np.searchsorted(again._table.starts, 180, side="right")) - 1
    assert [again.batch(45), again.long] == [wanted[45], first.long]
    assert set(planned) <= {window, window + 1}
    assert not any(source.prepared.reads for source in sources), "planning reads no record"
    assert [again.batch(k) for k in range(60)] == wanted


def test_a_table_belongs_to_everything_that_its_rows_depend_on(tmp_path):
    def files(**changes) -> set[str]:
        arguments = {"sources": [made(1, 40, "a")], "shares": None, "seed": 0, "table": tmp_path, **changes}
        plan_of(**arguments).batch(60)
        return {file.name for file in tmp_path.iterdir()}

    count = len(files())
    assert count == len(files()) == 1
    assert len(files(batch_size=2)) == 1, "the batch size only regroups rows"
    for change in (
        {"seed": 1}, {"long": "drop"}, {"window": 32}, {"sources": [made(2, 40, "a")]},
        {"shares": make_mixture([made(1, 40, "a")], [(0, [1])], max_examples={"a": 9})},
        {"origin": plan_module.Origin(3, (5,))},
    ):  # fmt: skip
        assert len(files(**change)) == (count := count + 1)


def test_a_table_that_is_damaged_is_made_anew(tmp_path):
    wanted = plan_of([made(1, 40, "a")], table=tmp_path).batch(60)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    flips = [whole[:n] + bytes([whole[n] ^ 4]) + whole[n + 1 :] for n in range(0, len(whole), 83)]
    for damaged in (*flips, b"", whole[:100]):
        file.write_bytes(damaged)
        plan = plan_of([made(1, 40, "a")], table=tmp_path)
        assert plan.batch(60) == wanted
    assert np.load(file)["starts"].tolist() == plan._table.starts.tolist()[: len(np.load(file)["starts"])]


def test_windows_are_large_for_large_data_and_small_for_small():
    def window(count: int, tokens: int, row: int = 2048) -> int:
        limits = Budgets(row, 4, 1, row)
        return Plan([texts(np.full(count, tokens))], [1], limits, 8, 0)._sizes[0][0]

    assert window(1500, 300) == plan_module.MIN_ROWS
    assert 7000 < window(100_000, 300) < 10_000, "thousands of rows"
    assert window(100_000, 300, 100_000) < 300, "but no more than some ten thousand pieces"


@hypothesis.given(st.integers(0, 1 << 30))
def test_budgets_picked_from_the_index_hold_every_example_that_fits_a_row(seed):
    sources = [made(seed, 30, "a", longest=14), made(seed + 1, 30, "b")]
    budgets = choose_budgets(sources, [1, 1], 64, 0, 0, IMAGE.merge)
    assert budgets.tokens == 64
    assert budgets.patches % IMAGE.merge**2 == 0
    for source in sources:
        needs = source.needs(np.arange(len(source)))
        assert (needs[needs[:, 0] <= 64] <= np.array(budgets)).all()


def test_picked_budgets_of_pictures_and_text_are_those_that_runs_began_with():
    sources = [made(7, 300, "a"), made(8, 200, "b")]
    picked = [tuple(choose_budgets(sources, [1, 2], 256, 0, *rest)) for rest in ((0, 2), (64, 2), (0, 2, 6))]
    assert picked == [(256, 192, 16, 192, 0), (256, 192, 16, 64, 0), (256, 192, 16, 192, 0)]


def test_coarse_images_beside_long_texts_leave_no_rows_half_empty():
    # Half of the tokens fill rows alone, so the other rows need twice the patches of an average one.
    shown = [[(3, 24, 24)]] * 40
    pictures = Lengths(Made("a", [90] * 40, shown, [[(0, TARGET)]] * 40), IMAGE)  # 99 tokens, 36 patches
    long = texts([500] * 40, "b")
    budgets = choose_budgets([pictures, long], [1, 1], 512, 0, 0, IMAGE.merge)
    assert 180 <= budgets.patches <= 256
    plan = Plan([pictures, long], [1, 1], budgets, 8, 0)
    rows = plan.batch_arrays(0, 100).pieces
    assert (rows.last - rows.first).sum() / (800 * 512) > 0.95
    assert choose_budgets([long], [1], 512, 0, 0, IMAGE.merge).patches == 64, "text alone needs next to none"
    assert choose_budgets([long], [1], 512, 0, 0, IMAGE.merge, 256).patches == 256, "what devices can share"


def test_mistakes_are_one_line():
    source = made(0)
    with pytest.raises(UserError, match="long_documents 'cut' is not one of split, truncate, drop"):
        plan_of([source], long="cut")
    row, split = "nothing to train on; the smallest has", "config.data.long_documents=split"
    with pytest.raises(UserError, match=rf"{row} 70 tokens, a row 64: raise config.seq_len, or set {split}$"):
        Plan([texts([900, 70, 80], "a")], [1], Budgets(64, 4, 1, 100), 1, 0, "drop")
    shown = Lengths(Made("a", [90], [[(3, 24, 24)]], [[(0, TARGET)]]), IMAGE)  # 99 tokens, 36 patches
    with pytest.raises(UserError, match=rf"{row} 36 patches, a row 16: raise config.patch_budget$"):
        Plan([shown], [1], Budgets(128, 16, 1, 128), 1, 0, "drop")
    with pytest.raises(UserError, match=rf"{row} .*: raise config.seq_len, and config.patch_budget where it is set"):
        Plan([shown], [1], Budgets(64, 16, 1, 128), 1, 0, "drop")
    with pytest.raises(UserError, match="patch_budget 30 is no multiple"):
        choose_budgets([source], [1], 64, 30, 0, 2)
    with pytest.raises(ValueError, match="endless"):
        plan_of([source]).batches()


@pytest.mark.slow
def test_ten_million_examples_are_planned_in_seconds_and_a_batch_far_on_is_there_at_once(tmp_path):
    output = tmp_path / "rows.json"
    program = [sys.executable, str(ROOT / "tools/benchmark.py"), "--part=data", "--only=planning,far_batch"]
    program += ["--repeats=1", f"--output={output}"]
    subprocess.run(program, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    planning, far = (row["figures"] for row in json.loads(output.read_text())["rows"])
    assert planning["fill"]["median"] >= 0.998
    assert planning["planned"]["median"] >= 100_000, "a million on a machine with nothing else to do"
    assert planning["peak memory"]["median"] < 1
    assert far["process"]["median"] < 20, "two on a machine with nothing else to do"
    assert far["reads beyond the batch"]["median"] == 0
    assert 0 < far["reads"]["median"] <= far["pieces in the batch"]["median"]
