"""The text positions of a piece: where tokens and soft tokens stand, what is predicted, and position numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmm.batch import ANSWER, IGNORED, TARGET
from jaxmm.data.media.medium import Placed
from jaxmm.data.packing.plan import Lengths, Piece, expanded
from jaxmm.image_spec import ImageSpec


class Layout(NamedTuple):
    """Text positions of a piece, as (length,) arrays.

    Attributes:
      tokens: int32 ids; 0 at soft tokens.
      slots: int32, the number of the soft token in the piece, from 0; IGNORED at text. Both halves of a preference
        have the same ones.
      targets: int32, the id of the next token; 0 where that is a soft token.
      weights: float32, loss weight of the target; 0 where it is none.
      answers: int32, which answer of the example the target belongs to, from 1; 0 for none, or for one that is cut.
      images: which of the source's media the piece holds.
      prompt: bool, what stands before the first token of its document (of a half, for a preference) that is learnt or
        part of an answer.
      second: where the second half of a preference begins; 0 of all else.
    """

    tokens: np.ndarray
    slots: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    answers: np.ndarray
    images: range
    prompt: np.ndarray
    second: int = 0

    @property
    def halves(self) -> list[slice]:
        """The positions of each half of a preference, or of the piece: attention never goes from one to the other."""
        return [slice(0, self.second), slice(self.second, None)] if self.second else [slice(None)]


def lay_out(lengths: Lengths, piece: Piece, tokens: np.ndarray) -> Layout:
    """Expands the text tokens of a piece's example to positions with soft tokens, and cuts the piece out.

    Position t predicts the token at t + 1 if that is a target; a soft token never is.

    Raises:
      ValueError: if the record and the index disagree on the number of tokens or soft tokens; it has both numbers.
    """
    prepared = lengths.prepared
    first_image, last_image = (int(i) for i in prepared.images_E1[piece.example : piece.example + 2])
    own = slice(first_image, last_image)
    counts, spans = lengths.slots(own), lengths.spans(own)
    token_at, token_flags, token_weights, slot_at, second = expanded(prepared, piece.example, spans)
    halves = 2 if second else 1
    counts, spans, media = (np.tile(of, halves) for of in (counts, spans, np.arange(first_image, last_image)))
    if len(tokens) != len(token_at):
        raise ValueError(
            f"{lengths.name}: example {piece.example} has {len(tokens)} tokens, its index says {len(token_at)}"
        )
    size = len(tokens) + int(spans.sum())
    values, flags = np.zeros(size + 1, np.int32), np.zeros(size + 1, np.uint8)
    weights = np.zeros(size + 1, np.float32)
    values[token_at], flags[token_at], weights[token_at] = tokens, token_flags, token_weights
    slots = np.full(size, IGNORED, np.int32)
    is_slot = np.ones(size, bool)
    is_slot[token_at] = False
    for k in np.flatnonzero(spans > counts):
        at, ids = inner_places(lengths, int(media[k]))
        values[slot_at[k] + at] = ids
        is_slot[slot_at[k] + at] = False
    inside = [i for i, at in enumerate(slot_at[: last_image - first_image]) if piece.first <= at < piece.last]
    images = range(inside[0], inside[-1] + 1) if inside else range(0)
    expected = int(counts[images.start : images.stop].sum())
    slot_count = int(is_slot[piece.first : piece.last].sum())
    if slot_count != halves * expected:
        raise ValueError(
            f"{lengths.name}: example {piece.example} has {slot_count} slots for {halves} times {expected} soft tokens"
        )
    cut = slice(piece.first, piece.last)
    piece_slots = slots[cut]
    piece_slots[is_slot[cut]] = np.tile(np.arange(expected), halves)

    after = slice(piece.first + 1, piece.last + 1)
    next_flags = flags[after].copy()
    next_flags[-1:] = 0  # the token after the piece is outside it
    if second:
        next_flags[second - 1] = 0  # and so is that after a half
    answer = (flags & ANSWER) > 0
    begins = answer & ~np.concatenate([[False], answer[:-1]])
    numbers = np.where(answer, np.cumsum(begins), 0)
    answers = numbers[after].copy()
    answers[-1:] = 0
    whole = np.bincount(answers, minlength=numbers.max() + 1) == np.bincount(numbers)
    answers[~whole[answers]] = 0  # an answer that is cut, or has a token that nothing predicts
    return Layout(
        tokens=values[cut],
        slots=piece_slots,
        targets=values[after],
        weights=np.where(next_flags & TARGET, weights[after], np.float32(0)),
        answers=answers.astype(np.int32),
        images=range(first_image + images.start, first_image + images.stop),
        prompt=_prompt(flags[:size], second)[cut],
        second=second,
    )


def _prompt(flags: np.ndarray, second: int) -> np.ndarray:
    """Which positions of an example stand before the first that has a flag, in each half."""
    halves = np.split(flags > 0, [second]) if second else [flags > 0]
    return np.concatenate([~np.logical_or.accumulate(half) for half in halves])


def inner_places(lengths: Lengths, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the text inside a source's medium ``i`` stands, counted from its first position, and int32 ids."""
    inside = lengths.inner.inside(int(lengths.units_I[i]), lengths.extents(i).one(), lengths.spec)
    before = np.repeat([at for at, _ in inside], [len(ids) for _, ids in inside])
    return before + np.arange(len(before)), np.concatenate([ids for _, ids in inside])


def text_positions(slots: np.ndarray, placed: Sequence[Placed], spec: ImageSpec) -> np.ndarray:
    """Returns int32 (T, axes): the positions of a piece.

    With several axes, the soft tokens of a grid are numbered by frame (or by its time), row and column, starting at the
    grid's own position. The text after it goes on after the largest row or column, or, if a spec of videos says so,
    after the largest of all these numbers.

    Args:
      slots: int (T,): the number of the soft token in the piece at each position, or IGNORED.
      placed: the grids of soft tokens that are numbered together, in order.
    """
    places = np.arange(len(slots), dtype=np.int32)
    positions = np.repeat(places[:, None], spec.text_axes, 1)
    if spec.text_axes == 1 or not placed:
        return positions
    grids = [one.grid for one in placed]
    over_time = spec.video is not None and spec.video.after == "all"
    starts = np.flatnonzero(slots >= 0)[np.cumsum([0, *map(math.prod, grids[:-1])])]
    moved = 0
    for start, (grid, times) in zip(starts.tolist(), placed, strict=True):
        stop = start + math.prod(grid)
        numbers = np.indices(grid, np.int32)
        if times:
            numbers[0] = np.array(times, np.int32)[:, None, None]
        positions[start:stop] = start + moved + numbers.reshape(3, -1).T
        largest = int(numbers.max()) + 1 if over_time else max(grid[1:])
        step = largest - math.prod(grid)
        positions[stop:] += step
        moved += step
    return positions


def bidirectional_blocks(slots: np.ndarray, placed: Sequence[Placed]) -> np.ndarray:
    """Returns int32 (T,): the number, from 1, of the grid whose soft token stands at a position; 0 for text."""
    number = np.append(np.repeat(np.arange(1, len(placed) + 1), [math.prod(one.grid) for one in placed]), 0)
    return number[slots].astype(np.int32)  # IGNORED is -1 and picks the last one, 0
