"""Pieces of examples, which rows are made of. An example that no row holds becomes several pieces, or one, or none.

Many examples are cut at once: they are laid end to end on one line, and a search finds the place in each.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmm.batch import TARGET
from jaxmm.data.media import table
from jaxmm.data.media.medium import SEPARATORS, Item
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.limits import Budgets
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


def segments_of(row: Row, lengths: Sequence[Lengths]) -> list[range]:
    """The segments of the row's text that each piece is, from 1: two for both answers of a preference, else one."""
    counts = [1 + int(lengths[piece.source].prepared.second_E[piece.example] > 0) for piece in row]
    ends = np.cumsum([1, *counts]).tolist()
    return [range(*edge) for edge in itertools.pairwise(ends)]


class Parts(NamedTuple):
    """Parts of examples: int64 arrays of one length, and what each takes, (n, budgets) in the order of Budgets.

    ``of`` is an index into the examples that were asked for; [first, last) are positions with soft tokens counted.
    """

    of: np.ndarray
    first: np.ndarray
    last: np.ndarray
    needs: np.ndarray


def ragged(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the elements of the given rows of a ragged array lie, one row after another.

    Returns:
      places: indices into the values that ``offsets`` refer to.
      starts: (len(rows) + 1,), where each row starts in ``places``.
    """
    first = np.asarray(offsets[rows], np.int64)
    counts = np.asarray(offsets[rows + 1], np.int64) - first
    starts = np.concatenate([[0], np.cumsum(counts)])
    return np.repeat(first - starts[:-1], counts) + np.arange(starts[-1]), starts


class _Long:
    """Some examples laid end to end, so that a search finds a place in all of them at once.

    Text tokens and positions (soft tokens counted) have a line each, with a gap between two examples. ``text_E`` and
    ``line_E`` say where each example starts. Images, or other media, and runs of targets are numbered across examples.
    """

    def __init__(self, lengths: Lengths, examples: np.ndarray):
        prepared = lengths.prepared
        self.length_E = lengths.tokens_E[examples].astype(np.int64)
        tokens_E = np.asarray(prepared.tokens_E[examples], np.int64)
        self.text_E = np.concatenate([[0], np.cumsum(tokens_E + 2)])[:-1]
        self.line_E = np.concatenate([[0], np.cumsum(self.length_E + 4)])[:-1]

        images, self.images_E1 = ragged(prepared.images_E1, examples)
        owner = np.repeat(np.arange(len(examples)), np.diff(self.images_E1))
        units = np.asarray(lengths.units_I[images], np.int64)
        extents = lengths.extents(images)
        media_needs = table.measured(extents, lengths.spec, units).needs
        slots = lengths.spans(images)  # text inside media counts with its soft tokens
        # By budget, for those that media use: what the media before each one take.
        self.taken_before = {name: _before(needs) for name, needs in media_needs.items()}
        self.slots_before = _before(slots)
        own_text = table.text_tokens(extents)
        at = np.asarray(prepared.image_at_I[images], np.int64)
        self.image_text = self.text_E[owner] + at
        place = self.line_E[owner] + at + self.slots_before[:-1] - self.slots_before[self.images_E1[owner]]
        self.image_start, self.image_end = place - 1, place + slots + own_text + 1  # with the separators around it
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
        """Targets before places on the line, counted over all examples; no place may be inside an image."""
        image = np.searchsorted(self.first_slot_end, place, side="right")
        example = np.searchsorted(self.line_E, place, side="right") - 1
        slots = self.slots_before[image] - self.slots_before[self.images_E1[example]]
        text = self.text_E[example] + place - self.line_E[example] - slots
        run = np.searchsorted(self.run_start, text, side="right") - 1
        inside = np.minimum(text, self.run_end[run]) - self.run_start[run] if len(self.run_start) else 0
        return np.where(run >= 0, self.targets_before[run] + inside, 0)

    def place_of_target(self, number: np.ndarray, example: np.ndarray) -> np.ndarray:
        """The position of a target, counted over all examples, in its example; the length if it is in another one."""
        run = np.searchsorted(self.targets_before, number, side="right") - 1
        there = run < len(self.run_start)
        run = np.where(there, run, 0)
        text = (self.run_start[run] if len(self.run_start) else 0) + number - self.targets_before[run]
        image = np.searchsorted(self.image_text, text, side="right")
        slots = self.slots_before[image] - self.slots_before[self.images_E1[example]]
        position = text - self.text_E[example] + slots
        return np.where(there & (position < self.length_E[example]), position, self.length_E[example])


def _before(values: np.ndarray) -> np.ndarray:
    """Running sums: what comes before each value, and the total."""
    return np.concatenate([[0], np.cumsum(values, dtype=np.int64)])


def cut_examples(lengths: Lengths, examples: np.ndarray, budgets: Budgets, only_first: bool = False) -> Parts:
    """Cuts each example, front to back, into the fewest parts that fit a row; no image is cut.

    An image, or another medium, stays with its separators. All examples are cut at once, one part of each per round.

    Args:
      only_first: return only the first part of each.

    Raises:
      UserError: if a single image exceeds a budget.
    """
    long = _Long(lengths, examples)
    of = np.arange(len(examples))
    first, image = np.zeros(len(examples), np.int64), long.images_E1[:-1].copy()
    rounds: list[Parts] = []
    while len(of):
        line, image_stop = long.line_E[of], long.images_E1[of + 1]
        targets = long.targets_at(line + first)
        last = np.minimum(first + budgets.tokens, long.length_E[of])
        last = np.minimum(last, long.place_of_target(targets + budgets.targets, of))
        taken = np.searchsorted(long.image_end, line + last, side="right")
        for name, before in long.taken_before.items():
            room = np.searchsorted(before, before[image] + budgets.get(name), side="right") - 1
            taken = np.minimum(taken, room)
        touched = np.minimum(np.searchsorted(long.image_start, line + last, side="left"), image_stop)
        taken = np.clip(taken, image, image_stop)
        blocked = taken < touched
        last[blocked] = long.image_start[taken[blocked]] - line[blocked]
        if (last <= first).any():
            _raise_too_large(lengths, int(examples[of[np.argmax(last <= first)]]), budgets)
        needs = {"tokens": last - first, "targets": long.targets_at(line + last) - targets}
        needs |= {name: before[taken] - before[image] for name, before in long.taken_before.items()}
        none = np.zeros_like(first)
        rounds.append(Parts(of, first, last, np.stack([needs.get(name, none) for name in budgets.names], 1)))
        goes_on = (last < long.length_E[of]) & (not only_first)
        of, first, image = of[goes_on], last[goes_on], taken[goes_on]
    if not rounds:
        return Parts(of, of, of, np.zeros((0, len(budgets)), np.int64))
    parts = Parts(*(np.concatenate(field) for field in zip(*rounds, strict=True)))
    order = np.argsort(parts.of, kind="stable")
    return Parts(*(field[order] for field in parts))


def _raise_too_large(lengths: Lengths, example: int, budgets: Budgets) -> None:
    """Raises the UserError that names the first image, or other medium, of an example that no row holds."""
    images = range(*(int(i) for i in lengths.prepared.images_E1[example : example + 2]))
    line = _Long(lengths, np.array([example]))
    targets = (line.targets_at(line.image_end) - line.targets_at(line.image_start)).tolist()
    told = []
    for i, of_it in zip(images, targets, strict=True):
        which = slice(i, i + 1)
        (medium, _) = next(table.by_medium(lengths.extents(which).kind))
        needs = {name: int(each[0]) for name, each in lengths.media_needs(which).items()}
        item = Item(None, lengths.extents(i).one(), int(lengths.units_I[i]), int(lengths.slots(which)[0]), needs)
        tokens = int(lengths.spans(which)[0]) + int(medium.text_tokens(lengths.extents(i))) + SEPARATORS
        is_too_large = tokens > budgets.tokens or of_it > budgets.targets
        is_too_large |= any(count > budgets.get(name) for name, count in needs.items())
        told.append((is_too_large, medium, item, tokens))
    _, medium, item, tokens = next((one for one in told if one[0]), told[0])
    what = medium.too_large(item, tokens, budgets, lengths.spec)
    raise UserError(f"{lengths.name}: {lengths.prepared.read(example).origin} has {what}")


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
    """Returns the pieces of examples; those that no row holds are split, truncated or dropped; preferences always
    dropped, as both answers of one must be whole.

    Returns:
      The pieces, in the order of the examples; what each takes, (n, budgets) in the order of Budgets; and which of the
      examples it is of.
    """
    needs = lengths.needs(examples)
    is_long = lengths.is_long(needs, budgets)
    needs = lengths.in_order(needs, budgets.names)
    tokens = needs[:, budgets.names.index("tokens")]
    if not is_long.any():
        of = np.arange(len(examples))
        return Pieces(np.full(len(of), source), examples, np.zeros_like(of), tokens, epochs), needs, of
    of = np.flatnonzero(~is_long)
    first, last, taken = np.zeros_like(of), tokens[of], needs[of]
    if how_long(lengths, long_documents) != "drop":
        long = np.flatnonzero(is_long)
        parts = cut_examples(lengths, examples[long], budgets, only_first=long_documents == "truncate")
        of = np.concatenate([of, long[parts.of]])
        order = np.argsort(of, kind="stable")
        of = of[order]
        first = np.concatenate([first, parts.first])[order]
        last = np.concatenate([last, parts.last])[order]
        taken = np.concatenate([taken, parts.needs])[order]
    return Pieces(np.full(len(of), source), examples[of], first, last, epochs[of]), taken, of


def how_long(lengths: Lengths, long_documents: str) -> str:
    """What happens to a source's examples that no row holds, one of LONG_DOCUMENTS."""
    return "drop" if lengths.preferences else long_documents


class LongDocuments(NamedTuple):
    """What happens to the examples of a source that no row holds."""

    examples: int
    long: int
    pieces: int  # made of the long ones: one each if truncated, none if dropped

    def line(self, source: Lengths, long_documents: str) -> str:
        """One line for the log, or '' if there is nothing to say."""
        became = {"split": f"split into {self.pieces} pieces", "truncate": "truncated", "drop": "dropped"}
        what = "dropped whole" if source.preferences else became[long_documents]
        noun = {"": "documents", "pairs": "pairs", "judged": "answers with what they are compared with"}
        longer = f"{self.long} of {self.examples} {noun[source.preferences]} longer than a row: {what}"
        return f"{source.name}, {longer}" if self.long else ""


def count_long(lengths: Lengths, budgets: Budgets, long_documents: str) -> LongDocuments:
    """Counts a source's long examples. Raises UserError if one must be cut and a single image exceeds a budget."""
    long = pieces = 0
    for start, needs in lengths.blocks():
        examples = start + np.flatnonzero(lengths.is_long(needs, budgets))
        long += len(examples)
        if how_long(lengths, long_documents) != "drop" and len(examples):
            pieces += len(cut_examples(lengths, examples, budgets, only_first=long_documents == "truncate").of)
    return LongDocuments(len(lengths), long, pieces)
