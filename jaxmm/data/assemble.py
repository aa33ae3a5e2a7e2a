"""From planned rows to Batches: reads records, decodes images, and lays both out in preallocated arrays.

A batch is a pure function of its rows, so that any thread or process may make it; this file imports no JAX, and nothing
that does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmm.batch import ANSWER, IGNORED, TARGET, Batch, ImageSpec, Stream
from jaxmm.data.documents import Features, Image
from jaxmm.data.media import geometry
from jaxmm.data.media import image as media
from jaxmm.data.media.features import IMAGE, Extent, read_vectors
from jaxmm.data.packing.lengths import tiles
from jaxmm.data.packing.plan import Budgets, Lengths, Piece, Row, expanded

# Repeating data up to four times teaches about as much as new data does (Muennighoff et al., 2023); later passes over a
# small set are where pictures are learnt by heart.
JITTER_FROM = 4


class Skipped(NamedTuple):
    """A piece that became padding, because an image of it could not be decoded."""

    origin: str
    reason: str


class Loaded(NamedTuple):
    """A Batch of the rows a process loads, and what only the host needs to know of it."""

    batch: Batch
    rows: list[Row]  # the pieces in each row
    all_rows: list[Row]  # of the global batch, whoever loads them
    answers_BT: np.ndarray  # int32: which answer of the row the target at t belongs to, 1.., or 0
    skipped: list[Skipped]


class Layout(NamedTuple):
    """Text positions of a piece, as (length,) arrays; slots count from the piece's first soft token."""

    tokens: np.ndarray
    slots: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    answers: np.ndarray
    images: range  # which of the source's media the piece holds


def lay_out(lengths: Lengths, piece: Piece, tokens: np.ndarray) -> Layout:
    """Expands the text tokens of a piece's example to positions with soft tokens, and cuts the piece out.

    Position t predicts the token at t + 1 if that is a target; the position of a soft token is never one.

    Raises:
      ValueError: if slots and images disagree, with both numbers.
    """
    prepared = lengths.prepared
    first_image, last_image = (int(i) for i in prepared.images_E1[piece.example : piece.example + 2])
    counts = lengths.slots_I[first_image:last_image]
    token_at, token_flags, token_weights, slot_at = expanded(prepared, piece.example, counts)
    if len(tokens) != len(token_at):
        raise ValueError(
            f"{lengths.name}: example {piece.example} has {len(tokens)} tokens, its index says {len(token_at)}"
        )
    size = len(tokens) + int(counts.sum())
    values, flags = np.zeros(size + 1, np.int32), np.zeros(size + 1, np.uint8)
    weights = np.zeros(size + 1, np.float32)
    values[token_at], flags[token_at], weights[token_at] = tokens, token_flags, token_weights
    slots = np.full(size, IGNORED, np.int32)
    is_slot = np.ones(size, bool)
    is_slot[token_at] = False
    inside = [i for i, at in enumerate(slot_at) if piece.first <= at < piece.last]
    images = range(inside[0], inside[-1] + 1) if inside else range(0)
    expected = int(counts[images.start : images.stop].sum())
    found = int(is_slot[piece.first : piece.last].sum())
    if found != expected:
        raise ValueError(f"{lengths.name}: example {piece.example} has {found} slots for {expected} soft tokens")
    cut = slice(piece.first, piece.last)
    piece_slots = slots[cut]
    piece_slots[is_slot[cut]] = np.arange(found)

    after = slice(piece.first + 1, piece.last + 1)
    next_flags = flags[after].copy()
    next_flags[-1:] = 0  # what follows the piece is not in it
    answer = (flags & ANSWER) > 0
    begins = answer & ~np.concatenate([[False], answer[:-1]])
    numbers = np.where(answer, np.cumsum(begins), 0)
    answers = numbers[after].copy()
    answers[-1:] = 0
    whole = np.bincount(answers, minlength=numbers.max() + 1) == np.bincount(numbers)
    answers[~whole[answers]] = 0  # an answer that a cut goes through, or that nothing predicts
    return Layout(
        tokens=values[cut],
        slots=piece_slots,
        targets=values[after],
        weights=np.where(next_flags & TARGET, weights[after], np.float32(0)),
        answers=answers.astype(np.int32),
        images=range(first_image + images.start, first_image + images.stop),
    )


