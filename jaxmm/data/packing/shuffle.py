"""Shuffled orders of any size with random access: the element at a position is computed, never stored.

Everything random in a plan comes from here, by integer arithmetic that is the same in every release of NumPy.
"""

from __future__ import annotations

import math

import numpy as np

ROUNDS = 6
_MASK = (1 << 64) - 1


def key_of(*numbers: int) -> int:
    """Mixes integers into a 64-bit key; other integers, or another order, give another key."""
    key = 0x9E3779B97F4A7C15 * (len(numbers) + 1) & _MASK
    for number in numbers:
        key = _mixed(key ^ _mixed(number & _MASK))
    return key


def _mixed(x: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


def random_bits(key: int, counters: np.ndarray) -> np.ndarray:
    """uint64 of 64 random bits for each counter: ``_mixed`` of counter and key."""
    x = counters.astype(np.uint64)
    x += np.uint64((key + 0x9E3779B97F4A7C15) & _MASK)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def random_order(key: int, size: int) -> np.ndarray:
    """int64 (size,): a permutation of range(size), computed as a whole."""
    return np.argsort(random_bits(key, np.arange(size)), kind="stable")


class Permutation:
    """A permutation of range(size) that is a function of its key.

    A Feistel network over pairs (left, right) of about sqrt(size) values each (the generalised one of Black and
    Rogaway, 2002): each round adds a random function of one to the other. There are a few more pairs than numbers; a
    position that lands on one of the extra pairs is permuted again until it does not.
    """

    def __init__(self, size: int, key: int):
        if not 0 < size < 1 << 62:
            raise ValueError(f"a permutation of {size} numbers")
        self.size = size
        self._lefts = math.isqrt(size - 1) + 1
        self._rights = -(-size // self._lefts)
        self._keys = [key_of(key, i) for i in range(ROUNDS)]

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """int64: the element at each of the positions, which must be in range(size)."""
        values = self._walk(positions.astype(np.uint64))
        outside = np.flatnonzero(values >= self.size)
        while len(outside):
            values[outside] = self._walk(values[outside])
            outside = outside[values[outside] >= self.size]
        return values.astype(np.int64)

    def _walk(self, values: np.ndarray) -> np.ndarray:
        sides = list(np.divmod(values, np.uint64(self._rights)))
        counts = np.uint64(self._lefts), np.uint64(self._rights)
        for i, key in enumerate(self._keys):
            side, other = i % 2, 1 - i % 2
            shift = random_bits(key, sides[other])
            shift >>= np.uint64(32)  # 32 random bits times a count below 2**32, and the upper half of that
            shift *= counts[side]
            shift >>= np.uint64(32)
            shift += sides[side]
            sides[side] = np.where(shift >= counts[side], shift - counts[side], shift)
        return sides[0] * counts[1] + sides[1]
