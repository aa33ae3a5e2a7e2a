"""Preference data: every form of a pair or a judged answer becomes the same document, or says in a line why not."""

from __future__ import annotations

import json

import pytest

from jaxmm.data.documents import Audio, Document, Image, Skip, Text, Turn, Video
from jaxmm.data.reading import Reading
from jaxmm.data.sources import read_sources
from jaxmm.errors import UserError
from readers.reading import OPENAI, only, refused, said, skipped

ASKED = {"role": "user", "content": "Q"}
GOOD, BAD = {"role": "assistant", "content": "A"}, {"role": "assistant", "content": "B"}
CALLED = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
RESULT = {"role": "tool", "content": "3"}
HUMAN = {"from": "human", "value": "Q"}
GPT_GOOD, GPT_BAD = {"from": "gpt", "value": "A"}, {"from": "gpt", "value": "B"}
PAIR = {"prompt": "Q", "chosen": "A", "rejected": "B"}
LIKED = {"prompt": "Q", "completion": "A", "label": True}
SHAREGPT = {"formatting": "sharegpt", "ranking": True}
COLUMNS = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
ALPACA = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
# What every form of PAIR becomes, and of LIKED beside another record.
PROMPT = (Turn("user", (Text("Q"),), False),)
BETTER = (*PROMPT, Turn("assistant", (Text("A"),), True))
WORSE = (*PROMPT, Turn("assistant", (Text("B"),), True))


def typed(message: dict, weight: float) -> dict:
    """A message as LLaMA-Factory v1 writes it."""
    return {**message, "content": [{"type": "text", "value": message["content"]}], "loss_weight": weight}


def pairs(folder, records, **options):
    return folder.source(records, preferences="pairs", **options)


def judged(folder, records, **options):
    return folder.source(records, preferences="judged", **options)


def described(folder, records, preferences: str, **entry):
    """A source with an entry in dataset_info.json."""
    folder.write("d.json", records)
    folder.write("dataset_info.json", {"d": {"file_name": "d.json", **entry}})
    return read_sources(folder.info, ["d"], Reading(preferences=preferences))[0]


def line(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Pairs


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


MARKED = {"bbox": [[1, 2, 3, 4]]}


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


# Judged answers

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


# All of them


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