def text_positions(slots: np.ndarray, grids: Sequence[tuple[int, int]], spec: ImageSpec) -> np.ndarray:
    """int32 (T, axes): positions of a piece.

    With several axes the soft tokens of an image count its rows and columns from where it stands, and the text after it
    goes on after the larger of the two (Qwen2-VL).

    Args:
      slots: of each position, the number of its soft token in the piece, or IGNORED.
      grids: (rows, columns) of soft tokens of each medium.
    """
    places = np.arange(len(slots), dtype=np.int32)
    if spec.text_axes == 1 or not grids:
        return np.repeat(places[:, None], spec.text_axes, 1)
    found = np.repeat(places[:, None], spec.text_axes, 1)
    starts = np.flatnonzero(slots >= 0)[np.cumsum([0, *(rows * columns for rows, columns in grids[:-1])])]
    moved = 0
    for start, (rows, columns) in zip(starts.tolist(), grids, strict=True):
        stop = start + rows * columns
        found[start:stop] = start + moved
        found[start:stop, 1] += np.repeat(np.arange(rows, dtype=np.int32), columns)
        found[start:stop, 2] += np.tile(np.arange(columns, dtype=np.int32), rows)
        step = max(rows, columns) - rows * columns
        found[stop:] += step
        moved += step
    return found


def bidirectional_blocks(slots: np.ndarray, grids: Sequence[tuple[int, int]]) -> np.ndarray:
    """int32 (T,): the number of the medium, from 1, whose soft token stands at a position; 0 for text."""
    counts = [rows * columns for rows, columns in grids]
    number = np.append(np.repeat(np.arange(1, len(grids) + 1), counts), 0)
    return number[slots].astype(np.int32)  # IGNORED, -1, is the last


@functools.lru_cache(maxsize=4096)
def _patch_positions(rows: int, columns: int, spec: ImageSpec) -> np.ndarray:
    return geometry.patch_positions(rows, columns, spec)


def row_bytes(budgets: Budgets, spec: ImageSpec, feature_width: int = 0) -> int:
    """What a row of a Batch takes of the memory."""
    batch = empty_batch(0, budgets, spec, feature_width)
    streams = batch.text, batch.patches, batch.features or (), tuple(batch)[2:-1]
    return sum(math.prod(array.shape[1:]) * array.itemsize for stream in streams for array in stream)


def empty_batch(rows: int, budgets: Budgets, spec: ImageSpec, feature_width: int = 0) -> Batch:
    """A Batch of nothing but padding; without a budget for ready-made features it has none."""
    B, T, N, M, F = rows, budgets.tokens, budgets.patches, budgets.items, budgets.features

    def zeros(*shape: int, dtype=np.int32) -> np.ndarray:
        return np.zeros(shape, dtype)

    return Batch(
        text=Stream(zeros(B, T), zeros(B, T, spec.text_axes), zeros(B, T)),
        patches=Stream(zeros(B, N, spec.patch_size**2 * 3, dtype=np.uint8), zeros(B, N, 3), zeros(B, N)),
        grids_BM3=zeros(B, M, 3),
        slots_BT=np.full((B, T), IGNORED, np.int32),
        blocks_BT=zeros(B, T),
        targets_BT=zeros(B, T),
        weights_BT=zeros(B, T, dtype=np.float32),
        sources_BT=zeros(B, T),
        features=Stream(zeros(B, F, feature_width, dtype=np.float32), zeros(B, F, 1), zeros(B, F)) if F else None,
    )


class _Free(NamedTuple):
    """What of a row is not taken yet: its first free patch, tile, feature vector, and number of a medium of those."""

    patch: int
    tile: int
    vector: int
    medium: int


