"""Where the windows of a plan begin, kept in a file, so that a run that goes on plans none of them again."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

import numpy as np

from jaxmm.data.mixture import Position
from jaxmm.data.pieces import LongDocuments
from jaxmm.errors import UserError


class Table:
    """Where each window begins: its first row, and the streams' positions. Kept in a file, if one is given."""

    def __init__(self, file: Path | None, position: Position):
        self.file = file
        self.starts, self.positions = [0], [position]
        self.has_ended = False
        self.long: tuple[LongDocuments, ...] | None = None
        self._saved = 0
        if file is not None and file.is_file():
            with contextlib.suppress(Exception):  # of a damaged archive zipfile raises anything; it is made anew
                self._load(file)

    def add(self, row: int, position: Position, has_ended: bool) -> None:
        """Notes the end of the last window, or that there was none."""
        self.has_ended = has_ended
        if not has_ended:
            self.starts.append(row)
            self.positions.append(position)
        if len(self.starts) >= self._saved + 8 + self._saved // 8:
            self.save()

    def save(self) -> None:
        """Writes the file, whole; several processes may, and all that any writes is right."""
        if self.file is None or self.long is None or self._saved == len(self.starts):
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.file.with_name(f".{self.file.name}-{secrets.token_hex(4)}")
        try:
            with open(unfinished, "wb") as opened:
                np.savez(
                    opened,
                    starts=np.array(self.starts),
                    taken=np.array([p.taken for p in self.positions]),
                    owed=np.array([p.owed for p in self.positions]),
                    has_ended=self.has_ended,
                    long=np.array(self.long),
                )
            os.replace(unfinished, self.file)
            self._saved = len(self.starts)
        except OSError as error:
            raise UserError(f"{self.file} could not be written: {error}") from error
        finally:
            unfinished.unlink(missing_ok=True)

    def _load(self, file: Path) -> None:
        with np.load(file) as found:
            starts, taken, owed, has_ended, long = (
                found[name].tolist() for name in ("starts", "taken", "owed", "has_ended", "long")
            )
        self.positions = [Position(tuple(t), tuple(o)) for t, o in zip(taken, owed, strict=True)]
        self.starts, self.has_ended, self.long = starts, has_ended, tuple(LongDocuments(*counts) for counts in long)
        self._saved = len(self.starts)
