"""Where the windows of a plan begin, kept in a file, so that a continued run plans none of them again."""

from __future__ import annotations

import array
import contextlib
from pathlib import Path

import numpy as np

from jaxmm.atomic import published
from jaxmm.data.packing.mixture import Position
from jaxmm.data.packing.pieces import LongDocuments
from jaxmm.errors import UserError


class Table:
    """Where each window begins: its first row, and the streams' positions. Kept in a file, if one is given.

    With a small set a window may be one batch, so a run of a million batches has a million windows: hence flat arrays.

    Attributes:
      starts: the first row of each window.
    """

    def __init__(self, file: Path | None, position: Position):
        self.file = file
        self.starts = array.array("q", [0])
        self._taken, self._owed = array.array("q", position.taken), array.array("d", position.owed)
        self._sources = len(position.taken)
        self.has_ended = False
        self.long: tuple[LongDocuments, ...] | None = None
        self._saved = 0
        if file is not None and file.is_file():
            with contextlib.suppress(Exception):  # zipfile raises anything on a damaged archive; it is made again
                self._load(file)

    def position(self, window: int) -> Position:
        """Where the streams are before a window."""
        own = slice(window * self._sources, (window + 1) * self._sources)
        return Position(tuple(self._taken[own]), tuple(self._owed[own]))

    def add(self, row: int, position: Position, has_ended: bool) -> None:
        """Records the end of the last window, or that the plan has ended."""
        self.has_ended = has_ended
        if not has_ended:
            self.starts.append(row)
            self._taken.extend(position.taken)
            self._owed.extend(position.owed)
        if len(self.starts) >= self._saved + 8 + self._saved // 8:
            self.save()

    def save(self) -> None:
        """Writes the file atomically. Several processes may do so: what any of them writes is correct."""
        if self.file is None or self.long is None or self._saved == len(self.starts):
            return
        try:
            with published(self.file) as unfinished, open(unfinished, "wb") as opened:
                np.savez(
                    opened,
                    starts=np.array(self.starts),
                    taken=np.array(self._taken).reshape(-1, self._sources),
                    owed=np.array(self._owed).reshape(-1, self._sources),
                    has_ended=self.has_ended,
                    long=np.array(self.long),
                )
            self._saved = len(self.starts)
        except OSError as error:
            raise UserError(f"{self.file} could not be written: {error}") from error

    def _load(self, file: Path) -> None:
        with np.load(file) as arrays:
            starts, taken, owed = (arrays[name] for name in ("starts", "taken", "owed"))
            has_ended, long = arrays["has_ended"].item(), arrays["long"].tolist()
        if taken.shape != (len(starts), self._sources) or owed.shape != taken.shape:
            raise ValueError("a table of another plan")
        self._taken, self._owed = array.array("q", taken.reshape(-1)), array.array("d", owed.reshape(-1))
        self.starts, self.has_ended = array.array("q", starts), has_ended
        self.long = tuple(LongDocuments(*counts) for counts in long)
        self._saved = len(self.starts)
