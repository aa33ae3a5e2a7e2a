"""The content of messages, piece by piece: lists of typed parts, and pictures that a text names in <img> tags."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmm.data.documents import Media, Text
from jaxmm.data.readers import clips
from jaxmm.data.readers.columns import FEATURES, TOKENS, looks
from jaxmm.data.readers.kinds import AUDIO, IMAGE, VIDEO, Kind
from jaxmm.data.readers.parts import Content, Piece, split, text
from jaxmm.data.readers.pictures import Pictures
from jaxmm.errors import UserError

TEXT_TYPES, IMAGE_TYPES = ("text", "input_text", "output_text"), ("image", "image_url", "input_image")
VIDEO_TYPES, AUDIO_TYPES = ("video", "video_url", "input_video"), ("audio", "audio_url", "input_audio")
IMAGE_KEYS = ("image", "image_url", "url", "path", "bytes", "base64", "data", "source", "value")
OWN_KEYS = {
    "image": IMAGE_KEYS,
    "video": clips.VIDEO_KEYS,
    "audio": clips.AUDIO_KEYS,
    FEATURES: ("features", "path", "url", "bytes", "value"),
    TOKENS: ("ids", "image_tokens", "value"),
}
KINDS = {"video": VIDEO, "audio": AUDIO}  # of a type of parts; all other media are pictures
TEXT_KEYS = ("text", "value", "content")
_TAG = re.compile(r"<img>\s*([^<>\n]{1,1024}?)\s*</img>")
Marks = Mapping[str, Kind]  # the kind that each placeholder of a record stands for


def tagged(origin: str, content: str, pictures: Pictures, marks: Marks, links: bool = True) -> Content:
    """Returns a text, or its pieces if it names pictures as ``<img>path</img>``; URLs count only with ``links``."""
    if "<img>" not in content or not pictures.placeholder:
        return content
    pieces: list[Piece] = []
    at = 0
    for tag in _TAG.finditer(content):
        if looks(tag[1]) in ("file", "link" if links else ""):
            pieces += split(content[at : tag.start()], marks)
            try:
                pieces.append(pictures.image(tag[1]))
            except ValueError as error:
                raise UserError(f"{origin}: <img>: {error}") from error
            at = tag.end()
    if not at:
        return content
    return [*pieces, *split(content[at:], marks)]


def placed(origin: str, content: Content, own: Mapping[Kind, Sequence[Media]], marks: Marks) -> Content:
    """Puts a message's own media at its placeholders, or in front if it has none.

    Raises:
      UserError: if media and placeholders of a kind differ in number.
    """
    pieces: list[Piece] = split(content, marks) if isinstance(content, str) else list(content)
    names = {kind: mark for mark, kind in marks.items()}
    in_front: list[Piece] = []
    for kind, media in own.items():
        count = pieces.count(kind)
        if not count:
            in_front += media
        elif count != len(media):
            raise UserError(
                f"{origin}: a message has {count} {names.get(kind, kind.placeholder)} placeholders but {len(media)} "
                f"{kind.many} of its own"
            )
    left = {kind: iter(media) for kind, media in own.items()}
    return in_front + [next(left[p]) if isinstance(p, Kind) and p in left else p for p in pieces]


def typed_parts(origin: str, what: str, content: Sequence[Any], pictures: Pictures) -> list[Piece]:
    """Returns the pieces of a list of parts: ``{"type": "text", "text": ...}``, ``{"type": "image", ...}``.

    Clips, and ``.npy`` files of their feature vectors, are ``{"type": "video", ...}`` and ``{"type": "audio", ...}``.
    Ready-made pictures are ``{"type": "features", "path": ...}`` and ``{"type": "image_tokens", "ids": [...]}``. A
    medium without a value of its own is the record's next one of its kind. Text is only text: placeholders do not count
    in it. Some data has no types, and some (a table with one schema for all) has every key, most of them null.
    """
    pieces: list[Piece] = []
    for part in content:
        type_ = kind_of(part)
        if type_ == "text":
            value = text(origin, what, next((part[k] for k in TEXT_KEYS if part.get(k) is not None), ""))
            if value:
                pieces.append(Text(value))
        elif type_:
            own = next((part[k] for k in OWN_KEYS[type_] if part.get(k)), None)
            kind = KINDS.get(type_, IMAGE)
            try:
                clips.check_settings(part, kind)
                if own is None:
                    clips.check_no_own(part, kind)
                pieces.append(kind if own is None else pictures.medium(type_, part))
            except ValueError as error:
                raise UserError(f"{origin}: {what}: {error}") from error
        else:
            raise UserError(f"{origin}: {what} has a part that is neither text nor image: {part!r:.60}, nor a clip")
    return pieces


def kind_of(part: Any) -> str:
    """Says whether a part is a "text", an "image", a "video", an "audio" or ready-made media; '' for anything else."""
    if not isinstance(part, dict):
        return ""
    kind = part.get("type")
    if not isinstance(kind, str | None):
        return ""
    for name, types in (("text", TEXT_TYPES), ("image", IMAGE_TYPES), ("video", VIDEO_TYPES), ("audio", AUDIO_TYPES)):
        if kind in types or (kind is None and name != "text" and any(part.get(key) for key in types[:2])):
            return name
    if kind in OWN_KEYS:
        return kind
    return "text" if kind is None and isinstance(part.get("text"), str) else ""
