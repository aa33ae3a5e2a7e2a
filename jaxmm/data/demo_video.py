"""The embedded demo of video: a coloured shape that comes and goes; questions about which colour, when and how often.

``demo_clips`` has the questions. Here is what is seen. Shape, size and ground are those of a whole film; each colour
has a place of its own; places and times are drawn alike for the first and for the last. So no frame tells its time.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import PIL.Image

from jaxmm.data.demo_clips import Theme
from jaxmm.data.demo_pictures import COLOURS
from jaxmm.data.documents import Image, Source, Video

SIDE, FRAMES, FPS = 48, 8, 4.0  # of a film: pixels, frames, frames a second
SIZES = (12, 14, 16)  # pixels: the sides of a shape
SHAPES = ("square", "circle", "plus", "triangle")


class Sight(NamedTuple):
    """A shape while it is seen: in frames [start, stop), its upper left corner at (x, y)."""

    colour: str
    x: int
    y: int
    start: int
    stop: int


class Film(NamedTuple):
    """The content of a film; ``frames_of`` is a pure function of it. Sizes are in pixels."""

    ground: int  # grey
    grain: int  # seed of the noise on it; 0 is none
    shape: str
    size: int
    sights: tuple[Sight, ...]


def training_source(seed: int = 0, examples: int = 6000) -> Source:
    """Returns the demo's training split."""
    return THEME.training_source(seed, examples)


def test_source(seed: int = 0, examples: int = 600) -> Source:  # noqa: PT028  (no pytest test, for all its name)
    """Returns the held-out questions, one a film, labelled (kind,) or (kind, "unseen")."""
    return THEME.test_source(seed, examples)


def film(rng: np.random.Generator, colours: tuple[str, ...]) -> Film:
    """Returns a film in which these colours are seen, in this order: one that comes again is seen for a frame each."""
    size = int(rng.choice(SIZES))
    is_one = len(set(colours)) == 1
    places = rng.integers(0, SIDE - size + 1, (len(colours), 2)).tolist()
    if is_one:
        places = places[:1] * len(colours)
    times = _times(rng, len(colours), is_one)
    sights = tuple(
        Sight(colour, x, y, start, stop) for colour, (x, y), (start, stop) in zip(colours, places, times, strict=True)
    )
    grain = int(rng.integers(1, 2**32)) if rng.random() < 0.5 else 0
    return Film(int(rng.integers(172, 226)), grain, SHAPES[rng.integers(len(SHAPES))], size, sights)


def _times(rng: np.random.Generator, count: int, are_brief: bool) -> list[tuple[int, int]]:
    """Returns [start, stop) of so many sights: of a frame each, and apart, or else of a frame or more."""
    # The frames that are left go to the gaps, both ends, and sights if they may last, all alike: backwards, times are
    # drawn the same.
    places = np.arange(0, 2 * count + 1, 2 if are_brief else 1)  # the odd ones are sights
    gap = int(are_brief)
    left = FRAMES - count - gap * (count - 1)
    extra = np.bincount(rng.choice(places, left), minlength=2 * count + 1).tolist()
    times, at = [], extra[0]
    for k in range(count):
        stop = at + 1 + extra[2 * k + 1]
        times.append((at, stop))
        at = stop + gap + extra[2 * k + 2]
    return times


def frames_of(shown: Film) -> np.ndarray:
    """Returns the film as uint8 (FRAMES, SIDE, SIDE, 3)."""
    ground = np.full((SIDE, SIDE, 1), shown.ground, np.int16)
    if shown.grain:
        ground += np.random.default_rng(shown.grain).integers(-12, 13, ground.shape, dtype=np.int16)
    frames = np.tile(ground.astype(np.uint8), (FRAMES, 1, 1, 3))
    mask = _mask(shown.shape, shown.size)
    for sight in shown.sights:
        there = frames[sight.start : sight.stop, sight.y : sight.y + shown.size, sight.x : sight.x + shown.size]
        there[:, mask] = COLOURS[sight.colour]
    return frames


def _mask(shape: str, size: int) -> np.ndarray:
    """bool (size, size): where a shape is."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    half = size / 2
    if shape == "circle":
        return x * x + y * y <= half * half
    if shape == "plus":
        return (abs(x) < size / 6) | (abs(y) < size / 6)
    if shape == "triangle":
        return abs(x) <= (y + half) / 2
    return np.ones((size, size), bool)


def clip(rng: np.random.Generator, colours: tuple[str, ...]) -> Video:
    """Returns a film in which these colours are seen, in this order, as the bytes of its frames."""
    return Video(frames=tuple(Image(_png(frame)) for frame in frames_of(film(rng, colours))), fps=FPS)


def _png(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(frame).save(file, "PNG", compress_level=1)
    return file.getvalue()


THEME = Theme(
    name="demo_video",
    generator=1,
    things=tuple(COLOURS),
    first="Which colour comes first?",
    last="Which colour comes last?",
    identity="What colour is it?",
    count="How often does it appear?",
    clip=clip,
)
