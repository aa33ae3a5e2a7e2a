"""Which columns hold pictures: known names are read, and a record that looks as if it had one stops."""

from __future__ import annotations

import base64
import io

import PIL.Image
import pytest

from jaxmm.data.readers import columns
from jaxmm.data.reading import Reading
from jaxmm.data.sources import read_sources
from jaxmm.errors import UserError
from readers.reading import Folder, only, openai, refused, said


def png() -> bytes:
    out = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), (200, 0, 0)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    "name",
    ["file_name", "filename", "filepath", "image_file", "img", "Image", "image_paths", "imagePath", "JPG", "picture"],
)
def test_a_column_that_is_called_so_holds_the_picture(folder: Folder, name):
    value = ["p/a.png"] if name.endswith("s") else "p/a.png"
    assert said(only(folder.source([{name: value, "text": "A cat."}]))) == [("document", "[a.png]A cat.")]
    talk = openai(("user", "Who?"), ("assistant", "A cat."))
    assert said(only(folder.source([{**talk, name: value}]))) == [("user", "[a.png]Who?"), ("assistant", "A cat.")]
    asked = {"instruction": "Who?", "output": "A cat.", name: value}
    assert said(only(folder.source([asked])))[0] == ("user", "[a.png]Who?")


@pytest.mark.parametrize(
    "value",
    [
        "p/a.JPEG",
        ["b.tif"],
        {"bytes": None, "path": "a.png"},
        base64.b64encode(png()).decode(),
        "['p/a.avif']",
        "a.heic",
    ],
    ids=str,
)
def test_a_record_without_a_picture_stops_where_another_column_looks_like_one(folder: Folder, value):
    line = refused(folder.source([{"text": "A cat.", "shot": value}]))
    assert "data.json, record 0 has no picture, but its 'shot' looks like one" in line
    assert "config.data.columns=image=shot" in line
    assert only(folder.source([{"text": "A cat.", "shot": value}], columns="image="))


def test_an_entry_that_names_no_picture_stops_as_well(folder: Folder):
    record = openai(("user", "Who?"), ("assistant", "A cat."), image="a.png")
    entry = {"formatting": "openai", "columns": {"messages": "messages"}}
    assert "'image' looks like one" in refused(folder.dataset("t", [record], **entry))
    entry["columns"]["images"] = ""
    assert said(only(folder.dataset("t", [record], **entry)))[0] == ("user", "Who?")


@pytest.mark.parametrize(
    "more",
    [
        {"url": "https://example.org/a.jpg"},
        {"links": ["https://example.org/a.jpg", "https://example.org/b.png?x=1"]},
        {"file_name": "a.txt", "title": "Version 1.png.2"},
        {"path": "https://example.org/a.jpg"},
        {"note": "two lines\nand a.png"},
        {"id": 3, "score": float("nan"), "img": None, "images": [], "image": {"bytes": None, "path": None}},
    ],
    ids=str,
)
def test_text_with_links_is_text(folder: Folder, more):
    source = folder.source([{"text": "A page.", **more}])
    assert said(only(source)) == [("document", "A page.")]


def test_what_was_read_and_what_was_not_is_counted(folder: Folder):
    records = [
        {"text": f"Page {i}.", "image": "a.png", "thumb": "b.png", "url": "https://e.org/a.jpg"} for i in range(3)
    ]
    source = folder.source([*records, {"text": "Bare."}])
    passing = source.read(source.units()[0])
    while True:
        try:
            next(passing)
        except StopIteration as end:
            seen = end.value
            break
    assert dict(seen.read) == {"text": 4, "image": 3}
    assert dict(seen.unread) == {"thumb": 3, "url": 3}
    assert dict(seen.pictures) == {"thumb": 3, "url": 3}


def test_pictures_between_marks_in_a_text_are_pictures(folder: Folder):
    talk = openai(("user", "Picture 1: <img>p/a.png</img>\nWho?"), ("assistant", "A <b>cat</b>, <img>no</img>."))
    assert said(only(folder.source([talk]))) == [
        ("user", "Picture 1: [a.png]\nWho?"),
        ("assistant", "A <b>cat</b>, <img>no</img>."),
    ]
    assert said(only(folder.source([{"text": "<img>p/a.png</img>A cat."}]))) == [("document", "[a.png]A cat.")]
    assert said(only(folder.source([talk], placeholder="")))[0][1].startswith("Picture 1: <img>")


