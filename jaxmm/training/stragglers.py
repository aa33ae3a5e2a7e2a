"""Which process of a job holds the others up, and why, from what each has measured of itself.

Processes step together, so that one which is slow costs the others a wait. It is the one that waits least itself: it
comes last to where all meet before each step. That costs nothing as long as its devices still run the step before: what
the others lose is at most the time in which its devices are idle.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

COSTLY = 0.05  # of the time of a window of the log


class Window(NamedTuple):
    """Seconds of a process in a window of the log, without evaluating, saving and logging.

    Attributes:
      loop: all of them.
      data: waited for a batch.
      barrier: waited for the other processes, before a step.
      idle: in which its devices had no step to do.
    """

    loop: float
    data: float
    barrier: float
    idle: float

    @property
    def step(self) -> float:
        """What is left: its own work, and its devices'."""
        return self.loop - self.data - self.barrier


def slowest(windows: Sequence[Window]) -> dict[str, Any]:
    """The process that the others wait for.

    Returns:
      "process"; "cause": "data" where it waited for batches longer than the others, else "device"; "cost": the part of
      its time that the others lost; "seconds" of "step", "data" and "barrier", each by process.
    """
    process = min(range(len(windows)), key=lambda n: windows[n].barrier)
    own, others = windows[process], [*windows[:process], *windows[process + 1 :]]
    ahead = statistics.median(window.barrier for window in others) - own.barrier
    more_data = own.data - statistics.median(window.data for window in others)
    return {
        "process": process,
        "cause": "data" if more_data > ahead / 2 else "device",
        "cost": max(0.0, min(ahead, own.idle)) / own.loop if own.loop else 0.0,
        "seconds": {
            name: [round(getattr(window, name), 3) for window in windows] for name in ("step", "data", "barrier")
        },
    }


class Stragglers:
    """Measures this process, and tells of the slowest of all.

    Args:
      gather: the numbers of every process, by its number, from those of this one; all must ask.
      say: is told, once as long as it stays the same, of a process that costs the others much.
    """

    def __init__(self, gather: Callable[[Sequence[float]], list[list[float]]], say: Callable[[str], None]) -> None:
        self._gather, self._say = gather, say
        self._data = self._barrier = 0.0
        self._before = 0.0, 0.0  # what loop and idle were when the window began
        self._told: tuple[int, str] | None = None

    def waited(self, seconds: float) -> None:
        """Tells of a wait for a batch."""
        self._data += seconds

    def met(self, seconds: float) -> None:
        """Tells of a wait for the other processes."""
        self._barrier += seconds

    def window(self, loop: float, idle: float) -> dict[str, Any]:
        """Ends a window: what ``slowest`` returns of it, the same in all processes.

        Args:
          loop: seconds of steps and of waits for data so far; idle: seconds so far in which the devices were.
        """
        spent = loop - self._before[0], self._data, self._barrier, idle - self._before[1]
        self._data = self._barrier = 0.0
        straggler = slowest([Window(*numbers) for numbers in self._gather(spent)])
        who = (straggler["process"], straggler["cause"]) if straggler["cost"] > COSTLY else None
        if who and who != self._told:
            self._say(_line(straggler))
        self._told = who
        return straggler

    def begin_window(self, loop: float, idle: float) -> None:
        """Begins one, after the log is written."""
        self._before = loop, idle


def _line(found: dict[str, Any]) -> str:
    process, seconds = found["process"], found["seconds"]
    others = {name: statistics.median(_without(seconds[name], process)) for name in seconds}
    data = f"it waited {seconds['data'][process]:.3g} s for data, the others {others['data']:.3g} s"
    step = f"its own steps took {seconds['step'][process]:.3g} s, those of the others {others['step']:.3g} s"
    return (
        f"process {process} of {len(seconds['step'])} holds the others up, {found['cost']:.0%} of the time: "
        f"{data if found['cause'] == 'data' else step}"
    )


def _without(values: list[float], at: int) -> list[float]:
    return [*values[:at], *values[at + 1 :]]
