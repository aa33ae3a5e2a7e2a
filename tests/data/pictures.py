"""Pictures that tests decode."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image

from jaxmm.data.documents import Image
from jaxmm.data.media import geometry
from jaxmm.data.media import picture as media
from jaxmm.image_spec import ImageSpec


def encoded(picture: PIL.Image.Image, kind: str = "PNG", **options: Any) -> Image:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return Image(data=file.getvalue())


def with_orientation(value: int) -> bytes:
    exif = PIL.Image.Exif()
    exif[media.ORIENTATION] = value
    return exif.tobytes()


def smooth(height: int, width: int) -> PIL.Image.Image:
    """A picture in which each corner has its own colour, and none of it is noise."""
    y, x = np.mgrid[0:height, 0:width]
    return PIL.Image.fromarray(
        np.stack([x * 255 / width, y * 255 / height, 255 - (x + y) * 255 / (width + height)], -1).astype(np.uint8)
    )


def squares_of(picture: PIL.Image.Image, rows: int, columns: int, side: int) -> list[PIL.Image.Image]:
    """The squares of a picture of so many, row by row."""
    corners = [(side * column, side * row) for row in range(rows) for column in range(columns)]
    return [picture.crop((left, top, left + side, top + side)) for left, top in corners]


def assert_tiles(patches: np.ndarray, squares: Sequence[PIL.Image.Image], spec: ImageSpec) -> None:
    """Asserts that patches (patches of all tiles, bytes of one) are those of squares of one size, one after another."""
    side, grid = spec.patch_size, spec.tile_side // spec.patch_size
    positions = geometry.patch_positions(grid, grid, spec)
    for tile, square in zip(patches.reshape(-1, grid**2, side**2 * 3), squares, strict=True):
        pixels = np.asarray(square)
        for patch, (row, column) in zip(tile, positions, strict=True):
            here = pixels[side * row : side * (row + 1), side * column : side * (column + 1)]
            np.testing.assert_array_equal(patch.reshape(side, side, 3), here)
