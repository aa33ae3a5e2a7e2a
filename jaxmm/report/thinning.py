"""Fewer points of a line that look the same: of each stretch the lowest and the highest stay, at their own places."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np


def kept(values: Sequence[float], most: int) -> list[int]:
    """Which of the values stay, in order, ``most`` (at least 4) or fewer.

    The first and the last do, and of each of many even stretches between them the lowest and the highest.
    """
    count = len(values)
    if count <= most:
        return list(range(count))
    array = np.asarray(values, float)
    edges = np.linspace(1, count - 1, max(1, (most - 2) // 2) + 1).astype(int)
    places = {0, count - 1}
    for start, stop in itertools.pairwise(edges.tolist()):
        if start < stop:
            part = array[start:stop]
            places |= {int(start + part.argmin()), int(start + part.argmax())}
    return sorted(places)


def spread(count: int, most: int) -> list[int]:
    """``most`` (at least 1) or fewer of the numbers below ``count``, evenly, with the last."""
    if count <= most:
        return list(range(count))
    return sorted({count - 1 - round(i * (count - 1) / max(most - 1, 1)) for i in range(most)})


def digits(value: float, many: int = 6) -> float | int:
    """A number with so many digits, and as an integer where it is one: it is shorter as text."""
    short = float(f"{value:.{many}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
