"""What an index knows of its media before any of them is decoded: kind, size, length and rate of each."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

SPARSE = 64  # media between the first and the last that are asked about, for each of them


class Extent(NamedTuple):
    """What the index stores of one medium: see ``index.Columns``. ``rate`` counts only where there is a ``length``.

    ``together`` is how many pictures the document of a picture has, as far as it is known; 1 of other media.
    """

    height: int
    width: int
    kind: int = 0
    length: int = 0
    rate: Fraction = Fraction(1)
    together: int = 1

    @classmethod
    def read(cls, kind: int, columns: Iterable[Any]) -> Extent:
        """From (height, width, length, numerator, denominator), as the index has them."""
        height, width, length, num, den = map(int, columns)
        return cls(height, width, kind, length, Fraction(num, den) if length else Fraction(1))


class Extents:
    """The extents of some media of an index: arrays (n,), or scalars for one; a column is read when first used."""

    def __init__(self, index: Any, which: Any = slice(None), within: np.ndarray | None = None):
        """
        Args:
          index: an ``index.Columns``.
          which: selects media of the index.
          within: (n,) bool, a mask over those; None is all.
        """
        self._index, self._which, self._within = index, which, within

    def those(self, which: np.ndarray | None) -> Extents:
        """The media where the mask is True; None is all of them."""
        if which is None:
            return self
        if self._within is None:
            return Extents(self._index, self._which, which)
        within = self._within.copy()
        within[within] = which
        return Extents(self._index, self._which, within)

    def one(self) -> Extent:
        """The extent, where there is only one medium."""
        columns = self.height, self.width, self.length, self.rate_num, self.rate_den
        extent = Extent.read(int(self.kind), columns)
        return extent if extent.kind else extent._replace(together=int(self.together))

    @property
    def source(self) -> str:
        """The name of the source, for errors."""
        return str(self._index.meta["name"])

    @functools.cached_property
    def height(self) -> np.ndarray:
        return self._column("image_height_I")

    @functools.cached_property
    def width(self) -> np.ndarray:
        return self._column("image_width_I")

    @functools.cached_property
    def kind(self) -> np.ndarray:
        return self._column("image_kind_I")

    @functools.cached_property
    def length(self) -> np.ndarray:
        return self._column("media_count_I")

    @functools.cached_property
    def rate_num(self) -> np.ndarray:
        return self._column("media_rate_num_I")

    @functools.cached_property
    def rate_den(self) -> np.ndarray:
        return self._column("media_rate_den_I")

    @functools.cached_property
    def together(self) -> np.ndarray:
        """How many pictures (of kind 0) the document of each medium has."""
        offsets, kinds = np.asarray(self._index.images_E1), self._index.image_kind_I
        if isinstance(self._which, slice):
            chosen = np.arange(*self._which.indices(len(kinds)))
        else:
            chosen = np.asarray(self._which)
            chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        owner = np.searchsorted(offsets, chosen if self._within is None else chosen[self._within], side="right")
        first, last = offsets[owner - 1], offsets[owner]
        start, stop = (int(np.min(first)), int(np.max(last))) if np.size(first) else (0, 0)
        if stop - start > SPARSE * max(np.size(owner), 1):  # far apart: not all that lies between them
            owners, where = np.unique(owner, return_inverse=True)
            begun, counts = offsets[owners - 1], offsets[owners] - offsets[owners - 1]
            ends = np.cumsum(counts)
            pictures = np.asarray(kinds[np.repeat(begun - ends + counts, counts) + np.arange(ends[-1])]) == 0
            before = np.concatenate([[0], np.cumsum(pictures)])
            return (before[ends] - before[ends - counts])[where.reshape(np.shape(owner))]
        before = np.concatenate([[0], np.cumsum(np.asarray(kinds[start:stop]) == 0)])
        return before[last - start] - before[first - start]

    def _column(self, name: str) -> np.ndarray:
        column = np.asarray(getattr(self._index, name)[self._which])
        return column if self._within is None else column[self._within]
