"""LLaMA-Factory's files: what records become, and the one line that tells what is wrong with one."""

import json
import os
import pickle
from collections import Counter

import pytest

from jaxmm.data.documents import Document, Image, Skip, Text, Turn
from jaxmm.data.reading import Reading
from jaxmm.data.sources import read_sources
from jaxmm.errors import UserError
from readers.reading import OPENAI, only, openai, refused, said

# Conversations


def test_sharegpt_has_llama_factorys_default_columns_and_tags(folder):
    record = {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]}
    document = only(folder.dataset("talk", [record], formatting="sharegpt"))
    assert document == Document(
        (Turn("user", (Text("Who?"),), False), Turn("assistant", (Text("Me."),), True)), "talk.json, record 0"
    )


def test_columns_tags_and_placeholders_are_as_mapped(folder):
    record = {
        "chat": [
            {"who": "S", "says": "Be <image> kind."},
            {"who": "U", "says": "<image><image>\nWhich?"},
            {"who": "A", "says": "This: <image>"},
            {"who": "O", "says": "seen"},
            {"who": "F", "says": "call"},
        ],
        "pictures": ["a.png", "sub/b.png", f"{folder.path}/c.png", "d.png"],
    }
    tags = {
        "role_tag": "who",
        "content_tag": "says",
        "user_tag": "U",
        "assistant_tag": "A",
        "system_tag": "S",
        "observation_tag": "O",
        "function_tag": "F",
    }
    columns = {"messages": "chat", "images": "pictures"}
    source = folder.dataset("talk", [record], formatting="sharegpt", columns=columns, tags=tags)
    document = only(source)
    assert said(document) == [
        ("system", "Be [a.png] kind."),
        ("user", "[b.png][c.png]\nWhich?"),
        ("assistant", "This: [d.png]"),
        ("tool", "seen"),
        ("assistant", "call"),
    ]
    assert [turn.target for turn in document.turns] == [False, False, True, False, True]
    images = [p.path for turn in document.turns for p in turn.parts if isinstance(p, Image)]
    assert images[1:3] == [str(folder.path / "sub" / "b.png"), str(folder.path / "c.png")]


def test_tags_that_are_not_given_keep_their_defaults(folder):
    record = openai(("system", "Be kind."), ("user", "Who?"), ("assistant", "Me."))
    source = folder.dataset("t", [record], formatting="sharegpt", columns={"messages": "messages"}, tags=OPENAI)
    assert said(only(source))[0] == ("system", "Be kind.")


def test_a_system_column_comes_first_unless_the_conversation_has_its_own(folder):
    columns = {"messages": "messages", "system": "rules"}
    records = [
        openai(("user", "Who?"), rules="Be kind."),
        openai(("system", "Own."), ("user", "Who?"), rules="Be kind."),
        openai(("user", "Who?"), rules=None),
        openai(("user", "Who?")),
    ]
    source = folder.dataset("t", records, formatting="sharegpt", columns=columns, tags=OPENAI)
    firsts = [said(document)[0] for document in source.documents()]
    assert firsts == [("system", "Be kind."), ("system", "Own."), ("user", "Who?"), ("user", "Who?")]


def test_speakers_may_take_turns_in_any_order(folder):
    turns = [("assistant", "Hi."), ("assistant", ""), ("user", "Who?"), ("user", "Well?")]
    document = only(folder.source([openai(*turns)]))
    assert said(document) == turns
    assert document.turns[1].parts == ()


def test_text_and_images_alone_are_documents(folder):
    records = [
        openai(("user", "<image>"), images=["a.png"]),
        openai(("user", "Who?"), images=[]),
        openai(("user", "Who?"), images=None),
        openai(("user", "Who?")),
        openai(("user", "Who <image>?"), images="a.png"),
    ]
    got = [said(document) for document in folder.source(records).documents()]
    assert got[0] == [("user", "[a.png]")]
    assert got[1] == got[2] == got[3] == [("user", "Who?")]
    assert got[4] == [("user", "Who [a.png]?")]


