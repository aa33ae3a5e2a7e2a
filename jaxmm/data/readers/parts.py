"""What formats share: checks of a record's values, and turns made of texts, placeholders and media."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxmm.data.documents import PLACEHOLDER, Document, Media, Part, Text, Turn
from jaxmm.data.readers.kinds import IMAGE, KINDS, Kind
from jaxmm.errors import UserError, nearest


class SkipRecord(Exception):
    """A record that yields no document. ``reason`` is one of SKIP_REASONS; ``detail`` adds to it."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


MOST_NAMED = 40  # columns named in one line
Piece = Part | Kind  # a kind is the place of the record's next medium of that kind
Content = str | Sequence[Piece]  # a string in which placeholders count, or pieces


class Held(NamedTuple):
    """The media of one kind that a record has beside its texts.

    Attributes:
      media: in the order of their placeholders.
      placeholder: the string that stands for one; with '' there is none, and a string is only text.
      in_front: whether a single one without a placeholder goes before the first turn that is not a system turn.
      column: that they were found in; '' for none.
    """

    kind: Kind
    media: Sequence[Media] = ()
    placeholder: str = ""
    in_front: bool = False
    column: str = ""


class ReadTurn(NamedTuple):
    """A turn as a format reads it: like ``documents.Turn``, but the record's media are not in place yet.

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


def decoded(encoded: str) -> bytes:
    """Returns what base64 text stands for. Raises SkipRecord if it cannot be decoded, or is empty."""
    try:
        data = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SkipRecord("unreadable") from error
    if not data:
        raise SkipRecord("unreadable")
    return data


def split(content: str, marks: Mapping[str, Kind]) -> list[Piece]:
    """Returns the texts between placeholders, and the kinds of these; ``marks`` has the kind of each placeholder."""
    present = [mark for mark in marks if mark in content]
    if not present:
        return [Text(content)] if content else []
    pieces: list[Piece] = []
    if len(present) == 1:
        kind = marks[present[0]]
        for piece in content.split(present[0]):
            pieces += (Text(piece), kind) if piece else (kind,)
        return pieces[:-1]
    for piece in re.split(f"({'|'.join(map(re.escape, sorted(present, key=len, reverse=True)))})", content):
        if piece:
            pieces.append(marks.get(piece) or Text(piece))
    return pieces


def document(
    origin: str,
    said: Sequence[ReadTurn | tuple[str, Content]],
    held: Sequence[Held] = (Held(IMAGE, placeholder=PLACEHOLDER),),
    tools: str = "",
) -> Document:
    """Puts a record's media where their placeholders are.

    Args:
      said: the content of each turn; (role, content) is enough.
      held: the media of the record, by kind.
      tools: as in ``Document``.

    Raises:
      SkipRecord: if there are no turns.
      UserError: if placeholders and media of a kind differ in number.
    """
    if not said:
        raise SkipRecord("empty")
    entries = [ReadTurn(*one) for one in said]
    marks = {one.placeholder: one.kind for one in held if one.placeholder}
    contents = [split(one.content, marks) if isinstance(one.content, str) else one.content for one in entries]
    places = [piece for content in contents for piece in content if isinstance(piece, Kind)]
    left, in_front = _checked(origin, places, held)
    turns = []
    for (role, _, weight, is_trained, thinking, calls), content in zip(entries, contents, strict=True):
        parts = tuple([next(left[piece]) if isinstance(piece, Kind) else piece for piece in content])
        if in_front and (role != "system" or all(one.role == "system" for one in entries)):
            parts, in_front = (*in_front, *parts), []
        target = weight > 0 and (is_trained or role in ("document", "assistant"))
        turns.append(Turn(role, parts, target, thinking, calls, weight))
    return Document(tuple(turns), origin, tools=tools)


def _checked(
    origin: str, places: Sequence[Kind], held: Sequence[Held]
) -> tuple[dict[Kind, Iterator[Media]], list[Media]]:
    """Returns the media that go to places, by kind, and those that go in front.

    Raises:
      UserError: if places and media of a kind differ in number.
    """
    left: dict[Kind, Iterator[Media]] = {}
    in_front: list[Media] = []
    lacking = set(places).difference([one.kind for one in held])
    for one in [*held, *(Held(kind) for kind in KINDS if kind in lacking)] if lacking else held:
        count = places.count(one.kind)
        if one.in_front and count == 0 and len(one.media) == 1:
            in_front += one.media
        elif count != len(one.media):
            raise UserError(f"{origin} has {_differs(one, count)}")
        left[one.kind] = iter(one.media)
    return left, in_front


def _differs(held: Held, count: int) -> str:
    """Says that placeholders and media of a kind differ in number, and what to do about it."""
    kind, placeholder = held.kind, held.placeholder or held.kind.placeholder
    called = kind.article.rpartition(" ")[2]
    advice = f"give each {called} one placeholder, and each placeholder {kind.article}"
    if not held.media and held.placeholder:
        advice += (
            f"; where {placeholder} is only text, write it in typed parts, or set config.data.bare_placeholder=text"
        )
    return f"{count} {placeholder} placeholders but {len(held.media)} {kind.many}: {advice}"
