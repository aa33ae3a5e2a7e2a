"""Which piece of which example stands in which row: integers only, long before a pixel is decoded.

The rows of global batch k are a pure function of (prepared index, mixture, budgets, seed, k). A window of rows takes
from each source as much as its share of tokens asks for, packs it, and shuffles the rows. Windows follow each other
without a gap. A table, also kept on disk, says where each window begins, so that any batch takes one look-up and one
window.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmm.data.packing.budgets import choose_budgets
from jaxmm.data.packing.lengths import Lengths, expanded
from jaxmm.data.packing.limits import FIRST, Budgets
from jaxmm.data.packing.mixture import Mixture, Position, Stage, Streams, Window, make_mixture
from jaxmm.data.packing.pack import GOLDEN, assign, balanced_order, pack
from jaxmm.data.packing.pieces import (
    LONG_DOCUMENTS,
    LongDocuments,
    Piece,
    Pieces,
    Row,
    count_long,
    cut,
    how_long,
    joined_pieces,
    pieces_of,
)
from jaxmm.data.packing.rows import Batches, Rows, in_rows, joined_rows
from jaxmm.data.packing.shuffle import key_of, random_bits
from jaxmm.data.packing.table import Table
from jaxmm.data.packing.unfit import none_fits
from jaxmm.errors import UserError

__all__ = [
    "Batches", "Budgets", "Lengths", "LongDocuments", "Mixture", "Origin", "Pass", "Piece", "Plan", "Row",
    "Rows", "Stage", "balanced_order", "choose_budgets", "cut", "expanded", "make_mixture", "pack",
]  # fmt: skip

FORMAT = 4  # raise it with any change to the rows that a plan gives
UNTIL_PASSES = 3  # the format before: a window had many passes over a small source. Runs that began with it keep it
FORMATS = (UNTIL_PASSES, FORMAT)
BY_MEDIA = 5  # where media have budgets of their own: items that are large in a third one are dealt out, too
WINDOW_PIECES = 1 << 16  # about the pieces of a window: thousands of rows pack tightly, and are planned in an instant
MIN_ROWS = 256  # of a window, unless the ends of passes make it smaller
SEAM_ROWS = 4  # passes that end within so many rows of each other end in the same window
KEPT_WINDOWS, KEPT_PIECES = (4, 256), 4 * WINDOW_PIECES  # in memory: least and most windows, and the pieces of them
_ROWS = 1 << 41  # takes the place of a source in keys


def _inverse(order: np.ndarray) -> np.ndarray:
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return inverse


class Origin(NamedTuple):
    """Where a plan that continues another one begins: at a batch, after so many examples of each source."""

    batch: int = 0
    seen: tuple[int, ...] = ()


def formats_of(budgets: Budgets) -> tuple[int, ...]:
    """The formats that a plan with these budgets may have, the newest last."""
    return (BY_MEDIA,) if len(budgets.names) > len(FIRST) else FORMATS


class Plan(Batches):
    """The rows of any batch of a run over a mixture of sources. It is endless unless all sources have an end."""

    def __init__(
        self,
        lengths: Sequence[Lengths],
        mixture: Mixture | Sequence[float],
        budgets: Budgets,
        batch_size: int,
        seed: int,
        long_documents: str = "split",
        window_rows: int = 0,
        *,
        table: Path | None = None,
        origin: Origin = Origin(),  # noqa: B008
        format: int = 0,
    ):
        """
        Args:
          mixture: a Mixture, or only token shares (text plus soft tokens) by source; positive, any sum.
          window_rows: about how many rows are planned at a time; 0 picks it from the data.
          table: a folder that stores where windows begin; used only if every source has a fingerprint.
          origin: the plan's first batch, and the number of examples of each source that came before it.
          format: that of the run which is continued, one of ``formats_of`` the budgets; 0 is the newest.

        Raises:
          UserError: if an example's smallest piece exceeds a budget, or nothing is left to train on.
        """
        if long_documents not in LONG_DOCUMENTS:
            raise UserError(f"config.data.long_documents '{long_documents}' is not one of {', '.join(LONG_DOCUMENTS)}")
        if not isinstance(mixture, Mixture):
            mixture = make_mixture(lengths, [(0, mixture)])
        self.lengths, self.mixture, self.budgets = list(lengths), mixture, budgets
        self.batch_size, self.seed, self.long_documents, self.origin = batch_size, seed, long_documents, origin
        self.format = format or formats_of(budgets)[-1]
        if self.format not in formats_of(budgets):
            raise ValueError(f"no plan of format {format}")
        for source in lengths:
            if not len(source):
                raise none_fits(source, budgets)
        self._streams = Streams(lengths, mixture, budgets, seed, long_documents)
        self._sizes = [self._window_size(stage, window_rows) for stage in mixture.stages]
        seen = origin.seen or (0,) * len(self.lengths)
        self._table = Table(self._table_file(table), Position(seen, (0.0,) * len(seen)))
        self._windows: dict[int, Rows] = {}
        self._lock = threading.Lock()
        if self._table.long is None:
            self._table.long = tuple(count_long(source, budgets, long_documents) for source in self.lengths)
        self.long = self._table.long
        for source, counts in zip(self.lengths, self.long, strict=True):
            if how_long(source, long_documents) == "drop" and counts.long == counts.examples:
                raise none_fits(source, budgets)

    def __getstate__(self) -> dict[str, Any]:  # to worker processes, each with a lock of its own
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_windows")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._windows, self._lock = {}, threading.Lock()

    def _window_size(self, stage: Stage, window_rows: int) -> tuple[int, float]:
        """(rows of a window, tokens of a row) to aim at in a stage."""
        present = [(source, share) for source, share in zip(self.lengths, stage.shares, strict=True) if share]
        totals = [source.in_order(source.totals, self.budgets.names) for source, _ in present]
        needs = np.sum(
            [share * total / max(s.total_tokens, 1) for (s, share), total in zip(present, totals, strict=True)], 0
        )
        # A budget of 0 is one that no source needs.
        row_tokens = 1 / max(need / limit for need, limit in zip(needs.tolist(), self.budgets, strict=True) if limit)
        pieces = sum(share * len(source) / max(source.total_tokens, 1) for source, share in present) * row_tokens + 1
        epoch = max(source.total_tokens / share for source, share in present) / row_tokens
        return window_rows or int(max(min(WINDOW_PIECES / pieces, epoch), MIN_ROWS)), row_tokens

    def _table_file(self, folder: Path | None) -> Path | None:
        """The file of this plan's table; its name is a hash of everything that the rows depend on."""
        fingerprints = [source.prepared.meta.get("fingerprint") for source in self.lengths]
        if folder is None or not all(fingerprints):
            return None
        specs = [source.spec.key(source.prepared.meta.get("media", ())) for source in self.lengths]
        batch_size = self.batch_size if len(self.mixture.stages) > 1 else 0  # with stages, steps matter
        most = self.batch_size * max(row_tokens for _, row_tokens in self._sizes)
        if self.format != UNTIL_PASSES and most >= 2 * min(self._streams.pass_tokens):
            batch_size = self.batch_size  # it may say how many passes a window holds
        budgets = [*self.budgets, *self.budgets.names[len(FIRST) :]]
        text = json.dumps([self.format, fingerprints, specs, self.mixture, budgets, batch_size, self.seed,
                           self.long_documents, self._sizes, self.origin])  # fmt: skip
        return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz"

    def _plan_window(self, window: int) -> Rows:
        """Plans one window, whose predecessors are planned, and records where the next one starts."""
        row, before = self._table.starts[window], self._table.position(window)
        step = self.origin.batch + row // self.batch_size
        (pieces, needs), after = self._streams.draw(before, self._window_of(row, before, step), step)
        row_of = assign(needs, self.budgets)
        rows = in_rows(pieces, self._shuffled(pieces, row_of, window)[row_of])
        if len(self._table.starts) == window + 1:
            self._table.add(row + rows.size, after, has_ended=self._streams.is_over(after, step) and not rows.size)
        return rows

    def _window_of(self, row: int, before: Position, step: int) -> Window:
        """What a window takes: less and less as a change of shares comes near, so that a window ends at its step."""
        stages = self.mixture.stages
        stage = max(i for i, s in enumerate(stages) if s.step <= step or i == 0)
        whole, row_tokens = self._sizes[stage]
        rows = whole
        if stage + 1 < len(stages):
            left = (stages[stage + 1].step - self.origin.batch) * self.batch_size - row
            if left < rows * 4 / 3:
                rows = left if left <= 16 else left * 3 // 4
        if self.format == UNTIL_PASSES:
            return Window(rows * row_tokens)
        return self._streams.within_passes(
            before, step, whole * row_tokens, rows * row_tokens if rows < whole else math.inf,
            batch=self.batch_size * row_tokens, row=row_tokens, seam=SEAM_ROWS * row_tokens,
        )  # fmt: skip

    def _shuffled(self, pieces: Pieces, row_of: np.ndarray, window: int) -> np.ndarray:
        """Where each row goes: an order in which each source is spread evenly, and all else is random.

        Rows are grouped by the source with most of their tokens, and sorted by how many these are. They go to multiples
        of the golden ratio, so that each stretch of the window has about as many of each kind.
        """
        count, sources = int(row_of.max(initial=-1)) + 1, len(self.lengths)
        key = key_of(self.seed, _ROWS, window)
        chance = random_bits(key, np.arange(count + sources)) / 2.0**64
        if sources == 1:
            return _inverse(np.argsort(chance[:count], kind="stable"))
        tokens = (pieces.last - pieces.first).astype(float)
        held = np.bincount(row_of * sources + pieces.source, tokens, count * sources).reshape(count, sources)
        group = held.argmax(1)
        rank = _inverse(np.lexsort((chance[:count], held[np.arange(count), group], group)))
        return _inverse(np.argsort((rank * GOLDEN + chance[count + group]) % 1, kind="stable"))

    def _window(self, window: int) -> Rows:
        if window not in self._windows:
            least, most = KEPT_WINDOWS
            while len(self._windows) >= least and (
                len(self._windows) >= most
                or sum(len(kept.pieces.source) for kept in self._windows.values()) > KEPT_PIECES
            ):
                del self._windows[min(self._windows)]
            self._windows[window] = self._plan_window(window)
        return self._windows[window]

    def _plan_to(self, row: int) -> None:
        """Plans windows until one holds the row, or the plan ends."""
        while self._table.starts[-1] <= row and not self._table.has_ended:
            self._window(len(self._table.starts) - 1)

    def row_arrays(self, start: int, stop: int) -> Rows:
        start, stop = (n - self.origin.batch * self.batch_size for n in (start, stop))
        if start < 0:
            raise ValueError(f"row {start} before the plan's first batch, {self.origin.batch}")
        with self._lock:
            self._plan_to(stop - 1)
            last = self._table.starts[-1]
            if stop - last >= self.batch_size:
                raise IndexError(f"the plan ends with batch {self.origin.batch + -(-last // self.batch_size) - 1}")
            window = int(np.searchsorted(self._table.starts, start, side="right")) - 1
            parts, row = [self._window(window).part(0, 0)], start
            while row < min(stop, last):
                begin, end = self._table.starts[window], self._table.starts[window + 1]
                if begin < end:
                    parts.append(self._window(window).part(row - begin, min(stop, end) - begin))
                row, window = end, window + 1
        return joined_rows(parts).padded(stop - start)

    def rows(self, start: int, stop: int) -> list[Row]:
        """Rows [start, stop) of the run."""
        return self.row_arrays(start, stop).listed()

    def batches(self, most: int = 1 << 60) -> int:
        """The number of the last batch, plus 1, or ``most`` if that is less; the last batch may end in empty rows.

        It plans every window up to there that is not in the table. Raises ValueError if the mixture is endless.
        """
        if self.mixture.is_endless:
            raise ValueError("an endless plan has no number of batches")
        with self._lock:
            self._plan_to((most - self.origin.batch) * self.batch_size)
        self.save()
        return min(most, self.origin.batch + -(-self._table.starts[-1] // self.batch_size))

    def about_batches(self) -> float:
        """About the number of batches, without planning them; infinite if the mixture is endless."""
        if self.mixture.is_endless:
            return math.inf
        lefts = np.subtract(self.mixture.ends, self.origin.seen or 0).tolist()
        sizes = self.mixture.examples
        passes = [max(0.0, left) / size for left, size in zip(lefts, sizes, strict=True)]
        tokens = sum(number * held for number, held in zip(passes, self._streams.pass_tokens, strict=True))
        return self.origin.batch + tokens / (self._sizes[0][1] * self.batch_size)

    def seen(self, batch: int) -> tuple[int, ...]:
        """How many examples of each source, all epochs counted, the batches before ``batch`` have begun."""
        row = (batch - self.origin.batch) * self.batch_size
        with self._lock:
            self._plan_to(row)
            window = int(np.searchsorted(self._table.starts, row, side="right")) - 1
            before = self._table.position(window).taken
            if row == self._table.starts[window]:
                return before
            pieces = self._window(window).part(0, row - self._table.starts[window]).pieces
            counts = np.bincount(pieces.source[pieces.first == 0], minlength=len(before))
            return tuple((np.array(before) + counts).tolist())

    def save(self) -> None:
        """Writes the table, if it has a place: a continued run plans none of these windows again."""
        with self._lock:
            self._table.save()

    def run_out(self, batch: int) -> list[str]:
        """The names of the sources that have run out before ``batch``, exact to a window."""
        taken = self.seen(batch) if not self.mixture.is_endless or any(self.mixture.ends) else ()
        return [self.lengths[i].name for i, n in enumerate(taken) if self._streams.has_run_out(i, n)]


class Pass(Batches):
    """Every example of the sources once, the last batch filled with empty rows: for evaluation."""

    def __init__(
        self,
        lengths: Sequence[Lengths],
        budgets: Budgets,
        batch_size: int,
        long_documents: str = "split",
        examples: int = 0,
        which: Callable[[Lengths], np.ndarray] | None = None,
    ):
        """
        Args:
          examples: at most that many of each source, the first ones; 0 is all.
          which: of a source, bool by example: those of them that count; by default all.
        """
        self.lengths, self.budgets, self.batch_size = list(lengths), budgets, batch_size
        by_source = []
        for i, source in enumerate(self.lengths):
            those = np.arange(min(len(source), examples or len(source)))
            those = those[which(source)[those]] if which else those
            by_source.append(pieces_of(source, i, those, np.zeros_like(those), budgets, long_documents))
        pieces, needs, _ = zip(*by_source, strict=True)
        rows = in_rows(joined_pieces(pieces), assign(np.concatenate(needs), budgets))
        self._rows = rows.padded(-(-rows.size // batch_size) * batch_size)

    def __len__(self) -> int:
        """Batches in the pass."""
        return self._rows.size // self.batch_size

    def row_arrays(self, start: int, stop: int) -> Rows:
        return self._rows.part(start, stop)

    def rows(self, start: int, stop: int) -> list[Row]:
        return self.row_arrays(start, stop).listed()