def test_a_conversation_without_turns_is_skipped_and_recorded(folder):
    assert list(folder.source([{"messages": []}]).documents()) == [Skip("data.json, record 0", "empty")]


@pytest.mark.parametrize(
    ("text", "images", "counts"),
    [
        ("<image>Who?", [], (1, 0)),
        ("<image>Who?", None, (1, 0)),
        ("Who?", ["a", "b"], (0, 2)),
        ("<image>" * 3, ["a"], (3, 1)),
    ],
)
def test_images_that_do_not_match_their_placeholders_are_named_with_both_counts(folder, text, images, counts):
    good = openai(("user", "<image>"), images=["a.png"])
    bad = openai(("user", text), **({} if images is None else {"images": images}))
    message = refused(folder.source([good, good, bad]))
    assert "data.json, record 2 has" in message
    assert f"{counts[0]} <image> placeholders but {counts[1]} images" in message


def test_records_that_make_no_sense_are_named(folder):
    wrong = {
        "role 'usr'": openai(("usr", "Who?")),
        "did you mean 'user'": openai(("usr", "Who?")),
        "has no 'content'": {"messages": [{"role": "user", "contents": "Who?"}]},
        "must be text": {"messages": [{"role": "user", "content": 3}]},
        "neither text nor image: 'Who?'": {"messages": [{"role": "user", "content": ["Who?"]}]},
        "role ['user']": {"messages": [{"role": ["user"], "content": "Who?"}]},
        "must be a list": {"messages": "Who?\n"},
        "'images': an image must be": openai(("user", "Who?"), images=[3]),
    }
    for name, record in wrong.items():
        message = refused(folder.source([openai(("user", "Who?")), record]))
        assert name in message
        assert "data.json, record 1" in message


# Plain text and alpaca


@pytest.mark.parametrize("name", ["web.jsonl", "web.json"])
def test_records_with_a_text_column_are_documents(folder, name):
    records = [{"body": "One <image> and </s>."}, {"body": "Two."}]
    source = folder.dataset("web", records, file_name=name, columns={"prompt": "body"})
    assert list(source.documents()) == [
        Document((Turn("document", (Text(record["body"]),), True),), f"{name}, record {i}")
        for i, record in enumerate(records)
    ]


def test_each_line_of_a_text_file_is_a_document(folder):
    source = folder.dataset("wiki", "One.\n\nTwo “2”.\r\n  \nThree.", file_name="wiki.txt", columns={"prompt": "text"})
    assert [said(d) for d in source.documents()] == [[("document", t)] for t in ("One.", "Two “2”.", "Three.")]


def test_a_document_with_an_image_column_is_interleaved(folder):
    records = [
        {"text": "A <image> and a <image>.", "images": ["a.png", "b.png"]},
        {"text": "A literal <image>."},
        {"text": ""},
    ]
    documents = list(folder.source(records).documents())
    assert [said(d) for d in documents] == [
        [("document", "A [a.png] and a [b.png].")],
        [("document", "A literal <image>.")],
        [("document", "")],
    ]
    assert "has 1 <image> placeholders but 0 images" in refused(
        folder.source([{"text": "A literal <image>.", "images": []}])
    )


def test_alpaca_is_the_default(folder):
    records = [
        {"instruction": "Add.", "input": "1 1", "output": "2"},
        {"instruction": "Hi.", "input": "", "output": ""},
        {"instruction": "Hi.", "output": None},
    ]
    source = folder.dataset("identity", records)
    assert [said(d) for d in source.documents()] == [
        [("user", "Add.\n1 1"), ("assistant", "2")],
        [("user", "Hi."), ("assistant", "")],
        [("user", "Hi.")],
    ]


def test_alpaca_columns_are_as_mapped(folder):
    record = {
        "q": "Which?",
        "a": "This <image>",
        "h": [["Hi.", "Hello."]],
        "s": "Be kind.",
        "i": ["a.png"],
        "input": "!",
    }
    columns = {"prompt": "q", "response": "a", "history": "h", "system": "s", "images": "i"}
    assert said(only(folder.dataset("t", [record], columns=columns))) == [
        ("system", "Be kind."),
        ("user", "Hi."),
        ("assistant", "Hello."),
        ("user", "Which?"),
        ("assistant", "This [a.png]"),
    ]


