"""The media there are, and whose a part or a kind of the index is.

Adding a medium is a file with its ``Medium`` and a line in MEDIA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxmm.batch import Batch, ImageSpec, Stream
from jaxmm.data.media.features import FeaturesMedium, feature_widths
from jaxmm.data.media.image import ImageMedium
from jaxmm.data.media.medium import Extents, Medium
from jaxmm.data.media.tokens import TokensMedium

# By name. The order is that of their soft tokens in the table of a row, so that a new one comes last.
MEDIA: dict[str, Medium] = {medium.name: medium for medium in (ImageMedium(), FeaturesMedium(), TokensMedium())}
FIRST = ("image", "features", "image_tokens")  # those that a prepared folder may have without naming them


def medium_of(part: Any) -> Medium:
    """The medium of a part of a document that is no text."""
    for medium in MEDIA.values():
        if isinstance(part, medium.part):
            return medium
    raise TypeError(f"{type(part).__name__} is no medium: {', '.join(MEDIA)} are")


def medium_of_kind(kind: int) -> Medium:
    """The medium of a kind in the index."""
    for medium in MEDIA.values():
        if medium.has(kind):
            return medium
    raise ValueError(f"no medium has the kind {kind}")


def packed(part: Any) -> dict[str, Any]:
    """What a record holds of a medium; None is one of which it holds nothing."""
    return {} if part is None else medium_of(part).packed(part)


def unpacked(content: Mapping[str, Any]) -> Any:
    """The part that a record holds, or None for one that is in its tokens."""
    for medium in MEDIA.values():
        if medium.is_packed(content):
            return medium.unpacked(content)
    raise ValueError(f"no medium is stored as {sorted(content)}")


def by_medium(kinds: np.ndarray) -> Iterator[tuple[Medium, np.ndarray | None]]:
    """Yields each medium among some kinds, and which are its own; None is all of them, which is the usual case."""
    left = len(kinds)
    for medium in MEDIA.values():
        if not left:
            return
        is_own = medium.has(kinds)
        count = int(np.count_nonzero(is_own))
        if count:
            yield medium, None if count == len(kinds) else is_own
        left -= count
    if left:
        raise ValueError(f"no medium has some of the kinds {np.unique(kinds).tolist()}")


class Measured(NamedTuple):
    """What some media of an index take, (n,) each: ``needs`` by the names of budgets that any of them takes of."""

    units: np.ndarray
    soft_tokens: np.ndarray
    needs: dict[str, np.ndarray]


def measured(extents: Extents, spec: ImageSpec, units: np.ndarray | None = None) -> Measured:
    """Counts what some media take.

    Args:
      units: of each, where they have been counted before.
    """
    count = len(extents.kind)
    found = Measured(np.zeros(count, np.int64), np.zeros(count, np.int64), {})
    for medium, which in by_medium(extents.kind):
        own = extents.those(which)
        taken = medium.units(own, spec) if units is None else units if which is None else units[which]
        soft_tokens, needs = medium.soft_tokens(taken, own, spec), medium.needs(taken, own, spec)
        if which is None:
            return Measured(taken, soft_tokens, needs)
        found.units[which], found.soft_tokens[which] = taken, soft_tokens
        for name, each in needs.items():
            found.needs.setdefault(name, np.zeros(count, np.int64))[which] = each
    return found


def text_tokens(extents: Extents) -> np.ndarray:
    """(n,) tokens of the text that are some media's own."""
    found = np.zeros(len(extents.kind), np.int64)
    for medium, which in by_medium(extents.kind):
        if medium.is_text:
            found[slice(None) if which is None else which] = medium.text_tokens(extents.those(which))
    return found


def described(kinds: np.ndarray) -> dict[str, Any]:
    """What meta.json says of the media of a source: the widths of its feature vectors, and which new ones it has."""
    known = [MEDIA[name] for name in FIRST]
    further = [name for name, medium in MEDIA.items() if medium not in known and np.any(medium.has(kinds))]
    return {"feature_widths": feature_widths(kinds)} | ({"media": further} if further else {})


def reasons() -> tuple[str, ...]:
    """Why a medium may be left out."""
    return tuple(dict.fromkeys(reason for medium in MEDIA.values() for reason in medium.advice))


def advice(reason: str) -> str:
    """What to do about it; '' for what no medium gives as a reason."""
    return ", or ".join(dict.fromkeys(m.advice[reason] for m in MEDIA.values() if reason in m.advice))


class StreamPlace(NamedTuple):
    """Where the soft tokens of a stream stand in the table of a row: from ``start`` on, one of each ``group`` units."""

    medium: Medium  # the first of the table whose stream it is
    start: int
    group: int


def stream_places(units: Callable[[str], int], spec: ImageSpec) -> dict[str, StreamPlace]:
    """The place of each stream in the soft-token table, by the name of its budget.

    Args:
      units: gives how many units of a stream a row of the batch holds at most.
    """
    places: dict[str, StreamPlace] = {}
    start = 0
    for medium in MEDIA.values():
        if medium.stream and medium.stream not in places:
            places[medium.stream] = StreamPlace(medium, start, medium.group(spec))
            start += units(medium.stream) // medium.group(spec)
    return places


def streams(batch: Batch) -> dict[str, Stream]:
    """The streams of media that a batch has, by the name of the budget."""
    found = {medium.stream: medium.array(batch) for medium in MEDIA.values() if medium.stream}
    return {name: stream for name, stream in found.items() if isinstance(stream, Stream)}


def places_in(batch: Batch, spec: ImageSpec) -> dict[str, StreamPlace]:
    """``stream_places`` of the streams that a batch has."""
    held = {name: stream.segments.shape[1] for name, stream in streams(batch).items()}
    places = stream_places(lambda name: held.get(name, 0), spec)
    return {name: place for name, place in places.items() if name in held}
