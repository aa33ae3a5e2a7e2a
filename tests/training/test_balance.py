"""Shares of tokens, targets and loss: those of counting by hand, and told where they are not what was asked."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from conftest import IMAGE, chat, picture, plain, random_documents

from jaxmm.data.assemble import Assembler, Loaded
from jaxmm.data.documents import Image
from jaxmm.data.packing.plan import Budgets, Lengths, Plan, Stage, make_mixture
from jaxmm.training.balance import Balance, modalities_BT, with_gradients

BUDGETS = Budgets(tokens=128, patches=128, items=8, targets=128)
ROWS = 8


@pytest.fixture(scope="module")
def sources(lengths_of) -> list[Lengths]:
    """Pictures and text mixed; text alone; and one whose pictures cannot be read."""
    broken = [chat((Image(data=picture(16, 16).data[:90]), "what?"), "no") for _ in range(6)]
    text = [plain("x" * (20 + n)) for n in range(30)]
    return [lengths_of(random_documents(30, 3), "mixed"), lengths_of(text, "text"), lengths_of(broken, "broken")]


def batches(sources, shares, count: int, seed: int = 0, **of_mixture) -> tuple[Plan, list[Loaded]]:
    plan = Plan(sources, make_mixture(sources, shares, **of_mixture), BUDGETS, ROWS, seed)
    assemble = Assembler(sources, BUDGETS, IMAGE)
    return plan, [assemble(rows)._replace(all_rows=rows) for rows in map(plan.batch, range(count))]


def sums(loaded: list[Loaded], of, sources: int) -> list[float]:
    """Sums by source of a (B, T) array."""
    return [sum(float(of(one.batch)[one.batch.sources_BT == s].sum()) for one in loaded) for s in range(sources)]


def test_what_was_asked_is_told_to_the_last_digit(sources):
    plan, loaded = batches(sources, [(0, [0.7, 0.2, 0.1])], 3)
    balance = Balance(sources, plan.mixture.stages, BUDGETS.tokens)
    for k, one in enumerate(loaded):
        balance.add(k, one)
    told = balance.figures([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])["sources"]
    assert [entry["asked"] for entry in told.values()] == [0.7, 0.2, 0.1]


def test_shares_are_those_of_counting_by_hand_and_sum_to_1(sources):
    stages = [(0, [0.5, 0.4, 0.1]), (2, [0.2, 0.7, 0.1])]
    plan, loaded = batches(sources, stages, 4)
    balance = Balance(sources, plan.mixture.stages, BUDGETS.tokens)
    for k, one in enumerate(loaded):
        balance.add(k, one)
    targets = sums(loaded, lambda batch: batch.weights_BT, 3)
    told = balance.figures([3.0, 1.0, 0.0], targets)
    by_name = told["sources"]
    assert [round(one["asked"], 6) for one in by_name.values()] == [0.35, 0.55, 0.1], "as many steps of either stage"
    tokens = np.array(sums(loaded, lambda batch: batch.text.segments > 0, 3))
    np.testing.assert_allclose([one["tokens"] for one in by_name.values()], tokens / tokens.sum())
    np.testing.assert_allclose([one["targets"] for one in by_name.values()], np.array(targets) / sum(targets))
    assert [one["loss"] for one in by_name.values()] == [0.75, 0.25, 0]
    assert by_name["broken"]["tokens"] == 0, "what could not be read is padding"

    counted: dict = collections.defaultdict(lambda: np.zeros(2))
    for one in loaded:
        for b, row in enumerate(one.rows):
            at = 0
            for piece in row:
                here = slice(at, at := at + piece.last - piece.first)
                read = int((one.batch.text.segments[b, here] > 0).sum())
                index = sources[piece.source].prepared
                has = index.images_E1[piece.example + 1] > index.images_E1[piece.example]
                counted["image" if has else "text"] += read, one.batch.weights_BT[b, here].sum()
    whole = sum(counted.values())
    assert set(told["modalities"]) == {"text", "image"}
    for name, entry in told["modalities"].items():
        np.testing.assert_allclose([entry["tokens"], entry["targets"]], counted[name] / whole)
    for column in ("asked", "tokens", "targets", "loss"):
        assert sum(one[column] for one in by_name.values()) == pytest.approx(1)
    empty = balance.figures([0.0] * 3, [0.0] * 3)
    assert empty["sources"]["text"] == {"asked": 0, "tokens": None, "targets": None, "loss": None}
    assert empty["modalities"] == {}
    assert balance.figures([np.nan, 1.0, 0.0], targets)["sources"]["text"]["loss"] is None


def test_the_parts_of_processes_add_up_to_the_whole(sources):
    plan, loaded = batches(sources, [(0, [0.5, 0.5, 0.1])], 2)
    alone = Balance(sources, plan.mixture.stages, BUDGETS.tokens)
    numbers: list[list[float]] = []
    parts = [
        Balance(sources, plan.mixture.stages, BUDGETS.tokens, total=lambda x: numbers.append(x) or x) for _ in "ab"
    ]
    assemble = Assembler(sources, BUDGETS, IMAGE)
    for k, one in enumerate(loaded):
        alone.add(k, one)
        for part, rows in zip(parts, (one.rows[: ROWS // 2], one.rows[ROWS // 2 :]), strict=True):
            part.add(k, assemble(rows)._replace(all_rows=one.rows))
    for part in parts:
        part.figures([0.0] * 3, [0.0] * 3)
    joined = Balance(sources, plan.mixture.stages, BUDGETS.tokens, total=lambda x: np.sum(numbers, 0).tolist())
    for k, one in enumerate(loaded):
        joined.add(k, one)
    assert joined.figures([1.0] * 3, [1.0] * 3) == alone.figures([1.0] * 3, [1.0] * 3)


def test_every_position_of_a_document_has_its_modality(sources):
    _, (loaded,) = batches(sources, [(0, [0.5, 0.4, 0.1])], 1)
    code_BT = modalities_BT(loaded, sources)
    has_slot = loaded.batch.slots_BT >= 0
    assert (code_BT[has_slot] == 1).all()
    assert (code_BT[loaded.batch.text.segments == 0] == 0).all()
    for b in range(ROWS):
        for segment in np.unique(loaded.batch.text.segments[b]):
            assert len(set(code_BT[b][loaded.batch.text.segments[b] == segment])) == 1
    assert {0, 1} == set(code_BT[loaded.batch.text.segments > 0].tolist())
    nothing = Assembler(sources, BUDGETS, IMAGE)([[], []])
    assert modalities_BT(nothing, sources).shape == (2, BUDGETS.tokens)


def drifts(sources, balance: Balance, loaded: list[Loaded], run_out=()) -> list[str]:
    lines = []
    for k, one in enumerate(loaded):
        balance.add(k, one)
        balance.figures([1.0] * len(sources), [1.0] * len(sources))
        lines.append(balance.drift(run_out))
    return [line for line in lines if line]


@pytest.mark.parametrize("seed", range(3))
def test_chance_alone_is_not_told(sources, seed):
    plan, loaded = batches(sources[:2], [(0, [0.8, 0.2]), (10, [0.3, 0.7])], 24, seed)
    assert drifts(sources[:2], Balance(sources[:2], plan.mixture.stages, BUDGETS.tokens), loaded) == []


def test_a_source_that_runs_out_is_told_once_and_again_when_it_is_much_less(sources):
    plan, loaded = batches(sources[:2], [(0, [0.5, 0.5])], 40, max_epochs={"text": 1})
    balance = Balance(sources[:2], plan.mixture.stages, BUDGETS.tokens)
    lines = drifts(sources[:2], balance, loaded, ["text"])
    assert 1 <= len(lines) <= 3, "out of 40 that were logged"
    assert lines[0].startswith("warning: data: shares of tokens so far: mixed 0.")
    assert "where 0.500 was asked (it has run out)" in lines[0]
    assert lines[0].count("it has run out") == 1


def test_a_source_that_never_comes_is_told(sources):
    plan, loaded = batches(sources, [(0, [0.5, 0.3, 0.2])], 24)
    balance = Balance(sources, plan.mixture.stages, BUDGETS.tokens)
    (line,) = drifts(sources, balance, loaded)
    assert "broken nothing at all where 0.200 was asked" in line


def test_a_change_of_shares_is_measured_from_its_step_on(sources):
    stages = [Stage(0, (1.0, 0.0)), Stage(4, (0.0, 1.0))]
    _, loaded = batches(sources[:2], [(0, [1.0, 1e-9]), (4, [1e-9, 1.0])], 12)
    assert drifts(sources[:2], Balance(sources[:2], stages, BUDGETS.tokens), loaded) == []


def test_gradients_of_a_batch_come_beside_the_shares_of_its_groups():
    balance = {
        "sources": {"a": {"loss": 0.6}, "b": {"loss": 0.4}, "c": {"loss": 0.0}},
        "modalities": {"text": {"tokens": 0.5}, "image": {"tokens": 0.5}},
    }  # fmt: skip
    gradients = {"sources": {"a": {"all": 3.0, "decoder": 3.0}, "b": {"all": 1.0, "decoder": 1.0}}}
    told = with_gradients(balance, gradients, {"sources": {"a": 5.0, "b": 5.0}})
    assert told["sources"] == {
        "a": {"loss": 0.6, "gradient": 0.75}, "b": {"loss": 0.4, "gradient": 0.25}, "c": {"loss": 0.0, "gradient": 0.0},
    }  # fmt: skip
    assert told["modalities"] == balance["modalities"], "one group alone is not told apart"
    both = gradients | {"modalities": {"text": {"all": 1.0}, "image": {"all": 1.0}}}
    told = with_gradients(balance, both, {"sources": {"a": 1, "b": 1}, "modalities": {"text": 1.0, "image": 3.0}})
    assert told["modalities"]["image"] == {"tokens": 0.5, "gradient": 0.5, "loss": 0.75}
