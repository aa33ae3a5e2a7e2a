"""Encoded images to uint8 patches: sizes from headers alone, the grid rule, decoding, and the order of patches.

Sizes are all that preparing and planning need; pixels are decoded once, in the loader. Nothing here sets Pillow's
globals.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from jaxmm.batch import ImageSpec
from jaxmm.data.documents import Image

MAX_PIXELS = 178_956_970  # a larger picture is taken for a decompression bomb, at the area where Pillow raises too
REASONS = ("missing", "unreadable", "truncated", "empty", "too large", "changed")

# No others: some of Pillow's (EPS) run programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


class BadMedia(Exception):
    """An image that cannot be used; its document is skipped. ``reason`` is one of REASONS."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@contextlib.contextmanager
def _opened(image: Image) -> Iterator[PIL.Image.Image]:
    """Opens an image by its header; whatever goes wrong inside leaves as BadMedia."""
    if not image.path and not image.data:
        raise BadMedia("empty")
    try:
        with PIL.Image.open(image.path or io.BytesIO(image.data), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise BadMedia("too large")
            yield opened
    except PIL.Image.DecompressionBombError as error:
        raise BadMedia("too large") from error
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise BadMedia("missing") from error
    except PIL.UnidentifiedImageError as error:
        raise BadMedia("empty" if _is_empty(image) else "unreadable") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, IndexError, KeyError) as error:
        # What Pillow's decoders raise on broken files; only the text tells a file that ends early.
        raise BadMedia("truncated" if "truncated" in str(error).lower() else "unreadable") from error


def _is_empty(image: Image) -> bool:
    if not image.path:
        return False
    with open(image.path, "rb") as file:
        return not file.read(1)


def _orientation(opened: PIL.Image.Image) -> int:
    """The EXIF orientation that the header gives, 1 to 8."""
    # The base class's method on purpose: PNG's own decodes the whole picture where no EXIF precedes the pixels.
    try:
        value = PIL.Image.Image.getexif(opened).get(ORIENTATION, 1)
    except Exception:  # broken EXIF is common, raises anything, and leaves the picture readable
        return 1
    return value if value in _TURNS else 1


def image_size(image: Image) -> tuple[int, int]:
    """Returns (height, width) as the picture is meant to be seen, from its header: no pixel is decoded.

    Raises:
      BadMedia: if there is no such file, it is no image, or it is too large.
    """
    with _opened(image) as opened:
        width, height = opened.size
        return (width, height) if _orientation(opened) >= 5 else (height, width)


