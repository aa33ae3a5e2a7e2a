"""Encoded pictures to pixels: sizes from headers alone, and decoding.

Preparing and planning need only sizes; the loader decodes the pixels, once. Nothing here sets Pillow's globals. Pillow
itself reads the headers: its checks decide what can be decoded, and it reads tens of thousands a second.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import PIL.Image

from jaxmm.data import files
from jaxmm.data.documents import Image
from jaxmm.data.media.medium import BadMedia
from jaxmm.data.media.opening import MAX_BYTES, opened_file
from jaxmm.errors import UserError

MAX_PIXELS = 178_956_970  # a larger picture counts as a decompression bomb; Pillow raises at the same area
MAX_SIDE = 65_535  # pixels, as in JPEG: resizing takes memory by a picture's longer side, not by its area alone
MAX_PASSES = 16 * MAX_PIXELS  # pixels a progressive JPEG may give, over all of its scans: some seconds
# Only these formats: some of Pillow's others (EPS) run programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

ORIENTATION = 0x0112  # the EXIF tag
_STRIP = 256  # rows at a time

_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
# Each turn is an exchange of the axes (5 to 8), followed by these flips.
FLIPS_X, FLIPS_Y = (2, 3, 6, 7), (3, 4, 7, 8)

# These warnings of Pillow are handled here: MAX_PIXELS, unreadable EXIF, transparency in a palette.
warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class Header(NamedTuple):
    """What a header tells.

    Attributes:
      height, width: in pixels, as the picture is meant to be seen (EXIF orientation applied).
      is_animated: whether more pictures follow the first one, the only one that is used.
    """

    height: int
    width: int
    is_animated: bool


@contextlib.contextmanager
def opened_picture(image: Image) -> Iterator[PIL.Image.Image]:
    """Opens an image by its header; every error inside becomes BadMedia, except UserError."""
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


def orientation_of(opened: PIL.Image.Image) -> int:
    """The EXIF orientation in the header, 1 to 8; 1 where Pillow already applies it or it cannot be read."""
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
    with opened_picture(image) as opened:
        return turned_size(opened, orientation_of(opened))


def header(image: Image) -> Header:
    """As ``image_size``, and whether more pictures follow the first; of a GIF this reads over the first one's bytes."""
    with opened_picture(image) as opened:
        height, width = turned_size(opened, orientation_of(opened))
        try:
            is_animated = bool(getattr(opened, "is_animated", False))
        except Exception:  # what follows the first picture is broken, and not needed
            is_animated = True
        return Header(height, width, is_animated)


def turned_size(opened: PIL.Image.Image, orientation: int) -> tuple[int, int]:
    """(height, width) after the turn."""
    width, height = opened.size
    return (width, height) if orientation >= 5 else (height, width)


def decode(image: Image) -> PIL.Image.Image:
    """Decodes to RGB, turned as its EXIF orientation says; of an animation, the first frame.

    Transparent pixels are laid over white, as a page would show them. (``convert("RGB")``, which transformers and
    LLaMA-Factory call, shows the colour stored under them: often black, which hides black ink.) 16-bit grey is scaled
    to 8 bits, not clipped.

    Raises:
      BadMedia: if it cannot be decoded to its end.
    """
    with opened_picture(image) as opened:
        return decoded(opened, orientation_of(opened))


def decoded(opened: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
    if opened.info.get("progressive") and opened.width * opened.height * _scans(opened) > MAX_PASSES:
        raise BadMedia("too large")
    opened.load()
    picture = _to_rgb(opened)
    return picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture


def _scans(opened: PIL.Image.Image) -> int:
    """Counts the scans of a JPEG: a progressive one may have any number, each over the whole picture."""
    file = opened.fp  # type: ignore[attr-defined]  # it is of the class for files
    place = file.tell()
    file.seek(0)
    count, last = 0, b""
    while chunk := file.read(1 << 20):
        count += (last + chunk).count(b"\xff\xda")
        last = chunk[-1:]
    file.seek(place)
    return count


def _to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture  # already in memory, so it outlives the file
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
