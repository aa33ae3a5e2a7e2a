"""Where the time of a run goes: every second of its life, over all its starts, is of exactly one kind.

starting    until the loop begins: imports, preparing data, restoring
compiling   that the loop waits for the compiled step; an evaluation compiles within its own time
data        that the loop waits for a batch while no step runs
stepping    everything else in the loop: steps, and what lies between them
evaluating  evaluations, and what is drawn and answered at the end
saving      that the loop waits for a checkpoint
lost        data and stepping of steps that were done again, after a kill
down        from the last line that a start has written to the next start

Seconds within a process go by a clock that is never set, those between two by the time of day.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxmm import formatting
from jaxmm.training.timeline import FORMAT, KINDS, Timeline

BEAT = 30.0  # seconds, after which a step that is done writes a line
FILE = "timeline.jsonl"


def clock() -> float:
    """Seconds that nobody sets, those in which the machine was suspended among them, where it counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class RunTime:
    """Counts the seconds of this start by kind, and writes them into the timeline of the run.

    Args:
      age: seconds that the process has been there before: they are of its start.
      clock, now: seconds of a clock that is never set, and the time of day; for tests.

    Attributes:
      busy_until: up to when, by the clock, this process's devices had a step to do; infinite while they have. A wait
        for data counts from then on: what comes before is a step's.
    """

    def __init__(
        self, age: float = 0.0, clock: Callable[[], float] = clock, now: Callable[[], float] = time.time
    ) -> None:
        self._clock, self._marked = clock, clock()
        self._origin = now() - self._marked  # what a time of day is ahead of the clock
        self._began = self._origin + self._marked - age
        self._spent = dict.fromkeys(KINDS, 0.0)  # since the last line of the timeline
        self._spent["starting"] = age
        self._kind, self._step, self._written = "starting", 0, 0
        self._timeline: Timeline | None = None
        self.busy_until: Callable[[], float] = lambda: -math.inf

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """A block whose seconds are of a kind."""
        outer = self.mark(kind)
        try:
            yield
        finally:
            self.mark(outer)

    def mark(self, kind: str) -> str:
        """What follows is of a kind; returns the kind of what was until now."""
        self._count()
        before, self._kind = self._kind, kind
        return before

    def begin(self, workdir: Path | None, step: int, say: Callable[[str], None]) -> None:
        """Writes this start into the run's timeline, once: from here on it is part of the run's life.

        Args:
          workdir: of the run; None writes nothing, as processes but the first of a job do.
          step: the run goes on from.
          say: is told what is wrong with the timeline.
        """
        if self._timeline is not None:
            return
        self._step = step
        self._timeline = timeline = Timeline(workdir / FILE if workdir else None, say)
        before = timeline.life.time
        if before is None and step:
            say(f"{FILE} begins with this start: where the time of the first {step} steps went is not known")
        self._count()
        if before is not None and before > self._began:
            if before <= self._time():  # the process is older than the end of what it has done before
                self._spent["starting"] -= min(self._spent["starting"], before - self._began)
                self._began = before
            else:
                say(
                    f"the clock of this machine is {before - self._began:.0f} s behind the last line of {FILE}: for "
                    f"how long the run was down is not known"
                )
        timeline.add({"event": "start", "format": FORMAT, "time": round(self._began, 6), "step": step})
        self.beat()

    def done(self, step: int) -> None:
        """Tells of a step that is done; writes a line if the last one was a while ago."""
        self._step = step
        if sum(self._spent.values()) + self._clock() - self._marked >= BEAT:
            self.beat()

    def beat(self) -> None:
        """Writes a line; nothing before the run has begun."""
        self._write("beat")

    def beat_steps(self) -> None:
        """Writes a line if steps were done since the last one: no line then has steps before and after this one."""
        if self._step != self._written:
            self.beat()

    def end(self, why: str) -> None:
        """Writes the last line of this start; nothing if the run has not begun."""
        self._write("end", why=why)

    def spent(self, *kinds: str) -> float:
        """Seconds of some kinds over the run's whole life, this moment included."""
        seconds = self.seconds()
        return sum(seconds[kind] for kind in kinds)

    def seconds(self) -> dict[str, float]:
        """Seconds of each kind over the run's whole life, this moment included."""
        self._count()
        before = self._timeline.life.seconds if self._timeline else dict.fromkeys(KINDS, 0.0)
        return {kind: before[kind] + self._spent[kind] for kind in KINDS}

    def summary(self) -> dict[str, Any]:
        """For summary.json: "seconds" by kind, "fraction" of stepping, "total_seconds", "starts", as far as known."""
        seconds = {kind: round(value, 3) for kind, value in self.seconds().items()}
        total = sum(seconds.values())
        return {
            "seconds": seconds,
            "fraction": seconds["stepping"] / total if total else None,
            "total_seconds": round(total, 3),
            "starts": self._timeline.life.starts if self._timeline else 1,
        }

    def _count(self) -> None:
        now = self._clock()
        spent = max(0.0, now - self._marked)
        if self._kind == "data":
            stepped = min(spent, max(0.0, self.busy_until() - self._marked))
            self._spent["stepping"] += stepped
            spent -= stepped
        self._spent[self._kind] += spent
        self._marked = now

    def _time(self) -> float:
        return self._origin + self._marked

    def _write(self, event: str, **more: Any) -> None:
        if self._timeline is None:
            return
        self._count()
        seconds = {kind: round(value, 6) for kind, value in self._spent.items() if round(value, 6)}
        line = {"event": event, "time": round(self._time(), 6), "step": self._step, "seconds": seconds, **more}
        if self._timeline.add(line):  # else they go into the next line
            self._spent, self._written = dict.fromkeys(KINDS, 0.0), self._step


def closing_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The summary as rows of the closing table."""
    total = summary["total_seconds"] or 1.0
    starts = f"{summary['starts']} start" + "s" * (summary["starts"] != 1)
    rows = [("goodput", f"{summary['fraction'] or 0.0:.1%} of {formatting.duration(total)}, {starts}")]
    for kind, seconds in summary["seconds"].items():
        if seconds:
            rows.append((f"time {kind}", f"{formatting.duration(seconds)}, {seconds / total:.1%}"))
    return rows
