"""Boxes in texts: numbers that point into a picture, written for the size at which the model sees it.

Data gives them in pixels of the original picture, either in texts or as a record's objects (ms-swift's);
``readers/marks.py`` matches those with the marks in the texts. The sizes of pictures are known after their headers are
read, so boxes are written between that and the tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxmm.data.documents import Document, Object, Part, Text, Turn
from jaxmm.data.media.geometry import resized_size
from jaxmm.errors import UserError
from jaxmm.image_spec import ImageSpec

PIXELS, THOUSANDTHS = "pixels", "thousandths"
KINDS = ("", PIXELS, THOUSANDTHS)
BOX_MARK, NAME_MARK = "<bbox>", "<ref-object>"
MARK = re.compile("|".join((BOX_MARK, NAME_MARK)))
MOST_OUTSIDE = 1.0  # pixels that annotations may lie outside by rounding; they are clipped

_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
_LETTERS = r"[-+.,;\deE\s\[\]()]*"  # the characters of numbers in lists or round brackets
_FOUND = re.compile(
    rf"(?P<mark>{MARK.pattern})"
    rf"""|\\*["'](?P<key>bbox_2d|point_2d)\\*["']\s*:\s*(?P<list>\[{_LETTERS}\])"""
    rf"|(?:<\|(?P<tag>box|point|quad)_start\|>|<(?P<old_tag>box|point|quad)>)(?P<inner>{_LETTERS})"
    r"(?:<\|(?:box|point|quad)_end\|>|</(?:box|point|quad)>)"
)
_WRITTEN = re.compile(rf"{_FOUND.pattern}|(?P<plain>\[\d+, \d+(?:, \d+, \d+)?\])")


def settings(kind: str, image: ImageSpec | None) -> dict[str, Any]:
    """Returns the settings that the numbers depend on, for keys of prepared data and its meta.json.

    {} means that texts stay as they are. Only boxes in pixels depend on how pictures are resized.
    """
    if kind != PIXELS or image is None:
        return {"kind": kind} if kind else {}
    if image.side:
        return {"kind": kind, "side": image.side}
    return {
        "kind": kind, "multiple": image.patch_size * image.merge, "min_pixels": image.min_pixels,
        "max_pixels": image.max_pixels, "thin": image.thin, **({"by_longest": True} if image.by_longest else {}),
    }  # fmt: skip


def in_words(found: dict[str, Any]) -> str:
    """Describes settings for people: ``boxes in pixels of pictures in multiples of 28, of 3136 to 1003520 pixels``.

    ``found`` may come from a meta.json that anybody wrote.
    """
    if found.get("kind") != PIXELS:
        return "boxes in thousandths of a side" if found else "boxes as the data has them"
    if "side" in found:
        return f"boxes in pixels of pictures of {found['side']} x {found['side']}"
    how = ", thin ones grown" * bool(found.get("thin")) + ", by the longest side" * bool(found.get("by_longest"))
    return (
        f"boxes in pixels of pictures in multiples of {found.get('multiple')}, of {found.get('min_pixels')} to "
        f"{found.get('max_pixels')} pixels{how}"
    )


def check(kind: str, image: ImageSpec) -> None:
    """Raises UserError if boxes of this kind cannot be written for pictures resized in this way."""
    if kind and image.crop:
        raise UserError(
            "config.data.boxes: this model crops pictures to a square, and boxes may lie outside of it: leave it out"
        )
    if kind == PIXELS and image.has_tiles:
        raise UserError(
            "config.data.boxes=pixels: this model cuts pictures into tiles, and no tile has the pixels of the picture: "
            "use thousandths"
        )


def written(
    document: Document, sizes: Sequence[tuple[int, int] | None], kind: str, image: ImageSpec | None
) -> Document:
    """Returns a document with its boxes and marks written.

    Args:
      sizes: (height, width) in pixels of its media, in order; None for a medium that is no picture.
      kind: one of KINDS.
      image: how pictures are resized; needed for pixels.

    Raises:
      UserError: for a box that lies outside of its picture, or belongs to none.
    """
    if not kind:
        return document
    writer = _Writer(document, sizes, kind, image)
    return document._replace(turns=tuple(map(writer.turn, document.turns)), objects=())


def told(text: str) -> list[str]:
    """Returns the boxes in a text as they are written, for people; lists of two or four whole numbers count too."""
    matches = _WRITTEN.finditer(text)
    return [one[0] for one in matches if _NUMBER.search(one["list"] or one["inner"] or one["plain"] or "")]


class _Box(NamedTuple):
    """The numbers of a box before they are written: corners in pixels, or as fractions of the sides."""

    numbers: Sequence[float]
    is_part: bool = False
    is_box: bool = False  # left, top, right, bottom, and not any corners


