"""slow_steps.jsonl: the steps that took much longer than the ones before them, and what their batches held."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxmm.training.line_file import LineFile

FILE = "slow_steps.jsonl"
SLOW = 3.0  # times the median
RECENT, ENOUGH = 50, 20  # steps that the median is of, and how many of them there must be
TOLD = 3  # in a window of the log; of further ones only the number is told


class SlowSteps:
    """Finds slow steps, tells them and writes them down, a few in each window of the log.

    Args:
      workdir: of the run; None does nothing, in processes but the first of a job.
      say: is told of each, in a line.
      look: the command that shows the rows of a batch, which ``--batches=K:K+1`` is added to.
    """

    def __init__(self, workdir: Path | None, say: Callable[[str], None], look: str) -> None:
        self._file = LineFile(workdir / FILE, say, "slow steps are told in lines alone") if workdir else None
        self._say, self._look = say, look
        self._recent: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._told = 0
        self._untold: list[tuple[int, float]] = []

    def add(self, step: int, seconds: float, waited: float, rows: Callable[[], Any]) -> None:
        """Adds a step that is done.

        Args:
          seconds: it took, without compiling, evaluating, saving and logging.
          waited: of them, for data.
          rows: makes what its batch held, as JSON.
        """
        if self._file is None:
            return
        usual = statistics.median(self._recent) if len(self._recent) >= ENOUGH else 0.0
        self._recent.append(seconds)
        if not usual or seconds < SLOW * usual:
            return
        if self._told == TOLD:
            self._untold.append((step, seconds))
            return
        self._told += 1
        batch = step - 1
        of_them = f", {waited:.3g} s of them waiting for data" if waited > seconds / 2 else ""
        self._say(
            f"step {step} took {seconds:.3g} s, where {usual:.3g} s is usual{of_them}; what it held: "
            f"{self._look} --batches={batch}:{batch + 1}"
        )
        self._file.append({"step": step, "seconds": seconds, "median": usual, "batch": batch, "rows": rows()})

    def end_window(self) -> None:
        """Ends a window of the log: what was too much to tell in it is told as a number."""
        if self._untold:
            last, longest = self._untold[-1][0], max(seconds for _, seconds in self._untold)
            self._say(f"{len(self._untold)} more steps up to {last} were slow, up to {longest:.3g} s")
        self._told, self._untold = 0, []
