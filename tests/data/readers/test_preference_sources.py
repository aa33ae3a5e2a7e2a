"""Sources of preference data: their entries and columns, and what stands in place of an objective for them."""

from __future__ import annotations

import json

import pytest

from jaxmm.errors import UserError
from readers.preferences import (
    ASKED,
    BAD,
    BETTER,
    COLUMNS,
    GOOD,
    GPT_BAD,
    GPT_GOOD,
    HUMAN,
    LIKED,
    PAIR,
    SHAREGPT,
    described,
    judged,
    pairs,
)
from readers.reading import only, said


def line(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("entry", "preferences", "message"),
    [
        ({**SHAREGPT, "columns": COLUMNS}, "", "set config.objective=dpo .* to learn from preferences"),
        (
            {**SHAREGPT, "columns": COLUMNS},
            "judged",
            "has no labels: .*kto .* needs the column kto_tag; .*dpo .* reads wh",
        ),
        ({"formatting": "sharegpt"}, "pairs", 'has no pairs of answers: .* needs "ranking": true, and the columns'),
        ({**SHAREGPT}, "pairs", "its columns must name both answers of a pair"),
        ({"ranking": "yes"}, "pairs", "ranking must be true or false, not 'yes'"),
        ({**SHAREGPT, "columns": COLUMNS, "weight": 0.5}, "pairs", "pairs are not weighed, .*: leave its weight out"),
        ({"columns": {"prompt": "p", "kto_tag": "k"}}, "judged", "a kto_tag needs a response column"),
    ],
)
def test_an_entry_says_what_of_it_is_wrong(folder, entry, preferences, message):
    with pytest.raises(UserError, match=message):
        described(folder, [], preferences, **entry)


def test_an_entry_that_trains_on_prompts_is_told_it_does_not(folder):
    record = {"conversations": [HUMAN], "chosen": GPT_GOOD, "rejected": GPT_BAD}
    source = described(folder, [record], "pairs", **SHAREGPT, columns=COLUMNS, train_on_prompt=True)
    assert only(source).turns == BETTER
    assert source.told[0].endswith("train_on_prompt does not count: its prompts are not learnt")


@pytest.mark.parametrize(
    ("columns", "preferences", "message"),
    [
        ("prompt=q,chosen=c,rejected=r", "", "'chosen' is read with config.objective=dpo .* alone"),
        ("label=l", "pairs", "'label' is read with config.objective=kto .* alone"),
        ("prompt=q,chosen=", "pairs", "'chosen' must name a column, as chosen=CHOSEN"),
        ("prompt=q,response=r", "pairs", "pairs of answers have no 'response'"),
        ("text=t", "judged", "a text is no answer to judge"),
        ("prompt=q,chosen=c,rejected=nothing", "pairs", "no record at the start of .* has 'nothing'"),
    ],
)
def test_columns_of_preferences_are_checked(folder, columns, preferences, message):
    with pytest.raises(UserError, match=message):
        folder.source([{"q": "Q", "c": "A", "r": "B"}], columns=columns, preferences=preferences)


@pytest.mark.parametrize("record", [PAIR, {"messages": [ASKED, GOOD], "chosen": GOOD, "rejected": BAD}])
def test_pairs_without_an_objective_for_them_say_which_reads_them(folder, record):
    message = line(lambda: list(folder.source([record]).documents()))
    assert "set config.objective=dpo (or ipo, simpo, orpo; --preferences=pairs of jaxmm prepare) to learn" in message


def test_labels_without_an_objective_for_them_weigh_as_before(folder):
    message = line(lambda: folder.source([LIKED]))
    assert "set config.objective=kto (--preferences=judged of jaxmm prepare) to learn from its label" in message
    (document,) = folder.source([{"messages": [ASKED, BAD], "label": False}]).documents()
    assert not document.verdict
    assert document.turns[-1].weight == 0


def test_an_entry_is_another_one_with_preferences_alone(folder):
    records = [{"messages": [ASKED, GOOD], "label": True, "rejected_response": "B"}]
    entries = {kind: json.loads(folder.source(records, preferences=kind).entry) for kind in ("", "pairs")}
    entries["judged"] = json.loads(judged(folder, [LIKED]).entry)
    assert "preferences" not in entries[""]
    assert not {"kind", "form"} & entries[""].keys()
    assert [entries[kind]["preferences"][0] for kind in ("pairs", "judged")] == ["pairs", "judged"]


def test_equal_prompts_are_held_out_together(folder):
    records = [{"prompt": f"Q{n}", "chosen": f"A{m}", "rejected": "B"} for n in range(40) for m in range(3)]
    sides = [
        {said(d)[0][1] for d in pairs(folder, records, val_size=0.3, held_out=held_out).documents()}
        for held_out in (False, True)
    ]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 40
    assert 4 < len(sides[1]) < 25


def test_columns_of_preferences_count_as_read(folder):
    source = pairs(folder, [{**PAIR, "label": True, "score": 3}])
    (unit,) = source.units()
    stream = source.read(unit)
    next(stream)
    with pytest.raises(StopIteration) as stopped:
        next(stream)
    seen = stopped.value.value.as_json()
    assert seen["read"] == {"chosen": 1, "prompt": 1, "rejected": 1}
    assert seen["unread"] == {"label": 1, "score": 1}
    source = judged(folder, [LIKED, LIKED])
    (unit,) = source.units()
    stream = source.read(unit)
    assert len([next(stream), next(stream)]) == 2
    with pytest.raises(StopIteration) as stopped:
        next(stream)
    assert stopped.value.value.as_json()["read"] == {"completion": 2, "label": 2, "prompt": 2}
