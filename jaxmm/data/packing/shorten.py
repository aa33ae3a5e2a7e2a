"""Gives videos of documents that are longer than a row fewer frames, so that the text beside them stays with them.

The rule: all clips of a document give up the same part of what they can, down to their medium's least. Where that is
not enough, the document is split, or dropped, as any other, and its clips stay as they are; but a clip that no row
holds is cut down to a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxmm.data.media import table
from jaxmm.data.media.extents import Extents
from jaxmm.data.media.medium import SEPARATORS
from jaxmm.image_spec import ImageSpec


class Room(NamedTuple):
    """What a row holds: text positions and patches; 0 is no limit."""

    tokens: int
    patches: int


class CutShort(NamedTuple):
    """How many media of one kind are not taken whole, and the part of them that is kept on average."""

    medium: str
    media: int
    part: float

    def line(self, among: int, spec: ImageSpec) -> str:
        """Tells it to people; ``among``: how many such media the source has."""
        why = table.MEDIA[self.medium].why_cut_short(spec)
        return f"{self.media:,} of {among:,} {why}: they keep {self.part:.0%} on average"


def room_of(spec: ImageSpec) -> Room:
    return Room(spec.video.row_tokens, spec.video.row_patches) if spec.video else Room(0, 0)


def shortened(
    units: np.ndarray, patches: np.ndarray, spans: np.ndarray, tokens: np.ndarray, images: np.ndarray,
    extents: Extents, spec: ImageSpec,
) -> np.ndarray:  # fmt: skip
    """Returns how many units of its stream each medium keeps: int64 (media,), fewer only where clips must be cut.

    Args:
      units: (media,) of media as their specs ask for them.
      patches: (media,) patches that they take of a row.
      spans: (media,) text positions that they take, between their separators.
      tokens: (examples,) text tokens.
      images: (examples + 1,) offsets of the examples into the media.
    """
    room, kept = room_of(spec), units.copy()
    step, least, fixed = _steps(units, extents, spec)
    if not (room.tokens or room.patches) or not step.any():
        return kept
    can, owner = step > 0, np.repeat(np.arange(len(tokens)), np.diff(images))
    count = np.where(can, units // np.maximum(step, 1), 0)
    others = _of_others(spans, can, owner, len(tokens)) + _sum(fixed, owner, len(tokens))
    for limit, around, each, beside in (
        (room.tokens, SEPARATORS + fixed, (spans - fixed) / np.maximum(count, 1), tokens + others),
        (room.patches, 0, step.astype(np.float64), _of_others(patches, can, owner, len(tokens))),
    ):
        if not limit:
            continue
        taken = np.where(can, count * each, 0.0)
        spare = np.where(can, np.maximum(count - least, 0) * each, 0.0)
        excess = beside + _sum(taken, owner, len(tokens)) - limit
        most = _sum(spare, owner, len(tokens))
        # A document that is split anyway keeps its clips as they are.
        part = np.where(excess > most, 0.0, np.clip(excess / np.maximum(most, 1e-9), 0.0, 1.0))[owner]
        fewer = np.floor(count - part * np.maximum(count - least, 0) + 1e-9)
        alone = np.floor((limit - around) / np.maximum(each, 1e-9))
        count = np.where(can, np.clip(np.minimum(fewer, alone), 1, count), 0).astype(np.int64)
    kept[can] = (count * step)[can]
    return kept


def cut_short(units: np.ndarray, extents: Extents, spec: ImageSpec) -> Iterator[CutShort]:
    """Tells of each kind what is cut short, by a row or by the spec itself. ``units``: that each medium has kept."""
    for medium, which in table.by_medium(extents.kind):
        own, kept = extents.those(which), units if which is None else units[which]
        if not np.any(own.length):
            continue  # pictures and the like are taken whole
        part = medium.cut_short(own, spec) * kept / np.maximum(medium.units(own, spec), 1)
        if (is_cut := part < 1).any():
            yield CutShort(medium.name, int(is_cut.sum()), float(part[is_cut].mean()))


def joined_cuts(cuts: Sequence[CutShort]) -> CutShort:
    """What several parts of a source say of one kind of media, together."""
    media = sum(cut.media for cut in cuts)
    return CutShort(cuts[0].medium, media, sum(cut.part * (cut.media / media) for cut in cuts))


def _steps(units: np.ndarray, extents: Extents, spec: ImageSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many units each medium gives up at a time, 0 for those that cannot; the fewest of these that are left; and
    how many soft tokens of those that can stay in any case."""
    step, least, fixed = (np.zeros(len(units), np.int64) for _ in range(3))
    for medium, which in table.by_medium(extents.kind):
        those = slice(None) if which is None else which
        step[those] = medium.step(units[those], extents.those(which), spec)
        least[those] = medium.least_steps(spec)
        fixed[those] = np.where(step[those] > 0, medium.fixed_tokens(spec), 0)
    return step, least, fixed


def _of_others(values: np.ndarray, can: np.ndarray, owner: np.ndarray, examples: int) -> np.ndarray:
    """The sums of ``values`` by example, of media that cannot be cut."""
    return _sum(np.where(can, 0, values), owner, examples)


def _sum(values: np.ndarray, owner: np.ndarray, examples: int) -> np.ndarray:
    return np.bincount(owner, values, examples)
