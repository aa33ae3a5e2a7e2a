"""JSON in other shapes than lines and arrays, packed files, and other encodings."""

from __future__ import annotations

import gzip
import json

import pytest

from jaxmm.data.documents import Skip
from jaxmm.data.readers import containers, lines
from jaxmm.data.sources import read_sources
from jaxmm.errors import UserError
from readers.reading import Folder, refused, said, skipped

RECORDS = [{"text": f'Page {i}, {{"or"}} [so].', "more": {"a": [i]}} for i in range(5)]
TEXTS = [record["text"] for record in RECORDS]


def texts(source) -> list[str]:
    return [said(d)[0][1] for d in source.documents()]


SHAPES = {
    "wrapped over lines": json.dumps({"version": "1", "data": RECORDS}, indent=2),
    "wrapped in a line": json.dumps({"data": RECORDS}),
    "pretty": "\n".join(json.dumps(record, indent=2) for record in RECORDS),
    "one behind the other": "".join(map(json.dumps, RECORDS)),
    "commas between lines": ",\n".join(map(json.dumps, RECORDS)) + ",",
    "lines": "\n".join(map(json.dumps, RECORDS)),
    "an array": json.dumps(RECORDS, indent=1),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_every_shape_of_json_gives_its_records(folder: Folder, shape, encoding, packed):
    content = SHAPES[shape].encode(encoding)
    name = "a.json" + ".gz" * packed
    (source,) = read_sources(folder.write(name, gzip.compress(content) if packed else content), [])
    assert (source.name, texts(source)) == ("a", TEXTS)
    units = containers.list_units(source.files, 40)
    assert [said(d)[0][1] for unit in units for d in source.read(unit)] == TEXTS
    kind = containers.container(source.files[0])
    assert sum(map(kind.count, units)) == len(RECORDS)


def test_chinese_in_utf_16_is_whole(folder: Folder):
    record = {"text": "图中是什么" * 50}
    content = (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-16")
    assert texts(read_sources(folder.write("a.jsonl", content), [])[0]) == [record["text"]]


PACKED = {
    "a.jsonl.gz": SHAPES["lines"],
    "a.json.gz": SHAPES["an array"],
    "b.json.gz": SHAPES["pretty"],
    "a.csv.gz": "text\n" + "\n".join(f'"{text.replace(chr(34), chr(34) * 2)}"' for text in TEXTS),
    "a.tsv.gz": "text\tid\n" + "\n".join(f"Page {i}\t{i}" for i in range(5)),
    "a.txt.gz": "\n".join(TEXTS),
}


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_every_cut_of_a_packed_file_is_told_and_gives_no_half_record(folder: Folder, name, encoding, monkeypatch):
    content = gzip.compress(PACKED[name].encode(encoding), 0)  # so that each cut gives what precedes it
    (source,) = read_sources(folder.write(name, content), [])
    whole = texts(source)
    assert len(whole) == 5
    for block in (16, 1 << 20):
        monkeypatch.setattr(lines, "BLOCK", block)
        for cut in range(30, len(content), 5):
            path = folder.write(name, content[:cut])
            try:
                (source,) = read_sources(path, [])
                found = [d for d in source.documents() if not isinstance(d, Skip)]
                left = skipped(source)
            except UserError:
                continue  # told too
            assert [said(d)[0][1] for d in found] == whole[: len(found)]
            assert "cut short" in [reason for _, reason in left]


def test_half_a_packed_file_gives_what_is_whole(folder: Folder):
    content = "".join(json.dumps({"text": f"Page {i} {hash(i) * 7919}."}) + "\n" for i in range(2000)).encode()
    for name in ("a.jsonl.gz", "a.txt.gz"):
        whole = gzip.compress(content)
        (source,) = read_sources(folder.write(name, whole[: len(whole) // 2]), [])
        assert skipped(source)[-1][1] in ("cut short", "broken JSON")
        assert "cut short" in [reason for _, reason in skipped(source)]
        assert len(list(source.documents())) > 100


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"0": {"text": "a"}, "1": {"text": "b"}}, "it is one object that holds others: give its list"),
        ({"images": [{"id": 1}], "annotations": [{"id": 2}]}, "one object with the lists images, annotations"),
        ({"set": {"root": "p/", "annotation": "a.jsonl"}}, "it is one object that holds others"),
    ],
)
def test_an_object_that_holds_the_records_somewhere_says_so(folder: Folder, content, message):
    for written in (json.dumps(content), json.dumps(content, indent=2)):
        with pytest.raises(UserError, match=message):
            folder.source(written)


def test_other_files_say_what_to_give(folder: Folder):
    with pytest.raises(UserError, match=r"a description of data for another program: give the data file"):
        folder.source("a: b", "v1.yaml")
    for name in ("a.xlsx", "a.zip", "a"):
        with pytest.raises(UserError, match=r"is not supported yet: the file types are \.json"):
            folder.source("?", name)


def test_another_encoding_is_named(folder: Folder):
    source = folder.source(json.dumps({"text": "图中是什么"}, ensure_ascii=False).encode("gbk") + b"\n", "a.jsonl")
    assert skipped(source) == [("a.jsonl, record 0", "broken text")]


def test_conversations_may_be_json_text(folder: Folder):
    talk = json.dumps([{"from": "human", "value": "<image>Who?"}, {"from": "gpt", "value": "I."}])
    source = folder.source([{"image": "a.png", "conversations": talk}])
    assert texts(source) == ["[a.png]Who?"]
    assert "must be a list of objects" in refused(folder.source([{"messages": [], "id": 1}, {"messages": "[so"}]))


def test_a_first_record_of_nulls_is_empty_and_tells_nothing(folder: Folder):
    talk = {"messages": [{"role": "user", "content": "Who?"}]}
    source = folder.source([{"messages": None}, talk], "a.jsonl")
    assert skipped(source) == [("a.jsonl, record 0", "empty")]
    assert texts(folder.source([{"text": None}, {"text": "One."}], "b.jsonl"))[-1] == "One."


def test_records_of_several_formats_are_each_read_by_its_own(folder: Folder):
    records = [
        {"text": "A page."},
        {"messages": [{"role": "Human", "content": "Who?"}]},
        {"image": "a.png", "conversations": [{"from": "human", "value": "<image>?"}]},
    ]
    assert texts(folder.source(records)) == ["A page.", "Who?", "[a.png]?"]


def test_a_header_with_other_marks_between_is_read(folder: Folder):
    (source,) = read_sources(folder.write("a.csv", "image;caption\na.png;A, cat.\n"), [])
    assert texts(source) == ["[a.png]A, cat."]


def test_a_placeholder_may_be_switched_off_or_be_another(folder: Folder):
    talk = [{"messages": [{"role": "user", "content": "What is <image> in XML?"}]}]
    shown = {"messages": [{"role": "user", "content": "<image>Who?"}], "image": "a.png"}
    assert "set config.data.bare_placeholder=text" in refused(folder.source(talk))
    assert texts(folder.source([*talk, shown], bare_placeholder="text")) == ["What is <image> in XML?", "[a.png]Who?"]
    assert texts(folder.source(talk, placeholder="")) == ["What is <image> in XML?"]
    record = {"messages": [{"role": "user", "content": "<ImageHere>: <image>?"}], "images": ["a.png"]}
    assert texts(folder.source([record], placeholder="<ImageHere>")) == ["[a.png]: <image>?"]
