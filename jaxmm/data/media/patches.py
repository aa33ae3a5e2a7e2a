"""Pictures to uint8 patches: resizing to the grids of geometry.py, tiles, and the order of the patches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

from jaxmm.data.documents import Image
from jaxmm.data.media import mosaic
from jaxmm.data.media.geometry import Tiling, group_order, one_tiling, resized_before, slice_boxes
from jaxmm.data.media.medium import BadMedia
from jaxmm.data.media.picture import (
    FLIPS_X,
    FLIPS_Y,
    MAX_PIXELS,
    decoded,
    opened_picture,
    orientation_of,
    turned_size,
)
from jaxmm.image_spec import ImageSpec

RESAMPLES = {
    "bicubic": PIL.Image.Resampling.BICUBIC, "bilinear": PIL.Image.Resampling.BILINEAR,
    "lanczos": PIL.Image.Resampling.LANCZOS,
}  # fmt: skip


class Edges(NamedTuple):
    """How far each edge of a picture moves before it is resized, as parts of its side.

    A positive number moves inward and cuts that much off; a negative one moves outward, and repeats the last pixels.
    """

    left: float
    top: float
    right: float
    bottom: float


NO_EDGES = Edges(0.0, 0.0, 0.0, 0.0)


def patches(
    image: Image,
    spec: ImageSpec,
    size: tuple[int, int],
    edges: Edges | None = None,
    *,
    fast: bool = False,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decodes an image, resizes it to its grid, and cuts it into patches, tile after tile.

    Args:
      image, spec, size, edges, fast: as in ``fill``.
      out: contiguous array to write the patches to, of the returned shape; it is then what is returned.

    Returns:
      uint8 (patches of all tiles, patch_size**2 * 3), and (rows, columns) of the last tile, which is the whole picture.
    """
    sizes = [rows * columns for rows, columns in one_tiling(*size, spec).grids]
    if out is None:
        out = np.empty((sum(sizes), spec.patch_size**2 * 3), np.uint8)
    ends = itertools.accumulate(sizes)
    tiles = [out[end - count : end] for end, count in zip(ends, sizes, strict=True)]
    return out, fill(tiles, image, spec, size, edges, fast=fast)[-1]


def fill(
    out: Sequence[np.ndarray],
    image: Image,
    spec: ImageSpec,
    size: tuple[int, int],
    edges: Edges | None = None,
    *,
    fast: bool = False,
) -> list[tuple[int, int]]:
    """Decodes an image, resizes it, and writes the patches of its tiles.

    Args:
      out: for each tile uint8 (rows * columns, patch_size**2 * 3), of which only the last dim need be contiguous: its
        patches in the order of ``patch_positions``. The bytes of a patch are in the order (row, column, channel), as
        transformers' Siglip2 image processor flattens them.
      size: the (height, width) it had when it was prepared.
      edges: if given, the grid stays the same and the picture's edges move by these.
      fast: whether a JPEG may be decoded at a half, quarter or eighth of its sides, where that is no smaller than what
        it is resized to. The pixels are close to the exact ones, not equal.

    Returns:
      (rows, columns) of each tile, in patches.

    Raises:
      BadMedia: if it cannot be decoded to its end, or now has another size.
    """
    tiling = one_tiling(*size, spec)
    high, wide = (spec.side, spec.side) if spec.side else (side * spec.patch_size for side in tiling.whole)
    shown = _before_crop(*size, spec) if spec.crop else (high, wide)
    joined = tiling.rows * spec.tile_side, tiling.columns * spec.tile_side
    large = shown
    if tiling.squares:
        large = mosaic.fitted(*size, *joined) if spec.newline else joined
    steps = resized_before(*size, spec)
    first = steps[0] if steps else (max(large[0], high), max(large[1], wide))
    frame, resample = _frame(first[1], first[0], edges), RESAMPLES[spec.resample]
    border = spec.split.border if spec.split else ()
    with opened_picture(image) as opened:
        orientation = orientation_of(opened)
        if turned_size(opened, orientation) != tuple(size):
            raise BadMedia("changed")
        extent = (0.0, 0.0, float(size[1]), float(size[0]))
        if fast and not border:
            extent = _draft(opened, orientation, frame)
        picture = decoded(opened, orientation)
    if border:
        picture = _bordered(picture, border)
        extent = (0.0, 0.0, float(picture.width), float(picture.height))
    is_sliced = bool(tiling.squares and spec.split and spec.split.grid == "slices")
    if is_sliced and edges:  # slices are those of the picture whose edges have moved
        steps = [(round(extent[3] - extent[1]), round(extent[2] - extent[0]))]
    for step in steps:
        picture = PIL.Image.fromarray(_resized(picture, extent, _frame(step[1], step[0], edges), resample))
        extent, edges = (0.0, 0.0, float(step[1]), float(step[0])), None
    squares: Iterable[np.ndarray] = ()
    if is_sliced:
        squares = _slices(picture, extent, spec, size, tiling)
    elif tiling.squares:
        pixels = _resized(picture, extent, _frame(large[1], large[0], edges), resample)
        squares = _squares(mosaic.padded(pixels, *joined), spec.tile_side)
    for there, square in zip(out, squares, strict=False):
        _cut(square, spec, there)
    pixels = _resized(picture, extent, _frame(shown[1], shown[0], edges), resample)
    if spec.crop:
        pixels = _middle(pixels, spec.side)
    _cut(pixels, spec, out[-1])
    return tiling.grids


