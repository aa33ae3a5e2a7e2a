"""What formats share: checks of a record's values, and turns made of texts, placeholders and images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxmm.data.documents import PLACEHOLDER, Document, Media, Part, Text, Turn
from jaxmm.errors import UserError, nearest


class SkipRecord(Exception):
    """A record that yields no document. ``reason`` is one of SKIP_REASONS; ``detail`` adds to it."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


MOST_NAMED = 40  # columns named in one line
NEXT = None  # in a list of pieces: the place of the record's next image, or other medium
Content = str | Sequence[Part | None]  # a string in which placeholders count, or pieces


class ReadTurn(NamedTuple):
    """A turn as a format reads it: like ``documents.Turn``, but its images are not in place yet.

    ``is_trained``: whether it is learnt, whatever its role.
    """

    role: str
    content: Content
    weight: float = 1.0
    is_trained: bool = False
    thinking: str = ""
    calls: str = ""


def listed(keys: Iterable[str]) -> str:
    """Names columns in one line, at most MOST_NAMED of them."""
    named = [key if key.isprintable() else repr(key) for key in keys]
    return ", ".join(named[:MOST_NAMED]) + (f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else "")


def column(origin: str, record: Mapping[str, Any], name: str) -> Any:
    """Returns a record's value. Raises UserError if the key does not exist; null is a value."""
    if name not in record:
        raise UserError(f"{origin} has no '{name}'{nearest(name, record)}; it has {listed(record) or 'nothing'}")
    return record[name]


def text(origin: str, what: str, value: Any) -> str:
    """Returns a value that must be text.

    Raises:
      SkipRecord: for a lone surrogate (which is also what a byte that is not UTF-8 is read as), or a NUL.
      UserError: for anything but text.
    """
    if not isinstance(value, str):
        raise UserError(f"{origin}: {what} must be text, not {value!r:.40}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise SkipRecord("broken text") from error
    if "\0" in value:
        raise SkipRecord("broken text")
    return value


def refuse_later(origin: str, record: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Raises UserError for a record with content in a column that is not read yet; an empty list is no content."""
    for name in columns:
        if record.get(name):
            raise UserError(f"{origin} has something in '{name}', which is not supported yet: leave such records out")


def document(
    origin: str,
    said: Sequence[ReadTurn | tuple[str, Content]],
    images: Sequence[Media] = (),
    *,
    placeholder: str = PLACEHOLDER,
    in_front: bool = False,
    tools: str = "",
) -> Document:
    """Puts a record's images where its placeholders are.

    Args:
      said: the content of each turn; (role, content) is enough.
      images: of the record, or other media, in the order of the placeholders.
      placeholder: the string that stands for an image; with '' there is none, and a string is only text.
      tools: as in ``Document``.
      in_front: whether a single image without a placeholder goes before the first turn that is not a system turn.

    Raises:
      SkipRecord: if there are no turns.
      UserError: if placeholders and images differ in number.
    """
    if not said:
        raise SkipRecord("empty")
    entries = [ReadTurn(*one) for one in said]
    count = sum(
        (content.count(placeholder) if placeholder else 0) if isinstance(content, str) else content.count(NEXT)
        for content in (one.content for one in entries)
    )
    front = in_front and count == 0 and len(images) == 1
    if count != len(images) and not front:
        advice = "give each image one placeholder, and each placeholder an image"
        if not images:
            advice += (
                f"; where {placeholder} is only text, write it in typed parts, or set config.data.bare_placeholder=text"
            )
        name = placeholder or PLACEHOLDER
        raise UserError(f"{origin} has {count} {name} placeholders but {len(images)} images: {advice}")
    left = iter(images)
    opening = next((i for i, one in enumerate(entries) if one.role != "system"), 0) if front else -1
    turns = []
    for i, (role, content, weight, is_trained, thinking, calls) in enumerate(entries):
        parts = _parts(content, left, placeholder if count > 0 else "")
        if i == opening:
            parts = (next(left), *parts)
        target = weight > 0 and (is_trained or role in ("document", "assistant"))
        turns.append(Turn(role, parts, target, thinking, calls, weight))
    return Document(tuple(turns), origin, tools=tools)


def _parts(content: Content, images: Iterator[Media], placeholder: str) -> tuple[Part, ...]:
    if isinstance(content, str):
        if not placeholder or placeholder not in content:
            return (Text(content),) if content else ()
        parts: list[Part] = []
        for i, piece in enumerate(content.split(placeholder)):
            if i:
                parts.append(next(images))
            if piece:
                parts.append(Text(piece))
        return tuple(parts)
    return tuple(next(images) if piece is NEXT else piece for piece in content)
