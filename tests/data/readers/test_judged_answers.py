"""Judged answers: every form of a label becomes the same document, or says in a line why not."""

from __future__ import annotations

import json

import pytest

from jaxmm.data.documents import Document, Skip
from jaxmm.errors import UserError
from readers.preferences import ASKED, BETTER, GOOD, GPT_GOOD, HUMAN, LIKED, MARKED, PAIR, described, judged
from readers.reading import OPENAI, said

LABELS = [
    (True, "wanted"), (False, "unwanted"), ("true", "wanted"), ("False", "unwanted"), (1, "wanted"), (0.0, "unwanted")
]  # fmt: skip


@pytest.mark.parametrize(
    ("record", "columns"),
    [
        (LIKED, ""),
        ({"prompt": [ASKED], "completion": [GOOD], "label": True}, ""),
        ({"messages": [ASKED, GOOD], "label": True}, ""),
        ({"conversations": [HUMAN, GPT_GOOD], "kto_tag": True}, ""),
        ({"instruction": "Q", "input": "", "output": "A", "label": True}, ""),
        ({"q": "Q", "a": "A", "liked": True}, "prompt=q,response=a,label=liked"),
        ({"messages": [ASKED, {**GOOD, "weight": 1}], "chosen": True}, "label=chosen"),
    ],
)
def test_every_form_of_a_judged_answer_is_the_same_document(folder, record, columns):
    (second, first) = judged(folder, [record, record], columns=columns).documents()
    assert first == Document(BETTER, "data.json, record 0", verdict="wanted", other=BETTER)
    assert second == Document(BETTER, "data.json, record 1", verdict="wanted", other=BETTER)


@pytest.mark.parametrize(
    ("record", "entry"),
    [
        (
            {"m": [ASKED, GOOD], "liked": True},
            {"formatting": "sharegpt", "columns": {"messages": "m", "kto_tag": "liked"}, "tags": OPENAI},
        ),
        (
            {"instruction": "Q", "output": "A", "liked": True},
            {"columns": {"prompt": "instruction", "response": "output", "kto_tag": "liked"}},
        ),
    ],
)
def test_every_kto_tag_of_a_dataset_info_is_the_same_document(folder, record, entry):
    (_, first) = described(folder, [record, record], "judged", **entry).documents()
    assert first == Document(BETTER, "d.json, record 0", verdict="wanted", other=BETTER)


@pytest.mark.parametrize(("label", "verdict"), LABELS)
def test_labels_are_true_or_false(folder, label, verdict):
    (document, _) = judged(folder, [LIKED, {**LIKED, "label": label}]).documents()
    assert document.verdict == verdict


def test_answers_meet_the_one_before_in_a_cycle(folder):
    told = [{**LIKED, "prompt": f"Q{n}<image>", "completion": f"A{n}", "images": [f"{n}.png"]} for n in range(4)]
    told.insert(2, {**LIKED, "prompt": "Q", "completion": None})  # skipped: the cycle goes on without it
    found = list(judged(folder, told).documents())
    skip = next(one for one in found if isinstance(one, Skip))
    assert (skip.origin, skip.reason) == ("data.json, record 2", "empty")
    documents = [one for one in found if one is not skip]
    assert [said(one)[-1][1] for one in documents] == ["A1", "A2", "A3", "A0"]
    assert [one.other[-1].parts[0].text for one in documents] == ["A0", "A1", "A2", "A3"]
    for one in documents:
        assert one.other[:-1] == one.turns[:-1]
        assert one.other[-1].target


def test_a_unit_is_read_without_being_held(folder):
    """Only its first document waits for the last one."""
    source = judged(folder, [{**LIKED, "prompt": f"Q{n}"} for n in range(5)])
    (unit,) = source.units()
    stream = source.read(unit)
    assert next(stream).origin == "data.json, record 1"
    assert [document.origin[-1] for document in stream] == ["2", "3", "4", "0"]


def test_an_answer_alone_in_its_unit_is_skipped(folder):
    (skip,) = judged(folder, [LIKED]).documents()
    assert skip == Skip(
        "data.json, record 0", "no pair", "no other answer is in its part of the file to compare it with"
    )


def test_records_that_come_often_keep_the_answer_of_another(folder):
    folder.write("d.json", [{**LIKED, "completion": said} for said in "AB"])
    entry = {"columns": {"prompt": "prompt", "response": "completion", "kto_tag": "label"}, "num_samples": 4}
    found = [
        (said(one)[-1][1], one.other[-1].parts[0].text)
        for one in described(folder, json.loads((folder.path / "d.json").read_text()), "judged", **entry).documents()
    ]
    assert found == [("B", "A"), ("B", "A"), ("A", "B"), ("A", "B")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [ASKED, GOOD]}, "has no answer with a label .*--preferences=judged of .* needs a label"),
        (PAIR, "has no answer with a label .*; config.objective=dpo .* reads such records as these"),
        ({"text": "a page", "label": True}, "has no answer with a label"),
        ({**LIKED, "rejected": "B"}, "has no single answer, but 'rejected'"),
        ({**LIKED, "label": "good"}, "'label' must be true or false, not 'good'"),
        ({**LIKED, "label": None}, "'label' must be true or false, not None"),
        ({**LIKED, "label": 2}, "'label' must be true or false, not 2"),
        ({"messages": [ASKED], "label": True}, "'messages' ends with a turn of 'user'"),
        ({"messages": [GOOD], "label": True}, "'messages' has no turn before its answer: a prompt is needed"),
        ({**LIKED, "weight": 0.5}, "'weight' is 0.5: pairs are not weighed, nor judged answers"),
        ({**LIKED, "completion": "<bbox>", "objects": MARKED}, "boxes are not read in preference data"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line(folder, record, message):
    with pytest.raises(UserError, match=message) as caught:
        list(judged(folder, [record]).documents())
    assert str(caught.value).startswith("data.json, record 0")
    assert "\n" not in str(caught.value)