def fill_frame(
    out: Sequence[np.ndarray],
    frame: np.ndarray,
    spec: ImageSpec,
    grid: tuple[int, int],
    edges: Edges | None = None,
) -> None:
    """Resizes a frame of a video, and writes its patches to one or more places.

    Args:
      out: uint8 (rows * columns, patch_size**2 * 3) each; only the last dim need be contiguous.
      frame: uint8 (height, width, 3).
      grid: (rows, columns) of patches.
      edges: as in ``fill``.
    """
    height, width = frame.shape[:2]
    high, wide = (spec.side, spec.side) if spec.side else (grid[0] * spec.patch_size, grid[1] * spec.patch_size)
    shown = _before_crop(height, width, spec) if spec.crop else (high, wide)
    extent = (0.0, 0.0, float(width), float(height))
    picture = PIL.Image.fromarray(frame)
    pixels = _resized(picture, extent, _frame(shown[1], shown[0], edges), RESAMPLES[spec.resample])
    _cut(_middle(pixels, spec.side) if spec.crop else pixels, spec, out[0])
    for other in out[1:]:
        other[...] = out[0]


def _squares(pixels: np.ndarray, side: int) -> Iterator[np.ndarray]:
    """The squares of side x side pixels in (height, width, 3), row by row."""
    for top in range(0, pixels.shape[0], side):
        for left in range(0, pixels.shape[1], side):
            yield np.ascontiguousarray(pixels[top : top + side, left : left + side])


def _slices(
    picture: PIL.Image.Image,
    extent: tuple[float, float, float, float],
    spec: ImageSpec,
    size: tuple[int, int],
    tiling: Tiling,
) -> Iterator[np.ndarray]:
    """The slices of a picture of ``size``, which lies within ``extent`` as it was decoded, each resized to a square.

    A slice is cut out before it is resized: no pixel of its neighbours goes into it.
    """
    across, down = (extent[2] - extent[0]) / size[1], (extent[3] - extent[1]) / size[0]
    square = _frame(spec.tile_side, spec.tile_side, None)
    for box in slice_boxes(*size, tiling.rows, tiling.columns):
        left, right = (min(extent[0] + side * across, extent[2]) for side in box[::2])
        top, bottom = (min(extent[1] + side * down, extent[3]) for side in box[1::2])
        first = math.floor(left), math.floor(top)
        part = picture.crop((*first, math.ceil(right), math.ceil(bottom)))
        within = left - first[0], top - first[1], right - first[0], bottom - first[1]
        yield _resized(part, within, square, RESAMPLES[spec.resample])


