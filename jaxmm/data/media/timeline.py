"""When the frames of a film are shown, and which of them stand at even steps of time.

Frame ``i`` at a rate is the last one whose time, counted from the first one's, is at most (i + 0.5) / rate seconds. At
a constant rate that is the i-th frame; at a variable one it is what is on display there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

MOST = 2**31 - 1  # of a rate's terms
_OFF = 0.49  # of a frame: a film is at a constant rate if no time is further off
_SLACK = 1e-6  # of a frame: 0.7 s at 10 a second is frame 7, whatever the float


class Timeline(NamedTuple):
    """The frames of a film, in the order in which they are shown: n of them.

    Attributes:
      times: int64 (n,), ascending, in ticks.
      end: when the last one ends, in ticks.
      tick: of the times, in seconds.
      keys: int64, ascending: the times at which decoding can start.
      is_counted: whether decoded frames are told by their order, because their times cannot be trusted.
    """

    times: np.ndarray
    end: int
    tick: Fraction
    keys: np.ndarray
    is_counted: bool = False


def rate_of(timeline: Timeline, declared: Iterable[Fraction | None] = ()) -> Fraction:
    """Frames a second: the first of the ``declared`` rates that all times keep to, or else the average."""
    rates = [int32_terms(rate) for rate in declared if rate]
    average = len(timeline.times) / (max(timeline.end - int(timeline.times[0]), 1) * timeline.tick)
    return next((rate for rate in rates if _is_constant(timeline, rate)), int32_terms(average))


def _is_constant(timeline: Timeline, rate: Fraction) -> bool:
    step = float(1 / (rate * timeline.tick))  # ticks a frame
    since = timeline.times - timeline.times[0]
    return bool(np.abs(since - np.arange(len(since)) * step).max() <= _OFF * step)


def int32_terms(rate: Fraction) -> Fraction:
    """The nearest positive fraction whose terms fit an int32."""
    if rate >= MOST:
        return Fraction(MOST)
    return max(rate.limit_denominator(MOST // max(1, math.ceil(rate))), Fraction(1, MOST))


def frames_at(timeline: Timeline, rate: Fraction, numbers: Sequence[int]) -> list[int]:
    """The index of the frame on display for each number."""
    ticks = [math.floor(Fraction(2 * number + 1, 2) / (rate * timeline.tick)) for number in numbers]
    since = timeline.times - timeline.times[0]
    return (np.searchsorted(since, np.array(ticks, np.int64), "right") - 1).tolist()


def part(frames: int, rate: Fraction, start: float, stop: float) -> range:
    """The frames displayed in [start, stop) seconds; ``stop`` 0 is the end. Empty if there is none."""
    if math.isnan(start) or math.isnan(stop) or start == math.inf:
        return range(0)
    last = frames
    if stop and stop != math.inf:
        last = min(frames, math.ceil(Fraction(stop) * rate - Fraction(_SLACK)))
    first = 0 if start <= 0 else math.floor(Fraction(start) * rate + Fraction(_SLACK))
    return range(first, max(first, last))
