"""Sums over batches: how full rows are, which source and which modality has how much, and what was cut or left out."""

from __future__ import annotations

import collections
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmm.batch import Batch
from jaxmm.data.assemble import Loaded, Skipped
from jaxmm.data.media.table import MEDIA, places_in, streams
from jaxmm.data.packing.limits import PAIRS
from jaxmm.data.packing.pieces import segments_of
from jaxmm.data.packing.plan import Budgets, Lengths, Piece
from jaxmm.report.clips import clips_in, extent_of


class SourceSums(NamedTuple):
    """What one source has in the batches seen. ``soft`` are positions of soft tokens, ``text`` all others."""

    documents: int = 0
    text: int = 0
    soft: int = 0
    targets: int = 0
    images: int = 0
    patches: int = 0

    @property
    def tokens(self) -> int:
        return self.text + self.soft


class ClipSums(NamedTuple):
    """The videos, or the recordings, of one source. ``frames`` are those that the model gets, sampled or log-mel."""

    clips: int = 0
    soft: int = 0
    frames: int = 0
    seconds: float = 0.0


class Tally:
    """Adds batches up.

    Attributes:
      used: (rows, budgets) what each row holds of each budget, in the order of Budgets.
      sources: sums of each source; lengths: tokens of each document.
      clips: of each source, sums of its videos and recordings, by the medium's name; seconds: of each, by that name.
      parts: (source, example, epoch) of documents of which only a part stands in a row, with how many of the parts.
      skipped: pieces that became padding; epochs: the most passes begun over each source.
    """

    def __init__(self, lengths: Sequence[Lengths], budgets: Budgets):
        self._lengths, self.budgets = list(lengths), budgets
        self._used: list[np.ndarray] = []
        self._tokens: list[np.ndarray] = []
        self._sums = np.zeros((len(self._lengths), len(SourceSums._fields)), np.int64)
        self.parts: collections.Counter[tuple[int, int, int]] = collections.Counter()
        self.skipped: list[Skipped] = []
        self.clips: list[dict[str, ClipSums]] = [{} for _ in self._lengths]
        self.seconds: dict[str, list[float]] = {}
        self.epochs = [0] * len(self._lengths)
        self.batches = 0

    @property
    def used(self) -> np.ndarray:
        return np.concatenate(self._used) if self._used else np.zeros((0, len(self.budgets)), np.int64)

    def used_of(self, budget: str) -> np.ndarray:
        """(rows,) what each row holds of one budget."""
        return self.used[:, self.budgets.names.index(budget)]

    @property
    def lengths(self) -> np.ndarray:
        return np.concatenate(self._tokens) if self._tokens else np.zeros(0, np.int64)

    @property
    def sources(self) -> list[SourceSums]:
        return [SourceSums(*row.tolist()) for row in self._sums]

    @property
    def total(self) -> SourceSums:
        return SourceSums(*self._sums.sum(0).tolist())

    def add(self, loaded: Loaded) -> None:
        """Adds a batch; all sums are of its arrays."""
        batch = loaded.batch
        self.batches += 1
        self.skipped += loaded.skipped
        here, soft = batch.text.segments > 0, batch.slots_BT >= 0
        used = {"tokens": here.sum(1), "targets": (batch.weights_BT > 0).sum(1)}
        used |= {PAIRS: (batch.pairs.segments_BC > 0).sum(1)} if batch.pairs else {}
        for medium in MEDIA.values():
            used |= medium.used(batch)
        none = np.zeros(len(here), np.int64)
        self._used.append(np.stack([used.get(name, none) for name in self.budgets.names], 1))
        for b, row in enumerate(loaded.rows):
            of_piece = np.repeat(np.arange(1, len(row) + 1), [len(s) for s in segments_of(row, self._lengths)])
            at = np.concatenate([[0], of_piece])[batch.text.segments[b]]  # the piece of each position, from 1
            tokens = np.bincount(at, minlength=len(row) + 1)[1:]
            self._tokens.append(tokens[tokens > 0])
            for piece, length in zip(row, tokens.tolist(), strict=True):
                self._sums[piece.source, 0] += length > 0
                self.epochs[piece.source] = max(self.epochs[piece.source], piece.epoch + 1)
                if length and length < self._lengths[piece.source].tokens_E[piece.example]:
                    self.parts[piece.source, piece.example, piece.epoch] += 1
            self._sums[:, 4:] += self._images(batch, b, self._clips(batch, b, row))
        counted = (here & ~soft, here & soft, batch.weights_BT > 0)
        for column, where in enumerate(counted, start=1):
            self._sums[:, column] += np.bincount(batch.sources_BT[where], minlength=len(self._sums))

    def clip_total(self, medium: str) -> ClipSums:
        """The sums of all sources."""
        each = [clips[medium] for clips in self.clips if medium in clips]
        return functools.reduce(_added, each, ClipSums())

    def _clips(self, batch: Batch, b: int, row: Sequence[Piece]) -> np.ndarray:
        """Adds the clips of a row; returns (T,) whether a position is inside one."""
        inside, start = np.zeros(batch.slots_BT.shape[1], bool), 0
        for piece in row:
            lengths = self._lengths[piece.source]
            for clip in clips_in(lengths, piece, start):
                here = slice(clip.first, clip.last)
                if not (soft := int((batch.slots_BT[b, here] >= 0).sum())):
                    continue  # its document became padding
                inside[here] = True
                name, (frames, seconds) = clip.medium.name, extent_of(clip, lengths.spec)
                sums = self.clips[piece.source].get(name, ClipSums())
                self.clips[piece.source][name] = _added(sums, ClipSums(1, soft, frames, seconds))
                self.seconds.setdefault(name, []).append(seconds)
            start += piece.last - piece.first
        return inside

    def _images(self, batch: Batch, b: int, is_clip_T: np.ndarray) -> np.ndarray:
        """(sources, 2) images and the like, and patches of a row: each is of the source where its soft tokens are."""
        sums = np.zeros((len(self._sums), 2), np.int64)
        spec, slots_T, stream_of = self._lengths[0].spec, batch.slots_BT[b], streams(batch)
        for name, place in places_in(batch, spec).items():
            segments = place.medium.of_rows(stream_of[name].segments[b], spec)
            at = np.flatnonzero((slots_T >= place.start) & (slots_T < place.start + len(segments)))
            segment, first = np.unique(segments[slots_T[at] - place.start], return_index=True)
            counts = np.bincount(stream_of[name].segments[b], minlength=int(segment.max(initial=0)) + 1)
            patches = counts[segment] if name == "patches" else np.zeros_like(segment)
            images = ~is_clip_T[at[first]]
            np.add.at(sums, batch.sources_BT[b, at[first]], np.stack([images, patches], 1))
        return sums


def _added(one: ClipSums, other: ClipSums) -> ClipSums:
    return ClipSums(
        one.clips + other.clips, one.soft + other.soft, one.frames + other.frames, one.seconds + other.seconds
    )


def over_budget(lengths: Lengths, budgets: Budgets) -> dict[str, int]:
    """How many examples of a source are over each budget, and over "any": they are split, truncated or dropped."""
    needs = {}
    for name in lengths.columns:
        needed, limit = lengths.of(name), budgets.get(name)
        if limit or needed.any():
            needs["images" if name == "items" else name] = needed > limit
    needs["any"] = np.logical_or.reduce(list(needs.values()))
    return {name: int(over.sum()) for name, over in needs.items()}
