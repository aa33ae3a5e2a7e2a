"""Pairs of answers: every form of a pair becomes the same document, or says in a line why not."""

from __future__ import annotations

import json

import pytest

from jaxmm.data.documents import Audio, Document, Image, Skip, Text, Turn, Video
from jaxmm.errors import UserError
from readers.preferences import (
    ALPACA,
    ASKED,
    BAD,
    BETTER,
    CALLED,
    COLUMNS,
    GOOD,
    GPT_BAD,
    GPT_GOOD,
    HUMAN,
    MARKED,
    PAIR,
    RESULT,
    SHAREGPT,
    WORSE,
    described,
    pairs,
)
from readers.reading import only, refused, said, skipped


def typed(message: dict, weight: float) -> dict:
    """A message as LLaMA-Factory v1 writes it."""
    return {**message, "content": [{"type": "text", "value": message["content"]}], "loss_weight": weight}


@pytest.mark.parametrize(
    ("record", "columns"),
    [
        (PAIR, ""),
        ({"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]}, ""),
        ({"prompt": [ASKED], "chosen": GOOD, "rejected": "B"}, ""),
        ({"prompt": [HUMAN], "chosen": [GPT_GOOD], "rejected": GPT_BAD}, ""),
        ({"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, ""),
        ({"prompt": "Q", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, ""),
        ({"messages": [ASKED, GOOD], "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD], "prompt": "Q"}, ""),
        ({"chosen": json.dumps([ASKED, GOOD]), "rejected": json.dumps([ASKED, BAD])}, ""),
        ({"conversations": [HUMAN], "chosen": GPT_GOOD, "rejected": GPT_BAD}, ""),
        ({"messages": [{**ASKED, "train": True}], "chosen": "A", "rejected": [BAD]}, ""),
        ({"instruction": "Q", "input": "", "chosen": "A", "rejected": "B"}, ""),
        ({"chosen_messages": [typed(ASKED, 0), typed(GOOD, 1)], "rejected_messages": [typed(ASKED, 0), BAD]}, ""),
        ({"messages": [ASKED, GOOD], "rejected_response": "B"}, ""),
        ({"messages": [ASKED, GOOD], "rejected_messages": [ASKED, BAD]}, ""),
        (
            {"input": {"messages": [ASKED], "tools": [], "parallel_tool_calls": True}}
            | {"preferred_output": [GOOD], "non_preferred_output": [BAD]},
            "",
        ),
        ({"q": "Q", "good": "A", "bad": "B"}, "prompt=q,chosen=good,rejected=bad"),
        ({"q": "Q", "more": None, "good": "A", "bad": "B"}, "prompt=q,query=more,chosen=good,rejected=bad"),
        ({"talk": [ASKED], "good": "A", "rejected": "B"}, "messages=talk,chosen=good"),
        ({**PAIR, "label": False}, ""),  # of something else
    ],
)
def test_every_form_of_a_pair_is_the_same_document(folder, record, columns):
    source = pairs(folder, [record], columns=columns)
    assert only(source) == Document(BETTER, "data.json, record 0", verdict="better", other=WORSE)


@pytest.mark.parametrize(
    ("record", "entry"),
    [
        ({"conversations": [HUMAN], "chosen": GPT_GOOD, "rejected": GPT_BAD}, {**SHAREGPT, "columns": COLUMNS}),
        (
            {"messages": [ASKED], "c": GOOD, "r": BAD},
            {"formatting": "openai", "ranking": True, "columns": {"chosen": "c", "rejected": "r"}},
        ),
        (
            {"m": [{"who": "U", "what": "Q"}], "c": {"who": "A", "what": "A"}, "r": "B"},
            {
                **SHAREGPT,
                "columns": {"messages": "m", "chosen": "c", "rejected": "r"},
                "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "U", "assistant_tag": "A"},
            },
        ),
        ({"instruction": "Q", "input": "", "chosen": "A", "rejected": "B"}, {"ranking": True, "columns": ALPACA}),
        (
            {"instruction": "Q", "output": "?", "chosen": "A", "rejected": "B"},
            {"ranking": True, "columns": {**ALPACA, "response": "output"}, "mask_history": True},
        ),
    ],
)
def test_every_ranking_of_a_dataset_info_is_the_same_document(folder, record, entry):
    source = described(folder, [record], "pairs", **entry)
    assert only(source) == Document(BETTER, "d.json, record 0", verdict="better", other=WORSE)
    assert not source.told


def test_a_prompt_of_many_turns_is_not_learnt_and_answers_may_think_and_call(folder):
    call = '{"name": "f", "arguments": {"x": 1}}'
    record = {
        "conversations": [HUMAN, {**GPT_GOOD, "loss_weight": 0}, HUMAN],
        "chosen": {"from": "function_call", "value": call},
        "rejected": {**GPT_BAD, "reasoning_content": "Hm."},
        "system": "S",
        "tools": '[{"name": "f"}]',
    }
    of_tools = {"system": "system", "tools": "tools"}
    for source in (
        pairs(folder, [record]),
        described(folder, [record], "pairs", **SHAREGPT, columns={**COLUMNS, **of_tools}),
    ):
        document = only(source)
        assert [turn.target for turn in document.turns] == [False, False, False, False, True]
        assert {turn.weight for turn in (*document.turns, *document.other)} == {1.0}
        assert said(document)[0] == ("system", "S")
        assert document.other[:-1] == document.turns[:-1]
        assert json.loads(document.turns[-1].calls)[0]["function"]["name"] == "f"
        assert document.other[-1] == Turn("assistant", (Text("B"),), True, thinking="Hm.")
        assert json.loads(document.tools) == [{"name": "f"}]
    record = {
        "instruction": "Q", "history": [["a", "b"]], "system": "S", "chosen": "A", "rejected": "B"
    }  # fmt: skip
    assert said(only(pairs(folder, [record]))) == [
        ("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "Q"), ("assistant", "A")
    ]  # fmt: skip


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Q", "chosen": [CALLED, RESULT, GOOD], "rejected": "B"},
        {"messages": [ASKED], "chosen": [CALLED, RESULT, GOOD], "rejected": BAD},
        {"chosen": [ASKED, CALLED, RESULT, GOOD], "rejected": [ASKED, BAD]},
        {"messages": [ASKED, CALLED, RESULT, GOOD], "rejected_messages": [ASKED, BAD]},
        {"input": {"messages": [ASKED]}, "preferred_output": [CALLED, RESULT, GOOD], "non_preferred_output": [BAD]},
    ],
)
def test_an_answer_may_call_and_go_on(folder, record):
    document = only(pairs(folder, [record]))
    assert [(turn.role, turn.target) for turn in document.turns] == [
        ("user", False), ("assistant", True), ("tool", False), ("assistant", True)
    ]  # fmt: skip
    assert json.loads(document.turns[1].calls)[0]["function"]["name"] == "f"
    assert document.other == WORSE


def test_answers_begin_where_they_differ_and_a_result_goes_with_its_call(folder):
    other = {"role": "tool", "content": "4"}
    for chosen, rejected, prompt in (
        ([CALLED, RESULT, GOOD], [CALLED, RESULT, BAD], 3),  # both have called: that is settled
        ([CALLED, RESULT, GOOD], [CALLED, other, BAD], 1),
        ([CALLED, RESULT, GOOD], [CALLED, BAD], 1),
        ([CALLED, RESULT, CALLED, other, GOOD], [CALLED, RESULT, BAD], 3),
    ):
        document = only(pairs(folder, [{"chosen": [ASKED, *chosen], "rejected": [ASKED, *rejected]}]))
        for turns, messages in ((document.turns, chosen), (document.other, rejected)):
            assert len(turns) == 1 + len(messages)
            learnt = [n for n, turn in enumerate(turns) if turn.target]
            assert learnt == [n for n, turn in enumerate(turns) if turn.role == "assistant" and n >= prompt]
    (first, second) = (
        pairs(folder, [{"chosen": [ASKED, *one, GOOD], "rejected": [ASKED, BAD]}], val_size=0.5, held_out=True)
        for one in ([CALLED, RESULT], [])
    )
    assert len(list(first.documents())) == len(list(second.documents())), "one prompt, whatever its answers"
    same = {"chosen": [ASKED, CALLED, RESULT, GOOD], "rejected": [ASKED, CALLED, RESULT, GOOD]}
    assert [reason for _, reason in skipped(pairs(folder, [same]))] == ["equal answers"]


MEDIA = {"images": ["p/1.png", "p/2.png"], "videos": ["v.mp4"], "audios": ["a.wav"]}
SHOWN = "<image><video>Who? <audio><image>"
PARTS = (Image, Video, Text, Audio, Image)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": SHOWN, "chosen": "A", "rejected": "B"},
        {"conversations": [{"from": "human", "value": SHOWN}], "chosen": GPT_GOOD, "rejected": GPT_BAD},
        {"instruction": SHOWN, "chosen": "A", "rejected": "B"},
        {
            "chosen": [{**ASKED, "content": SHOWN}, GOOD],
            "rejected": [{**ASKED, "content": SHOWN}, BAD],
        },
    ],
)
def test_media_stand_in_the_prompt_of_both(folder, record):
    document = only(pairs(folder, [{**record, **MEDIA}]))
    for turns in (document.turns, document.other):
        assert tuple(type(part) for part in turns[0].parts) == PARTS
        assert turns[0].parts[3].path.endswith("a.wav")
    assert [said(document)[-1], said(document._replace(turns=document.other))[-1]] == [
        ("assistant", "A"), ("assistant", "B")
    ]  # fmt: skip


def test_media_of_a_dataset_info_and_of_parts(folder):
    record = {"conversations": [{"from": "human", "value": SHOWN}], "chosen": GPT_GOOD, "rejected": GPT_BAD, **MEDIA}
    columns = {**COLUMNS, **{name: name for name in MEDIA}}
    document = only(described(folder, [record], "pairs", **SHAREGPT, columns=columns))
    assert tuple(type(part) for part in document.other[0].parts) == PARTS
    parts = [{"type": "image_url", "image_url": {"url": "p/1.png"}}, {"type": "text", "text": "<image>?"}]
    record = {"input": {"messages": [{**ASKED, "content": parts}]}}
    record |= {"preferred_output": [GOOD], "non_preferred_output": [BAD]}
    assert said(only(pairs(folder, [record])))[0] == ("user", "[1.png]<image>?")
    record = {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD], "images": ["p/1.png"]}
    assert said(only(pairs(folder, [record])))[0] == ("user", "[1.png]Q")  # as TRL puts it
    record = {**PAIR, "photo_of_it": "p/1.png"}
    assert "its 'photo_of_it' looks like one" in refused(pairs(folder, [record]))


def test_records_without_two_answers_that_differ_are_skipped(folder):
    records = [
        PAIR,
        {**PAIR, "rejected": None},
        {**PAIR, "chosen": ""},
        {**PAIR, "chosen": [{**GOOD, "content": ""}]},
        {**PAIR, "rejected": "A"},
        {**PAIR, "rejected": [GOOD]},
        PAIR,
    ]
    source = pairs(folder, records)
    assert [reason for _, reason in skipped(source)] == ["no pair"] * 3 + ["equal answers"] * 2
    assert [found.detail for found in source.documents() if isinstance(found, Skip)][:2] == [
        "its 'rejected' is empty", "its 'chosen' is empty"
    ]  # fmt: skip
    alpaca = {"instruction": "Q", "chosen": "A", "rejected": None}
    assert skipped(described(folder, [alpaca], "pairs", ranking=True, columns={**ALPACA})) == [
        ("d.json, record 0", "no pair")
    ]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"chosen": "A", "rejected": "B"}, "has no prompt beside its answers: a prompt is needed"),
        ({"messages": [ASKED, GOOD]}, "has no pair of answers .*config.objective=dpo .* needs a chosen and a rejected"),
        ({"messages": [ASKED, GOOD], "label": True}, "has no pair of answers .*; config.objective=kto .* reads such"),
        ({"prompt": "Q", "chosen": "A"}, "has no 'rejected'"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "a prompt is needed"),
        ({"chosen": [GOOD, ASKED, GOOD], "rejected": [GOOD, ASKED, BAD]}, "'chosen' begins with an answer: a prompt"),
        ({"messages": [], "chosen": GOOD, "rejected": BAD}, "'chosen' has no turn before its answer: a prompt"),
        ({"messages": [ASKED, GOOD], "chosen": GOOD, "rejected": BAD}, "its prompt ends with an answer"),
        ({**PAIR, "prompt": [ASKED], "chosen": [ASKED]}, "'chosen' ends with a turn of 'user'"),
        ({**PAIR, "rejected": [BAD, ASKED, BAD]}, "differ in turn 2 of 2 and 4: .* in their answers alone"),
        ({**PAIR, "rejected": [BAD, RESULT]}, "'rejected' ends with a turn of 'tool'"),
        ({**PAIR, "rejected": [RESULT, BAD]}, "differ in turn 2 of 2 and 3"),
        ({**PAIR, "rejected": 3}, "'rejected' must be an answer, a text, a message or a list of messages, not 3"),
        ({**PAIR, "rejected": ["B", "C"]}, "'rejected' must be an answer, .* not \\['B', 'C'\\]"),
        (
            {"chosen": [ASKED, GOOD, ASKED, GOOD], "rejected": [ASKED, BAD, ASKED, BAD]},
            "'chosen' and 'rejected' differ in turn 2 of 4 and 4",
        ),
        ({"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD, ASKED, BAD]}, "differ in turn 2 of 2 and 4"),
        ({**PAIR, "chosen": "<image>", "images": ["1.png"]}, "pictures stand in the prompt alone"),
        ({**PAIR, "chosen": "<img>1.png</img>"}, "pictures stand in the prompt alone"),
        ({**PAIR, "rejected_images": ["1.png"]}, "has 'rejected_images': .* stand in the prompt alone"),
        ({**PAIR, "rejected_audio": "1.wav"}, "has 'rejected_audio'"),
        ({**PAIR, "prompt": "<image><bbox>", "images": ["1.png"], "objects": MARKED}, "boxes are not read in pref"),
        ({**PAIR, "rejected": "<bbox>", "objects": MARKED}, "boxes are not read in preference data"),
        ({**PAIR, "chosen": [{**GOOD, "weight": 0.5}]}, "its answer's weight is 0.5: pairs are not weighed"),
        ({**PAIR, "rejected": [{**BAD, "train": False}]}, "its answer's weight is 0: pairs are not weighed"),
        ({**PAIR, "loss_weight": 2}, "'loss_weight' is 2: pairs are not weighed"),
        (
            {"input": {"messages": [ASKED], "images": ["1.png"]}, "preferred_output": [GOOD]}
            | {"non_preferred_output": [BAD]},
            "'input' has 'images', which is none of messages, tools",
        ),
    ],
)
def test_what_is_no_pair_is_refused_in_one_line(folder, record, message):
    with pytest.raises(UserError, match=message) as caught:
        list(pairs(folder, [record]).documents())
    assert str(caught.value).startswith("data.json, record 0")
    assert "\n" not in str(caught.value)


def test_a_plain_record_among_pairs_stops(folder):
    message = refused(pairs(folder, [PAIR, {"messages": [ASKED, GOOD]}]))
    assert message.startswith("data.json, record 1 has no 'chosen' (it has messages): config.objective=dpo")
    other = {"messages": [ASKED], "chosen": "A", "rejected": "B"}
    assert [d.turns for d in pairs(folder, [PAIR, other]).documents()] == [BETTER, BETTER]
