"""What stops, what is skipped, how it is told: by policy, with file and record."""

from __future__ import annotations

import json
import threading

import pytest

from jaxmm.data.documents import Document, Image, Skip, Text, Turn
from jaxmm.data.prepare.prepare import prepare
from jaxmm.data.prepare.prepared import Prepared
from jaxmm.data.reading import Reading
from jaxmm.data.sources import read_sources
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.errors import UserError
from readers.reading import Folder, openai, refused
from readers.test_columns import png

GOOD = openai(("user", "Who?"), ("assistant", "I."))
BAD = openai(("user", "<image><image>Who?"), ("assistant", "I."), images=["a.png"])


class Refusing(Template):
    """As a template that takes no conversation that begins with an answer."""

    def encode_all(self, documents):
        if any(document.turns[0].role == "assistant" for document in documents):
            raise UserError("the tokenizer: its chat template does not write a conversation of assistant")
        return super().encode_all(documents)


TEMPLATE = Refusing(load_tokenizer(""), "sft")


def left_out(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def test_records_that_make_no_sense_are_named_the_first_ones_and_how_many(folder: Folder):
    source = folder.source([GOOD, BAD, GOOD, *[BAD] * 7], "a.jsonl")
    line = refused(source)
    assert line.startswith("a.jsonl, record 1 has 2 <image> placeholders but 1 images")
    assert "records after it, these have errors too: 3, 4, 5, 6, 7 and 2 more" in line
    assert line.endswith("and 2 more; config.data.on_error=skip leaves such records out")
    alone = refused(folder.source([GOOD, BAD, GOOD], "b.jsonl"))
    assert alone.startswith("b.jsonl, record 1 has 2 <image> placeholders but 1 images")
    assert alone.endswith("; config.data.on_error=skip leaves such a record out")


def test_skipped_by_policy_they_are_listed_and_counted(folder: Folder, tmp_path):
    source = folder.source([GOOD] * 50 + [BAD, {"message": []}], "a.jsonl", on_error="skip")
    made = prepare(source, TEMPLATE, tmp_path / "cache")
    assert len(Prepared(made)) == 50
    first, second = left_out(made)
    assert first == {
        "file": "a.jsonl", "record": 50, "reason": "no sense",
        "detail": first["detail"],
    }  # fmt: skip
    assert first["detail"].startswith("has 2 <image> placeholders")
    assert "has no 'messages'; did you mean 'message'" in f"{second['record']} {second['detail']}"
    with pytest.raises(UserError, match=r"3 of 5 documents cannot be used \(3 no sense\), more than 5% .*record 2"):
        prepare(folder.source([GOOD] * 2 + [BAD] * 3, "b.jsonl", on_error="skip"), TEMPLATE, tmp_path / "cache")


def test_the_limit_is_a_key_and_holds_for_what_is_prepared_already(folder: Folder, tmp_path):
    path = folder.write("a.jsonl", [GOOD] * 8 + [BAD] * 2)
    (source,) = read_sources(path, [], Reading(on_error="skip", max_skipped=0.2))
    prepare(source, TEMPLATE, tmp_path)
    (source,) = read_sources(path, [], Reading(on_error="skip", max_skipped=0.1))
    with pytest.raises(UserError, match=r"2 of 10 documents were skipped, more than 10% \(config\.data\.max_skipped\)"):
        prepare(source, TEMPLATE, tmp_path)
    for wrong in ({"max_skipped": 1.5}, {"max_skipped": float("nan")}, {"on_error": "ignore"}):
        with pytest.raises(UserError, match=rf"config\.data\.{next(iter(wrong))}"):
            Reading(**wrong)


def test_what_a_template_refuses_is_named_or_skipped(folder: Folder, tmp_path):
    records = [GOOD] * 60 + [openai(("assistant", "I."), ("user", "Who?"))]
    with pytest.raises(UserError, match=r"^a\.json, record 60: the tokenizer: its chat template does not write"):
        prepare(folder.source(records, "a.json"), TEMPLATE, tmp_path)
    made = prepare(folder.source(records, "a.json", on_error="skip"), TEMPLATE, tmp_path)
    assert [(line["record"], line["reason"]) for line in left_out(made)] == [(60, "no sense")]


def test_what_a_template_refuses_leaves_no_thread_to_the_garbage_collector(folder: Folder, tmp_path):
    """It would join the thread wherever it happens to run: where another one is starting, both wait for ever."""
    source, before = (
        folder.source([openai(("assistant", "I."), ("user", "Who?"))] * 200, "a.json"),
        threading.enumerate(),
    )
    with pytest.raises(UserError, match="does not write") as kept:
        prepare(source, TEMPLATE, tmp_path)
    assert [thread.name for thread in threading.enumerate() if thread not in before] == []
    assert kept.tb is not None


def test_a_dead_picture_leaves_its_page_where_it_may(folder: Folder, tmp_path):
    folder.write("a.png", png())
    page = {"texts": [None, "One.", None, "Two."], "images": ["a.png", None, "gone.png", None]}
    caption = {"texts": [None, "A cat."], "images": ["gone.png", None]}
    made = prepare(folder.source([page] * 30 + [caption], "a.jsonl", drop_image=True), TEMPLATE, tmp_path)
    prepared = Prepared(made)
    assert len(prepared) == 30
    assert len(prepared.image_at_I) == 30
    assert prepared.meta["skipped"] == 1
    why = [line["detail"] for line in left_out(made)]
    assert why[-2:] == ["the page goes on without this image", "image gone.png"]
    report = json.loads((made / "report.json").read_text())
    assert report["dropped_images"] == {"missing": 30}
    assert report["columns"]["read"] == {"images": 31, "texts": 31}
    with pytest.raises(UserError, match="31 of 31 documents cannot be used"):
        prepare(folder.source([page] * 30 + [caption], "a.jsonl"), TEMPLATE, tmp_path)


def test_a_picture_that_parts_and_a_column_name_is_one(folder: Folder):
    parts = [{"type": "image", "image": "p/a.png"}, {"type": "text", "text": "Who?"}]
    record = openai(("user", parts), ("assistant", "I."))
    for column in ({"image": "p/a.png"}, {"images": ["p/a.png"]}, {"img": "p/a.png"}):
        (document,) = folder.source([{**record, **column}]).documents()
        assert document.turns[0].parts == (Image(path=str(folder.path / "p/a.png")), Text("Who?"))
    line = refused(folder.source([{**record, "images": ["b.png", "c.png"]}]))
    assert "its parts name 1 pictures, and 'images' 2 others" in line
    assert "its parts name 1 pictures" in refused(folder.source([{**record, "image": "b.png"}]))


@pytest.mark.parametrize("value", [3, [], {}, ["a"], {"a": 1}, True])
@pytest.mark.parametrize(
    "key", ["file_name", "formatting", "columns", "tags", "folder", "subset", "split", "media_dir", "num_samples"]
)
def test_a_description_of_wrong_types_is_one_line(folder: Folder, key, value):
    folder.write("cats.json", [{"instruction": "Who?", "output": "I."}])
    folder.write("dataset_info.json", {"cats": {"file_name": "cats.json", key: value}})
    is_fine = (key in ("columns", "tags") and value == {}) or (key == "num_samples" and value == 3)
    if is_fine or (key in ("num_samples",) and not value):
        assert read_sources(folder.info, ["cats"])
        return
    with pytest.raises(UserError) as caught:
        list(read_sources(folder.info, ["cats"])[0].documents())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mapped", [3, ["a"], {"a": 1}, True])
@pytest.mark.parametrize("key", ["columns", "tags"])
def test_a_name_of_another_type_is_one_line(folder: Folder, key, mapped):
    folder.write("cats.json", [GOOD])
    name = {"columns": "messages", "tags": "role_tag"}[key]
    entry = {"file_name": "cats.json", "formatting": "openai", key: {name: mapped}}
    folder.write("dataset_info.json", {"cats": entry})
    with pytest.raises(UserError, match=rf"'{name}' of its {key} must be a name"):
        read_sources(folder.info, ["cats"])


@pytest.mark.parametrize(
    "entry", [{"media_dir": "/"}, {"media_dir": "../.."}, {"file_name": "/etc/x.json"}, {"file_name": "../x.json"}]
)
def test_a_description_does_not_choose_what_lies_outside(folder: Folder, tmp_path, entry):
    folder.write("cats.json", [GOOD])
    (tmp_path / "x.json").write_text(json.dumps([GOOD]))
    entry = {"file_name": "cats.json", "formatting": "openai", **entry}
    folder.write("dataset_info.json", {"cats": entry})
    with pytest.raises(UserError, match=r"leads out of .*config\.data\.media_dir=.* or config\.data\.follow_outside"):
        read_sources(folder.info, ["cats"])
    if entry["file_name"] != "/etc/x.json":
        assert read_sources(folder.info, ["cats"], Reading(follow_outside=True))


@pytest.mark.parametrize("name", ["..", "a/b", "a\\b", "a\nb", "a\x1bb", ""])
def test_a_source_is_called_what_a_file_may_be_called(folder: Folder, name):
    folder.write("cats.json", [GOOD])
    folder.write("dataset_info.json", {name: {"file_name": "cats.json", "formatting": "openai"}})
    with pytest.raises(UserError, match="cannot be called") as caught:
        read_sources(folder.info, [name])
    assert str(caught.value).isprintable()


def test_a_skip_says_more_where_there_is_more(folder: Folder):
    document = Document((Turn("document", (Text("One."),), True),), "a, record 0")
    assert Skip(document.origin, "empty") == ("a, record 0", "empty", "")
