"""The table of all media, and which medium a part of a document, or a kind in the index, belongs to.

To add a medium, add a file with its ``Medium`` and a line in MEDIA.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxmm.batch import Batch, Stream
from jaxmm.data.media.audio import AudioMedium
from jaxmm.data.media.clip_features import AudioFeaturesMedium, VideoFeaturesMedium
from jaxmm.data.media.extents import Extents
from jaxmm.data.media.features import FeaturesMedium
from jaxmm.data.media.image import ImageMedium
from jaxmm.data.media.medium import Medium
from jaxmm.data.media.tokens import TokensMedium
from jaxmm.data.media.video import VideoMedium
from jaxmm.image_spec import ImageSpec

# By name. Soft tokens stand in a row's table in this order, so a new medium comes last.
MEDIA: dict[str, Medium] = {
    medium.name: medium
    for medium in (
        ImageMedium(), FeaturesMedium(), TokensMedium(), VideoMedium(), AudioMedium(), VideoFeaturesMedium(),
        AudioFeaturesMedium(),
    )
}  # fmt: skip
MODALITIES = tuple(dict.fromkeys(medium.modality for medium in MEDIA.values()))
WIDTHS_KEYS = {"features": "feature_widths", "audio_features": "audio_feature_widths"}  # of meta.json, by stream
FIRST = ("image", "features", "image_tokens")  # media that a prepared folder need not list


def medium_of(part: Any) -> Medium:
    """Returns the medium of a part of a document that is not text."""
    for medium in MEDIA.values():
        if isinstance(part, medium.part):
            return medium
    raise TypeError(f"{type(part).__name__} is no medium: {', '.join(MEDIA)} are")


def medium_of_kind(kind: int) -> Medium:
    """Returns the medium of a kind in the index."""
    for medium in MEDIA.values():
        if medium.has(kind):
            return medium
    raise ValueError(f"no medium has the kind {kind}")


def noun(medium: str) -> str:
    """``image``, ``recording``."""
    return MEDIA[medium].plural.removesuffix("s")


def named(medium: str) -> str:
    """``an image``, ``a recording``."""
    return f"{'an' if noun(medium)[0] in 'aeiou' else 'a'} {noun(medium)}"


def packed(part: Any) -> dict[str, Any]:
    """What a record stores of a medium: {} for None, a medium of which it stores nothing."""
    return {} if part is None else medium_of(part).packed(part)


def unpacked(content: Mapping[str, Any]) -> Any:
    """Returns the part that a record stores, or None for a medium whose content is in the tokens."""
    for medium in MEDIA.values():
        if medium.is_packed(content):
            return medium.unpacked(content)
    raise ValueError(f"no medium is stored as {sorted(content)}")


def by_medium(kinds: np.ndarray) -> Iterator[tuple[Medium, np.ndarray | None]]:
    """Yields each medium that occurs in ``kinds``, with a bool mask of its own; the mask is None if all are its own."""
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
    """What some media of an index take, (n,) each; ``needs`` is by the names of the budgets that any of them uses."""

    units: np.ndarray
    soft_tokens: np.ndarray
    needs: dict[str, np.ndarray]


def measured(extents: Extents, spec: ImageSpec, units: np.ndarray | None = None) -> Measured:
    """Counts what some media take.

    Args:
      units: of each medium, if they have been counted before.
    """
    count = len(extents.kind)
    combined = Measured(np.zeros(count, np.int64), np.zeros(count, np.int64), {})
    for medium, which in by_medium(extents.kind):
        own = extents.those(which)
        taken = medium.units(own, spec) if units is None else units if which is None else units[which]
        soft_tokens, needs = medium.soft_tokens(taken, own, spec), medium.needs(taken, own, spec)
        if which is None:
            return Measured(taken, soft_tokens, needs)
        combined.units[which], combined.soft_tokens[which] = taken, soft_tokens
        for name, each in needs.items():
            combined.needs.setdefault(name, np.zeros(count, np.int64))[which] = each
    return combined


def text_tokens(extents: Extents) -> np.ndarray:
    """Returns int64 (n,): how many text tokens are each medium's own content; 0 for media that are not text."""
    counts = np.zeros(len(extents.kind), np.int64)
    for medium, which in by_medium(extents.kind):
        if medium.is_text:
            counts[slice(None) if which is None else which] = medium.text_tokens(extents.those(which))
    return counts


