"""Encoded images to uint8 patches: sizes from headers alone, decoding, and resizing to the grids of geometry.py.

Sizes are all that preparing and planning need; pixels are decoded once, in the loader. Nothing here sets Pillow's
globals. Headers are Pillow's to read: its checks decide what can be decoded, and it reads tens of thousands a second.
"""

from __future__ import annotations

import contextlib
import io
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

import numpy as np
import PIL.Image

from jaxmm.batch import ImageSpec
from jaxmm.data import files, urls
from jaxmm.data.documents import Features, Image
from jaxmm.data.media.geometry import group_order, one_grid, one_tile_grid, tile_count
from jaxmm.errors import UserError

MAX_PIXELS = 178_956_970  # a larger picture is taken for a decompression bomb, at the area where Pillow raises too
MAX_SIDE = 65_535  # pixels, as in JPEG: resizing takes memory by a picture's longer side, not by its area alone
MAX_BYTES = 1 << 30  # of a file
MAX_PASSES = 16 * MAX_PIXELS  # pixels a progressive JPEG may give, over all of its scans: some seconds
# No others: some of Pillow's (EPS) run programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

# Why an image cannot be used: a closed list, each with what to do about it.
ADVICE = {
    "missing": "an image's file is not there: set config.data.media_dir to the folder that its path counts from, or, "
    "where the column is no picture, config.data.columns=image=",
    "no file": "an image's path names a folder, a pipe, a socket or a device",
    "no features": "a file of feature vectors must be a .npy of floats, (rows, columns, D) or (n, D)",
    "not finite": "a file of feature vectors holds a number that is not finite",
    "unreadable": f"an image's bytes are no picture of {', '.join(FORMATS)}",
    "truncated": "an image's file ends early: download or write it again",
    "empty": "an image's file has no bytes",
    "too large": f"an image has more than {MAX_PIXELS:,} pixels, a side of more than {MAX_SIDE:,}, a file of more than "
    "1 GiB, or scans that take too long: make it smaller",
    "changed": "an image has another size than when it was prepared: touch its data file and prepare again",
}
REASONS = tuple(ADVICE)

RESAMPLES = {"bicubic": PIL.Image.Resampling.BICUBIC, "bilinear": PIL.Image.Resampling.BILINEAR}
ORIENTATION = 0x0112  # the EXIF tag
_STRIP = 256  # rows at a time
RETRY_SECONDS = (0.5, 2.0)  # waits between the tries to read an image by URL

_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
# What each turn is: an exchange of the axes (5 to 8), and then these flips.
_FLIPS_X, _FLIPS_Y = (2, 3, 6, 7), (3, 4, 7, 8)

