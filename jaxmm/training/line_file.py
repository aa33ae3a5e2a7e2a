"""A .jsonl file that lines are appended to, each whole or not at all; what cannot be written is told once."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxmm.atomic import plain


class LineFile:
    """Appends objects to a file, a line each.

    Args:
      path: of the file; it is made with its first line.
      say: is told, once, of lines that cannot be written, as on a full disk.
      loss: what that means for the user, for the line.
    """

    def __init__(self, path: Path, say: Callable[[str], None], loss: str) -> None:
        self._path, self._say, self._loss = path, say, loss
        self._is_told = self._is_whole = False

    def append(self, item: Mapping[str, Any]) -> bool:
        """Appends a line. Returns whether it is in the file; where it is not, nothing of it is."""
        line = f"{json.dumps(plain(item), allow_nan=False)}\n".encode()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                self._write(file, line)
            finally:
                os.close(file)
        except OSError as error:
            if not self._is_told:
                self._is_told = True
                self._say(f"warning: {self._path} cannot be written ({error.strerror or error}): {self._loss}")
            return False
        return True

    def _write(self, file: int, line: bytes) -> None:
        if not self._is_whole:
            end_at_a_line(file)
        self._is_whole = False
        size = os.fstat(file).st_size
        try:
            if os.write(file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(file, size)
            raise
        self._is_whole = True


def end_at_a_line(file: int) -> None:
    """Cuts what stands behind the last line of an open file: a write that a kill has ended."""
    end = size = os.fstat(file).st_size
    while end:
        start = max(0, end - 65536)
        if (at := os.pread(file, end - start, start).rfind(b"\n")) >= 0:
            end = start + at + 1
            break
        end = start
    if end < size:
        os.ftruncate(file, end)
