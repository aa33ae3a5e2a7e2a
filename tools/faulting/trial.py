"""What a trial of ``tools/faults.py`` was, what its processes left, and how that is judged."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from typing import NamedTuple

from jaxmm.checks.row import one_line

LINE, HANDLED, TRACEBACK, HANG, SILENT = "one line", "handled", "traceback", "hang", "silent"
VERDICTS = (LINE, HANDLED, TRACEBACK, HANG, SILENT)
BAD = (TRACEBACK, HANG, SILENT)
_TRACE = "Traceback (most recent call last)"


class Ended(NamedTuple):
    """A process that has ended.

    Attributes:
      status: its exit status, or less than 0: the signal that ended it.
      output: standard output and standard error, as they came.
      seconds: from its start.
      is_over: whether it was killed at its limit.
    """

    status: int
    output: str
    seconds: float = 0.0
    is_over: bool = False

    def errors(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("error:")]


class Trial(NamedTuple):
    """One fault, and what became of it.

    Attributes:
      part: of the tool.
      what: the fault was; with the seed it is the same each time.
      verdict: one of VERDICTS.
      told: the line, the last words, or what was wrong.
      again: how to see it again, in a line; '' where the verdict is a good one.
    """

    part: str
    what: str
    verdict: str
    told: str
    again: str = ""

    @property
    def is_bad(self) -> bool:
        return self.verdict in BAD


def judged(ended: Ended, wrong: Callable[[], str] = lambda: "") -> tuple[str, str]:
    """The verdict on a process, and why.

    Args:
      wrong: asked of one that ended well: what is wrong with what it left, in words, or ''.
    """
    if ended.is_over:
        return HANG, f"killed after {ended.seconds:.0f} s; {last(ended.output)}"
    if _TRACE in ended.output:
        return TRACEBACK, last(ended.output[ended.output.rindex(_TRACE) :])
    if ended.status < 0:
        return TRACEBACK, f"ended by {signal.Signals(-ended.status).name}; {last(ended.output)}"
    errors = ended.errors()
    if ended.status == 1 and len(errors) == 1:
        return LINE, one_line(errors[0])
    if ended.status:
        return TRACEBACK, f"status {ended.status} with {len(errors)} lines of errors; {last(ended.output)}"
    if errors:
        return SILENT, one_line(f"status 0 after {errors[0]}")
    if why := wrong():
        return SILENT, one_line(why)
    warned = [line for line in ended.output.splitlines() if line.startswith("warning")]
    return HANDLED, one_line(warned[-1]) if warned else ""


def last(output: str) -> str:
    """The last line that says something."""
    return one_line(next((line for line in reversed(output.splitlines()) if line.strip()), "nothing was said"))


def counted(trials: Iterable[Trial]) -> dict[str, dict[str, int]]:
    """Numbers of verdicts by part."""
    found: dict[str, dict[str, int]] = {}
    for trial in trials:
        numbers = found.setdefault(trial.part, dict.fromkeys(VERDICTS, 0))
        numbers[trial.verdict] += 1
    return found