# What Pillow warns of is dealt with here: MAX_PIXELS, unreadable EXIF, transparency in a palette.
warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class BadMedia(Exception):
    """An image that cannot be used; its document is skipped. ``reason`` is one of REASONS."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class Header(NamedTuple):
    """What a header tells. Height and width are those of the picture as it is meant to be seen.

    ``is_animated`` if there are pictures after the first one, which alone is used.
    """

    height: int
    width: int
    is_animated: bool


@contextlib.contextmanager
def _opened(image: Image) -> Iterator[PIL.Image.Image]:
    """Opens an image by its header; whatever goes wrong inside leaves as BadMedia."""
    try:
        with opened_file(image, MAX_BYTES) as file, PIL.Image.open(file, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS or max(opened.size) > MAX_SIDE:
                raise BadMedia("too large")
            if min(opened.size) < 1:
                raise BadMedia("unreadable")
            yield opened
    except (BadMedia, UserError):
        raise
    except (PIL.Image.DecompressionBombError, MemoryError) as error:
        raise BadMedia("too large") from error
    except files.NoFile as error:
        raise BadMedia("no file") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadMedia("missing") from error
    except Exception as error:
        # Pillow's decoders raise anything on broken files; only the text tells a file that ends early.
        raise BadMedia("truncated" if "truncated" in str(error).lower() else "unreadable") from error


@contextlib.contextmanager
def opened_file(image: Image | Features, most: int = 1 << 62) -> Iterator[IO[bytes]]:
    """The encoded bytes: at least one, and ``most`` at most."""
    with _encoded(image) as file:
        size = file.seek(0, io.SEEK_END)
        if not size:
            raise BadMedia("empty")
        if size > most:
            raise BadMedia("too large")
        file.seek(0)
        yield file


def _encoded(image: Image | Features) -> IO[bytes]:
    if not image.path:
        return io.BytesIO(image.data)
    return io.BytesIO(_fetched(image.path)) if files.is_remote(image.path) else files.open_binary(image.path)


def _fetched(url: str) -> bytes:
    """Reads an image by URL, at once whole: a store's errors must not look like Pillow's."""
    for wait in (*RETRY_SECONDS, None):
        try:
            if urls.is_web(url):
                return urls.fetch(url)
            with files.open_binary(url) as file:
                return file.read(MAX_BYTES + 1)  # one more than is taken
        except UserError:
            raise
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            break
        except Exception:  # each store has errors of its own
            if wait is not None:
                time.sleep(wait)
    raise BadMedia("missing")


def _orientation(opened: PIL.Image.Image) -> int:
    """The EXIF orientation that the header gives and Pillow leaves to us, 1 to 8."""
    if opened.format == "TIFF":
        return 1  # Pillow turns these itself, in the header's size as in the pixels
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
        return _size(opened, _orientation(opened))


def header(image: Image) -> Header:
    """As ``image_size``, and whether more pictures follow the first; of a GIF this walks over the first one's bytes."""
    with _opened(image) as opened:
        height, width = _size(opened, _orientation(opened))
        try:
            is_animated = bool(getattr(opened, "is_animated", False))
        except Exception:  # what follows the first picture is broken, and not needed
            is_animated = True
        return Header(height, width, is_animated)


def _size(opened: PIL.Image.Image, orientation: int) -> tuple[int, int]:
    """(height, width) after the turn."""
    width, height = opened.size
    return (width, height) if orientation >= 5 else (height, width)


def decode(image: Image) -> PIL.Image.Image:
    """Decodes to RGB, turned as its EXIF orientation says; of an animation, the first frame.

    Transparent pixels are laid over white, as a page would show them. (``convert("RGB")``, which transformers and
    LLaMA-Factory call, bares the colour stored under them: often black, under black ink.) 16-bit grey is scaled to
    8 bits, not clipped.

    Raises:
      BadMedia: if it cannot be decoded to its end.
    """
    with _opened(image) as opened:
        return _decoded(opened, _orientation(opened))


