"""The content of messages, piece by piece: lists of typed parts, and pictures that a text names in <img> tags."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jaxmm.data.documents import Media, Part, Text
from jaxmm.data.readers.columns import FEATURES, TOKENS, looks
from jaxmm.data.readers.parts import NEXT, Content, text
from jaxmm.data.readers.pictures import Pictures, check_size
from jaxmm.errors import UserError

TEXT_TYPES, IMAGE_TYPES = ("text", "input_text", "output_text"), ("image", "image_url", "input_image")
OWN_KEYS = {FEATURES: ("features", "path", "url", "bytes", "value"), TOKENS: ("ids", "image_tokens", "value")}
IMAGE_KEYS = ("image", "image_url", "url", "path", "bytes", "base64", "data", "source", "value")
TEXT_KEYS = ("text", "value", "content")
_TAG = re.compile(r"<img>\s*([^<>\n]{1,1024}?)\s*</img>")


def tagged(origin: str, content: str, pictures: Pictures, links: bool = True) -> Content:
    """Returns a text, or its pieces if it names pictures as ``<img>path</img>``; URLs count only with ``links``."""
    if "<img>" not in content or not pictures.placeholder:
        return content
    pieces: list[Part | None] = []
    at = 0
    for tag in _TAG.finditer(content):
        if looks(tag[1]) in ("file", "link" if links else ""):
            _add_text(pieces, content[at : tag.start()], pictures.placeholder)
            try:
                pieces.append(pictures.image(tag[1]))
            except ValueError as error:
                raise UserError(f"{origin}: <img>: {error}") from error
            at = tag.end()
    if not at:
        return content
    _add_text(pieces, content[at:], pictures.placeholder)
    return pieces


def placed(origin: str, content: Content, images: Sequence[Media], placeholder: str) -> Content:
    """Puts a message's own pictures at its placeholders, or in front if it has none.

    Raises:
      UserError: if pictures and placeholders differ in number.
    """
    pieces: list[Part | None] = []
    if isinstance(content, str) and placeholder:
        _add_text(pieces, content, placeholder)
    else:
        pieces = [Text(content)] if isinstance(content, str) else list(content)
    count = pieces.count(NEXT)
    if not count:
        return [*images, *pieces]
    if count != len(images):
        raise UserError(
            f"{origin}: a message has {count} {placeholder} placeholders but {len(images)} images of its own"
        )
    left = iter(images)
    return [next(left) if piece is NEXT else piece for piece in pieces]


def _add_text(pieces: list[Part | None], said: str, placeholder: str) -> None:
    for i, piece in enumerate(said.split(placeholder)):
        pieces += [NEXT] * bool(i) + [Text(piece)] * bool(piece)


def typed_parts(origin: str, what: str, content: Sequence[Any], pictures: Pictures) -> list[Part | None]:
    """Returns the pieces of a list of parts: ``{"type": "text", "text": ...}``, ``{"type": "image", ...}``.

    Ready-made media are ``{"type": "features", "path": ...}`` and ``{"type": "image_tokens", "ids": [...]}``. A medium
    without a value of its own is the record's next one. Text is only text: placeholders do not count in it. Some data
    has no types, and some (a table with one schema for all) has every key, most of them null.
    """
    pieces: list[Part | None] = []
    for part in content:
        kind = kind_of(part)
        if kind == "text":
            value = text(origin, what, next((part[k] for k in TEXT_KEYS if part.get(k) is not None), ""))
            if value:
                pieces.append(Text(value))
        elif kind:
            own = next((part[k] for k in OWN_KEYS.get(kind, IMAGE_KEYS) if part.get(k)), None)
            try:
                check_size(part)
                pieces.append(NEXT if own is None else pictures.medium(kind, part))
            except ValueError as error:
                raise UserError(f"{origin}: {what}: {error}") from error
        else:
            raise UserError(f"{origin}: {what} has a part that is neither text nor image: {part!r:.60}")
    return pieces


def kind_of(part: Any) -> str:
    """Says whether a part is a "text", an "image" or ready-made media; '' for anything else."""
    if not isinstance(part, dict):
        return ""
    kind = part.get("type")
    if not isinstance(kind, str | None):
        return ""
    if kind in TEXT_TYPES:
        return "text"
    if kind in IMAGE_TYPES:
        return "image"
    if kind in OWN_KEYS:
        return kind
    if kind is not None:
        return ""
    return (
        "image" if part.get("image") or part.get("image_url") else "text" if isinstance(part.get("text"), str) else ""
    )
