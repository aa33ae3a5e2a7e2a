"""Pieces of examples: what a row is made of, and how an example that no row holds becomes several, or one, or none.

Examples are cut many at a time: a search on a line on which they all lie end to end finds the place in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmm.batch import TARGET
from jaxmm.data.media.features import IMAGE, TOKENS
from jaxmm.data.packing.lengths import Budgets, Lengths, soft_tokens, tiles
from jaxmm.errors import UserError

LONG_DOCUMENTS = ("split", "truncate", "drop")
BOUNDLESS = 1 << 40  # a budget that never binds


class Piece(NamedTuple):
    """Positions [first, last) of an example, soft tokens counted: a whole example, or a part of a long one.

    ``epoch`` counts the passes over its source, from 0.
    """

    source: int
    example: int
    first: int
    last: int
    epoch: int = 0


Row = list[Piece]


class Pieces(NamedTuple):
    """Many pieces: int64 arrays of one length."""

    source: np.ndarray
    example: np.ndarray
    first: np.ndarray
    last: np.ndarray
    epoch: np.ndarray

    def take(self, which: np.ndarray | slice) -> Pieces:
        return Pieces(*(column[which] for column in self))

    def listed(self) -> list[Piece]:
        return list(map(Piece, *(column.tolist() for column in self)))


def joined_pieces(parts: Sequence[Pieces]) -> Pieces:
    return Pieces(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


class Parts(NamedTuple):
    """Parts of examples: int64 arrays of one length, and what each takes, (n, budgets) in the order of Budgets.

    ``of`` is an index into the examples that were asked for; [first, last) are positions with soft tokens counted.
    """

    of: np.ndarray
    first: np.ndarray
    last: np.ndarray
    needs: np.ndarray


def ragged(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the elements of some rows of a ragged array lie, one row after another.

    Returns:
      places: indices into the values that ``offsets`` are of; starts: (len(rows) + 1,), where in them each row starts.
    """
    first = np.asarray(offsets[rows], np.int64)
    counts = np.asarray(offsets[rows + 1], np.int64) - first
    starts = np.concatenate([[0], np.cumsum(counts)])
    return np.repeat(first - starts[:-1], counts) + np.arange(starts[-1]), starts


class _Long:
    """Some examples laid end to end, so that a search finds a place in all of them at once.

    Text tokens and positions (soft tokens counted) have each a line of their own, on which examples keep a distance;
    ``text_E`` and ``line_E`` say where each starts. Images, or other media, and runs of targets are numbered from
    example to example.
    """

    def __init__(self, lengths: Lengths, examples: np.ndarray):
        prepared = lengths.prepared
        self.length_E = lengths.all_needs[examples, 0].astype(np.int64)
        tokens_E = np.asarray(prepared.tokens_E[examples], np.int64)
        self.text_E = np.concatenate([[0], np.cumsum(tokens_E + 2)])[:-1]
        self.line_E = np.concatenate([[0], np.cumsum(self.length_E + 4)])[:-1]

        images, self.images_E1 = ragged(prepared.images_E1, examples)
        owner = np.repeat(np.arange(len(examples)), np.diff(self.images_E1))
        units = np.asarray(lengths.units_I[images], np.int64)
        kinds = np.asarray(prepared.image_kind_I[images])
        slots = soft_tokens(units, kinds, lengths.spec)
        # What media before each take of the budgets that only they take of, by the number of the budget.
        self.taken_before = {
            1: _before(np.where(kinds == IMAGE, units, 0)),
            2: _before(tiles(units, kinds, lengths.spec)),
            4: _before(np.where(kinds > IMAGE, units, 0)),
        }
        self.slots_before = _before(slots)
        drawn = np.where(kinds == TOKENS, prepared.image_width_I[images], 0)  # discrete tokens, which are text
        at = np.asarray(prepared.image_at_I[images], np.int64)
        self.image_text = self.text_E[owner] + at
        place = self.line_E[owner] + at + self.slots_before[:-1] - self.slots_before[self.images_E1[owner]]
        self.image_start, self.image_end = place - 1, place + slots + drawn + 1  # with the separators around it
        self.first_slot_end = place + slots

        runs, runs_E1 = ragged(prepared.runs_E1, examples)
        owner = np.repeat(np.arange(len(examples)), np.diff(runs_E1))
        starts = np.asarray(prepared.run_start_R[runs], np.int64)
        ends = np.empty_like(starts)
        ends[:-1] = starts[1:]
        has_runs = np.diff(runs_E1) > 0
        ends[runs_E1[1:][has_runs] - 1] = tokens_E[has_runs]
        is_target = (np.asarray(prepared.run_flags_R[runs]) & TARGET) > 0
        self.run_start = (self.text_E[owner] + starts)[is_target]
        self.run_end = (self.text_E[owner] + ends)[is_target]
        self.targets_before = np.concatenate([[0], np.cumsum(self.run_end - self.run_start)])

    def targets_at(self, place: np.ndarray) -> np.ndarray:
        """Targets before places on the line, none of which is inside an image; of all examples."""
        image = np.searchsorted(self.first_slot_end, place, side="right")
        example = np.searchsorted(self.line_E, place, side="right") - 1
        slots = self.slots_before[image] - self.slots_before[self.images_E1[example]]
        text = self.text_E[example] + place - self.line_E[example] - slots
        run = np.searchsorted(self.run_start, text, side="right") - 1
        inside = np.minimum(text, self.run_end[run]) - self.run_start[run] if len(self.run_start) else 0
        return np.where(run >= 0, self.targets_before[run] + inside, 0)

    def place_of_target(self, number: np.ndarray, example: np.ndarray) -> np.ndarray:
        """The position in its example of a target, counted over all examples; where it is another's, the length."""
        run = np.searchsorted(self.targets_before, number, side="right") - 1
        there = run < len(self.run_start)
        run = np.where(there, run, 0)
        text = (self.run_start[run] if len(self.run_start) else 0) + number - self.targets_before[run]
        image = np.searchsorted(self.image_text, text, side="right")
        slots = self.slots_before[image] - self.slots_before[self.images_E1[example]]
        position = text - self.text_E[example] + slots
        return np.where(there & (position < self.length_E[example]), position, self.length_E[example])


