"""Boxes in texts: written for the size at which the model sees a picture, and never for another."""

import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from pictures import encoded

from jaxmm.data.documents import Document, Features, Image, Object, Part, Text, Turn
from jaxmm.data.media import patches as media
from jaxmm.data.media.geometry import resized_size
from jaxmm.data.text import boxes
from jaxmm.errors import UserError
from jaxmm.image_spec import ImageSpec

QWEN = ImageSpec(14, 2, 56 * 56, 28 * 28 * 1280, thin=True)
SMALL = ImageSpec(4, 2, 8 * 8, 64 * 64)
SQUARE = ImageSpec(14, 1, 1, 384 * 384, side=384)
PICTURE = Image(path="a.png")


def turns(*parts: Part | str, role: str = "user") -> tuple[Turn, ...]:
    return (Turn(role, tuple(Text(part) if isinstance(part, str) else part for part in parts), False),)


def text_of(document: Document) -> str:
    return "".join(part.text for turn in document.turns for part in turn.parts if isinstance(part, Text))


def write(text: str, size: tuple[int, int] = (100, 200), kind: str = "thousandths", spec: ImageSpec = QWEN) -> str:
    document = Document(turns(PICTURE, text), "a.json, record 7")
    return text_of(boxes.written(document, [size], kind, spec))


def refused(*parts: Part | str, sizes=((100, 200),), objects: tuple[Object, ...] = ()) -> str:
    with pytest.raises(UserError) as caught:
        boxes.written(Document(turns(*parts), "a.json, record 7", objects=objects), sizes, "thousandths", None)
    assert str(caught.value).startswith("a.json, record 7: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Sizes


@given(st.integers(28, 3000), st.integers(28, 3000))
def test_pixels_are_those_that_transformers_resizes_to(height, width):
    if max(height, width) / min(height, width) > 20:
        return  # a very long picture, which the two cut in other ways
    module = pytest.importorskip(
        "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl", reason="older ones need torch"
    )
    expected = module.smart_resize(height, width, 28, QWEN.min_pixels, QWEN.max_pixels)
    assert resized_size(height, width, QWEN) == expected
    written = write(f'"bbox_2d": [0, 0, {width}, {height}]', (height, width), "pixels")
    assert written == f'"bbox_2d": [0, 0, {expected[1]}, {expected[0]}]'


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_box_around_a_rectangle_surrounds_it_in_what_the_tower_sees(data):
    spec = data.draw(st.sampled_from([SMALL, SQUARE]))
    height, width = (data.draw(st.integers(16, 150)) for _ in range(2))
    left, right = sorted(data.draw(st.sets(st.integers(0, width), min_size=2, max_size=2)))
    top, bottom = sorted(data.draw(st.sets(st.integers(0, height), min_size=2, max_size=2)))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top:bottom, left:right] = 255
    image = encoded(PIL.Image.fromarray(pixels))
    size = resized_size(height, width, spec)
    written = write(f"<box>[[{left}, {top}, {right}, {bottom}]]</box>", (height, width), "pixels", spec)
    numbers = [int(number) for number in written.removeprefix("<box>[[").removesuffix("]]</box>").split(", ")]
    seen, (rows, columns) = media.patches(image, spec, (height, width))
    # What is behind the last whole patch of a side is not seen.
    grid = np.zeros((rows * spec.patch_size, columns * spec.patch_size))
    merge, side = spec.merge, spec.patch_size
    in_rows = seen.reshape(rows // merge, columns // merge, merge, merge, side, side, 3)[..., 0]
    grid[:] = in_rows.transpose(0, 2, 4, 1, 3, 5).reshape(grid.shape)
    assert size[0] - side < grid.shape[0] <= size[0]
    for axis, (first, last) in ((1, numbers[::2]), (0, numbers[1::2])):
        scale = size[axis] / (height, width)[axis]
        bright = np.flatnonzero(grid.max(1 - axis) >= 128)
        if len(bright):  # thin ones are gone where much is scaled down
            slack = 1 + max(scale / 2, 1)  # an edge is blurred over a pixel of the original, or of the picture
            assert first - slack <= bright[0]
            assert bright[-1] + 1 <= last + slack
        if min(grid.shape[axis], last) - first > 2 * slack and len(bright):
            assert bright[0] <= first + slack
            assert min(grid.shape[axis], last) - slack <= bright[-1] + 1


# Texts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"bbox_2d": [20, 10, 200, 100], "label": "a"}]', '[{"bbox_2d": [100, 100, 1000, 1000], "label": "a"}]'),
        ('{"bbox_2d": [[20, 10, 40, 20], [0,0,2,1]]}', '{"bbox_2d": [[100, 100, 200, 200], [0,0,10,10]]}'),
        ("{'point_2d': [20.5, 10.25]}", "{'point_2d': [102, 102]}"),
        (r"{\"bbox_2d\": [20, 10, 40, 20]}", r"{\"bbox_2d\": [100, 100, 200, 200]}"),
        ("<|box_start|>(20,10),(40,20)<|box_end|>.", "<|box_start|>(100,100),(200,200)<|box_end|>."),
        ("<|box_start|>(20,10)<|box_end|>", "<|box_start|>(100,100)<|box_end|>"),
        ("<box>[[20, 10, 40, 20], [0, 0, 2, 1]]</box>", "<box>[[100, 100, 200, 200], [0, 0, 10, 10]]</box>"),
        ("<|quad_start|>(20,10),(0,20),(2,1)<|quad_end|>", "<|quad_start|>(100,100),(0,200),(10,10)<|quad_end|>"),
        ("<point>(20, 10)</point>", "<point>(100, 100)</point>"),
        ('"bbox_2d": [-1, 0, 201, 100.5]', '"bbox_2d": [0, 0, 1000, 1000]'),  # off by rounding
        # No boxes: numbers that nothing calls one, words, and lists that are empty.
        ("[20, 10, 40, 20] and (20, 10)", "[20, 10, 40, 20] and (20, 10)"),
        ('"bbox_2d": [x1, y1, x2, y2]', '"bbox_2d": [x1, y1, x2, y2]'),
        ('"bbox_2d": [] <box>a big one</box>', '"bbox_2d": [] <box>a big one</box>'),
        ("<bbox> is a tag", "<bbox> is a tag"),
    ],
)
def test_numbers_of_boxes_change_and_all_around_them_stays(text, expected):
    assert write(text) == expected
    assert text_of(boxes.written(Document(turns(PICTURE, text), ""), [(9, 9)], "", None)) == text


