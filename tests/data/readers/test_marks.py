"""ms-swift's records with objects: each mark gets its own, and what does not fit is named."""

import json

import pytest

from jaxmm.data.documents import Object
from jaxmm.errors import UserError
from readers.reading import only, openai, refused, skipped

OBJECTS = {"ref": ["cat", "dog"], "bbox": [[1, 2, 30, 40], [5, 6]]}


def record(question: str, objects, answer: str = "Yes.", images=("a.png",)) -> dict:
    question = "<image>" * len(images) + question
    return openai(("user", question), ("assistant", answer), images=list(images), objects=objects)


def objects_of(folder, *one, **more) -> tuple[Object, ...]:
    return only(folder.source([record(*one, **more)], boxes="thousandths")).objects


def test_marks_take_objects_in_order_across_messages(folder):
    found = objects_of(folder, "<ref-object> <bbox>?", OBJECTS, "<bbox> <ref-object>")
    assert found == (Object("cat"), Object(box=(1, 2, 30, 40)), Object(box=(5, 6)), Object("dog"))
    assert objects_of(folder, "<bbox><bbox>", {"bbox": OBJECTS["bbox"], "ref": None})[1] == Object(box=(5, 6))


def test_objects_may_be_json_text_and_parts_of_sides(folder):
    text = json.dumps({"ref": [], "bbox": [[0.1, 0.2, 0.3, 0.4]], "bbox_type": "norm1"})
    assert objects_of(folder, "<bbox>", text) == (Object(box=(0.1, 0.2, 0.3, 0.4), is_part=True),)


def test_a_box_is_of_the_picture_that_image_id_names(folder):
    objects = {"bbox": [[1, 2], [3, 4], [5, 6]], "image_id": [1, 0]}
    found = objects_of(folder, "<bbox><bbox><bbox>", objects, images=("a.png", "b.png"))
    assert [one.image for one in found] == [1, 0, 0]


def test_other_formats_have_objects_too(folder):
    alpaca = {"instruction": "Where?", "output": "<bbox>", "images": ["a.png"], "objects": {"bbox": [[1, 2]]}}
    source = folder.source([alpaca | {"instruction": "<image>Where?"}], boxes="thousandths")
    assert only(source).objects == (Object(box=(1, 2)),)


def test_without_objects_marks_are_text(folder):
    assert only(folder.source([openai(("user", "A <bbox> tag?"), ("assistant", "Yes."))], boxes="pixels")).objects == ()


@pytest.mark.parametrize(
    ("question", "objects", "told"),
    [
        ("<bbox>", OBJECTS, "has 0 <ref-object> but 2 in 'ref'"),
        ("<bbox><bbox><bbox>", {"bbox": OBJECTS["bbox"]}, "has 3 <bbox> but 2 in 'bbox'"),
        ("<bbox>", {"bbox": OBJECTS["bbox"]}, "has 1 <bbox> but 2 in 'bbox'"),
        ("<bbox>", [{"bbox": [1, 2]}], "must be an object"),
        ("<bbox>", "{", "are no JSON"),
        ("<bbox>", {"bbox": 7}, "must be a list"),
        ("<bbox>", {"bbox": [[1, 2, 3]]}, "a box must be [left, top, right, bottom]"),
        ("<bbox>", {"bbox": [["a", 2]]}, "a box must be"),
        ("<bbox>", {"bbox": [[1, 2]], "image_id": [1]}, "name the picture 1, of 1"),
        ("<bbox>", {"bbox": [[1, 2]], "image_id": ["a"]}, "name the picture 'a', of 1"),
        ("<bbox>", {"bbox": [[1, 2]], "bbox_type": "norm_1000"}, "it must be real or norm1"),
        ("<ref-object>", {"ref": [5]}, "must be text"),
    ],
)
def test_what_does_not_fit_is_named_with_file_and_record(folder, question, objects, told):
    assert told in (line := refused(folder.source([record(question, objects)], boxes="pixels")))
    assert line.startswith("data.json, record 0")
    assert skipped(folder.source([record(question, objects)], boxes="pixels", on_error="skip"))[0][1] == "no sense"


def test_a_page_that_may_lose_its_picture_has_no_boxes(folder):
    with pytest.raises(UserError, match="would belong to another picture"):
        folder.source([record("", OBJECTS)], boxes="pixels", drop_image=True)


def test_boxes_have_one_of_their_values(folder):
    with pytest.raises(UserError, match="must be one of pixels, thousandths"):
        folder.source([record("", OBJECTS)], boxes="pixel")
