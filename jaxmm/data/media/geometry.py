"""From a picture's size to its patches, in numbers only: the grid, the tiles, and the order of the patches."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from jaxmm.data.media import mosaic
from jaxmm.image_spec import ImageSpec, SplitSpec


class Bounds(NamedTuple):
    """Bounds on an area: ints, or int arrays of the shape of the sizes.

    Attributes:
      least, most: pixels, of one picture, or of all frames of a film together.
      frames: how many frames count, 1 for a picture.
      times: by how many a resized frame is multiplied before it is compared with the bounds.
    """

    least: Any
    most: Any
    frames: Any = 1
    times: Any = 1


def grid_size(height: Any, width: Any, spec: ImageSpec, bounds: Bounds | None = None) -> tuple[Any, Any]:
    """Returns (rows, columns) of the patch grid that an image of height x width pixels is resized to.

    The rule is Qwen2-VL's ``smart_resize``. Sides are rounded to multiples of what one soft token covers. An image
    above max_pixels is scaled down and its sides floored; one below min_pixels is scaled up and its sides ceiled; the
    aspect is kept. Unlike the original, the area is never above max_pixels: the long side of a very long picture is cut
    down to it, and ``max_pixels`` wins over ``min_pixels``. With ``spec.side`` the grid is a square of that side.
    ``spec.by_longest`` has a rule of its own, and that of ``spec.filled`` is transformers' Gemma4ImageProcessor's.

    Args:
      height, width: positive, ints or int arrays of one shape.
      bounds: in place of those of ``spec``.

    Returns:
      Multiples of spec.merge, at least one each: ints, or int64 arrays of that shape.
    """
    if spec.side:
        square = np.full(np.shape(height), spec.side // spec.patch_size, np.int64)
        return (square, square) if square.ndim else (int(square), int(square))
    if spec.filled:
        return _filled_grid(height, width, spec)
    factor = spec.patch_size * spec.merge
    if spec.by_longest and bounds is None:
        return _by_longest(np.asarray(height, np.int64), np.asarray(width, np.int64), factor, spec)
    bounds = bounds or Bounds(spec.min_pixels, spec.max_pixels)
    largest = np.maximum(bounds.most // bounds.times // factor**2, 1)  # area in soft tokens
    room = np.maximum(bounds.most // np.minimum(bounds.times, bounds.frames) // factor**2, 1)
    height, width = np.asarray(height, np.float64), np.asarray(width, np.float64)
    if spec.least_side == "floor":
        enlarge = np.maximum(np.maximum(factor / height, factor / width), 1.0)
        height, width = np.floor(height * enlarge), np.floor(width * enlarge)
    elif spec.least_side == "round":  # one side after the other
        width = np.where(height < factor, np.rint(width * factor / height), width)
        height = np.maximum(height, factor)
        height = np.where(width < factor, np.rint(height * factor / width), height)
        width = np.maximum(width, factor)
    area = height * width * bounds.frames
    rows, columns = np.rint(height / factor), np.rint(width / factor)
    least = 0 if spec.thin else 1

    # In the original's order of operations, so that an exact number of tokens is not rounded down by one.
    grow = np.sqrt(bounds.least / area)
    resized = np.maximum(rows, least) * np.maximum(columns, least) * factor**2
    is_small = resized * bounds.times < bounds.least
    rows = np.where(is_small, np.ceil(height * grow / factor), rows)
    columns = np.where(is_small, np.ceil(width * grow / factor), columns)

    shrink = np.sqrt(area / bounds.most)
    is_large = np.maximum(rows, 1) * np.maximum(columns, 1) > largest
    rows = np.where(is_large, height / shrink / factor, rows)
    columns = np.where(is_large, width / shrink / factor, columns)
    rows = np.clip(np.floor(rows), 1, room).astype(np.int64)
    columns = np.clip(np.floor(columns), 1, room).astype(np.int64)

    # The area is still above the limit only where one side was raised to one token; that side is 1.
    is_tall = rows >= columns
    rows, columns = (
        np.where(is_tall, np.minimum(rows, room // columns), rows) * spec.merge,
        np.where(is_tall, columns, np.minimum(columns, room // rows)) * spec.merge,
    )
    return (rows, columns) if rows.ndim else (int(rows), int(columns))


def _by_longest(height: np.ndarray, width: np.ndarray, factor: int, spec: ImageSpec) -> tuple[Any, Any]:
    """``grid_size`` by Pixtral's rule: sides above the longest are scaled down and floored, then whole soft tokens."""
    longest = math.isqrt(spec.max_pixels)
    ratio = np.maximum(np.maximum(height / longest, width / longest), 1.0)
    rows, columns = (
        np.maximum(-(-np.floor(side / ratio).astype(np.int64) // factor), 1) * spec.merge for side in (height, width)
    )
    return (rows, columns) if rows.ndim else (int(rows), int(columns))


def _filled_grid(height: Any, width: Any, spec: ImageSpec) -> tuple[Any, Any]:
    """The largest grid of about an image's aspect. Where one side would be nothing it is one soft token, and the other
    as many as that side is longer."""
    factor = spec.patch_size * spec.merge
    height, width = np.asarray(height, np.float64), np.asarray(width, np.float64)
    grow = np.sqrt(spec.max_pixels / (height * width))
    rows, columns = np.floor(grow * height / factor), np.floor(grow * width / factor)
    most = spec.max_pixels // factor**2
    rows, columns = (
        np.where(rows == 0, 1, np.where(columns == 0, np.minimum(np.floor(height / width), most), rows)),
        np.where(columns == 0, 1, np.where(rows == 0, np.minimum(np.floor(width / height), most), columns)),
    )
    rows, columns = (sides.astype(np.int64) * spec.merge for sides in (rows, columns))
    return (rows, columns) if rows.ndim else (int(rows), int(columns))


def resized_size(height: int, width: int, spec: ImageSpec) -> tuple[int, int]:
    """Returns (height, width) in pixels that an image is resized to, if it is one tile and not cropped."""
    if spec.side:
        return spec.side, spec.side
    rows, columns = one_grid(height, width, spec)
    return rows * spec.patch_size, columns * spec.patch_size


def tile_grid(height: Any, width: Any, spec: ImageSpec) -> tuple[Any, Any]:
    """Returns (rows, columns) of the squares that an image of height x width pixels is cut into; mostly (1, 1).

    Args:
      height, width: positive, ints or int arrays of one shape.
    """
    tall, wide = np.asarray(height, np.float64), np.asarray(width, np.float64)
    rows, columns = np.ones(tall.shape, np.int64), np.ones(tall.shape, np.int64)
    if spec.split and spec.split.grid == "cover":
        _, (covered_rows, covered_columns) = _covered(tall, wide, spec.split)
        rows, columns = covered_rows // spec.split.side, covered_columns // spec.split.side
    elif spec.split and spec.split.grid == "aspect":
        factor, least = spec.patch_size * spec.merge, spec.patch_size
        area = np.maximum(np.rint(tall / factor) * factor, least) * np.maximum(np.rint(wide / factor) * factor, least)
        is_split = area > spec.split.above * spec.max_pixels
        rows, columns = _nearest_aspect(tall, wide, spec.split.least, spec.split.most, spec.split.side)
        rows, columns = np.where(is_split, rows, 1), np.where(is_split, columns, 1)
    elif spec.split and spec.split.grid == "shown":
        rows, columns = mosaic.best_grid(tall, wide, spec.split)
    elif spec.split and spec.split.grid == "slices":
        rows, columns = _slices(tall, wide, spec.split)
    elif spec.max_tiles > 1:
        rows, columns = _nearest_aspect(tall, wide, spec.min_tiles, spec.max_tiles, spec.side)
    return (rows, columns) if rows.ndim else (int(rows), int(columns))


def _nearest_aspect(tall: np.ndarray, wide: np.ndarray, least: int, most: int, side: int) -> tuple[Any, Any]:
    """(rows, columns) of ``least`` to ``most`` squares of ``side`` pixels whose aspect is nearest to a picture's.

    The rule is that of transformers' GotOcr2 processor. Of equally near ones, it takes the one of most tiles whose area
    is less than twice the image's.
    """
    rows, columns = np.ones(tall.shape, np.int64), np.ones(tall.shape, np.int64)
    aspect, area, nearest = wide / tall, wide * tall, np.full(tall.shape, np.inf)
    for grid_columns, grid_rows in _tile_grids(least, most):
        distance = np.abs(aspect - grid_columns / grid_rows)
        is_better = distance < nearest
        is_better |= (distance == nearest) & (area > 0.5 * side * side * grid_columns * grid_rows)
        rows, columns = np.where(is_better, grid_rows, rows), np.where(is_better, grid_columns, columns)
        nearest = np.minimum(nearest, distance)
    return rows, columns


def _slices(tall: np.ndarray, wide: np.ndarray, split: SplitSpec) -> tuple[Any, Any]:
    """(rows, columns) of the slices that long pictures are cut into along their longer side; (1, 1) of others.

    The rule is that of pan-and-scan in transformers' Gemma3ImageProcessor.
    """
    longer, shorter, least = np.maximum(wide, tall), np.minimum(wide, tall), split.least_slice
    count = np.minimum(np.floor(longer / least), np.floor(longer / shorter + 0.5))
    count = np.clip(count, 2, split.most).astype(np.int64)
    is_cut = (longer / shorter >= split.above) & (np.minimum(np.ceil(longer / count), shorter) >= least)
    count, is_wide = np.where(is_cut, count, 1), wide >= tall
    return np.where(is_wide, 1, count), np.where(is_wide, count, 1)


def slice_boxes(height: int, width: int, rows: int, columns: int) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) in pixels of each slice of a picture, in reading order; the last may be smaller."""
    high, wide = -(-height // rows), -(-width // columns)
    return [
        (left, top, min(left + wide, width), min(top + high, height))
        for top in range(0, height, high) for left in range(0, width, wide)
    ]  # fmt: skip


def _covered(tall: np.ndarray, wide: np.ndarray, split: SplitSpec) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """(height, width) with the longer side at ``split.longest``, and then in whole squares that cover it.

    The rule is that of transformers' Idefics3 processor: the shorter side is made even, and of the squares the longer
    side is rounded up first, the shorter one then follows it.
    """
    is_wide, longest, side = wide >= tall, split.longest, split.side
    aspect = wide / tall
    shorter = np.where(is_wide, longest / aspect, longest * aspect).astype(np.int64)
    shorter = np.maximum(shorter + shorter % 2, 1)
    height, width = np.where(is_wide, shorter, longest), np.where(is_wide, longest, shorter)
    aspect, whole = width / height, -(-longest // side) * side
    shorter = np.where(is_wide, whole / aspect, whole * aspect).astype(np.int64)
    shorter = -(-shorter // side) * side
    return (height, width), (np.where(is_wide, shorter, whole), np.where(is_wide, whole, shorter))


def resized_before(height: int, width: int, spec: ImageSpec) -> list[tuple[int, int]]:
    """Returns (height, width) of what a picture is resized to, one after the other, before its tiles are made of it."""
    if not spec.split or spec.split.grid not in ("cover", "none"):
        return []
    longest, covering = _covered(np.asarray(height, np.float64), np.asarray(width, np.float64), spec.split)
    sizes = [longest, covering] if spec.split.grid == "cover" else [longest]
    return [(int(high), int(wide)) for high, wide in sizes]


@functools.lru_cache(maxsize=16)
def _tile_grids(least: int, most: int) -> list[tuple[int, int]]:
    """All (columns, rows) of ``least`` to ``most`` tiles, the fewest first."""
    sides = range(1, most + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if least <= columns * rows <= most]
    return sorted(grids, key=lambda grid: grid[0] * grid[1])


def tile_count(height: Any, width: Any, spec: ImageSpec) -> Any:
    """Returns how many tiles an image becomes, including the tile that shows the whole image."""
    rows, columns = tile_grid(height, width, spec)
    return rows * columns + ((rows * columns > 1) | (spec.newline and spec.has_tiles))


class Tiling(NamedTuple):
    """The tiles of a picture as they travel: squares, row by row, and then the whole picture; or that alone.

    Attributes:
      rows, columns: of the squares; 1 and 1 for the whole picture alone.
      square, whole: (rows, columns) of patches of each.
      squares: how many there are; 0 for the whole picture alone.
    """

    rows: int
    columns: int
    square: tuple[int, int]
    whole: tuple[int, int]
    squares: int

    @property
    def grids(self) -> list[tuple[int, int]]:
        """(rows, columns) of patches of each tile."""
        return [self.square] * self.squares + [self.whole]


@functools.lru_cache(maxsize=65536)
def one_tiling(height: int, width: int, spec: ImageSpec) -> Tiling:
    """The tiles of one image, cached because sizes repeat."""
    whole, side = grid_size(height, width, spec), spec.tile_side // spec.patch_size
    return Tiling(*tile_grid(height, width, spec), (side, side), whole, int(tile_count(height, width, spec)) - 1)


@functools.lru_cache(maxsize=65536)
def one_grid(height: int, width: int, spec: ImageSpec) -> tuple[int, int]:
    """``grid_size`` of one image, cached because sizes repeat."""
    return grid_size(height, width, spec)


def patch_positions(rows: int, columns: int, spec: ImageSpec) -> np.ndarray:
    """Returns int32 (rows * columns, 2): (row, column) of each patch in tower order.

    Groups of merge x merge patches, each of which becomes one soft token, follow each other row by row, or window by
    window if ``spec.window`` is set. Within a group, patches go row by row.
    """
    merge = spec.merge
    grid = np.indices((rows, columns), np.int32).reshape(2, rows // merge, merge, columns // merge, merge)
    groups = grid.transpose(1, 3, 2, 4, 0).reshape(-1, merge**2, 2)
    return groups[group_order(rows // merge, columns // merge, spec)].reshape(rows * columns, 2)


def group_order(rows: int, columns: int, spec: ImageSpec) -> np.ndarray:
    """Returns int64 (rows * columns,): the merge groups of an image, numbered row by row, in tower order."""
    if not spec.window:
        return np.arange(rows * columns)
    row, column = np.indices((rows, columns)).reshape(2, -1)
    side = spec.window // spec.merge
    return np.lexsort((column, row, column // side, row // side))
