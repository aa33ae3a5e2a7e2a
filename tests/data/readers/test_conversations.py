"""Messages without a description: LLaVA's, typed parts as found in the wild, and alpaca, captions and pages."""

import base64
import json

import pytest

from jaxmm.data.documents import Image, Text
from readers.reading import only, openai, refused, said, skipped

PIXELS = b"\x89PNG\r\n\x1a\n" + bytes(range(90))
BASE64 = base64.b64encode(PIXELS).decode()
URI = f"data:image/png;base64,{BASE64}"


def image(part: dict) -> dict:
    return openai(("user", [part, {"type": "text", "text": "Who?"}]), ("assistant", [{"type": "text", "text": "Me."}]))  # type: ignore[arg-type]


# LLaVA


def llava(text: str, **more) -> dict:
    return {"id": "1", "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "A cat."}], **more}


@pytest.mark.parametrize(
    ("record", "question"),
    [
        (llava("<image>\nWhat?", image="a.jpg"), "[a.jpg]\nWhat?"),
        (llava("What?\n<image>", image=["a.jpg"]), "What?\n[a.jpg]"),
        (llava("<image> or <image>?", image=["a.jpg", "b.jpg"]), "[a.jpg] or [b.jpg]?"),
        (llava("What?", image="a.jpg"), "[a.jpg]What?"),
        (llava("What?"), "What?"),
        (llava("What?", image=[]), "What?"),
    ],
)
def test_llava_records_have_one_image_or_a_list_or_none(folder, record, question):
    assert said(only(folder.source([record]))) == [("user", question), ("assistant", "A cat.")]


def test_an_image_in_front_stands_in_the_first_turn_that_is_not_the_systems(folder):
    record = llava("What?", image="a.jpg", system="Be kind.")
    assert said(only(folder.source([record])))[:2] == [("system", "Be kind."), ("user", "[a.jpg]What?")]


def test_several_images_without_placeholders_have_no_place(folder):
    assert "has 0 <image> placeholders but 2 images" in refused(folder.source([llava("What?", image=["a", "b"])]))


# Typed parts


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.png"},
        {"type": "image", "path": "a.png"},
        {"type": "image", "value": "a.png"},
        {"type": "image", "url": "a.png"},
        {"type": "image_url", "image_url": "a.png"},
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
        {"type": "input_image", "image_url": "a.png"},
        {"type": "image", "image": {"bytes": None, "path": "a.png"}},
        {"type": "image", "text": None, "image": "a.png", "path": None},
        {"image": "a.png"},
        {"type": "image", "image": "file://FOLDER/a.png"},
    ],
)
def test_a_typed_image_is_found_under_any_of_its_keys(folder, part):
    text = json.dumps([image(part)]).replace("FOLDER", str(folder.path))
    document = only(folder.source(text))
    assert document.turns[0].parts == (Image(path=str(folder.path / "a.png")), Text("Who?"))
    assert document.turns[1].parts == (Text("Me."),)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": URI}},
        {"type": "image", "image": URI},
        {"type": "image", "image": BASE64},
        {"type": "image", "base64": BASE64},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}},
    ],
)
def test_a_typed_image_may_be_its_own_bytes(folder, part):
    assert only(folder.source([image(part)])).turns[0].parts[0] == Image(data=PIXELS)


def test_a_url_stays_a_url(folder):
    for url in ("https://example.org/a.png", "s3://bucket/a.png"):
        source = folder.source([image({"type": "image", "image": url})], allow_urls=True)
        assert only(source).turns[0].parts[0] == Image(path=url)


@pytest.mark.parametrize("key", ["text", "value", "content"])
def test_a_typed_text_is_text_whatever_it_says(folder, key):
    record = openai(("user", [{"type": "text", key: "A <image>?"}]))
    assert only(folder.source([record])).turns[0].parts == (Text("A <image>?"),)


def test_typed_images_without_a_value_are_the_records_images_in_order(folder):
    parts = [{"type": "image"}, {"type": "text", "text": " or "}, {"type": "image", "text": None}]
    record = openai(("user", parts), ("user", "<image>?"), images=["a.png", "b.png", "c.png"])
    assert said(only(folder.source([record]))) == [("user", "[a.png] or [b.png]"), ("user", "[c.png]?")]
    record["images"] = ["a.png"]
    assert "has 3 <image> placeholders but 1 images" in refused(folder.source([record]))


@pytest.mark.parametrize(
    "part", [{"type": "model", "model": "a.obj"}, {"type": "file", "file": "a"}, {}, 3, {"type": 3}]
)
def test_a_part_of_another_kind_is_named(folder, part):
    message = refused(folder.source([image(part)]))
    assert "data.json, record 0: what 'user' says has a part that is neither text nor image" in message


