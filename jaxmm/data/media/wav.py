"""WAV files of plain samples, which need no library. Other codings in a WAV (mu-law, ADPCM) are left to libsndfile."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np

from jaxmm.data.media.medium import BadMedia

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # codings of a format chunk
BLOCK = 1 << 16  # samples a channel, at a time

_STREAMED = 0x7FFFF000  # sizes from here on stand for "until the end" where the file is shorter: SoX, FFmpeg to a pipe
_MOST_CHUNKS = 1024  # before the data
_SLACK = 64  # bytes: some writers count their header as data


class Wav(NamedTuple):
    """What the header of a WAV tells.

    Attributes:
      rate: samples a second.
      channels, samples: how many, and how many samples each has.
      place: bytes before the first sample.
      width, is_float: bytes of a sample, and whether it is floating.
    """

    rate: int
    channels: int
    samples: int
    place: int
    width: int
    is_float: bool


def wav_header(file: IO[bytes]) -> Wav | None:
    """Reads the header; None where the samples are not plain.

    Raises:
      BadMedia: if it is broken, or the file is shorter than it says.
    """
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    whole = struct.unpack_from("<I", file.read(12), 4)[0]
    place, long_size, coding = 12, None, None
    for _ in range(_MOST_CHUNKS):
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            raise BadMedia("truncated")  # before any sample
        name, size = struct.unpack("<4sI", head)
        if name == b"data":
            break
        if name == b"ds64":  # sizes beyond 4 GiB: EBU Tech 3306
            long_size = struct.unpack("<8xQ", file.read(16))[0]
        elif name == b"fmt ":
            coding = _coding(file.read(min(size, 40)))
        place += 8 + size + size % 2
    if coding is None or name != b"data":
        raise BadMedia("unreadable")
    tag, channels, rate, frame = coding
    width = frame // channels
    if not ((tag == PCM and width in (1, 2, 3, 4)) or (tag == FLOAT and width in (4, 8))) or frame % channels:
        return None
    place += 8
    left = end - place
    if size == 0xFFFFFFFF and long_size is not None:
        size = long_size
    was_never_closed = size == 0 and whole <= place
    if was_never_closed or max(left + 1, _STREAMED) <= size <= 0xFFFFFFFF:
        size = left
    if size > left + _SLACK:
        raise BadMedia("truncated")
    return Wav(rate, channels, min(size, left) // frame, place, width, tag == FLOAT)


def _coding(body: bytes) -> tuple[int, int, int, int]:
    """Returns (tag, channels, rate, bytes of one sample of all channels) of a format chunk."""
    if len(body) < 16:
        raise BadMedia("unreadable")
    tag, channels, rate, frame = struct.unpack_from("<HHI4xH", body)
    if tag == EXTENSIBLE and len(body) >= 26:
        tag = struct.unpack_from("<H", body, 24)[0]
    if not (channels and rate and frame):
        raise BadMedia("unreadable")
    return tag, channels, rate, frame


def wav_blocks(file: IO[bytes], wav: Wav, first: int, count: int) -> Iterator[np.ndarray]:
    """Reads ``count`` samples from the first on: float32 (channels, n), whole numbers scaled to [-1, 1)."""
    frame = wav.width * wav.channels
    file.seek(wav.place + first * frame)
    for start in range(0, count, BLOCK):
        data = file.read(min(BLOCK, count - start) * frame)
        yield _floats(data[: len(data) // frame * frame], wav).reshape(-1, wav.channels).T


def _floats(data: bytes, wav: Wav) -> np.ndarray:
    if wav.is_float:
        with np.errstate(over="ignore"):
            return np.frombuffer(data, f"<f{wav.width}").astype(np.float32)
    if wav.width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if wav.width == 3:  # as 32 bits, of which the lowest eight are 0
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        data = wide.tobytes()
    width = 4 if wav.width == 3 else wav.width
    return np.frombuffer(data, f"<i{width}").astype(np.float32) * np.float32(2.0 ** (1 - 8 * width))