class _Writer:
    """Writes the boxes of one document, front to back."""

    def __init__(self, document: Document, sizes: Sequence[tuple[int, int] | None], kind: str, image: ImageSpec | None):
        self._origin, self._sizes, self._kind, self._image = document.origin, sizes, kind, image
        self._objects: Iterator[Object] | None = iter(document.objects) if document.objects else None
        self._before = 0  # media that come before the current place

    def turn(self, turn: Turn) -> Turn:
        """Returns a turn with its boxes written. A system turn is instructions: only marks count there."""
        is_said = turn.role != "system"
        thinking = self._text(turn.thinking, has_marks=False) if is_said else turn.thinking
        parts = tuple(self._part(part, is_said) for part in turn.parts)
        calls = self._text(turn.calls, has_marks=False) if is_said else turn.calls
        return turn._replace(parts=parts, thinking=thinking, calls=calls)

    def _part(self, part: Part, has_boxes: bool) -> Part:
        if isinstance(part, Text):
            return Text(self._text(part.text, has_boxes=has_boxes))
        self._before += 1
        return part

    def _text(self, text: str, has_marks: bool = True, has_boxes: bool = True) -> str:
        def write(match: re.Match[str]) -> str:
            if match["mark"]:
                return self._marked(match[0]) if has_marks and self._objects is not None else match[0]
            return self._rewritten(match) if has_boxes and self._sizes else match[0]

        return _FOUND.sub(write, text)

    def _marked(self, mark: str) -> str:
        """The text that replaces a mark."""
        assert self._objects is not None
        one = next(self._objects)
        if mark == NAME_MARK:
            return one.name
        told = self._numbers(_Box(one.box, one.is_part, len(one.box) == 4), one.image, f"'objects': {list(one.box)}")
        return f"[{', '.join(map(str, told))}]"

    def _rewritten(self, match: re.Match[str]) -> str:
        """A box in a text, with new numbers between the same characters."""
        group = "list" if match["key"] else "inner"
        tag = match["key"] or match["tag"] or match["old_tag"]
        numbers = [float(number) for number in _NUMBER.findall(match[group])]
        if not numbers:
            return match[0]
        what, count = f"{' '.join(match[0].split()):.80}", {"bbox_2d": 4, "box": 4}.get(tag, 2)
        # One point stands in box marks too.
        if len(numbers) % count and not (tag == "box" and len(numbers) == 2):
            raise UserError(f"{self._origin}: {what} has {len(numbers)} numbers, not {count} for each box or point")
        is_box = count == 4 and len(numbers) > 2
        step = 4 if is_box else len(numbers)
        picture, told = self._last(what), list[int]()
        for at in range(0, len(numbers), step):
            told += self._numbers(_Box(numbers[at : at + step], is_box=is_box), picture, what)
        start = match.start(group) - match.start()
        left = iter(told)
        inner = _NUMBER.sub(lambda _: str(next(left)), match[group])
        return match[0][:start] + inner + match[0][start + len(match[group]) :]

    def _last(self, what: str) -> int:
        """The picture that a box in a text belongs to: the last one before it, or the only one."""
        if not self._before and len(self._sizes) > 1:
            raise UserError(
                f"{self._origin}: {what} stands before its {len(self._sizes)} pictures: put it after the one it is in"
            )
        return max(self._before - 1, 0)

    def _numbers(self, box: _Box, picture: int, what: str) -> list[int]:
        """Returns the numbers that the model sees: pixels of the resized picture, or thousandths of its sides."""
        size = self._sizes[picture]
        if size is None:
            raise UserError(
                f"{self._origin}: {what} is a box of ready-made media, whose picture's size is unknown, or in pixels "
                f"of a video, whose frames' size is not settled when data is prepared: of videos, "
                f"config.data.boxes=thousandths can be written"
            )
        corners = list(zip(box.numbers[::2], box.numbers[1::2], strict=True))
        if box.is_box and (corners[0][0] > corners[1][0] or corners[0][1] > corners[1][1]):
            raise UserError(
                f"{self._origin}: {what} ends before it begins: a box is left, top, right, bottom, and no width or "
                f"height"
            )
        height, width = size
        new_height, new_width = (1000, 1000) if self._kind == THOUSANDTHS else self._resized(height, width)
        numbers = []
        for x, y in corners:
            for value, side, new in ((x, width, new_width), (y, height, new_height)):
                part = value if box.is_part else value / side
                if not -MOST_OUTSIDE <= part * side <= side + MOST_OUTSIDE:
                    raise UserError(
                        f"{self._origin}: {what} lies outside of its picture of {width} x {height} pixels: boxes must "
                        f"be in pixels of the original picture"
                    )
                numbers.append(round(min(max(part, 0.0), 1.0) * new))
        return numbers

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        assert self._image is not None, "pixels need to know how pictures are resized"
        return resized_size(height, width, self._image)
