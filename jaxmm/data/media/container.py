"""What the header of a video file says that PyAV does not tell: its format, how it is turned, and MP4's own table.

Nothing here needs a library. Only the formats below are opened: others (playlists, lists of files, descriptions of
streams) would make FFmpeg open more files, or URLs.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np

PROBE = 3 * 188  # bytes that ``format_of`` looks at: three packets of a transport stream
MAX_MOOV = 1 << 30  # bytes of an MP4's header
MAX_SAMPLES = 1 << 26  # frames of an MP4: three weeks at 30 a second
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


class Table(NamedTuple):
    """MP4's table of one track: its n frames in the order of decoding.

    Attributes:
      turn: of its pictures.
      tick: ticks a second.
      times: int64 (n,) when each is shown, in ticks.
      last: ticks that the last one in the order of decoding takes.
      is_key: bool (n,) whether decoding can start there.
      is_shown: bool (n,) whether the edit list shows it.
      starts, ends: int64 (n,) its range of bytes in the file.
    """

    turn: Turn
    tick: int
    times: np.ndarray
    last: int
    is_key: np.ndarray
    is_shown: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


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


# MP4 and MOV (ISO 14496-12): boxes of a size, a kind and a body.


def has_moov(file: IO[bytes]) -> bool:
    """Whether an MP4 has its whole header: one that was not written to its end, or not loaded, has none."""
    place, size = _moov_range(file)
    return 0 < place <= place + size <= file.seek(0, io.SEEK_END)


def mp4_turn(file: IO[bytes], track: int) -> Turn:
    """The turn of a track; none where the header cannot be read."""
    try:
        moov = _moov(file)
        return _turn(moov, _track(moov, track))
    except (ValueError, LookupError, struct.error):
        return Turn()


def mp4_table(file: IO[bytes], track: int) -> Table | None:
    """The table of a track; None if it has none, or more in it (several edits, fragments) than is read here."""
    try:
        moov = _moov(file)
        trak = _track(moov, track)
        return _table(moov, trak, file.seek(0, io.SEEK_END))
    except (ValueError, LookupError, OverflowError, struct.error):
        return None


def _moov(file: IO[bytes]) -> memoryview:
    """The body of the box ``moov``, or b"" where there is none."""
    place, size = _moov_range(file)
    file.seek(place)
    return memoryview(file.read(min(size, MAX_MOOV)))


def _moov_range(file: IO[bytes]) -> tuple[int, int]:
    """Where the body of ``moov`` begins and how many bytes it has by its head; zeros where there is none."""
    end, place = file.seek(0, io.SEEK_END), 0
    while place + 8 <= end:
        file.seek(place)
        size, kind, long = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        head = 16 if size == 1 else 8
        size = long if size == 1 else size or end - place
        if size < head:
            break
        if kind == b"moov":
            return place + head, size - head
        place += size
    return 0, 0


def _boxes(body: memoryview, kind: bytes) -> Iterator[memoryview]:
    place = 0
    while place + 8 <= len(body):
        size, found = struct.unpack_from(">I4s", body, place)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", body, place + 8), 16
        size = size or len(body) - place
        if size < head:
            raise ValueError("a box is smaller than its head")
        if found == kind:
            yield body[place + head : place + size]
        place += size


def _box(body: memoryview, *kinds: bytes) -> memoryview:
    """The box at a path. Raises LookupError if there is none."""
    for kind in kinds:
        found = next(_boxes(body, kind), None)
        if found is None:
            raise LookupError(kind)
        body = found
    return body


def _entries(body: memoryview, kind: bytes, layout: str, head: int = 4) -> np.ndarray:
    """The entries of a table box, after its version and ``head`` bytes of which the last four count them."""
    table = _box(body, kind)
    (count,) = struct.unpack_from(">I", table, head)
    return np.frombuffer(table, layout, count, head + 4)


def _track(moov: memoryview, track: int) -> memoryview:
    for trak in _boxes(moov, b"trak"):
        head = _box(trak, b"tkhd")
        if struct.unpack_from(">I", head, 20 if head[0] else 12)[0] == track:
            return trak
    raise LookupError(track)


def _turn(moov: memoryview, trak: memoryview) -> Turn:
    track, film = _box(trak, b"tkhd"), _box(moov, b"mvhd")
    own = _matrix(track, 52 if track[0] else 40)
    return turn_of(own @ _matrix(film, 48 if film[0] else 36))


def _matrix(head: memoryview, place: int) -> np.ndarray:
    return np.frombuffer(head, ">i4", 9, place).reshape(3, 3)[:2, :2] / 65536


def turn_of(matrix: np.ndarray) -> Turn:
    """The turn nearest to a display matrix: (x, y) of what is stored, times (2, 2), is (x, y) of what is seen."""
    (a, b), (c, d) = matrix
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Turn(False, bool(a < 0), bool(d < 0))
    return Turn(True, bool(c < 0), bool(b < 0))


def _table(moov: memoryview, trak: memoryview, size: int) -> Table:
    media = _box(trak, b"mdia")
    head, stbl = _box(media, b"mdhd"), _box(media, b"minf", b"stbl")
    (tick,) = struct.unpack_from(">I", head, 20 if head[0] else 12)
    steps = _entries(stbl, b"stts", ">u4,>u4").astype("i8,i8")
    counts, deltas = steps["f0"], steps["f1"]
    one_size, n = struct.unpack_from(">II", _box(stbl, b"stsz"), 4)
    if any(_boxes(moov, b"mvex")):
        raise ValueError("more frames follow in fragments")
    if not 0 < n <= MAX_SAMPLES or counts.sum() != n or deltas.max() >= 1 << 31 or not tick:
        raise ValueError("a table that does not agree with itself")
    sizes = np.full(n, one_size, np.int64) if one_size else _entries(stbl, b"stsz", ">u4", 8).astype(np.int64)
    times = np.zeros(n, np.int64)
    np.cumsum(np.repeat(deltas, counts)[:-1], out=times[1:])
    if any(_boxes(stbl, b"ctts")):
        later = _entries(stbl, b"ctts", ">u4,>i4").astype("i8,i8")
        if later["f0"].sum() != n:
            raise ValueError("a table that does not agree with itself")
        times += np.repeat(later["f1"], later["f0"])
    is_key = np.ones(n, bool)
    if any(_boxes(stbl, b"stss")):
        is_key[:] = False
        is_key[_entries(stbl, b"stss", ">u4").astype(np.int64) - 1] = True
    starts = _starts(stbl, sizes)
    (film_tick,) = struct.unpack_from(">I", (film := _box(moov, b"mvhd")), 20 if film[0] else 12)
    is_shown = _shown(trak, times, tick, film_tick)
    return Table(_turn(moov, trak), tick, times, int(deltas[-1]), is_key, is_shown, starts, starts + sizes)


def _starts(stbl: memoryview, sizes: np.ndarray) -> np.ndarray:
    """int64 (n,): where each frame begins in the file, from the tables of chunks."""
    if any(_boxes(stbl, b"stco")):
        chunks = _entries(stbl, b"stco", ">u4").astype(np.int64)
    else:
        chunks = _entries(stbl, b"co64", ">u8").astype(np.int64)
    runs = _entries(stbl, b"stsc", ">u4,>u4,>u4").astype("i8,i8,i8")
    lengths = np.diff(runs["f0"], append=len(chunks) + 1)  # chunks are numbered from 1
    if lengths.min() < 0 or lengths.sum() != len(chunks) or (lengths * runs["f1"]).sum() != len(sizes):
        raise ValueError("a table that does not agree with itself")
    held = np.repeat(runs["f1"], lengths)  # frames of each chunk
    before = np.cumsum(sizes) - sizes
    first = np.minimum(np.cumsum(held) - held, len(sizes) - 1)
    return np.repeat(chunks - before[first], held) + before


def _shown(trak: memoryview, times: np.ndarray, tick: int, film_tick: int) -> np.ndarray:
    """bool (n,): what an edit list of one edit shows, after any empty ones. Raises ValueError for any other."""
    if not any(_boxes(trak, b"edts")):
        return np.ones(len(times), bool)
    edts = _box(trak, b"edts")
    layout = ">u8,>i8,>i4" if _box(edts, b"elst")[0] else ">u4,>i4,>i4"
    edits = [edit for edit in _entries(edts, b"elst", layout).tolist() if edit[1] != -1]
    if len(edits) != 1 or not edits[0][0] or edits[0][1] < 0 or edits[0][2] != 65536:
        raise ValueError("an edit list with more in it")
    ((long, start, _),) = edits
    return (times >= start) & (times < start + round(long * tick / film_tick))


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
            yield number, memoryview(file.read(min(size, MAX_MOOV)))
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