def test_a_box_belongs_to_the_last_picture_before_it():
    text = '"point_2d": [10, 10]'
    document = Document(turns(PICTURE, text, PICTURE, f"{text} {text}"), "")
    written = text_of(boxes.written(document, [(100, 200), (20, 10)], "thousandths", None))
    assert written == '"point_2d": [50, 100]"point_2d": [1000, 500] "point_2d": [1000, 500]'
    assert "stands before its 2 pictures" in refused(text, PICTURE, PICTURE, sizes=((100, 200), (20, 10)))


def test_a_box_before_the_only_picture_is_of_it_and_without_one_text_stays():
    text = '"point_2d": [10, 10]'
    document = Document(turns(text, PICTURE), "")
    assert text_of(boxes.written(document, [(100, 200)], "thousandths", None)) == '"point_2d": [50, 100]'
    assert boxes.written(Document(turns(text), ""), [], "thousandths", None).turns == turns(text)


def test_thinking_and_calls_are_written_and_instructions_are_not():
    text = '"bbox_2d": [20, 10, 40, 20]'
    said = (
        *turns(text, role="system"),
        *turns(PICTURE),
        Turn("assistant", (), True, text, f'[{{"arguments": {{{text}}}}}]'),
    )
    system, _, answer = boxes.written(Document(said, ""), [(100, 200)], "thousandths", None).turns
    assert system.parts == (Text(text),)
    assert answer.thinking == '"bbox_2d": [100, 100, 200, 200]'
    assert answer.calls == '[{"arguments": {"bbox_2d": [100, 100, 200, 200]}}]'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('"bbox_2d": [20, 10, 202, 20]', "lies outside of its picture of 200 x 100 pixels"),
        ('"bbox_2d": [-2, 10, 20, 20]', "lies outside"),
        ('"point_2d": [0, 1e999]', "lies outside"),
        ('"bbox_2d": [40, 10, 20, 20]', "ends before it begins: a box is left, top, right, bottom"),
        ("<box>(0, 20),(20, 10)</box>", "ends before it begins"),
        ('"bbox_2d":\n[1, 2, 3]', "has 3 numbers, not 4"),
        ('"bbox_2d": [1, 2]', "has 2 numbers, not 4"),
        ("<|box_start|>1 2 3<|box_end|>", "has 3 numbers, not 4"),
    ],
)
def test_what_is_no_box_of_the_picture_is_refused(text, told):
    assert told in refused(PICTURE, text)