def test_a_column_that_a_record_lacks_is_named(folder):
    message = refused(folder.dataset("t", [{"texts": "One."}], columns={"prompt": "text"}))
    assert "t.json, record 0 has no 'text'; did you mean 'texts'?; it has texts" in message


# Files


def test_a_data_file_tells_its_format(folder):
    sharegpt = {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]}
    records = {
        "a.json": [openai(("user", "Who?"), ("assistant", "Me."))],
        "b.jsonl": [sharegpt],
        "c.json": [{"instruction": "Who?", "output": "Me."}],
    }
    for name, content in records.items():
        source = folder.source(content, name)
        assert source.name == name[0]
        assert said(only(source)) == [("user", "Who?"), ("assistant", "Me.")]
    assert said(only(folder.source([{"text": "Who?"}], "d.jsonl"))) == [("document", "Who?")]
    assert said(only(folder.source("Who?\n", "e.txt"))) == [("document", "Who?")]
    assert read_sources(str(folder.path / "a.json"), ["a"])[0].name == "a"
    with pytest.raises(UserError, match="named 'a' in a mixture: it has no 'b'"):
        read_sources(str(folder.path / "a.json"), ["b"])
    with pytest.raises(UserError, match=r"f.json, record 0: no format known has the keys x, y"):
        folder.source([{"x": 1, "y": 2}], "f.json")


def test_json_files_hold_an_array_or_lines_with_or_without_a_byte_order_mark(folder):
    lines = '\ufeff{"text": "One."}\n\n{"text": "Two."}\n'
    for name in ("a.json", "b.jsonl"):
        assert [said(d) for d in folder.source(lines, name).documents()] == [
            [("document", "One.")],
            [("document", "Two.")],
        ]
    assert len(list(folder.source('\n [{"text": "One."}]', "c.jsonl").documents())) == 1


def test_a_line_that_is_no_object_costs_itself_only(folder):
    lines = [
        '{"text": "One."}',
        "",
        '{"text" "Two."}',
        '{"text": "Three.", "text": "3"}',
        "[]",
        '{"text": "\0"}',
        '{"text": "Six."}',
        '{"text": "Sev',
    ]
    got = list(folder.source("\n".join(lines), "a.jsonl").documents())
    assert [d.reason if isinstance(d, Skip) else said(d)[0][1] for d in got] == [
        "One.",
        "broken JSON",
        "duplicate keys",
        "not an object",
        "broken JSON",
        "Six.",
        "broken JSON",
    ]
    assert [d.origin for d in got] == [f"a.jsonl, record {number}" for number in range(7)]


def test_text_that_is_not_utf8_costs_its_record_only(folder):
    path = folder.write("a.jsonl", "")
    lines = [b'{"text": "One."}', b'{"text": "Tw\xe9."}', b'{"text": "Thr\\ud800."}', '{"text": "Vier ✓"}'.encode()]
    (folder.path / "a.jsonl").write_bytes(b"\n".join(lines))
    got = list(read_sources(path, [])[0].documents())
    assert got[1:3] == [Skip("a.jsonl, record 1", "broken text"), Skip("a.jsonl, record 2", "broken text")]
    assert said(got[3]) == [("document", "Vier ✓")]


def test_a_folder_of_files_is_read_in_order(folder):
    for part in (1, 0):
        folder.write(f"parts/{part}.jsonl", [{"text": f"Part {part}."}])
    folder.entries["web"] = {"file_name": "parts", "columns": {"prompt": "text"}}
    folder.write("dataset_info.json", folder.entries)
    (source,) = read_sources(folder.info, ["web"])
    assert [(d.origin, said(d)[0][1]) for d in source.documents()] == [
        ("parts/0.jsonl, record 0", "Part 0."),
        ("parts/1.jsonl, record 0", "Part 1."),
    ]
    assert source.files == tuple(str(folder.path / "parts" / f"{part}.jsonl") for part in (0, 1))


