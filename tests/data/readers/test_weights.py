"""What of a record is learnt, by its own word and by its dataset's."""

from __future__ import annotations

import pytest

from readers.reading import only, refused

ASKED = {"role": "user", "content": "Q"}


def answer(said: str, **more: object) -> dict:
    return {"role": "assistant", "content": said, **more}


def learnt(document) -> list[tuple[str, float]]:
    """What is learnt, and what it weighs."""
    return [(turn.parts[0].text, turn.weight) for turn in document.turns if turn.target]


@pytest.mark.parametrize(
    "off", [{"weight": 0}, {"loss": False}, {"train": False}, {"loss_weight": 0.0}, {"train": "false"}]
)
@pytest.mark.parametrize("role", ["role", "from"])
def test_an_answer_that_is_turned_off_is_not_learnt(folder, off, role):
    on = {key: 1 if key in ("weight", "loss_weight") else True for key in off}
    messages = [ASKED, answer("WRONG", **off), ASKED, answer("RIGHT", **on)]
    if role == "from":
        names = {"user": "human", "assistant": "gpt"}
        messages = [
            {"from": names[m["role"]], "value": m["content"]} | {k: v for k, v in m.items() if k in off}
            for m in messages
        ]
    assert learnt(only(folder.source([{"conversations": messages}]))) == [("RIGHT", 1.0)]


def test_answers_and_examples_have_weights_between_on_and_off(folder):
    messages = [ASKED, answer("A", weight=0.5), ASKED, answer("B")]
    assert learnt(only(folder.source([{"messages": messages, "loss_weight": 0.2}]))) == [("A", 0.1), ("B", 0.2)]
    assert learnt(only(folder.source([{"instruction": "Q", "output": "A", "weight": 0.1}]))) == [("A", 0.1)]
    assert learnt(only(folder.source([{"messages": messages[:2], "weight": 0}]))) == []
    assert learnt(only(folder.source([{"text": "a page", "weight": 0.5}]))) == [("a page", 0.5)]
    assert learnt(only(folder.source([{"text": "a bad page", "weight": 0}]))) == []
    assert learnt(only(folder.source([{"text": "a page", "label": False, "chosen": True}]))) == [("a page", 1.0)]


def test_a_user_turn_is_learnt_where_it_is_trained_on(folder):
    messages = [{**ASKED, "train": True}, answer("A"), {**ASKED, "weight": 1}, answer("B")]
    assert learnt(only(folder.source([{"messages": messages}]))) == [("Q", 1.0), ("A", 1.0), ("B", 1.0)]


def test_an_answer_labelled_as_bad_is_not_learnt(folder):
    said = (("GOOD", True), ("BAD", False), ("BAD", "False"))
    records = [{"messages": [ASKED, answer(text)], "label": label} for text, label in said]
    assert [learnt(document) for document in folder.source(records).documents()] == [[("GOOD", 1.0)], [], []]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [ASKED], "chosen": answer("A"), "rejected": answer("B")},
        {"messages": [ASKED, answer("A")], "rejected_response": "B"},
        {"instruction": "Q", "output": "", "chosen": "A", "rejected": "B"},
        {"prompt": [ASKED], "completion": [answer("A")], "rejected": [answer("B")]},
    ],
)
def test_pairs_of_answers_are_refused(folder, record):
    message = refused(folder.source([record]))
    assert message.startswith("data.json, record 0 has '")
    assert ": set config.objective=dpo (or ipo, simpo, orpo; --preferences=pairs of jaxmm prepare) to learn" in message


@pytest.mark.parametrize("value", [-1, "much", float("inf"), [1, 0], 1e9])
def test_what_is_no_weight_is_one_line(folder, value):
    message = refused(folder.source([{"messages": [ASKED, answer("A", weight=value)]}]))
    assert message.startswith("data.json, record 0: 'weight' is")


def test_two_weights_that_differ_are_one_line(folder):
    message = refused(folder.source([{"messages": [ASKED, answer("A", weight=1, loss=False)]}]))
    assert "a message has different weights in weight and loss: give one" in message


def test_a_dataset_says_what_of_it_is_learnt(folder):
    messages = [ASKED, answer("A"), ASKED, answer("B")]
    record = {
        "conversations": [
            {"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]} for m in messages
        ]
    }
    read = {}
    for n, entry in enumerate(({}, {"mask_history": True}, {"train_on_prompt": True}, {"weight": 0.5})):
        (document,) = folder.dataset(f"d{n}", [record], formatting="sharegpt", **entry).documents()
        read[n] = learnt(document)
    assert read[0] == [("A", 1.0), ("B", 1.0)]
    assert read[1] == [("B", 1.0)]
    assert read[2] == [("Q", 1.0), ("A", 1.0), ("Q", 1.0), ("B", 1.0)]
    assert read[3] == [("A", 0.5), ("B", 0.5)]
