"""The sources as streams of examples, and how many tokens of each a window of the plan takes.

Shares are shares of tokens: text and soft tokens that get into rows. What a source is owed is carried from window to
window. So at the end of each window every source has had its share, to within an example, or a few rows where a pass
ends.

Rows are shuffled within a window. A window therefore ends where the pass of a source ends: then no example is ever seen
more than one pass ahead of another, however small the source is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.limits import Budgets
from jaxmm.data.packing.pieces import Pieces, joined_pieces, pieces_of
from jaxmm.data.packing.shuffle import Permutation, key_of
from jaxmm.data.packing.unfit import none_fits

_SUBSET = 1 << 40  # pseudo-epoch that seeds which examples a capped source keeps


class Stage(NamedTuple):
    """Token shares by source, in force from a step on; they sum to 1."""

    step: int
    shares: tuple[float, ...]


class Mixture(NamedTuple):
    """Which sources make up the rows, and how far each goes.

    Attributes:
      stages: by step; the first begins at 0.
      examples: how many of its examples each source uses; the seed draws which ones.
      ends: after how many examples, all epochs counted, each source has run out; 0 is endless.
    """

    stages: tuple[Stage, ...]
    examples: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def is_endless(self) -> bool:
        return not all(self.ends)


def make_mixture(
    lengths: Sequence[Lengths],
    stages: Sequence[tuple[int, Sequence[float]]],
    max_examples: Mapping[str, int] | None = None,
    max_epochs: Mapping[str, float] | None = None,
    epochs: float = 0.0,
) -> Mixture:
    """Builds a mixture.

    Args:
      stages: (step, shares by source), the first with step 0; shares may have any sum.
      max_examples, max_epochs: for the sources they name. A fraction of an epoch is that fraction of its examples.
      epochs: for each source that ``max_epochs`` does not name; 0 is endless.
    """
    sizes = [min(len(s), int((max_examples or {}).get(s.name, 0)) or len(s)) for s in lengths]
    passes = [(max_epochs or {}).get(s.name, epochs) for s in lengths]
    ends = [max(1, round(n * size)) if n else 0 for n, size in zip(passes, sizes, strict=True)]
    normal = [(step, np.array(shares, float) / np.sum(shares)) for step, shares in stages]
    return Mixture(tuple(Stage(step, tuple(shares.tolist())) for step, shares in normal), tuple(sizes), tuple(ends))


class Position(NamedTuple):
    """Where the streams stand before a window, by source."""

    taken: tuple[int, ...]  # examples so far
    owed: tuple[float, ...]  # tokens of its share that a source has not had yet; negative where it had more


class Window(NamedTuple):
    """What a window takes.

    Attributes:
      tokens: in all; each source has its share of them.
      limits: the position in its stream that each source does not pass; empty for none.
      finished: which sources go to their limit, whatever they are owed.
    """

    tokens: float
    limits: tuple[int, ...] = ()
    finished: tuple[bool, ...] = ()


class Drawn(NamedTuple):
    """Pieces, and what each takes: (n, budgets) in the order of Budgets."""

    pieces: Pieces
    needs: np.ndarray


def joined(parts: Sequence[Drawn], budgets: Budgets) -> Drawn:
    none = Drawn(Pieces(*[np.zeros(0, np.int64)] * 5), np.zeros((0, len(budgets)), np.int64))
    pieces, needs = zip(none, *parts, strict=True)
    return Drawn(joined_pieces(pieces), np.concatenate(needs))


class Streams:
    """The sources of a mixture, each an endless stream of its examples: epoch after epoch, in another order each."""

    def __init__(self, lengths: Sequence[Lengths], mixture: Mixture, budgets: Budgets, seed: int, long_documents: str):
        self.lengths, self.mixture, self.budgets = list(lengths), mixture, budgets
        self.seed, self.long_documents = seed, long_documents

    def examples(self, source: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The examples at positions [start, stop) of a source's stream, and their epochs."""
        size, whole = self.mixture.examples[source], len(self.lengths[source])
        by_epoch, epochs = [], []
        for epoch in range(start // size, -(-stop // size)):
            inside = np.arange(max(start - epoch * size, 0), min(stop - epoch * size, size))
            by_epoch.append(Permutation(size, key_of(self.seed, source, epoch))(inside))
            epochs.append(np.full(len(inside), epoch))
        examples = np.concatenate(by_epoch)
        if size < whole:
            examples = Permutation(whole, key_of(self.seed, source, _SUBSET))(examples)
        return examples, np.concatenate(epochs)

    @functools.cached_property
    def pass_tokens(self) -> list[float]:
        """About how many tokens one pass over each source gives."""
        by_source = []
        for source, size in zip(self.lengths, self.mixture.examples, strict=True):
            tokens = source.total_tokens
            if self.long_documents != "split":
                kept = self.budgets.tokens if self.long_documents == "truncate" else 0
                for _, needs in source.blocks():
                    long = needs[source.is_long(needs, self.budgets), source.columns.index("tokens")]
                    tokens -= int(long.sum(dtype=np.int64)) - kept * len(long)
            by_source.append(max(tokens, 1) * size / len(source))
        return by_source

    def within_passes(
        self, position: Position, step: int, whole: float, most: float, *, batch: float, row: float, seam: float
    ) -> Window:
        """The next window: a part of a pass, or of several where one batch holds several of them.

        Args:
          whole: about the tokens of a window.
          most: the most tokens it may have.
          batch, row: the tokens of a batch, and of a row.
          seam: passes of sources that end within so many tokens of each other end in the same window.
        """
        shares = self._shares(position.taken, step)
        if shares is None:
            return Window(0.0)
        limits, until = [], np.full(len(shares), np.inf)
        for i, (taken, size, end) in enumerate(zip(position.taken, *self.mixture[1:], strict=True)):
            passes = max(1, int(batch * shares[i] / self.pass_tokens[i]))
            limits.append((taken // size + passes) * size)
            limits[i] = min(limits[i], end) if end else limits[i]
            if shares[i]:
                left = (limits[i] - taken) * self.pass_tokens[i] / size
                until[i] = (left - position.owed[i]) / shares[i]
        first = max(float(until.min()), row)
        parts = max(1, round(first / whole))
        tokens = min(first / parts, most)
        finished = until <= (first + min(seam, first / 4) if tokens == first else -np.inf)
        return Window(tokens, tuple(limits), tuple(finished.tolist()))

    def take(self, source: int, start: int, tokens: float, end: int) -> tuple[Drawn, int, int]:
        """Takes examples from a position on, until they hold ``tokens`` or position ``end`` is reached (0: no end).

        Returns:
          Their pieces, the position after them, and the tokens they hold.

        Raises:
          UserError: if a whole epoch holds no token because all of its examples are dropped.
        """
        lengths, size = self.lengths[source], self.mixture.examples[source]
        mean = max(1.0, lengths.total_tokens / len(lengths))
        drawn, held, at = [], 0, start
        while held < tokens and (not end or at < end):
            more = (tokens - held) / mean * 1.02 + 8
            stop = end if end and more >= end - at else at + int(more)
            examples, epochs = self.examples(source, at, stop)
            pieces, needs, of = pieces_of(lengths, source, examples, epochs, self.budgets, self.long_documents)
            sums = np.cumsum(np.bincount(of, pieces.last - pieces.first, len(examples)))
            count = min(int(np.searchsorted(sums, tokens - held, side="left")) + 1, len(examples))
            inside = slice(0, int(np.searchsorted(of, count, side="left")))
            drawn.append(Drawn(pieces.take(inside), needs[inside]))
            held += int(sums[count - 1])
            at += count
            if not held and at // size > -(-start // size):
                raise none_fits(lengths, self.budgets, self.examples(source, 0, size)[0])
        return joined(drawn, self.budgets), at, held

    def draw(self, position: Position, window: Window, step: int) -> tuple[Drawn, Position]:
        """Draws one window: each source's share of its tokens, plus what the source is owed from before.

        The share of a source that has run out goes to the others. If no source with a share in the stage of ``step`` is
        left, the shares of the next stage count. If no stage is left, no pieces are returned.
        """
        taken, owed = list(position.taken), np.array(position.owed)
        limits = window.limits or self.mixture.ends
        finished = np.array(window.finished or [False] * len(taken))
        shares = self._shares(taken, step)
        drawn: list[Drawn] = []
        if shares is not None:
            owed += window.tokens * shares
        while shares is not None:
            for i in np.flatnonzero((shares > 0) & ((owed > 0) | finished)).tolist():
                wanted = math.inf if finished[i] else owed[i]
                pieces, taken[i], held = self.take(i, taken[i], wanted, limits[i])
                owed[i] -= held
                drawn.append(pieces)
            spare = sum(max(owed[i], 0.0) for i in range(len(taken)) if self.has_run_out(i, taken[i]))
            owed = np.where([self.has_run_out(i, n) for i, n in enumerate(taken)], 0.0, owed)
            shares = self._shares(taken, step)
            if not spare or shares is None:
                break
            owed += spare * shares
        return joined(drawn, self.budgets), Position(tuple(taken), tuple(owed.tolist()))

    def has_run_out(self, source: int, taken: int) -> bool:
        end = self.mixture.ends[source]
        return bool(end) and taken >= end

    def is_over(self, position: Position, step: int) -> bool:
        """Whether nothing is left to draw."""
        return self._shares(position.taken, step) is None

    def _shares(self, taken: Sequence[int], step: int) -> np.ndarray | None:
        """Shares at a step; sources that have run out give theirs to the others. None if no source is left."""
        left = np.array([not self.has_run_out(i, n) for i, n in enumerate(taken)])
        for i, stage in enumerate(self.mixture.stages):
            if i + 1 < len(self.mixture.stages) and self.mixture.stages[i + 1].step <= step:
                continue
            shares = np.where(left, stage.shares, 0.0)
            if shares.sum() > 0:
                return shares / shares.sum()
        return None