def test_a_source_can_be_read_again_and_sent_to_another_process(folder):
    source = folder.dataset("web", [{"text": "One."}], columns={"prompt": "text"})
    again = pickle.loads(pickle.dumps(source))
    assert list(source.documents()) == list(source.documents()) == list(again.documents())


def test_the_entry_tells_ways_of_reading_apart(folder):
    records = [{"text": "One.", "other": "Two."}]
    one, two = (folder.dataset(name, records, columns={"prompt": name}) for name in ("text", "other"))
    assert one.entry != two.entry
    assert one.entry == folder.dataset("text", records, columns={"prompt": "text"}).entry
    assert json.loads(one.entry)["texts"] == ["text"]


# What is not there


def test_a_dataset_that_is_not_there_is_told_what_is(folder):
    for name in ("cats", "dogs"):
        folder.dataset(name, [])
    with pytest.raises(UserError, match=r"no dataset 'cat'; did you mean 'cats'\?; it has cats, dogs"):
        read_sources(folder.info, ["dogs", "cat"])
    with pytest.raises(UserError, match=r"say which .* it has cats, dogs"):
        read_sources(folder.info, [])
    assert [s.name for s in read_sources(folder.info, ["dogs", "cats"])] == ["dogs", "cats"]


def test_a_missing_file_is_named_with_its_dataset(folder):
    folder.dataset("cats", [])
    os.remove(folder.path / "cats.json")
    with pytest.raises(UserError, match=r"dataset 'cats' names the file .*cats\.json"):
        read_sources(folder.info, ["cats"])
    with pytest.raises(UserError, match="no file /nowhere/dataset_info"):
        read_sources("/nowhere/dataset_info.json", ["cats"])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"ranking": True}, "asks for ranking: set config.objective=dpo .* to learn from preferences"),
        ({"columns": {"prompt": "p", "chosen": "c", "rejected": "r"}}, "the column 'chosen', the column 'rejected'"),
        (
            {"columns": {"messages": "m", "kto_tag": "k"}, "formatting": "sharegpt"},
            "asks for the column 'kto_tag': set .*=kto",
        ),
        ({"formatting": "sharegtp"}, "formatting 'sharegtp' is not supported: .*did you mean 'sharegpt'"),
        ({"formating": "sharegpt"}, "'formating' is no key of an entry; did you mean 'formatting'"),
        ({"num_samples": "7"}, "num_samples must be a positive number"),
        ({"split": "test"}, "is one file: folder, subset and split choose among a folder's files"),
        ({"columns": {"promt": "text"}}, "'promt' is none of .*did you mean 'prompt'"),
        ({"formatting": "sharegpt", "tags": {"usertag": "u"}}, "'usertag' is none of .*did you mean 'user_tag'"),
        ({"columns": {"response": "text"}}, "which one is the prompt"),
        ({"columns": {"prompt": "text", "system": "s"}}, "needs a response column"),
        ({"file_name": "cats.xlsx"}, r"cats\.xlsx is not supported yet"),
    ],
)
def test_an_entry_that_cannot_be_read_says_why(folder, entry, message):
    with pytest.raises(UserError, match=message):
        folder.dataset("cats", [], **entry)


@pytest.mark.parametrize("hub", ["hf_hub_url", "ms_hub_url", "script_url"])
def test_a_dataset_on_a_hub_is_not_supported_yet(folder, hub):
    folder.write("dataset_info.json", {"cats": {hub: "someone/cats"}})
    with pytest.raises(UserError, match=rf"dataset 'cats' has a {hub}, not supported yet"):
        read_sources(folder.info, ["cats"])


