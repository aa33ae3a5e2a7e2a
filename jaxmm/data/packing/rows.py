"""Rows of pieces as arrays, and batches of rows in the one order that balances their work over devices."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

import numpy as np

from jaxmm.data.packing.pack import balanced_orders, ordered
from jaxmm.data.packing.pieces import Pieces, Row, joined_pieces


class Rows(NamedTuple):
    """Rows as arrays: row r is made of the pieces starts[r] to starts[r + 1]."""

    pieces: Pieces
    starts: np.ndarray  # int64 (rows + 1,)

    @property
    def size(self) -> int:
        return len(self.starts) - 1

    def part(self, start: int, stop: int) -> Rows:
        starts = self.starts[start : stop + 1]
        return Rows(self.pieces.take(slice(int(starts[0]), int(starts[-1]))), starts - starts[0])

    def reordered(self, order: np.ndarray) -> Rows:
        counts = np.diff(self.starts)[order]
        starts = np.concatenate([[0], np.cumsum(counts)])
        places = np.repeat(self.starts[:-1][order] - starts[:-1], counts) + np.arange(starts[-1])
        return Rows(self.pieces.take(places), starts)

    def padded(self, count: int) -> Rows:
        """With empty rows at the end, up to ``count``."""
        return Rows(self.pieces, np.append(self.starts, np.full(count - self.size, self.starts[-1])))

    def work(self) -> np.ndarray:
        """float64 (rows,): causal attention work, in pairs of positions."""
        total = np.concatenate([[0.0], np.cumsum((self.pieces.last - self.pieces.first).astype(float) ** 2)])
        return total[self.starts[1:]] - total[self.starts[:-1]]

    def listed(self) -> list[Row]:
        pieces, starts = self.pieces.listed(), self.starts.tolist()
        return [pieces[start:stop] for start, stop in itertools.pairwise(starts)]


class Listed(Sequence[Row]):
    """Rows as lists of pieces, which are made where they are asked for: of a global batch few processes need many."""

    def __init__(self, rows: Rows):
        self._rows = rows

    def __len__(self) -> int:
        return self._rows.size

    @overload
    def __getitem__(self, which: int) -> Row: ...

    @overload
    def __getitem__(self, which: slice) -> list[Row]: ...

    def __getitem__(self, which: int | slice) -> Row | list[Row]:
        numbers = np.arange(len(self))[which]
        listed = self._rows.reordered(np.atleast_1d(numbers)).listed()
        return listed if isinstance(which, slice) else listed[0]

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.listed())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def those(self, which: Sequence[int]) -> list[Row]:
        """Some of the rows, by their numbers."""
        return self._rows.reordered(np.asarray(which, np.int64)).listed()

    def begun(self) -> int:
        """How many documents begin in the rows."""
        return int(np.count_nonzero(self._rows.pieces.first == 0))


def begun(rows: Sequence[Row]) -> int:
    """How many documents begin in the rows."""
    return rows.begun() if isinstance(rows, Listed) else sum(piece.first == 0 for row in rows for piece in row)


def joined_rows(parts: Sequence[Rows]) -> Rows:
    ends = np.cumsum([0] + [len(part.pieces.source) for part in parts])
    starts = [part.starts[:-1] + end for part, end in zip(parts, ends, strict=False)]
    return Rows(joined_pieces([part.pieces for part in parts]), np.concatenate([*starts, ends[-1:]]))


def in_rows(pieces: Pieces, row_of: np.ndarray) -> Rows:
    """Groups pieces by the number of their row."""
    return Rows(pieces.take(ordered(row_of)), np.concatenate([[0], np.cumsum(np.bincount(row_of))]))


class Batches(abc.ABC):
    """Batches of rows, each in the one order that balances its work over devices."""

    batch_size: int

    @abc.abstractmethod
    def row_arrays(self, start: int, stop: int) -> Rows:
        """Rows [start, stop), before they are ordered within their batches."""

    def batch_arrays(self, start: int, stop: int) -> Rows:
        """The rows of batches [start, stop), batch after batch."""
        rows = self.row_arrays(start * self.batch_size, stop * self.batch_size)
        orders = balanced_orders(rows.work().reshape(stop - start, self.batch_size))
        return rows.reordered((orders + np.arange(stop - start)[:, None] * self.batch_size).ravel())

    def batch(self, k: int) -> list[Row]:
        """The rows of global batch ``k``."""
        return self.batch_arrays(k, k + 1).listed()
