"""ms-swift's marks: the places in a record's texts for the boxes and names of its ``objects``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxmm.data.documents import Document, Image, Object, Text, Turn
from jaxmm.data.readers.kinds import IMAGE
from jaxmm.data.readers.parts import text
from jaxmm.data.text.boxes import BOX_MARK, MARK, NAME_MARK
from jaxmm.errors import UserError
from jaxmm.json_text import parse_json

COLUMN = "objects"
TYPES = ("real", "norm1")  # numbers are pixels, or fractions of the sides


def read(keys: Sequence[str], is_wanted: bool) -> frozenset[str]:
    """Returns which of a record's columns are read here."""
    return frozenset(key for key in keys if key == COLUMN and is_wanted)


def with_objects(origin: str, record: Mapping[str, Any], document: Document, is_wanted: bool) -> Document:
    """Returns a document with one object for each mark in its texts, if the record has objects.

    Args:
      is_wanted: whether ``config.data.boxes`` is set.

    Raises:
      UserError: if marks and objects differ in number or make no sense, or if there are marks but boxes are not wanted.
    """
    value = record.get(COLUMN)
    if not value:
        return document
    marks = list(_marks(document))
    if not is_wanted:
        if marks:
            raise UserError(
                f"{origin} has {marks[0]} for its '{COLUMN}', which are not read by default: say by config.data.boxes "
                f"how the model is to write boxes (pixels, thousandths, or model)"
            )
        return document
    names, boxes = _objects(origin, value, document)
    for mark, objects, key in ((NAME_MARK, names, "ref"), (BOX_MARK, boxes, "bbox")):
        if marks.count(mark) != len(objects):
            raise UserError(
                f"{origin} has {marks.count(mark)} {mark} but {len(objects)} in '{key}' of its '{COLUMN}': give each "
                f"mark one, and each one a mark"
            )
    left = {NAME_MARK: iter(names), BOX_MARK: iter(boxes)}
    return document._replace(objects=tuple(next(left[mark]) for mark in marks))


def check_none(origin: str, record: Mapping[str, Any], turns: Iterable[Turn], is_wanted: bool) -> None:
    """Raises UserError for a record of preferences whose objects are to be written, or have marks in these turns."""
    if record.get(COLUMN) and (is_wanted or any(_in_turns(turns))):
        raise UserError(
            f"{origin} has '{COLUMN}': boxes are not read in preference data: write them into the texts, or remove the "
            f"column and its marks"
        )


def _marks(document: Document) -> Iterator[str]:
    return _in_turns(document.turns)


def _in_turns(turns: Iterable[Turn]) -> Iterator[str]:
    for turn in turns:
        for part in turn.parts:
            if isinstance(part, Text):
                yield from MARK.findall(part.text)


def _objects(origin: str, value: Any, document: Document) -> tuple[list[Object], list[Object]]:
    """The names and the boxes of a record."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise UserError(f"{origin}: its '{COLUMN}' are no JSON: {error}") from error
    if not isinstance(value, Mapping):
        raise UserError(
            f'{origin}: its \'{COLUMN}\' must be an object, {{"ref": [...], "bbox": [...]}}, not {value!r:.40}'
        )
    names, boxes, pictures = (_listed(origin, value, key) for key in ("ref", "bbox", "image_id"))
    kind = value.get("bbox_type") or TYPES[0]
    if kind not in TYPES:
        raise UserError(f"{origin}: its '{COLUMN}' have a bbox_type {kind!r:.40}: it must be {' or '.join(TYPES)}")
    media = [part for turn in document.turns for part in turn.parts if not isinstance(part, Text)]
    shown = [at for at, part in enumerate(media) if isinstance(part, IMAGE.parts)]
    boxed = []
    for n, box in enumerate(boxes):
        picture = pictures[n] if n < len(pictures) else 0
        if type(picture) is not int or not 0 <= picture < len(shown):
            raise UserError(f"{origin}: its '{COLUMN}' name the picture {picture!r:.40}, of {len(shown)}")
        if not isinstance(media[shown[picture]], Image):
            raise UserError(f"{origin}: its '{COLUMN}' have boxes of media whose picture's size is unknown")
        boxed.append(Object(box=_numbers(origin, box), image=shown[picture], is_part=kind == "norm1"))
    return [Object(name=text(origin, f"'ref' of its '{COLUMN}'", name)) for name in names], boxed


def _listed(origin: str, value: Mapping[str, Any], key: str) -> list[Any]:
    items = value.get(key)
    if items is None:
        return []
    if not isinstance(items, list):
        raise UserError(f"{origin}: '{key}' of its '{COLUMN}' must be a list, not {items!r:.40}")
    return items


def _numbers(origin: str, box: Any) -> tuple[float, ...]:
    """Checks a box, [left, top, right, bottom], a point, [x, y], or more corners."""
    is_list = isinstance(box, list) and bool(box) and len(box) % 2 == 0
    if not is_list or not all(type(number) in (int, float) and math.isfinite(number) for number in box):
        raise UserError(f"{origin}: a box must be [left, top, right, bottom], or a point [x, y], not {box!r:.60}")
    return tuple(box)