@pytest.mark.parametrize("key", ["max_pixels", "min_pixels", "resized_height", "resized_width"])
def test_an_image_with_a_size_of_its_own_is_refused(folder, key):
    for part in ({"type": "image", "image": "a.png", key: 50176}, {"type": "image", key: 50176}):
        record = image(part) | {"images": ["a.png"]}
        assert f"data.json, record 0: what 'user' says: an image has its own '{key}'" in refused(
            folder.source([record])
        )
    listed = openai(("user", "<image>Who?"), ("assistant", "Me."), images=[{"path": "a.png", key: 9}])
    assert f"an image has its own '{key}'" in refused(folder.source([listed]))
    assert only(folder.source([image({"type": "image", "image": "a.png", key: None})]))


@pytest.mark.parametrize("question", ["Where is <ref-object>?", [{"type": "text", "text": "What is at <bbox>?"}]])
def test_marks_of_boxes_are_not_learnt_as_text(folder, question):
    objects = {"ref": ["cat"], "bbox": [[1, 2, 30, 40]]}
    record = openai(("user", question), ("assistant", "There."), objects=objects)
    assert "data.json, record 0 has <" in refused(folder.source([record]))
    assert "say by config.data.boxes how the model is to write boxes" in refused(folder.source([record]))
    assert only(folder.source([openai(("user", "A <bbox> tag?"), ("assistant", "HTML."))]))
    assert only(folder.source([openai(("user", "Who?"), ("assistant", "Me."), objects=objects)]))


def test_many_names_of_speakers_are_known(folder):
    turns = [("system", "S"), ("developer", "D"), ("human", "U"), ("gpt", "A"), ("tool", "T"), ("model", "M")]
    assert [role for role, _ in said(only(folder.source([openai(*turns)])))] == [
        "system",
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]


# Captions and pages


def test_a_caption_has_its_image_in_front(folder):
    records = [
        {"image": "a.jpg", "caption": "A cat."},
        {"image_path": "b.jpg", "caption": "Two."},
        {"image": ["c.jpg"], "caption": "<image> is three."},
        {"image": "d.jpg", "caption": ""},
        {"caption": "None, not even <image>."},
    ]
    source = folder.source(records, "a.jsonl")
    assert [said(d)[0] for d in source.documents() if hasattr(d, "turns")] == [
        ("document", "[a.jpg]A cat."),
        ("document", "[b.jpg]Two."),
        ("document", "[c.jpg] is three."),
        ("document", "None, not even <image>."),
    ]
    assert skipped(source) == [("a.jsonl, record 3", "empty")]


def test_parallel_lists_take_turns(folder):
    record = {
        "texts": [None, "One.", None, None, "Two.", "Three <image>.", None, ""],
        "images": ["https://example.org/a.png", None, "b.png", URI, None, None, None, None],
        "metadata": "[]",
    }
    document = only(folder.source([record], allow_urls=True))
    (turn,) = document.turns
    assert turn.target
    assert turn.parts == (
        Image(path="https://example.org/a.png"),
        Text("One."),
        Image(path=str(folder.path / "b.png")),
        Image(data=PIXELS),
        Text("Two.\n\nThree <image>."),
    )
    record["images"].pop()
    assert "has 8 texts but 7 images" in refused(folder.source([record]))
    assert skipped(folder.source([{"texts": [None], "images": ["a.png"]}])) == [("data.json, record 0", "empty")]


def test_matched_images_stand_before_their_sentence(folder):
    record = {
        "text_list": ["One.", "Two.", "Three.", "Four."],
        "image_info": [
            {"image_name": "b.jpg", "raw_url": "https://example.org/b.jpg", "matched_text_index": 2},
            {"image_name": "a.jpg", "matched_text_index": 0, "matched_sim": 0.3},
            {"raw_url": "https://example.org/c.jpg", "matched_text_index": 2},
        ],
        "similarity_matrix": [],
    }
    expected = "[a.jpg]One. Two.[b.jpg][https://example.org/c.jpg]Three. Four."
    assert said(only(folder.source([record], allow_urls=True))) == [("document", expected)]
    record["image_info"][0]["matched_text_index"] = 4
    assert "matched_text_index is none of its 4 texts: 4" in refused(folder.source([record]))


def test_pairs_beside_images_are_a_conversation(folder):
    record = {
        "images": ["a.png", "b.png"],
        "texts": [{"user": "Q1 <image>", "assistant": "A1"}, {"user": "Q2", "assistant": "A2"}],
    }
    assert said(only(folder.source([record]))) == [
        ("user", "[a.png][b.png]Q1 <image>"),
        ("assistant", "A1"),
        ("user", "Q2"),
        ("assistant", "A2"),
    ]