def _clear_media(batch: Batch, b: int, free: _Free) -> None:
    """Makes padding of what is not taken."""
    for array in batch.patches:
        array[b, free.patch :] = 0
    batch.grids_BM3[b, free.tile :] = 0
    for array in batch.features or ():
        array[b, free.vector :] = 0


class Assembler:
    """Fills Batches with planned rows. Pickles to worker processes; opens its files lazily in each."""

    def __init__(
        self,
        lengths: Sequence[Lengths],
        budgets: Budgets,
        spec: ImageSpec,
        *,
        jitter: float = 0.0,
        seed: int = 0,
        loss_weights: Sequence[float] = (),
        fast_decode: bool = False,
    ):
        """
        Args:
          loss_weights: by source, what a target of it weighs in the loss; 1 by default.
          jitter: how far, as a part of its side, an edge of a picture moves at most, in or out, from the picture's
            pass JITTER_FROM on; seed: of how far it does.
          fast_decode: whether JPEGs are decoded at a smaller scale where that is large enough, see ``media.patches``.
        """
        self.lengths, self.budgets, self.spec = list(lengths), budgets, spec
        self.jitter, self.seed, self.fast_decode = jitter, seed, fast_decode
        self.loss_weights = list(loss_weights) or [1.0] * len(self.lengths)
        self.feature_width = max((source.feature_width for source in self.lengths), default=0)

    def __call__(self, rows: list[Row]) -> Loaded:
        """Assembles rows, each a list of pieces, into a Batch of len(rows)."""
        batch = empty_batch(len(rows), self.budgets, self.spec, self.feature_width)
        answers_BT = np.zeros_like(batch.targets_BT)
        skipped: list[Skipped] = []
        for b, row in enumerate(rows):
            self._fill_row(batch, answers_BT, b, row, skipped)
        return Loaded(batch, rows, rows, answers_BT, skipped)

    def _fill_row(self, batch: Batch, answers_BT: np.ndarray, b: int, row: Row, skipped: list[Skipped]) -> None:
        at, answer, free = 0, 0, _Free(0, 0, 0, 0)
        for segment, piece in enumerate(row, start=1):
            lengths = self.lengths[piece.source]
            record = lengths.prepared.read(piece.example)
            layout = lay_out(lengths, piece, record.tokens)
            here = slice(at, at + piece.last - piece.first)
            at = here.stop
            first_image = int(lengths.prepared.images_E1[piece.example])
            images = {i: record.images[i - first_image] for i in layout.images}
            try:
                free, slots, grids = self._fill_media(batch, b, free, piece, images)
            except media.BadMedia as error:
                _clear_media(batch, b, free)  # of those before the bad one
                skipped.append(Skipped(record.origin, str(error)))
                continue  # its place stays padding: the plan does not move
            batch.text.values[b, here] = layout.tokens
            batch.text.positions[b, here] = text_positions(layout.slots, grids, self.spec)
            if self.spec.bidirectional:
                batch.blocks_BT[b, here] = bidirectional_blocks(layout.slots, grids)
            batch.text.segments[b, here] = segment
            batch.slots_BT[b, here] = np.where(layout.slots >= 0, slots[layout.slots], IGNORED)
            batch.targets_BT[b, here] = layout.targets
            batch.weights_BT[b, here] = layout.weights * self.loss_weights[piece.source]
            batch.sources_BT[b, here] = piece.source
            answers_BT[b, here] = np.where(layout.answers > 0, layout.answers + answer, 0)
            answer += int(layout.answers.max(initial=0))

    def _fill_media(
        self, batch: Batch, b: int, free: _Free, piece: Piece, images: dict[int, Image | Features | None]
    ) -> tuple[_Free, np.ndarray, list[tuple[int, int]]]:
        """Writes a piece's media, by their numbers in the source, one after the other.

        Returns:
          What is free then; where in the row's soft-token table the piece's soft tokens are, and one more, which is no
          soft token's; and (rows, columns) of soft tokens of each medium that has some.

        Raises:
          BadMedia: if one cannot be used; some patches and vectors may then be written.
        """
        lengths, group = self.lengths[piece.source], self.spec.merge**2
        table, grids = [np.full(1, IGNORED)], []
        for i, medium in images.items():
            units, count = int(lengths.units_I[i]), int(lengths.slots_I[i])
            order = np.arange(count)
            if isinstance(medium, Image):
                first = free.patch // group
                grid, cut_into = self._fill_image(batch, b, free, piece, i, medium)
                order = np.argsort(geometry.group_order(*grid, self.spec))
                if cut_into > 1:
                    starts = np.arange(cut_into) * (units // cut_into // group)
                    order, grid = (starts[:, None] + order).reshape(-1), (cut_into * grid[0], grid[1])
                free = free._replace(patch=free.patch + units, tile=free.tile + cut_into)
            elif isinstance(medium, Features):
                first = (self.budgets.patches + free.vector) // group
                grid = self._fill_features(batch, b, free, piece, i, medium)
                free = free._replace(vector=free.vector + units, medium=free.medium + 1)
            else:
                continue  # discrete tokens are text
            table.insert(-1, first + order)
            grids.append(grid)
        return free, np.concatenate(table), grids

    def _fill_image(
        self, batch: Batch, b: int, free: _Free, piece: Piece, i: int, image: Image
    ) -> tuple[tuple[int, int], int]:
        """Writes one image; returns (rows, columns) of the soft tokens of a tile, and the number of tiles."""
        lengths = self.lengths[piece.source]
        prepared = lengths.prepared
        size = int(prepared.image_height_I[i]), int(prepared.image_width_I[i])
        spec, units = self.spec, int(lengths.units_I[i])
        cut_into = int(tiles(units, IMAGE, spec))
        tile = units // cut_into
        starts = range(free.patch, free.patch + units, tile)
        out = [batch.patches.values[b, start : start + tile - spec.extra] for start in starts]
        grid = media.fill(out, image, spec, size, self._edges(piece, i), fast=self.fast_decode)
        for number, start in enumerate(starts, start=free.tile):
            there = slice(start, start + tile - spec.extra)
            batch.patches.positions[b, there, 1:] = _patch_positions(*grid, spec)
            batch.patches.segments[b, there] = number + 1
            batch.grids_BM3[b, number] = 1, *grid
            learned = slice(there.stop, there.stop + spec.class_tokens)
            batch.patches.positions[b, learned, 1] = -1
            batch.patches.positions[b, learned, 2] = np.arange(spec.class_tokens)
            batch.patches.segments[b, learned] = number + 1
        return (grid[0] // spec.merge, grid[1] // spec.merge), cut_into

    def _fill_features(
        self, batch: Batch, b: int, free: _Free, piece: Piece, i: int, features: Features
    ) -> tuple[int, int]:
        """Writes the vectors of one image; returns (rows, columns) of its soft tokens, or (count, 1)."""
        lengths = self.lengths[piece.source]
        prepared = lengths.prepared
        known = Extent(int(prepared.image_height_I[i]), int(prepared.image_width_I[i]), int(prepared.image_kind_I[i]))
        there = slice(free.vector, free.vector + int(lengths.units_I[i]))
        assert batch.features is not None, "a source with features has a budget for them"
        batch.features.values[b, there] = read_vectors(features, self.spec, known)
        batch.features.positions[b, there, 0] = np.arange(there.stop - there.start)
        batch.features.segments[b, there] = free.medium + 1
        merge = self.spec.merge
        is_grid = known.width > 1
        return (known.height // merge, known.width // merge) if is_grid else (known.height // merge**2, 1)

    def _edges(self, piece: Piece, i: int) -> media.Edges | None:
        """Other ones for each pass over an image, the same ones for whoever loads it."""
        if not self.jitter or piece.epoch < JITTER_FROM:
            return None
        rng = np.random.default_rng((self.seed, piece.source, i, piece.epoch))
        return media.Edges(*rng.uniform(-self.jitter, self.jitter, 4).tolist())