def test_boxes_of_ready_made_media_are_refused():
    assert "whose picture's size is unknown" in refused(Features(path="a.npy"), '"point_2d": [1, 1]', sizes=(None,))


# Objects


def test_objects_stand_where_their_marks_are():
    one, other = Object(name="cat"), Object(box=(20.0, 10.0, 40.0, 20.0))
    part, far = Object(box=(0.1, 0.1), is_part=True), Object(box=(5, 10, 10, 20), image=1)
    text = 'A <ref-object> at <bbox>, <bbox> and {"bbox_2d": <bbox>}.'
    document = Document(turns(PICTURE, text, PICTURE), "", objects=(one, other, part, far))
    written = boxes.written(document, [(100, 200), (20, 10)], "thousandths", None)
    assert text_of(written) == 'A cat at [100, 100, 200, 200], [100, 100] and {"bbox_2d": [500, 500, 1000, 1000]}.'
    assert written.objects == ()


@given(st.integers(1, 4000), st.integers(1, 4000), st.data())
def test_numbers_are_those_of_ms_swift(height, width, data):
    x, y = data.draw(st.integers(0, width)), data.draw(st.integers(0, height))
    document = Document(turns(PICTURE, "<bbox>"), "", objects=(Object(box=(x, y)),))
    written = text_of(boxes.written(document, [(height, width)], "thousandths", None))
    assert written == str([round(x / width * 1000), round(y / height * 1000)])


def test_an_object_outside_of_its_picture_is_refused():
    assert "'objects': [1.5, 0] lies outside" in refused(PICTURE, "<bbox>", objects=(Object("", (1.5, 0), 0, True),))


# What decides the numbers


def test_only_pixels_depend_on_how_pictures_are_resized():
    assert boxes.settings("", QWEN) == {}
    assert boxes.settings("thousandths", QWEN) == boxes.settings("thousandths", SMALL) == {"kind": "thousandths"}
    told = [boxes.settings("pixels", spec) for spec in (QWEN, SMALL, SQUARE)]
    assert len({str(one) for one in told}) == 3
    assert "multiples of 28, of 3136 to 1003520 pixels" in boxes.in_words(told[0])
    assert "384 x 384" in boxes.in_words(told[2])


def test_pictures_that_are_cropped_or_cut_into_tiles_have_no_such_boxes():
    with pytest.raises(UserError, match="crops pictures"):
        boxes.check("thousandths", ImageSpec(14, 1, 1, 336 * 336, side=336, crop=True))
    tiled = ImageSpec(14, 2, 1, 448 * 448, side=448, max_tiles=12)
    boxes.check("thousandths", tiled)
    with pytest.raises(UserError, match="into tiles"):
        boxes.check("pixels", tiled)


def test_boxes_are_listed_for_people():
    text = 'At [1, 2, 3, 4] <box>(1,2)</box> {"bbox_2d": [5, 6, 7, 8]}, not [1, 2, 3] "bbox_2d": [] <bbox>'
    assert boxes.told(text) == ["[1, 2, 3, 4]", "<box>(1,2)</box>", '"bbox_2d": [5, 6, 7, 8]']
