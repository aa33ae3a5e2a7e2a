"""Shows how far a preparation is, on stderr: one moving line on a terminal, else a plain line now and then."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO


class Progress:
    """Counts documents and bytes, and shows them with rates and the time left.

    Args:
      out: stderr by default.
      quiet_seconds: nothing is shown before this time, so that a short preparation stays silent.
      doing: what is done to a source.
    """

    def __init__(
        self,
        out: TextIO | None = None,
        quiet_seconds: float = 3.0,
        clock: Callable[[], float] = time.monotonic,
        doing: str = "preparing",
    ):
        self._out = out or sys.stderr
        self._in_place = self._out.isatty()
        self._every = 0.2 if self._in_place else 10.0
        self._clock, self._quiet, self._doing = clock, quiet_seconds, doing
        self._lock = threading.Lock()
        self._shown = False
        self.start("", 0, 0)

    def start(self, name: str, total: int, finished: int) -> None:
        """Begins a source of ``total`` bytes, of which ``finished`` were prepared before."""
        self._name, self._total, self._finished = name, total, finished
        self._documents = self._skipped = self._read = self._done = 0
        self._began = self._clock()
        self._next = self._began + self._quiet

    def tick(self, documents: int, size: int, skipped: int) -> None:
        """Adds documents, bytes and skipped documents."""
        with self._lock:
            self._documents += documents
            self._read += size
            self._skipped += skipped
            now = self._clock()
            if now >= self._next:
                self._next = now + self._every
                self._show(self.line(now))

    def done(self, size: int) -> None:
        """Adds a finished shard of ``size`` bytes of input: more exact than the bytes given to ``tick``."""
        with self._lock:
            self._done += size
            self._read = max(self._read, self._done)

    def say(self, text: str) -> None:
        """Prints a separate line."""
        with self._lock:
            self._clear()
            print(text, file=self._out, flush=True)

    def close(self) -> None:
        """Ends the line of this source."""
        with self._lock:
            if self._shown:
                self._show(self.line(self._clock()))
                if self._in_place:
                    print(file=self._out, flush=True)
            self._shown = False

    def line(self, now: float) -> str:
        """``preparing cats: 12,000 documents (3 skipped)  1,800/s  4.1 MB/s  37%  ETA 1m20s``"""
        seconds = max(now - self._began, 1e-3)
        read = min(self._read, max(self._total - self._finished, 0))
        share = (self._finished + read) / self._total if self._total else 0.0
        parts = [
            f"{self._doing} {self._name}: {self._documents:,} documents"
            + (f" ({self._skipped:,} skipped)" if self._skipped else ""),
            f"{self._documents / seconds:,.0f}/s",
        ]
        if self._read or self._total:
            parts.append(f"{self._read / seconds / 1e6:.1f} MB/s")
        if self._total:
            left = (self._total - self._finished - read) * seconds / read if read else None
            parts += [f"{share:.0%}", f"ETA {_duration(left)}" if left is not None else ""]
        return "  ".join(filter(None, parts))

    def _show(self, line: str) -> None:
        self._clear()
        self._shown = True
        if self._in_place:
            self._out.write(line[: shutil.get_terminal_size().columns - 1])
        else:
            self._out.write(f"{line}\n")
        self._out.flush()

    def _clear(self) -> None:
        if self._in_place and self._shown:
            self._out.write("\r\x1b[K")


class Silent(Progress):
    """Shows and says nothing."""

    def __init__(self) -> None:
        super().__init__(quiet_seconds=float("inf"))

    def say(self, text: str) -> None:
        pass


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02d}m"
