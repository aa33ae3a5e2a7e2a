"""Squares of a picture that are read as one, for parity: in plain words, one picture and one soft token at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

Place = tuple[int, int, int]  # tile, row and column of a soft token


class Squares(NamedTuple):
    """A picture as squares, row by row, and the whole picture behind them.

    Attributes:
      tiles: uint8 (tiles, side, side, 3).
      rows, columns: of the squares; 0 of a picture that is the whole alone.
      height, width: of the picture.
      most: above 0, so many squares' worth of soft tokens are read, where they would be more.
    """

    tiles: np.ndarray
    rows: int
    columns: int
    height: int
    width: int
    most: int = 0


def drawn(rng: np.random.Generator, sizes: Sequence[Sequence[int]], most: int = 0, whole: bool = False) -> Squares:
    """A picture of any size, of noise, in the best of some sizes in pixels; ``whole``: as one square."""
    side = min(map(min, sizes))
    height, width = (int(n) for n in rng.integers(2, 5 * side, 2))
    tall, wide = best_size(height, width, sizes)
    rows, columns = (0, 0) if whole else (tall // side, wide // side)
    tiles = rng.integers(0, 256, (rows * columns + 1, side, side, 3)).astype(np.uint8)
    return Squares(tiles, rows, columns, height, width, most)


def best_size(height: int, width: int, sizes: Sequence[Sequence[int]]) -> Sequence[int]:
    """The size that shows most of a picture's pixels; of equal ones the first of the smallest."""

    def worth(size: Sequence[int]) -> tuple[int, int]:
        scale = min(size[1] / width, size[0] / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return shown, -(size[0] * size[1])

    return max(sizes, key=worth)


def reading_order(picture: Squares, side: int) -> Iterator[list[tuple[Place, float]]]:
    """Yields the places that each soft token is made of, with their weights; [] for the vector at the end of a row.

    Args:
      side: soft tokens along a square.
    """
    yield from ([((len(picture.tiles) - 1, row, column), 1.0)] for row in range(side) for column in range(side))
    if not picture.rows:
        yield []
        return
    rows, columns = picture.rows * side, picture.columns * side
    top = left = 0
    if picture.width / picture.height > columns / rows:
        top = (rows - picture.height * columns // picture.width) // 2
    else:
        left = (columns - picture.width * rows // picture.height) // 2
    rows, columns = rows - 2 * top, columns - 2 * left
    by = math.sqrt(rows * columns / (picture.most * side**2)) if picture.most else 0.0
    read = (int(rows // by), int(columns // by)) if by > 1.1 else (rows, columns)
    for row in range(read[0]):
        for column in range(read[1]):
            yield [
                (place_of(picture, side, top + y, left + x), tall * wide)
                for y, tall in between(row, read[0], rows)
                for x, wide in between(column, read[1], columns)
            ]
        yield []


def place_of(picture: Squares, side: int, row: int, column: int) -> Place:
    return row // side * picture.columns + column // side, row % side, column % side


def between(number: int, count: int, full: int) -> list[tuple[int, float]]:
    """The one or two of ``full`` places, with their weights, that place ``number`` of ``count`` lies between."""
    if count == full:
        return [(number, 1.0)]
    middle = max((number + 0.5) * full / count - 0.5, 0.0)
    first, part = int(middle), middle - int(middle)
    return [(first, 1 - part), (min(first + 1, full - 1), part)]