def grid_size(height: Any, width: Any, spec: ImageSpec) -> tuple[Any, Any]:
    """Returns (rows, columns) in patches that an image of height x width pixels is resized to.

    The rule is Qwen2-VL's ``smart_resize``: sides rounded to what one soft token covers; scaled down and floored where
    the area is above max_pixels, up and ceiled where it is below min_pixels, the aspect kept. Unlike there, the area is
    never above max_pixels: the long side of a very long picture is cut down to it, and ``max_pixels`` goes before
    ``min_pixels``.

    Args:
      height, width: positive, ints or int arrays of one shape.

    Returns:
      Multiples of spec.merge, at least one each: ints, or int64 arrays of that shape.
    """
    factor = spec.patch_size * spec.merge
    largest = spec.max_pixels // factor**2  # area in soft tokens
    area = np.multiply(height, width, dtype=np.float64)
    tall, wide = np.true_divide(height, factor), np.true_divide(width, factor)
    rows, columns = np.rint(tall), np.rint(wide)

    grow = np.sqrt(spec.min_pixels / area)
    is_small = np.maximum(rows, 1) * np.maximum(columns, 1) * factor**2 < spec.min_pixels
    rows, columns = np.where(is_small, np.ceil(tall * grow), rows), np.where(is_small, np.ceil(wide * grow), columns)

    shrink = np.sqrt(spec.max_pixels / area)
    is_large = np.maximum(rows, 1) * np.maximum(columns, 1) > largest
    rows, columns = np.where(is_large, tall * shrink, rows), np.where(is_large, wide * shrink, columns)
    rows = np.clip(np.floor(rows), 1, largest).astype(np.int64)
    columns = np.clip(np.floor(columns), 1, largest).astype(np.int64)

    # Only where a side was raised to one token is the area still above the limit, and that side is 1.
    is_tall = rows >= columns
    rows, columns = (
        np.where(is_tall, np.minimum(rows, largest // columns), rows) * spec.merge,
        np.where(is_tall, columns, np.minimum(columns, largest // rows)) * spec.merge,
    )
    return (rows, columns) if rows.ndim else (int(rows), int(columns))


def soft_tokens(rows: Any, columns: Any, spec: ImageSpec) -> Any:
    """Returns how many soft tokens a grid of patches gives; ints or arrays."""
    return rows * columns // spec.merge**2


def decode(image: Image) -> PIL.Image.Image:
    """Decodes to RGB, turned as its EXIF orientation says; of an animation, the first frame.

    Transparent pixels are laid over white, as a page would show them. (``convert("RGB")``, which transformers and
    LLaMA-Factory call, bares the colour stored under them: often black, under black ink.) 16-bit grey is scaled to
    8 bits, not clipped.

    Raises:
      BadMedia: if it cannot be decoded to its end.
    """
    with _opened(image) as opened:
        turn = _TURNS.get(_orientation(opened))
        opened.load()
        picture = _to_rgb(opened)
        return picture if turn is None else picture.transpose(turn)


def _to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture.copy()  # it outlives the file
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow may hold in 32 bits
        values = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
        return PIL.Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ValueError("a picture of floats has no range")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = PIL.Image.new("RGB", picture.size, (255, 255, 255))
    white.paste(picture, mask=picture.getchannel("A"))
    return white


class Edges(NamedTuple):
    """How far each edge of a picture moves before it is resized, as parts of its side.

    A positive number moves inward and cuts that much off; a negative one moves outward, and repeats the last pixels.
    """

    left: float
    top: float
    right: float
    bottom: float


def patches(
    image: Image, spec: ImageSpec, size: tuple[int, int], edges: Edges | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decodes an image, resizes it (bicubic) to its grid, and cuts it into patches.

    Args:
      size: the (height, width) it had when it was prepared.
      edges: where given, the grid stays and what it shows moves with them.

    Returns:
      uint8 (rows * columns, patch_size**2 * 3) in tower order, and (rows, columns). The bytes of a patch are in the
      order (row, column, channel), as transformers' Siglip2 image processor flattens them.

    Raises:
      BadMedia: if it cannot be decoded to its end, or now has another size.
    """
    picture = decode(image)
    height, width = size
    if picture.size != (width, height):
        raise BadMedia("changed")
    rows, columns = grid_size(height, width, spec)
    pixels = _resized(picture, columns * spec.patch_size, rows * spec.patch_size, edges)
    merge, side = spec.merge, spec.patch_size
    pixels = pixels.reshape(rows // merge, merge, side, columns // merge, merge, side, 3)
    return pixels.transpose(0, 3, 1, 4, 2, 5, 6).reshape(rows * columns, side * side * 3), (rows, columns)


def _resized(picture: PIL.Image.Image, width: int, height: int, edges: Edges | None) -> np.ndarray:
    """Returns uint8 (height, width, 3)."""
    if edges is None:
        if picture.size != (width, height):
            picture = picture.resize((width, height), PIL.Image.Resampling.BICUBIC)
        return np.asarray(picture)
    left, right = (round(max(0.0, -edge) * width) for edge in (edges.left, edges.right))  # pixels repeated
    top, bottom = (round(max(0.0, -edge) * height) for edge in (edges.top, edges.bottom))
    cut = [max(0.0, edge) for edge in edges]
    box = (cut[0] * picture.width, cut[1] * picture.height, (1 - cut[2]) * picture.width, (1 - cut[3]) * picture.height)
    inner = (max(1, width - left - right), max(1, height - top - bottom))
    pixels = np.asarray(picture.resize(inner, PIL.Image.Resampling.BICUBIC, box=box))
    return np.pad(pixels, ((top, height - top - inner[1]), (left, width - left - inner[0]), (0, 0)), mode="edge")


def patch_positions(rows: int, columns: int, spec: ImageSpec) -> np.ndarray:
    """Returns int32 (rows * columns, 2): (row, column) of each patch in tower order.

    Groups of merge x merge patches, which become one soft token, follow each other row by row; so do the patches of a
    group within it.
    """
    merge = spec.merge
    grid = np.indices((rows, columns), np.int32).reshape(2, rows // merge, merge, columns // merge, merge)
    return grid.transpose(1, 3, 2, 4, 0).reshape(rows * columns, 2)
