"""Which columns of a record hold its media: by a table of names, and by values that look like a file of a kind."""

from __future__ import annotations

import ast
import base64
import binascii
import collections
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxmm.data.readers.kinds import AUDIO, IMAGE, KINDS, VIDEO, Kind, of_name

FEATURES, TOKENS = "features", "image_tokens"  # types of parts, and columns of ready-made media

SHORTEST_BASE64 = 80
BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
LONGEST_PATH = 1024

NONE = "\0"  # among the columns of a format: no other column has media of that kind, whatever it looks like
KNOWN = "*"  # among the columns of a format: all columns of the record that the table names, in the table's order
_PLACES = {kind: {name: place for place, name in enumerate((*kind.names, *kind.general))} for kind in KINDS}
_BASE64 = tuple(start for kind in KINDS for start in kind.base64)
_MARKS = re.compile(r"[^a-z0-9]")
_INNER = ("bytes", "path", "url", "image", "image_url", "base64", "data")  # keys of an object that stands for a medium
_INNER_OF = {
    IMAGE: _INNER,
    VIDEO: (*_INNER, "video", "video_url"),
    AUDIO: (*_INNER, "audio", "audio_url", "input_audio"),
}


def plain(name: str) -> str:
    """Returns a column's name without case and punctuation."""
    return _MARKS.sub("", name.lower())


@functools.lru_cache(maxsize=1 << 10)
def resolved(keys: tuple[str, ...], columns: tuple[str, ...], kind: Kind = IMAGE) -> tuple[str, ...]:
    """Returns the columns of a record with these keys that may hold media of a kind, in the order of preference."""
    candidates: list[str] = []
    places = _PLACES[kind]
    for name in columns:
        if name == KNOWN:
            known = [key for key in keys if plain(key) in places]
            candidates += sorted(known, key=lambda key: places[plain(key)])
        elif name in keys:
            candidates.append(name)
    return tuple(dict.fromkeys(candidates))


def counts(name: str, value: Any, columns: Sequence[str], kind: Kind = IMAGE) -> bool:
    """Whether a column holds what its name says; other data has columns of the same name with other content."""
    if is_nothing(value) or (kind is not IMAGE and (isinstance(value, bool) or value == 0)):
        return False  # a switch, or a count of clips, is no clip
    if kind is IMAGE and name == FEATURES:
        values = value if isinstance(value, list) else [value]
        return all(isinstance(v, bytes) or (isinstance(v, str) and v.endswith(".npy")) for v in values)
    if kind is IMAGE and name == TOKENS:
        return isinstance(value, list) and all(isinstance(v, list) for v in value)
    if name in columns or plain(name) not in kind.general:
        return True
    how = looks(value, kind)
    return how in ("file", "bytes") or (how == "link" and "url" in plain(name))


def is_named(name: str, kind: Kind = IMAGE) -> bool:
    """Whether a column of that name holds media of a kind, whatever its value looks like."""
    return plain(name) in kind.names


