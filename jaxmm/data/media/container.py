"""What the bytes of a video file say that PyAV does not tell: its format, how it is turned, what a keyframe needs.

Nothing here needs a library. Only the formats below are opened: others (playlists, lists of files, descriptions of
streams) would make FFmpeg open more files, or URLs. ``mp4_table`` reads MP4 and MOV.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np

PROBE = 3 * 188  # bytes that ``format_of`` looks at: three packets of a transport stream
MAX_HEAD = 1 << 24  # bytes of a part of a Matroska header
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")  # an MP4 or MOV begins with one of them


class Turn(NamedTuple):
    """How stored pixels become the picture that is seen: an exchange of the axes, then the flips."""

    swap: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def size(self, height: int, width: int) -> tuple[int, int]:
        return (width, height) if self.swap else (height, width)

    def pixels(self, stored: np.ndarray) -> np.ndarray:
        """(height, width, 3) of what is stored to what is seen."""
        if not any(self):
            return stored
        seen = stored.swapaxes(0, 1) if self.swap else stored
        return np.ascontiguousarray(seen[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1])


class Matroska(NamedTuple):
    """What a Matroska or WebM header says: the turn of the first video track, and seconds, 0 where it does not."""

    turn: Turn = Turn()
    seconds: float = 0.0


def format_of(first: bytes) -> str:
    """FFmpeg's name of the format that begins with these PROBE bytes; '' for any other."""
    if first[4:8] in _BOXES:
        return "mov"
    if first[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if first[:4] == b"RIFF" and first[8:12] == b"AVI ":
        return "avi"
    if first[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if first[:4] == b"FLV\x01":
        return "flv"
    return "mpegts" if len(first) == PROBE and first[::188] == b"GGG" else ""


def turn_of(matrix: np.ndarray) -> Turn:
    """The turn nearest to a display matrix: (x, y) of what is stored, times (2, 2), is (x, y) of what is seen."""
    (a, b), (c, d) = matrix
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Turn(False, bool(a < 0), bool(d < 0))
    return Turn(True, bool(c < 0), bool(b < 0))


# Matroska and WebM (RFC 9559): elements of a number, a size and a body.


def matroska(file: IO[bytes]) -> Matroska:
    """What stands before the first cluster; nothing where it cannot be read."""
    turn, seconds = Turn(), 0.0
    try:
        file.seek(0)
        for number, body in _top(file):
            if number == 0x1549A966:  # Info
                inside = dict(_elements(body))
                scale = int.from_bytes(inside.get(0x2AD7B1, memoryview(b"\x0f\x42\x40")), "big")
                seconds = _float(inside.get(0x4489)) * scale / 1e9
            if number == 0x1654AE6B:  # Tracks
                turn = _matroska_turn(body)
    except (ValueError, LookupError, struct.error):
        pass
    return Matroska(turn, seconds if 0 < seconds < float("inf") else 0.0)


def _matroska_turn(tracks: memoryview) -> Turn:
    for number, body in _elements(tracks):
        entry = dict(_elements(body)) if number == 0xAE else {}
        if bytes(entry.get(0x83, b"")) == b"\x01":  # a track of type video
            video = dict(_elements(entry.get(0xE0, memoryview(b""))))
            pose = dict(_elements(video.get(0x7670, memoryview(b""))))
            yaw, roll = _float(pose.get(0x7673)), np.deg2rad(_float(pose.get(0x7675)))
            matrix = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
            return turn_of(matrix * ([-1, 1] if abs(yaw) == 180 else [1, 1]))
    return Turn()


def _float(body: memoryview | None) -> float:
    return struct.unpack({4: ">f", 8: ">d"}[len(body)], body)[0] if body else 0.0


def _top(file: IO[bytes]) -> Iterator[tuple[int, memoryview]]:
    """The small elements of the segment, up to the first cluster."""
    place = 0
    while True:
        file.seek(place)
        head = memoryview(file.read(16))
        if len(head) < 2:
            return
        number, size, length = _head(head, 0)
        if number == 0x1F43B675:  # a cluster
            return
        place += length
        if number == 0x18538067:  # the segment: into it
            continue
        if number in (0x1549A966, 0x1654AE6B):
            file.seek(place)
            yield number, memoryview(file.read(min(size, MAX_HEAD)))
        place += size


def _elements(body: memoryview) -> Iterator[tuple[int, memoryview]]:
    place = 0
    while place < len(body):
        number, size, length = _head(body, place)
        yield number, body[place + length : place + length + size]
        place += length + size


def _head(body: memoryview, place: int) -> tuple[int, int, int]:
    """The number, the size of the body, and the size of the head, of the element at a place."""
    wide = 9 - body[place].bit_length()
    long = 9 - body[place + wide].bit_length()
    if wide > 4 or long > 8:
        raise ValueError("no element")
    number = int.from_bytes(body[place : place + wide], "big")
    size = int.from_bytes(body[place + wide : place + wide + long], "big") - (1 << 7 * long)
    return number, size, wide + long


# H.264 (ITU-T H.264): units of a size and a kind.


def is_h264_key(packet: bytes, wide: int) -> bool:
    """Whether a picture in an MP4 or Matroska needs none before it.

    Args:
      wide: bytes of the size before each unit.
    """
    place = 0
    while place + wide < len(packet):
        size, first = int.from_bytes(packet[place : place + wide], "big"), place + wide
        kind = packet[first] & 31
        if kind == 5 or (kind == 6 and _recovers_at_once(packet[first + 1 : first + size])):
            return True
        place = first + size
    return False


def _recovers_at_once(messages: bytes) -> bool:
    """Whether supplemental information says that pictures are whole from this one on (D.1.8)."""
    place, head = 0, [0, 0]
    while place + 2 < len(messages):
        for which in (0, 1):  # the kind, then the size: bytes of 255 and a last one
            head[which] = 0
            while place < len(messages) and messages[place] == 255:
                head[which], place = head[which] + 255, place + 1
            head[which] += messages[place] if place < len(messages) else 0
            place += 1
        if head[0] == 6:
            return place < len(messages) and messages[place] >= 128  # the count of pictures until then begins: 0
        place += head[1]
    return False