def have_intro(extents: Extents, spec: ImageSpec) -> np.ndarray:
    """Returns bool (n,): which media have text before them in what is prepared."""
    have = np.zeros(len(extents.kind), bool)
    for medium, which in by_medium(extents.kind):
        have[slice(None) if which is None else which] = medium.has_intro(extents.those(which), spec)
    return have


def described(kinds: np.ndarray) -> dict[str, Any]:
    """What meta.json says of a source's media: the widths of its feature vectors, and its media that FIRST lacks."""
    known = [MEDIA[name] for name in FIRST]
    further = [name for name, medium in MEDIA.items() if medium not in known and np.any(medium.has(kinds))]
    widths = {WIDTHS_KEYS[stream]: of_stream for stream, of_stream in _widths(kinds).items()}
    return {"feature_widths": []} | widths | ({"media": further} if further else {})


def _widths(kinds: np.ndarray) -> dict[str, list[int]]:
    """The widths of feature vectors, each once, ascending, by the stream in which they travel."""
    widths: dict[str, list[int]] = {}
    for medium in MEDIA.values():
        if isinstance(medium, FeaturesMedium) and (own := medium.widths(kinds)):
            widths[medium.stream] = sorted({*widths.get(medium.stream, ()), *own})
    return widths


def described_widths(meta: Mapping[str, Any]) -> dict[str, list[int]]:
    """The same as a meta.json tells it; a stream without any is not there."""
    return {stream: meta[key] for stream, key in WIDTHS_KEYS.items() if meta.get(key)}


def taken_as(media: Iterable[str]) -> frozenset[str]:
    """What a model needs for media: vectors of clips need what the clips that they were made of do."""
    return frozenset(MEDIA[name].made_of or name for name in media)


def reasons() -> tuple[str, ...]:
    """All reasons why a medium may be left out."""
    return tuple(dict.fromkeys(reason for medium in MEDIA.values() for reason in medium.advice))


def advice(reason: str, names: Collection[str] = ()) -> str:
    """What to do about a reason that one of the named media gave; '' if no medium gives it."""
    of_any = {name: medium.advice[reason] for name, medium in MEDIA.items() if reason in medium.advice}
    named = [text for name, text in of_any.items() if name in names]
    return ", or ".join(dict.fromkeys(named or of_any.values()))


class StreamPlace(NamedTuple):
    """Where a stream's soft tokens stand in a row's soft-token table: from ``start`` on."""

    medium: Medium  # the first of the table whose stream it is
    start: int


def stream_places(units: Callable[[str], int], spec: ImageSpec) -> dict[str, StreamPlace]:
    """Returns the place of each stream in the soft-token table, by the name of its budget; the vector that ends rows,
    where the model has one, is row 0.

    Args:
      units: returns the most units of a stream that a row of the batch holds.
    """
    places: dict[str, StreamPlace] = {}
    start = int(spec.newline)
    for medium in MEDIA.values():
        if medium.stream and medium.stream not in places:
            places[medium.stream] = StreamPlace(medium, start)
            start += medium.table_rows(units(medium.stream), spec) if units(medium.stream) else 0
    return places


def streams(batch: Batch) -> dict[str, Stream]:
    """The streams of media that a batch has, by the name of the budget."""
    arrays = {medium.stream: medium.array(batch) for medium in MEDIA.values() if medium.stream}
    return {name: stream for name, stream in arrays.items() if isinstance(stream, Stream)}


def places_in(batch: Batch, spec: ImageSpec) -> dict[str, StreamPlace]:
    """``stream_places`` of the streams that a batch has."""
    held = {name: stream.segments.shape[1] for name, stream in streams(batch).items()}
    places = stream_places(lambda name: held.get(name, 0), spec)
    return {name: place for name, place in places.items() if name in held}
