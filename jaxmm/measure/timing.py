"""How things are timed: in turns, so that what else the machine does meets all of them; medians count."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

SIGMA = 0.9  # of the logarithm of documents' lengths


class Figure(NamedTuple):
    """One measured number: its samples, and their unit."""

    samples: Sequence[float]
    unit: str

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest sample."""
        return min(self.samples), max(self.samples)


def in_turns(
    things: Mapping[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds each thing takes, ``repeats`` times each after one run that is not counted, one after the other.

    Args:
      clock: ``time.thread_time`` counts the work of the calling thread alone, whatever else has the core meanwhile.
    """
    for thing in things.values():
        thing()
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for _ in range(repeats):
        for name, thing in things.items():
            began = clock()
            thing()
            seconds[name].append(clock() - began)
    return seconds


def rates(seconds: Sequence[float], count: int, unit: str) -> Figure:
    """``count`` things a sample, as things a second."""
    return Figure([count / each for each in seconds], f"{unit}/s")


def lognormal(count: int, total: int, seed: int) -> np.ndarray:
    """Lengths of documents of a row that they fill: int64 (count,)."""
    parts = np.random.default_rng(seed).lognormal(0, SIGMA, count)
    edges = np.rint(np.cumsum(parts) / parts.sum() * total).astype(int)
    return np.maximum(np.diff(np.concatenate([[0], edges])), 1)
