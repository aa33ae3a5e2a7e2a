"""Finds the media that a record holds in columns, by kind, and which placeholders of its texts stand for them."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmm.data.documents import Media, Tokens
from jaxmm.data.readers.columns import FEATURES, KNOWN, NONE, TOKENS, counts, is_named, media, resolved
from jaxmm.data.readers.kinds import IMAGE, KINDS, Kind
from jaxmm.data.readers.parts import Held, ReadTurn
from jaxmm.data.readers.pictures import NoMedium, Pictures
from jaxmm.data.readers.typed import Marks
from jaxmm.errors import UserError

# The columns of a format of records without a description, by its attributes.
BY_NAME: dict[str, Any] = {"images": (KNOWN, FEATURES, TOKENS), "videos": (KNOWN,), "audios": (KNOWN,)}


def columns_of(form: Any, kind: Kind) -> tuple[str, ...]:
    """Returns a format's columns of a kind: its attribute ``images``, ``videos`` or ``audios``, if it has one."""
    columns: tuple[str, ...] = getattr(form, kind.many, ())
    return columns


def read_of(form: Any, keys: tuple[str, ...]) -> frozenset[str]:
    """Returns the columns of media that a format reads from a record with these keys."""
    return frozenset(name for kind in KINDS for name in resolved(keys, columns_of(form, kind), kind))


def find_media(
    origin: str, record: Mapping[str, Any], columns: Sequence[str], pictures: Pictures, kind: Kind = IMAGE
) -> tuple[str, list[Media]]:
    """Returns the first of the columns that has content, and its media: those of a list, or a single one.

    A column ``features`` (.npy files) or ``image_tokens`` (lists of ids) holds ready-made media. ('', []) if none has.

    Raises:
      UserError: for a value that is no medium of the kind.
    """
    return _in_columns(origin, record, resolved(tuple(record), tuple(columns), kind), columns, pictures, kind)


def _in_columns(
    origin: str,
    record: Mapping[str, Any],
    names: Sequence[str],
    columns: Sequence[str],
    pictures: Pictures,
    kind: Kind,
) -> tuple[str, list[Media]]:
    for name in names:
        value = record[name]
        if counts(name, value, columns, kind):
            form = name if kind is IMAGE and name in (FEATURES, TOKENS) else kind.name
            try:
                return name, [pictures.medium(form, one) for one in media(name, value, columns, kind)]
            except ValueError as error:
                is_guessed = kind is not IMAGE and name not in columns and isinstance(error, NoMedium)
                advice = f"; if it holds no {kind.noun}s, say so with config.data.columns={kind.name}=" * is_guessed
                raise UserError(f"{origin}: '{name}': {error}{advice}") from error
    return "", []


def may_hold(record: Mapping[str, Any], columns: Sequence[str], kind: Kind = IMAGE) -> bool:
    """Whether a record has one of the columns, even if it is null."""
    return any(
        is_named(name, kind) or counts(name, record[name], columns, kind)
        for name in resolved(tuple(record), tuple(columns), kind)
    )


def _may_mean(record: Mapping[str, Any], columns: Sequence[str], kind: Kind) -> bool:
    """Whether a placeholder of a clip can be meant: HTML has <video> and <audio>, and most data has no clips.

    It can if a description names a column of clips, or the record has one.
    """
    return any(name not in (KNOWN, NONE) for name in columns) or may_hold(record, columns, kind)


def held(
    origin: str,
    record: Mapping[str, Any],
    form: Any,
    pictures: Pictures,
    *,
    is_page: bool = False,
    single_in_front: bool = False,
) -> list[Held]:
    """Returns the media of a record by kind, with the placeholders that count in its texts.

    Args:
      form: the format, whose columns count.
      is_page: whether the placeholder of a picture, too, counts only beside a column that may hold some.
      single_in_front: whether a single medium without a placeholder goes in front, whatever its column is called.

    Raises:
      UserError: as ``find_media``.
    """
    of_kinds = []
    for kind, columns, names in _to_look_at(tuple(record), tuple(columns_of(form, kind) for kind in KINDS)):
        name, own = _in_columns(origin, record, names, columns, pictures, kind)
        if kind is IMAGE:
            is_meant = not is_page or may_hold(record, columns)
        else:
            is_meant = _may_mean(record, columns, kind)
        in_front = (single_in_front or name != kind.many) and (is_page or name not in (FEATURES, TOKENS))
        of_kinds.append(Held(kind, own, pictures.mark(kind, own) if is_meant else "", in_front, name))
    return _told_apart(origin, of_kinds)


@functools.lru_cache(maxsize=1 << 10)
def _to_look_at(
    keys: tuple[str, ...], columns_of_kinds: tuple[tuple[str, ...], ...]
) -> list[tuple[Kind, tuple[str, ...], tuple[str, ...]]]:
    """Returns each kind that a record with these keys may have, with the format's columns and those of the record."""
    places = []
    for kind, columns in zip(KINDS, columns_of_kinds, strict=True):
        names = resolved(keys, columns, kind)
        if names or kind is IMAGE or any(name not in (KNOWN, NONE) for name in columns):
            places.append((kind, columns, names))
    return places


def _told_apart(origin: str, found: list[Held]) -> list[Held]:
    """Gives a placeholder that may stand for several kinds to the one that the record has."""
    if len(found) == 1:
        return found
    marks = [one.placeholder for one in found if one.placeholder]
    if len(set(marks)) == len(marks):
        return found
    owners: dict[str, Held] = {}
    for one in found:
        owner = owners.setdefault(one.placeholder, one)
        if one.media and owner.media and one is not owner and one.placeholder:
            raise UserError(
                f"{origin} has {owner.kind.many} and {one.kind.many}, and {one.placeholder} stands for both: give each "
                f"its own by config.data.placeholder, video_placeholder and audio_placeholder"
            )
        if one.media and not owner.media:
            owners[one.placeholder] = one
    return [one if one is owners[one.placeholder] else one._replace(placeholder="") for one in found]


def marks_of(found: Sequence[Held]) -> Marks:
    """Returns the kind of each placeholder that counts."""
    return {one.placeholder: one.kind for one in found if one.placeholder}


def without_named_twice(origin: str, said: Sequence[ReadTurn], found: Sequence[Held]) -> list[Held]:
    """Returns the media that are to be placed: without those that the messages' parts name themselves.

    Raises:
      UserError: if parts and column name different media of a kind.
    """
    return [one._replace(media=()) if one.media and _has_its_own(origin, said, one) else one for one in found]


def _has_its_own(origin: str, said: Sequence[ReadTurn], one: Held) -> bool:
    kind, mark = one.kind, one.placeholder
    contents = [turn.content for turn in said]
    own = [piece for c in contents if not isinstance(c, str) for piece in c if isinstance(piece, kind.parts)]
    if not own or any(kind in c if not isinstance(c, str) else mark and mark in c for c in contents):
        return False
    if len(own) == len(one.media) and all(_may_be_one(*pair) for pair in zip(own, one.media, strict=True)):
        return True
    raise UserError(
        f"{origin}: its parts name {len(own)} {kind.noun}s, and '{one.column}' {len(one.media)} others: keep them in "
        f"one place"
    )


def _may_be_one(one: Any, other: Any) -> bool:
    if type(one) is type(other) and not isinstance(one, Tokens) and one.path and other.path:
        return os.path.basename(one.path) == os.path.basename(other.path)
    return type(one) is type(other)