def is_nothing(value: Any) -> bool:
    """Whether a value stands for no medium: null, '', NaN as pandas writes it, an object or a list of these alone."""
    if isinstance(value, Mapping):
        return all(is_nothing(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return all(map(is_nothing, value))
    return value is None or value == "" or value == b"" or value != value


def listed(value: Any) -> list[Any]:
    """Returns a column's media one by one; a list may be written as text, as in a CSV file."""
    if isinstance(value, str) and value[:1] == "[" and value.rstrip()[-1:] == "]":
        value = _from_text(value)
    return value if isinstance(value, list) else [value]


def media(name: str, value: Any, columns: Sequence[str], kind: Kind) -> list[Any]:
    """Returns the media of one kind in a column, one by one. A list of pictures alone is one video: its frames."""
    values = listed(value)
    if kind is VIDEO and values and isinstance(values[0], str | bytes | Mapping) and all(map(is_still, values)):
        return [values]
    if name not in columns and plain(name) in kind.general:  # files of several kinds may lie in one column
        values = [v for v in values if looks(v, kind) or not any(looks(v, other) for other in KINDS)]
    return [v for v in values if not is_nothing(v)]


def is_still(value: Any) -> bool:
    """Whether a value looks like a picture that does not move."""
    if isinstance(value, Mapping):
        return any(is_still(value[key]) for key in _INNER if value.get(key))
    if not isinstance(value, str | bytes):
        return False
    moves = value.rstrip().lower().endswith(".gif") if isinstance(value, str) else value.startswith(b"GIF8")
    return not moves and bool(looks(value))


def _from_text(value: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            parsed = parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(parsed, list) and all(isinstance(one, str) for one in parsed):
            return parsed
    return value


def looks(value: Any, kind: Kind = IMAGE) -> str:
    """Says what a value looks like: "file" for a medium's path, "link" for its URL, "bytes" for its content, or ''.

    A list looks like the first of its entries that looks like anything.
    """
    if isinstance(value, str):
        if len(value) <= LONGEST_PATH:
            if value[:1] == "[":
                entries = listed(value)
                return looks(entries, kind) if entries != [value] else ""
            if ("." in value[-6:] or "://" in value) and "\n" not in value and of_name(value) is kind:
                return "link" if "://" in value and not value.startswith(("file://", "local://")) else "file"
        return "bytes" if value.startswith(f"data:{kind.name}/") or is_base64(value, kind) else ""
    if isinstance(value, bytes):
        return "bytes" if kind.begins(value[:12]) else ""
    if isinstance(value, Mapping):
        if kind is AUDIO and value.get("array") and "sampling_rate" in value:
            return "bytes"
        return next(filter(None, (looks(value[key], kind) for key in _INNER_OF[kind] if key in value)), "")
    if isinstance(value, list | tuple):
        return next(filter(None, (looks(one, kind) for one in value[:16])), "")
    return ""


def appears(name: str, value: Any) -> tuple[Kind, str]:
    """Returns the kind that a column appears to be of, by its name or else by its value, and what the value looks like.

    What looks like nothing is (IMAGE, '').
    """
    if not _may_look(value):
        return IMAGE, ""
    named = _named(name)
    if named is VIDEO and isinstance(value, list) and (how := looks(value)):
        return VIDEO, how  # frames
    for kind in (named, *KINDS) if named else KINDS:
        if how := looks(value, kind):
            return kind, how
    return IMAGE, ""


@functools.lru_cache(maxsize=1 << 10)
def _named(name: str) -> Kind | None:
    return next((kind for kind in KINDS if is_named(name, kind)), None)


def _may_look(value: Any) -> bool:
    """Whether a value may look like a medium; most texts and numbers do not, and this is quickly known."""
    if not isinstance(value, str):
        return isinstance(value, bytes | Mapping | list | tuple)
    if value[:1] == "[" or value.startswith("data:") or (len(value) >= SHORTEST_BASE64 and value.startswith(_BASE64)):
        return True
    return ("." in value[-6:] or "://" in value) and len(value) <= LONGEST_PATH and of_name(value) is not None


def is_base64(value: str, kind: Kind) -> bool:
    """Whether a text begins as base64 of a medium does."""
    if len(value) < SHORTEST_BASE64 or not value.startswith(kind.base64) or not BASE64.fullmatch(value[:LONGEST_PATH]):
        return False
    try:
        head = base64.b64decode("".join(value[:64].split())[:16])
    except binascii.Error:
        return False
    # Several kinds begin as RIFF does. Pictures are known by less than their whole beginning.
    return kind.begins(head) or (kind is IMAGE and not any(other.begins(head) for other in KINDS))


class Seen(NamedTuple):
    """How many records had each column.

    Attributes:
      read, unread: number of records by column, for columns that are read and those that are not.
      pictures: by column, in how many records it looked like a picture, or a clip, that was not read.
    """

    read: collections.Counter[str]
    unread: collections.Counter[str]
    pictures: collections.Counter[str]

    @classmethod
    def nothing(cls) -> Seen:
        return cls(collections.Counter(), collections.Counter(), collections.Counter())

    def add(self, other: Mapping[str, Mapping[str, int]]) -> None:
        for mine, name in zip(self, self._fields, strict=True):
            mine.update(other.get(name, {}))

    def as_json(self) -> dict[str, dict[str, int]]:
        return {name: dict(sorted(counter.items())) for name, counter in zip(self._fields, self, strict=True)}