def test_a_message_may_have_pictures_of_its_own(folder: Folder):
    def talk(content, **more):
        asked = {"role": "user", "content": content, **more}
        return [{"messages": [asked, {"role": "assistant", "content": "I.", "id": 3, "images": None}]}]

    assert said(only(folder.source(talk("Who?", images=["a.png", "b.png"]))))[0] == ("user", "[a.png][b.png]Who?")
    assert said(only(folder.source(talk("Who <image>?", image="a.png"))))[0] == ("user", "Who [a.png]?")
    parts = [{"type": "text", "text": "Who?"}, {"type": "image"}]
    assert said(only(folder.source(talk(parts, images=["a.png"]))))[0] == ("user", "Who?[a.png]")
    assert "1 <image> placeholders but 2 images of its own" in refused(
        folder.source(talk("<image>?", images=["a.png", "b.png"]))
    )
    assert "has a 'shot' that looks like a picture" in refused(folder.source(talk("Who?", shot="a.png")))


def test_null_and_nan_are_no_picture(folder: Folder):
    for nothing in (None, "", [], [None], [""], float("nan"), {"bytes": None, "path": None}):
        talk = openai(("user", "Who?"), ("assistant", "I."), images=nothing)
        assert said(only(folder.source([talk], "a.jsonl")))[0] == ("user", "Who?")


# The columns that a user names


def test_named_columns_are_read_in_every_container(folder: Folder):
    import pyarrow
    import pyarrow.parquet

    record = {"img": "a.png", "question": "Who?", "answer": "A cat."}
    table = folder.write("c.parquet", b"")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), table)
    named = Reading(columns="image=img, prompt=question, response=answer")
    for path in (
        folder.write("a.jsonl", [record]),
        folder.write("b.csv", "img,question,answer\na.png,Who?,A cat.\n"),
        folder.write("b.tsv", "img\tquestion\tanswer\na.png\tWho?\tA cat.\n"),
        table,
    ):
        (source,) = read_sources(path, [], named)
        assert said(only(source)) == [("user", "[a.png]Who?"), ("assistant", "A cat.")]
    records = [{"URL": "a.png", "TEXT": "A cat."}]
    assert said(only(folder.source(records, columns="image=URL,text=TEXT"))) == [("document", "[a.png]A cat.")]
    records = [{"dialogue": openai(("user", "Who?"), ("assistant", "I."))["messages"], "photo": "a.png"}]
    assert said(only(folder.source(records, columns="messages=dialogue")))[0] == ("user", "[a.png]Who?")


def test_a_prompt_and_its_completion_may_be_lists_of_messages(folder: Folder):
    record = {"images": ["a.png"], **{k: openai((r, t))["messages"] for k, r, t in PROMPT}}
    expected = [("user", "[a.png]Who?"), ("assistant", "A cat.")]
    assert said(only(folder.source([record]))) == expected
    assert said(only(folder.source([record], columns="prompt=prompt,response=completion"))) == expected
    plain = {"images": ["a.png"], "prompt": "Who?", "completion": "A cat."}
    with pytest.raises(UserError, match=r"config\.data\.columns=prompt=prompt,response=completion"):
        folder.source([plain])


PROMPT = (("prompt", "user", "Who?"), ("completion", "assistant", "A cat."))


def test_a_wrong_name_lists_the_columns_there_are(folder: Folder):
    records = [{"id": 1, "image": "a.png", "text": "A cat."}]
    with pytest.raises(UserError, match=r"has 'imgs'.*they have id, image, text"):
        folder.source(records, columns="image=imgs")
    for wrong, message in (
        ("picture=a", "NAME one of image"),
        ("image", "write NAME=COLUMN"),
        ("response=a", "needs a prompt"),
        ("image=a,images=b", "are the same"),
        ("text=a,prompt=b", "give one of text, prompt"),
    ):
        with pytest.raises(UserError, match=message):
            Reading(columns=wrong)


def test_an_evaluation_without_the_named_columns_is_read_by_what_it_has(folder: Folder):
    named = Reading(columns="text=body", evaluation=True)
    (source,) = read_sources(folder.write("a.jsonl", [{"text": "A cat."}]), [], named)
    assert said(only(source)) == [("document", "A cat.")]


def test_looks_are_strict_with_paths_and_lenient_with_words():
    assert columns.looks("a b/c d.PNG") == "file"
    assert columns.looks(png()) == "bytes"
    assert columns.looks("https://e.org/a.webp#x") == "link"
    assert columns.looks("data:image/png;base64,AAAA") == "bytes"
    for nothing in (".png", "png", "a.png.txt", "", 3, None, b"text", "/9j/" + "a" * 20, ["a.txt", 3], {"x": "a.png"}):
        assert columns.looks(nothing) == ""