def _before(values: np.ndarray) -> np.ndarray:
    """The sums of what stands before each, and of all."""
    return np.concatenate([[0], np.cumsum(values, dtype=np.int64)])


def cut_examples(lengths: Lengths, examples: np.ndarray, budgets: Budgets, only_first: bool = False) -> Parts:
    """Cuts examples, each into the fewest parts, front to back, that fit a row; no image is cut.

    An image, or another medium, goes with its separators. All examples are cut at once, a part of each in a round.

    Args:
      only_first: return the first part of each alone.

    Raises:
      UserError: if a single image exceeds a budget.
    """
    long = _Long(lengths, examples)
    of = np.arange(len(examples))
    first, image = np.zeros(len(examples), np.int64), long.images_E1[:-1].copy()
    found: list[Parts] = []
    while len(of):
        line, image_stop = long.line_E[of], long.images_E1[of + 1]
        targets = long.targets_at(line + first)
        last = np.minimum(first + budgets.tokens, long.length_E[of])
        last = np.minimum(last, long.place_of_target(targets + budgets.targets, of))
        taken = np.searchsorted(long.image_end, line + last, side="right")
        for column, before in long.taken_before.items():
            room = np.searchsorted(before, before[image] + budgets[column], side="right") - 1
            taken = np.minimum(taken, room)
        touched = np.minimum(np.searchsorted(long.image_start, line + last, side="left"), image_stop)
        taken = np.clip(taken, image, image_stop)
        blocked = taken < touched
        last[blocked] = long.image_start[taken[blocked]] - line[blocked]
        if (last <= first).any():
            _raise_too_large(lengths, int(examples[of[np.argmax(last <= first)]]), budgets)
        needs = {0: last - first, 3: long.targets_at(line + last) - targets}
        needs |= {column: before[taken] - before[image] for column, before in long.taken_before.items()}
        found.append(Parts(of, first, last, np.stack([needs[column] for column in sorted(needs)], 1)))
        goes_on = (last < long.length_E[of]) & (not only_first)
        of, first, image = of[goes_on], last[goes_on], taken[goes_on]
    if not found:
        return Parts(of, of, of, np.zeros((0, len(budgets)), np.int64))
    parts = Parts(*(np.concatenate(field) for field in zip(*found, strict=True)))
    order = np.argsort(parts.of, kind="stable")
    return Parts(*(field[order] for field in parts))


