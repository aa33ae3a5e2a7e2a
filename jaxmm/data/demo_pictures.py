"""Pictures of coloured shapes: their content, how they are drawn, and how they are encoded as files.

A change of what is drawn raises ``demo.GENERATOR``: prepared pictures are then made again.
"""

from __future__ import annotations

import dataclasses
import functools
import io

import numpy as np
import PIL.Image
import PIL.ImageDraw

# No two colours, and no two shapes, share their first letter: one byte tells a byte-level model which name it is.
COLOURS = {
    "red": (216, 38, 44),
    "green": (30, 150, 62),
    "blue": (36, 84, 220),
    "yellow": (246, 208, 20),
    "purple": (166, 48, 186),
    "orange": (245, 125, 10),
}
SHAPES = ("circle", "square", "triangle", "plus", "ring")

Pair = tuple[str, str]  # (colour, shape)


@dataclasses.dataclass(frozen=True)
class Object:
    """A shape in a picture: its centre (x right, y down) and the side of its box, in pixels."""

    colour: str
    shape: str
    x: int
    y: int
    size: int

    @property
    def pair(self) -> Pair:
        return self.colour, self.shape


@dataclasses.dataclass(frozen=True)
class Scene:
    """The content of a picture; ``draw`` is a pure function of it. Sizes are in pixels."""

    width: int
    height: int
    ground: tuple[int, int, int]
    texture: str
    grain: int  # seed of the details: the texture's phase, the shades of the shapes
    objects: tuple[Object, ...]


def draw(picture: Scene) -> PIL.Image.Image:
    """Returns the scene as an RGB picture."""
    rng = np.random.default_rng(picture.grain)
    height, width = picture.height, picture.width
    ground = np.empty((height, width, 3), np.int16)
    ground[:] = picture.ground
    if picture.texture == "noise":
        ground += rng.integers(-14, 15, (height, width, 1), dtype=np.int16)
    elif picture.texture != "plain":
        period, phase, way, shift = rng.integers((6, 0, 0, 8), (13, 12, 4, 17)).tolist()
        y, x = np.ogrid[phase : phase + height, phase : phase + width]
        if picture.texture == "dots":
            marks = (x % period < 3) & (y % period < 3)
        else:
            marks = (x, y, x + y, x - y)[way] % period < period // 2
        ground -= (marks * np.int16(shift))[:, :, None]
    image = PIL.Image.fromarray(ground.astype(np.uint8))
    shades = rng.integers(-10, 11, (len(picture.objects), 3)).tolist()
    for o, shade in zip(picture.objects, shades, strict=True):
        colour = tuple(min(255, max(0, c + s)) for c, s in zip(COLOURS[o.colour], shade, strict=True))
        image.paste(colour, (o.x - o.size // 2, o.y - o.size // 2), _mask(o.shape, o.size))
    return image


@functools.cache
def _mask(shape: str, size: int) -> PIL.Image.Image:
    """Returns the mask of a shape in its box of size x size pixels, antialiased by drawing it eight times as large."""
    scale = 8
    end = size * scale - 1
    mask = PIL.Image.new("L", (size * scale, size * scale))
    pen = PIL.ImageDraw.Draw(mask)
    if shape == "square":
        pen.rectangle((0, 0, end, end), fill=255)
    elif shape == "triangle":
        pen.polygon(((end / 2, 0), (end, end), (0, end)), fill=255)
    elif shape == "plus":
        pen.rectangle((end / 3, 0, end * 2 / 3, end), fill=255)
        pen.rectangle((0, end / 3, end, end * 2 / 3), fill=255)
    else:
        pen.ellipse((0, 0, end, end), fill=255)
        if shape == "ring":
            pen.ellipse((end * 0.26, end * 0.26, end * 0.74, end * 0.74), fill=0)
    return mask.reduce(scale)


def encode(image: PIL.Image.Image, lot: int) -> bytes:
    """Returns the picture as the bytes of a file: of ten lots, eight are PNG, one JPEG, one WebP."""
    file = io.BytesIO()
    if lot % 10 == 0:
        image.save(file, "JPEG", quality=95, subsampling=0)
    elif lot % 10 == 1:
        image.save(file, "WEBP", quality=95, method=0)
    else:
        image.save(file, "PNG", compress_level=1)
    return file.getvalue()