def _decoded(opened: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
    if opened.info.get("progressive") and opened.width * opened.height * _scans(opened) > MAX_PASSES:
        raise BadMedia("too large")
    opened.load()
    picture = _to_rgb(opened)
    return picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture


def _scans(opened: PIL.Image.Image) -> int:
    """How many scans a JPEG has: a progressive one may have any number, each of the whole picture."""
    file = opened.fp  # type: ignore[attr-defined]  # it is of the class for files
    place = file.tell()
    file.seek(0)
    found, last = 0, b""
    while chunk := file.read(1 << 20):
        found += (last + chunk).count(b"\xff\xda")
        last = chunk[-1:]
    file.seek(place)
    return found


def _to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture  # it is in memory, and so outlives the file
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow may hold in 32 bits
        deep = np.asarray(picture)
        grey = np.empty(deep.shape, np.uint8)
        for rows in range(0, len(deep), _STRIP):
            values = np.clip(deep[rows : rows + _STRIP].astype(np.int64), 0, 65535)
            grey[rows : rows + _STRIP] = (values * 255 + 32767) // 65535
        return PIL.Image.fromarray(grey).convert("RGB")
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
    """Decodes an image, resizes it to its grid, and cuts it into patches: those of one tile after another.

    Args:
      out: where to write the patches: contiguous, as large as what is returned, which it then is.
      The others are as of ``fill``.

    Returns:
      uint8 (tiles * rows * columns, patch_size**2 * 3), and (rows, columns) of a tile.
    """
    rows, columns = one_grid(*size, spec)
    count, tile = int(tile_count(*size, spec)) if spec.max_tiles > 1 else 1, rows * columns
    if out is None:
        out = np.empty((count * tile, spec.patch_size**2 * 3), np.uint8)
    grid = fill([out[n * tile : (n + 1) * tile] for n in range(count)], image, spec, size, edges, fast=fast)
    return out, grid


def fill(
    out: Sequence[np.ndarray],
    image: Image,
    spec: ImageSpec,
    size: tuple[int, int],
    edges: Edges | None = None,
    *,
    fast: bool = False,
) -> tuple[int, int]:
    """Decodes an image, resizes it, and writes the patches of its tiles.

    Args:
      out: for each tile uint8 (rows * columns, patch_size**2 * 3), contiguous: its patches in the order of
        ``patch_positions``. The bytes of a patch are in the order (row, column, channel), as transformers' Siglip2
        image processor flattens them.
      size: the (height, width) it had when it was prepared.
      edges: where given, the grid stays and what it shows moves with them.
      fast: whether a JPEG may be decoded at a half, quarter or eighth of its sides, where that is no smaller than what
        it is resized to. The pixels are close to the exact ones, not equal.

    Returns:
      (rows, columns) of a tile, in patches.

    Raises:
      BadMedia: if it cannot be decoded to its end, or now has another size.
    """
    rows, columns = one_grid(*size, spec)
    down, across = one_tile_grid(*size, spec) if spec.max_tiles > 1 else (1, 1)
    high, wide = (spec.side, spec.side) if spec.side else (rows * spec.patch_size, columns * spec.patch_size)
    shown = _before_crop(*size, spec) if spec.crop else (down * high, across * wide)
    frame = _frame(shown[1], shown[0], edges)
    with _opened(image) as opened:
        orientation = _orientation(opened)
        if _size(opened, orientation) != tuple(size):
            raise BadMedia("changed")
        extent = _draft(opened, orientation, frame) if fast else (0.0, 0.0, float(size[1]), float(size[0]))
        picture = _decoded(opened, orientation)
    pixels = _resized(picture, extent, frame, RESAMPLES[spec.resample])
    if spec.crop:
        pixels = _middle(pixels, spec.side)
    if len(out) == 1:
        _cut(pixels, spec, out[0])
        return rows, columns
    for there, square in zip(out, _squares(pixels, spec.side), strict=False):
        _cut(square, spec, there)
    whole = _frame(spec.side, spec.side, edges)
    _cut(_resized(picture, extent, whole, RESAMPLES[spec.resample]), spec, out[-1])
    return rows, columns


def _squares(pixels: np.ndarray, side: int) -> Iterator[np.ndarray]:
    """The squares of side x side pixels in (height, width, 3), row by row."""
    for top in range(0, pixels.shape[0], side):
        for left in range(0, pixels.shape[1], side):
            yield np.ascontiguousarray(pixels[top : top + side, left : left + side])


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


def _before_crop(height: int, width: int, spec: ImageSpec) -> tuple[int, int]:
    """(height, width) of a picture whose shorter side is ``spec.side``, as CLIP's processor rounds it."""
    short = min(height, width)
    return int(spec.side * height / short), int(spec.side * width / short)


def _middle(pixels: np.ndarray, side: int) -> np.ndarray:
    """The square in the middle of (height, width, 3)."""
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


class _Frame(NamedTuple):
    """How a picture fills width x height pixels: what is cut off it, as parts of its sides, and what it is resized to.

    The pixels between (left, top, left + inner_width, top + inner_height) and the border repeat its outermost ones.
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
    """Has a JPEG decoded smaller where that is large enough; returns what of the turned result is the picture.

    That is (left, top, right, bottom): where a side is no multiple of the scale, its last pixel is in it in part.
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
    left = width - right if orientation in _FLIPS_X else 0.0
    top = height - bottom if orientation in _FLIPS_Y else 0.0
    return left, top, left + right, top + bottom


def _resized(
    picture: PIL.Image.Image, extent: tuple[float, float, float, float], frame: _Frame, resample: PIL.Image.Resampling
) -> np.ndarray:
    """Returns uint8 (frame.height, frame.width, 3) of what of a picture is within ``extent``.

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
