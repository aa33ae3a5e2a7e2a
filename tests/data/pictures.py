"""Pictures that tests decode."""

import io
from typing import Any

import numpy as np
import PIL.Image

from jaxmm.data.documents import Image
from jaxmm.data.media import picture as media


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