def _raise_too_large(lengths: Lengths, example: int, budgets: Budgets) -> None:
    """Names the first image, or other medium, of an example that no row holds."""
    prepared = lengths.prepared
    images = slice(*(int(i) for i in prepared.images_E1[example : example + 2]))
    kinds, units = np.asarray(prepared.image_kind_I[images]), np.asarray(lengths.units_I[images])
    drawn = np.where(kinds == TOKENS, prepared.image_width_I[images], 0)
    tokens = soft_tokens(units, kinds, lengths.spec) + drawn + 2
    of_budget = np.where(kinds == IMAGE, budgets.patches, np.where(kinds == TOKENS, BOUNDLESS, budgets.features))
    line = _Long(lengths, np.array([example]))
    targets = line.targets_at(line.image_end) - line.targets_at(line.image_start)
    cut_into = tiles(units, kinds, lengths.spec)
    too_large = (units > of_budget) | (tokens > budgets.tokens) | (targets > budgets.targets)
    too_large |= cut_into > budgets.items
    which = int(np.argmax(too_large))
    origin, size = prepared.read(example).origin, int(units[which])
    if kinds[which] == IMAGE and lengths.spec.max_tiles > 1:
        raise UserError(
            f"{lengths.name}: {origin} has an image of {cut_into[which]} tiles, {size} patches ({tokens[which]} "
            f"tokens), more than a row holds (config.patch_budget {budgets.patches}, config.seq_len {budgets.tokens}): "
            f"raise these, or leave such documents out by config.data.long_documents=drop"
        )
    if kinds[which] == IMAGE:
        raise UserError(
            f"{lengths.name}: {origin} has an image of {size} patches ({tokens[which]} tokens), more than a row holds "
            f"(config.patch_budget {budgets.patches}, config.seq_len {budgets.tokens}): raise these or lower "
            f"config.image.max_pixels"
        )
    what = f"{drawn[which]} image tokens" if kinds[which] == TOKENS else f"{size} feature vectors for an image"
    raise UserError(
        f"{lengths.name}: {origin} has {what} ({tokens[which]} tokens), more than a row holds (config.seq_len "
        f"{budgets.tokens}, {budgets.targets} targets): raise config.seq_len, or config.target_budget if it is set"
    )


def cut(
    lengths: Lengths, source: int, example: int, budgets: Budgets, epoch: int = 0
) -> list[tuple[Piece, np.ndarray]]:
    """Cuts one example; returns its pieces with their needs, in the order of Budgets. Raises as ``cut_examples``."""
    parts = cut_examples(lengths, np.array([example]), budgets)
    edges = zip(parts.first.tolist(), parts.last.tolist(), strict=True)
    return [(Piece(source, example, *edge, epoch), need) for edge, need in zip(edges, parts.needs, strict=True)]


def pieces_of(
    lengths: Lengths,
    source: int,
    examples: np.ndarray,
    epochs: np.ndarray,
    budgets: Budgets,
    long_documents: str,
) -> tuple[Pieces, np.ndarray, np.ndarray]:
    """The pieces of examples, each of an epoch: those no row holds are split, truncated or dropped.

    Returns:
      The pieces, in the order of the examples; what each takes, (n, budgets) in the order of Budgets; and which of the
      examples it is of.
    """
    needs = lengths.needs(examples)
    is_long = lengths.is_long(needs, budgets)
    if not is_long.any():
        of = np.arange(len(examples))
        return Pieces(np.full(len(of), source), examples, np.zeros_like(of), needs[:, 0], epochs), needs, of
    of = np.flatnonzero(~is_long)
    first, last, taken = np.zeros_like(of), needs[of, 0], needs[of]
    if long_documents != "drop":
        long = np.flatnonzero(is_long)
        parts = cut_examples(lengths, examples[long], budgets, only_first=long_documents == "truncate")
        of = np.concatenate([of, long[parts.of]])
        order = np.argsort(of, kind="stable")
        of = of[order]
        first = np.concatenate([first, parts.first])[order]
        last = np.concatenate([last, parts.last])[order]
        taken = np.concatenate([taken, parts.needs])[order]
    return Pieces(np.full(len(of), source), examples[of], first, last, epochs[of]), taken, of


class LongDocuments(NamedTuple):
    """What becomes of the examples of a source that no row holds."""

    examples: int
    long: int
    pieces: int  # that the long ones become; of those truncated one each, of those dropped none

    def line(self, name: str, long_documents: str) -> str:
        """One line for the log, or '' if there is nothing to say."""
        became = {"split": f"split into {self.pieces} pieces", "truncate": "truncated", "drop": "dropped"}
        what = became[long_documents]
        return f"{name}, {self.long} of {self.examples} documents longer than a row: {what}" if self.long else ""


def count_long(lengths: Lengths, budgets: Budgets, long_documents: str) -> LongDocuments:
    """Counts them. Raises UserError if a single image of one to be cut exceeds a budget."""
    long = pieces = 0
    for start, needs in lengths.blocks():
        examples = start + np.flatnonzero(lengths.is_long(needs, budgets))
        long += len(examples)
        if long_documents != "drop" and len(examples):
            pieces += len(cut_examples(lengths, examples, budgets, only_first=long_documents == "truncate").of)
    return LongDocuments(len(lengths), long, pieces)