def _cut(pixels: np.ndarray, spec: ImageSpec, out: np.ndarray) -> None:
    """Writes the patches of a contiguous (height, width, 3) in the order in which they travel."""
    merge, side = spec.merge, spec.patch_size
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    if pixels.shape[:2] != (rows * side, columns * side):  # a fixed side that is not whole patches
        pixels = np.ascontiguousarray(pixels[: rows * side, : columns * side])
    # A patch's row of pixels is moved as one item.
    line = np.dtype(("V", side * 3))
    lines = pixels.reshape(rows * side, -1).view(line).reshape(rows // merge, merge, side, columns // merge, merge)
    groups = out.view(line).reshape(-1, merge, merge, side)
    in_rows = lines.transpose(0, 3, 1, 4, 2)
    if spec.window:
        groups[...] = in_rows.reshape(groups.shape)[group_order(rows // merge, columns // merge, spec)]
    else:
        groups.reshape(in_rows.shape)[...] = in_rows


def _bordered(picture: PIL.Image.Image, colour: tuple[int, ...]) -> PIL.Image.Image:
    """The picture in the middle of a square of its longer side; the odd pixel of the border comes after.

    Raises:
      BadMedia: if that takes too much memory.
    """
    side = max(picture.size)
    if side**2 > MAX_PIXELS:
        raise BadMedia("too large")
    square = PIL.Image.new("RGB", (side, side), colour)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def _before_crop(height: int, width: int, spec: ImageSpec) -> tuple[int, int]:
    """(height, width) to resize to before a crop: the shorter is ``spec.side``, rounded as by CLIP's processor."""
    short = min(height, width)
    return int(spec.side * height / short), int(spec.side * width / short)


def _middle(pixels: np.ndarray, side: int) -> np.ndarray:
    """The square in the middle of (height, width, 3)."""
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


class _Frame(NamedTuple):
    """How a picture fills width x height pixels: what is cut off it, as fractions of its sides, and its resized size.

    The resized picture covers (left, top) to (left + inner_width, top + inner_height). The border around it repeats its
    outermost pixels.
    """

    width: int
    height: int
    cut: Edges
    left: int
    top: int
    inner_width: int
    inner_height: int


def _frame(width: int, height: int, edges: Edges | None) -> _Frame:
    if edges is None:
        return _Frame(width, height, NO_EDGES, 0, 0, width, height)
    left, right = (round(max(0.0, -edge) * width) for edge in (edges.left, edges.right))
    top, bottom = (round(max(0.0, -edge) * height) for edge in (edges.top, edges.bottom))
    cut = Edges(*(max(0.0, edge) for edge in edges))
    return _Frame(width, height, cut, left, top, max(1, width - left - right), max(1, height - top - bottom))


def _draft(opened: PIL.Image.Image, orientation: int, frame: _Frame) -> tuple[float, float, float, float]:
    """Makes a JPEG decode at a smaller scale where that is large enough; returns where the picture is in the result.

    That is (left, top, right, bottom) after the turn. Where a side is no multiple of the scale, the last pixel belongs
    to the picture only in part.
    """
    cut = frame.cut
    needed = (
        math.ceil(frame.inner_width / (1 - cut.left - cut.right)),
        math.ceil(frame.inner_height / (1 - cut.top - cut.bottom)),
    )
    done = opened.draft(None, needed if orientation < 5 else needed[::-1])  # None for what is no JPEG
    width, height = opened.size
    _, (_, _, right, bottom) = done or (None, (0, 0, width, height))
    if orientation >= 5:
        width, height, right, bottom = height, width, bottom, right
    left = width - right if orientation in FLIPS_X else 0.0
    top = height - bottom if orientation in FLIPS_Y else 0.0
    return left, top, left + right, top + bottom


def _resized(
    picture: PIL.Image.Image, extent: tuple[float, float, float, float], frame: _Frame, resample: PIL.Image.Resampling
) -> np.ndarray:
    """Returns uint8 (frame.height, frame.width, 3): the part of a picture within ``extent``, resized.

    Raises:
      BadMedia: if that takes too much memory.
    """
    left, top, right, bottom = extent
    width, height, cut = right - left, bottom - top, frame.cut
    box = (left + cut.left * width, top + cut.top * height, right - cut.right * width, bottom - cut.bottom * height)
    inner = (frame.inner_width, frame.inner_height)
    if frame.inner_width * max(frame.inner_height, picture.height) > MAX_PIXELS:  # between its two passes, or after
        raise BadMedia("too large")
    if picture.size != inner or box != (0, 0, *inner):
        try:
            picture = picture.resize(inner, resample, box=box)
        except MemoryError as error:
            raise BadMedia("too large") from error
    pixels = np.frombuffer(picture.tobytes(), np.uint8).reshape(frame.inner_height, frame.inner_width, 3)
    if inner == (frame.width, frame.height):
        return pixels
    after = (frame.height - frame.top - frame.inner_height, frame.width - frame.left - frame.inner_width)
    return np.pad(pixels, ((frame.top, after[0]), (frame.left, after[1]), (0, 0)), mode="edge")
