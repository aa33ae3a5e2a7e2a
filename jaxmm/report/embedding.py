"""Pictures and sounds as data URIs, as small as the page must be: a clip has its share of a number of characters."""

from __future__ import annotations

import base64
import io
import wave
from typing import NamedTuple

import numpy as np
from PIL import Image as PILImage

from jaxmm.report.drawing import scaled, sheet

FILM_SIZE, PICTURE_SIZE, SOUND_SIZE = 900_000, 350_000, 1_200_000  # characters of all films, spectrograms and sounds
LEAST_FILM = 90_000  # characters of a film: where not all can have so many, the last ones are not shown
LEAST_SIDE = 24  # pixels: frames are not made smaller
MOST_SECONDS, LEAST_SECONDS = 30.0, 8.0  # of a recording, if all is heard that there is room for
SHEET_WIDTH = 8192  # pixels: browsers draw wider pictures less well
JPEG_SIZE = 0.12  # characters a pixel, about: what would be too many is not tried


class Room:
    """Divides a size among things that come one after the other: what one leaves is for later ones."""

    def __init__(self, size: int, count: int):
        self.left, self._count = size, count

    @property
    def share(self) -> int:
        return max(self.left, 0) // max(self._count, 1)

    def take(self, size: int) -> None:
        self.left, self._count = self.left - size, self._count - 1


class Strip(NamedTuple):
    """Frames in rows of ``columns``, each ``width`` x ``height`` pixels.

    ``src`` is '' where there is no room; ``is_exact``: the pixels are as they were.
    """

    src: str
    columns: int
    width: int
    height: int
    is_exact: bool


def uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(pixels: np.ndarray) -> str:
    return uri("image/png", _file(pixels, "PNG"))


def jpeg(pixels: np.ndarray, quality: int = 88) -> str:
    return uri("image/jpeg", _file(pixels, "JPEG", quality=quality))


def strip(frames: np.ndarray, room: Room) -> Strip:
    """Frames uint8 (n, height, width, 3) of a film: exact if they fit in its share, else smaller; '' without room."""
    count, height, width, _ = frames.shape
    share = max(room.share, min(LEAST_FILM, room.left))
    if share < min(LEAST_FILM, count * LEAST_SIDE**2 * JPEG_SIZE):
        room.take(0)
        return Strip("", 1, width, height, False)
    columns = max(1, min(count, SHEET_WIDTH // width))
    if frames.size / 60 < share:
        src = png(sheet(frames, columns))
        if len(src) <= share:
            room.take(len(src))
            return Strip(src, columns, width, height, True)
    part = 1.0
    while True:
        size = max(1, round(width * part)), max(1, round(height * part))
        is_least = min(size) * 0.7 < LEAST_SIDE
        if is_least or JPEG_SIZE * count * size[0] * size[1] <= 2 * share:
            src = jpeg(sheet(scaled(frames, size), columns), 80)
            if is_least or len(src) <= share:
                room.take(len(src))
                return Strip(src, columns, *size, False)
        part *= 0.7


def spectrum(pixels: np.ndarray, room: Room) -> str:
    """A spectrogram (mels, frames, 3): exact if it fits in its share, and else with fewer columns."""
    height, width = pixels.shape[:2]
    src = png(pixels)
    while len(src) > room.share and width > 2 * LEAST_SIDE:
        width = round(width * 0.7)
        src = jpeg(scaled(pixels[None], (width, height))[0], 80)
    room.take(len(src))
    return src


def seconds_to_hear(seconds: float, rate: int, room: Room) -> float:
    """How many of a recording's seconds there is room for; 0 where there is none."""
    a_second = 2 * rate * 4 / 3
    seconds = min(seconds, MOST_SECONDS, max(LEAST_SECONDS, room.share / a_second))
    return seconds if seconds * a_second <= room.left else 0.0


def wav(samples: np.ndarray, rate: int) -> bytes:
    """A WAV of one channel and 16 bits; values beyond [-1, 1] are cut."""
    file = io.BytesIO()
    with wave.open(file, "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(rate)
        opened.writeframes((np.clip(samples, -1.0, 1.0) * 32767.0).round().astype("<i2").tobytes())
    return file.getvalue()


def _file(pixels: np.ndarray, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    PILImage.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()
