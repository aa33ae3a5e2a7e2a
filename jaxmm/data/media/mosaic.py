"""Squares of one picture, or frames of a film, that are read as one: which grid shows a picture best, and the order of
their soft tokens.

The rules are those of transformers' LlavaNext and LlavaOnevision processors and models. A picture keeps its aspect in
the squares, black around it; soft tokens that stand on black alone are left out, and the model's vector ends each row
of the others. Where they are many, they are pooled: a soft token is then a weighted sum of four.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np

from jaxmm.data.media.medium import NEWLINE, Mixture
from jaxmm.image_spec import POOLED_FROM, ImageSpec, SplitSpec


class Kept(NamedTuple):
    """The soft tokens of squares that stand on a picture: ints, or int64 arrays of the shape of the sizes.

    Attributes:
      top, left: how many rows and columns before them stand on black alone.
      rows, columns: of the others. There may be no rows, or no columns, of a very long picture.
    """

    top: Any
    left: Any
    rows: Any
    columns: Any


@functools.lru_cache(maxsize=16)
def beside_others(spec: ImageSpec) -> ImageSpec:
    """How a picture is taken that is not the only one of its document."""
    if spec.split is None or spec.split.beside is None:
        return spec
    return dataclasses.replace(spec, split=spec.split.beside)


def best_grid(tall: np.ndarray, wide: np.ndarray, split: SplitSpec) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of the squares that show most of pictures of tall x wide pixels, float64 of one shape.

    Of sizes that show as many pixels, the one with the fewest that are black.
    """
    rows, columns = np.ones(tall.shape, np.int64), np.ones(tall.shape, np.int64)
    most, least_black = np.zeros(tall.shape), np.full(tall.shape, np.inf)
    for height, width in split.sizes:
        scale = np.minimum(width / wide, height / tall)
        shown = np.minimum(np.floor(wide * scale) * np.floor(tall * scale), wide * tall)
        black = height * width - shown
        is_better = (shown > most) | ((shown == most) & (black < least_black))
        rows = np.where(is_better, height // split.side, rows)
        columns = np.where(is_better, width // split.side, columns)
        most, least_black = np.where(is_better, shown, most), np.where(is_better, black, least_black)
    return rows, columns


def fitted(height: int, width: int, most_height: int, most_width: int) -> tuple[int, int]:
    """(height, width) of a picture that is resized, its aspect kept, to fill one side of a larger one."""
    tall, wide = most_height / height, most_width / width
    if wide < tall:
        return min(math.ceil(height * wide), most_height), most_width
    return most_height, min(math.ceil(width * tall), most_width)


def padded(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3): a smaller picture in the middle, black around it; the odd pixel comes after."""
    top, left = (height - pixels.shape[0]) // 2, (width - pixels.shape[1]) // 2
    after = height - pixels.shape[0] - top, width - pixels.shape[1] - left
    return np.pad(pixels, ((top, after[0]), (left, after[1]), (0, 0)))


def kept(height: Any, width: Any, rows: Any, columns: Any, spec: ImageSpec) -> Kept:
    """The soft tokens that stand on a picture of height x width pixels, of a grid of rows x columns squares.

    The padding is of one direction, and half of what is left of the squares' side, in whole soft tokens, on both ends.
    All numbers are ints, or int arrays of one shape.
    """
    height, width = np.asarray(height, np.int64), np.asarray(width, np.int64)
    tall, wide = np.asarray(rows) * spec.side_tokens, np.asarray(columns) * spec.side_tokens
    is_wide = width * tall > wide * height
    top = np.where(is_wide, (tall - height * wide // width) // 2, 0)
    left = np.where(is_wide, 0, (wide - width * tall // height) // 2)
    return Kept(top, left, tall - 2 * top, wide - 2 * left)


def pooled(own: Kept, spec: ImageSpec) -> tuple[Any, Any]:
    """(rows, columns) that the soft tokens of squares are read as: those that are kept, or fewer."""
    if spec.split is None or not spec.split.pooled_above:
        return own.rows, own.columns
    ratio = np.sqrt(own.rows * own.columns / (spec.split.pooled_above * spec.side_tokens**2))
    is_pooled, by = ratio > POOLED_FROM, np.maximum(ratio, 1.0)
    rows, columns = (
        np.where(is_pooled, np.floor_divide(side, by), side).astype(np.int64) for side in (own.rows, own.columns)
    )
    return rows, columns


def soft_tokens(height: Any, width: Any, rows: Any, columns: Any, spec: ImageSpec) -> Any:
    """How many soft tokens pictures have, with those of the whole and the ends of rows; arguments as of ``kept``."""
    if not spec.has_tiles:
        return 0 * np.asarray(height, np.int64) + spec.side_tokens**2 + 1
    read_rows, read_columns = pooled(kept(height, width, rows, columns, spec), spec)
    return spec.side_tokens**2 + read_rows * (read_columns + 1)


def reading(
    starts: np.ndarray, height: int, width: int, rows: int, columns: int, spec: ImageSpec
) -> tuple[np.ndarray, Mixture | None]:
    """The rows of the soft-token table that a picture's soft tokens are, int64 (soft tokens,) in reading order, with
    NEWLINE at the end of a row; and what they are besides, if they are pooled.

    Args:
      starts: int64 (tiles,), the first row of each square, row by row, and then of the whole picture.
      height, width, rows, columns: as of ``kept``.
    """
    side = spec.side_tokens
    tile = np.arange(side**2).reshape(side, side)
    whole = starts[-1] + tile.reshape(-1)
    if not spec.has_tiles:
        return np.append(whole, NEWLINE), None
    own = kept(height, width, rows, columns, spec)
    squares = starts[:-1].reshape(rows, columns)[:, None, :, None] + tile[None, :, None, :]
    there = squares.reshape(rows * side, columns * side)
    there = there[own.top : own.top + own.rows, own.left : own.left + own.columns]
    read = pooled(own, spec)
    if read == (own.rows, own.columns):
        return np.concatenate([whole, np.pad(there, ((0, 0), (0, 1)), constant_values=NEWLINE).reshape(-1)]), None
    rows_S4, weights_S4 = _resized(there, *read)
    ends = ((0, 0), (0, 1), (0, 0))
    rows_S4, weights_S4 = np.pad(rows_S4, ends).reshape(-1, 4), np.pad(weights_S4, ends).reshape(-1, 4)
    is_end = np.arange(len(rows_S4)) % (read[1] + 1) == read[1]
    rows_S4[is_end, 0], weights_S4[is_end, 0] = NEWLINE, 1.0
    alone = np.tile([1.0, 0.0, 0.0, 0.0], (len(whole), 1))
    others_S3 = np.concatenate([np.zeros((len(whole), 3), np.int64), rows_S4[:, 1:]])
    mixture = Mixture(others_S3, np.concatenate([alone, weights_S4]).astype(np.float32))
    return np.concatenate([whole, rows_S4[:, 0]]), mixture


def frame_side(tokens: Any, spec: ImageSpec) -> Any:
    """How many soft tokens are read along a side of a frame that has ``tokens`` of them, ints or int arrays."""
    return -(-tokens // (spec.video.pool if spec.video else 1))


def reading_film(there: np.ndarray, spec: ImageSpec) -> tuple[np.ndarray, Mixture | None]:
    """As ``reading``, of a film: its frames one after the other, and NEWLINE at its end, where the spec has these.

    Args:
      there: int64 (frames, rows, columns), the row of the soft-token table of each soft token.
    """
    ends = bool(spec.video and spec.video.newline)
    read = [int(frame_side(side, spec)) for side in there.shape[1:]]
    if read == list(there.shape[1:]):
        return np.append(there.reshape(-1), [NEWLINE] * ends), None
    frames = [_resized(frame, *read) for frame in there]
    rows_S4, weights_S4 = (np.concatenate(part).reshape(-1, 4) for part in zip(*frames, strict=True))
    rows_S4 = np.concatenate([rows_S4, [[NEWLINE, 0, 0, 0]] * ends])
    weights_S4 = np.concatenate([weights_S4, [[1.0, 0.0, 0.0, 0.0]] * ends])
    return rows_S4[:, 0], Mixture(rows_S4[:, 1:], weights_S4.astype(np.float32))


def _resized(there: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns, 4) of the soft tokens in ``there`` that each of fewer is made of, and of their weights."""
    (up, of_up), (left, of_left) = (
        _neighbours(count, full) for count, full in zip((rows, columns), there.shape, strict=True)
    )
    rows_S4 = there[up[:, None, :, None], left[None, :, None, :]].reshape(rows, columns, 4)
    weights_S4 = (of_up[:, None, :, None] * of_left[None, :, None, :]).reshape(rows, columns, 4)
    return rows_S4, weights_S4


def _neighbours(count: int, full: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, 2) of the places among ``full`` ones, and of their weights, that bilinear resizing takes for each.

    As torch's ``interpolate`` without aligned corners: places beyond the first one's middle are the first one.
    """
    middle = np.maximum((np.arange(count) + 0.5) * (full / count) - 0.5, 0.0)
    first = np.minimum(middle.astype(np.int64), full - 1)
    weight = middle - first
    return np.stack([first, np.minimum(first + 1, full - 1)], 1), np.stack([1 - weight, weight], 1)