def test_a_dataset_info_that_is_none_says_so(folder):
    for content in ("{", "[]", '{"cats": 3}'):
        with pytest.raises(UserError, match=r"dataset_info\.json"):
            read_sources(folder.write("dataset_info.json", content), ["cats"])
    path = folder.write("mine.json", {"cats": {"file_name": "cats.json"}})  # any name will do
    with pytest.raises(UserError, match="dataset 'cats' names the file"):
        read_sources(path, ["cats"])


# Choosing records, files and the folder of media


def numbers(source) -> list[int]:
    return [int(said(d)[0][1]) for d in source.documents()]


def test_num_samples_is_one_choice_everywhere(folder):
    for part in range(3):
        folder.write(f"parts/{part}.jsonl", [{"text": str(10 * part + i)} for i in range(10)])
    entry = {"file_name": "parts", "columns": {"prompt": "text"}}
    chosen = numbers(folder.dataset("t", None, **entry, num_samples=12))
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 12
    assert chosen == [1, 2, 4, 5, 6, 8, 10, 16, 18, 23, 26, 27]  # on every machine, for good
    assert chosen == numbers(pickle.loads(pickle.dumps(folder.dataset("t", None, **entry, num_samples=12))))
    assert numbers(folder.dataset("t", None, **entry, num_samples=30)) == list(range(30))
    often = Counter(numbers(folder.dataset("t", None, **entry, num_samples=70)))
    assert set(often) == set(range(30))
    assert sorted(often.values()) == [2] * 20 + [3] * 10
    assert set(numbers(folder.dataset("t", None, **entry, num_samples=3))) <= set(chosen)


def test_num_samples_counts_records_of_every_container(folder):
    records = [{"text": str(i)} for i in range(9)]
    folder.write("a.json", records)
    folder.write("b.jsonl", records)
    folder.write("c.txt", "\n\n".join(r["text"] for r in records) + "\n")
    found = [
        numbers(folder.dataset("t", None, file_name=name, columns={"prompt": "text"}, num_samples=4))
        for name in ("a.json", "b.jsonl", "c.txt")
    ]
    assert len(found[0]) == 4
    assert found[0] == found[1] == found[2]


def test_folder_subset_and_split_choose_files(folder):
    for place in (
        "d/train-00.jsonl",
        "d/train-01.jsonl",
        "d/test-00.jsonl",
        "e/sub/train/x.jsonl",
        "e/sub/test/y.jsonl",
    ):
        folder.write(place, [{"text": place}])
    text = {"columns": {"prompt": "text"}}

    def read(**entry) -> list[str]:
        return [said(d)[0][1] for d in folder.dataset("t", None, **text, **entry).documents()]

    assert read(file_name="d") == ["d/train-00.jsonl", "d/train-01.jsonl"]
    assert read(file_name="d", split="train") == ["d/train-00.jsonl", "d/train-01.jsonl"]
    assert read(file_name="e", subset="sub", split="test") == ["e/sub/test/y.jsonl"]
    assert read(file_name="e", folder="sub/train", split="train") == ["e/sub/train/x.jsonl"]
    with pytest.raises(UserError, match=r"asks for the split 'validation', but no file of .* is named so"):
        read(file_name="d", split="validation")


def test_media_lie_in_the_media_dir(folder, tmp_path):
    record = openai(("user", "<image>"), images=["cats/a.png"])
    entry = {"formatting": "openai", "columns": {"messages": "messages", "images": "images"}}

    def path(source) -> str:
        (part,) = only(source).turns[0].parts
        return part.path

    assert path(folder.dataset("t", [record], **entry)) == str(folder.path / "cats" / "a.png")
    assert path(folder.dataset("t", [record], **entry, media_dir="pics")) == str(folder.path / "pics/cats/a.png")
    (source,) = read_sources(folder.info, ["t"], Reading(media_dir=str(tmp_path / "else")))
    assert path(source) == str(folder.path / "pics/cats/a.png")
    plain = folder.dataset("u", [record], **entry)
    (source,) = read_sources(folder.info, ["u"], Reading(media_dir=str(tmp_path / "else")))
    assert path(source) == str(tmp_path / "else/cats/a.png")
    assert source.entry != plain.entry
