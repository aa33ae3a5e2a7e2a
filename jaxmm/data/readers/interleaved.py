"""Pages in which texts and images alternate: parallel lists as in OBELICS, sentences with matched images as in MMC4.

Also question-and-answer pairs beside images (``texts`` of objects), as in some collections of fine-tuning data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from jaxmm.data.documents import Document, Image, Part, Text
from jaxmm.data.readers.finding import find_media
from jaxmm.data.readers.parts import Content, SkipRecord, column, document, text
from jaxmm.data.readers.pictures import Pictures
from jaxmm.errors import UserError

FORMAT = 3
PARAGRAPH, SENTENCE = "\n\n", " "  # between two texts with no image between them
MMC4_IMAGES = ("image_base64", "image", "image_name", "raw_url")


@dataclass(frozen=True)
class Parallel:
    """Records with ``texts`` and ``images`` of one length: at each place a text or an image, and null in the other."""

    version: ClassVar[int] = FORMAT
    main: ClassVar[str] = "texts"
    images: ClassVar[tuple[str, ...]] = ("images",)

    def of(self, record: Mapping[str, Any]) -> Self:
        return self

    def reads(self, keys: tuple[str, ...]) -> frozenset[str]:
        return frozenset(("texts", "images"))

    def __call__(self, origin: str, record: Mapping[str, Any], pictures: Pictures) -> Document:
        texts, images = _lists(origin, record, "texts", "images")
        if len(texts) != len(images):
            raise UserError(f"{origin} has {len(texts)} texts but {len(images)} images: give null where there is none")
        pieces: list[Part] = []
        for said, image in zip(texts, images, strict=True):
            if image is not None:
                pieces.append(_image(origin, image, pictures))
            if said is not None:
                _add(pieces, text(origin, "a text", said), PARAGRAPH)
        return _page(origin, pieces)


@dataclass(frozen=True)
class Matched:
    """Records with ``text_list``, and ``image_info`` that says before which text each image belongs."""

    version: ClassVar[int] = FORMAT
    main: ClassVar[str] = "text_list"
    images: ClassVar[tuple[str, ...]] = ("image_info",)

    def of(self, record: Mapping[str, Any]) -> Self:
        return self

    def reads(self, keys: tuple[str, ...]) -> frozenset[str]:
        return frozenset(("text_list", "image_info"))

    def __call__(self, origin: str, record: Mapping[str, Any], pictures: Pictures) -> Document:
        texts, infos = _lists(origin, record, "text_list", "image_info")
        before: dict[int, list[Image]] = {}
        for info in infos:
            place = info.get("matched_text_index") if isinstance(info, Mapping) else None
            if not isinstance(place, int) or not 0 <= place < len(texts):
                raise UserError(f"{origin}: an image's matched_text_index is none of its {len(texts)} texts: {place!r}")
            value = next((info[key] for key in MMC4_IMAGES if info.get(key)), None)
            if value is None:
                raise UserError(f"{origin}: an image has none of {', '.join(MMC4_IMAGES)}")
            before.setdefault(place, []).append(_image(origin, value, pictures))
        pieces: list[Part] = []
        for place, said in enumerate(texts):
            pieces.extend(before.get(place, ()))
            _add(pieces, text(origin, "a text", said), SENTENCE)
        return _page(origin, pieces)


@dataclass(frozen=True)
class Pairs:
    """Records with ``images``, all shown first, and ``texts`` of ``{"user": ..., "assistant": ...}``."""

    version: ClassVar[int] = FORMAT
    main: ClassVar[str] = "texts"
    images: ClassVar[tuple[str, ...]] = ("images",)

    def of(self, record: Mapping[str, Any]) -> Self:
        return self

    def reads(self, keys: tuple[str, ...]) -> frozenset[str]:
        return frozenset(("texts", "images"))

    def __call__(self, origin: str, record: Mapping[str, Any], pictures: Pictures) -> Document:
        said: list[tuple[str, Content]] = []
        for pair in _lists(origin, record, "texts")[0]:
            if not isinstance(pair, Mapping):
                raise UserError(f"{origin}: 'texts' must be a list of objects, not {pair!r:.40}")
            for role in ("user", "assistant"):
                words = text(origin, f"'{role}'", column(origin, pair, role))
                said.append((role, [Text(words)] if words else []))
        _, images = find_media(origin, record, ("images",), pictures)
        if said:
            said[0] = ("user", [*images, *said[0][1]])
        return document(origin, said)


def recognise(record: Mapping[str, Any]) -> Parallel | Matched | Pairs | None:
    """Returns the format of a record that has lists of texts and images, or None."""
    if isinstance(record.get("text_list"), list) and "image_info" in record:
        return Matched()
    texts = record.get("texts")
    if isinstance(texts, list) and "images" in record:
        return Pairs() if texts and isinstance(texts[0], Mapping) else Parallel()
    return None


def _lists(origin: str, record: Mapping[str, Any], *names: str) -> list[list[Any]]:
    values = [column(origin, record, name) for name in names]
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, list):
            raise UserError(f"{origin}: '{name}' must be a list, not {value!r:.40}")
    return values


def _image(origin: str, value: Any, pictures: Pictures) -> Image:
    try:
        return pictures.image(value)
    except ValueError as error:
        raise UserError(f"{origin}: {error}") from error


def _add(pieces: list[Part], said: str, between: str) -> None:
    if not said:
        return
    if pieces and isinstance(pieces[-1], Text):
        pieces[-1] = Text(pieces[-1].text + between + said)
    else:
        pieces.append(Text(said))


def _page(origin: str, pieces: list[Part]) -> Document:
    if not any(isinstance(piece, Text) for piece in pieces):
        raise SkipRecord("empty")
    return document(origin, [("document", pieces)])
