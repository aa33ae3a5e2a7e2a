"""The header of an MP4 or MOV (ISO 14496-12): how its tracks are turned, and the table of a track's frames.

The file is boxes of a size, a kind and a body. Whatever is not read here - several edits, fragments, a table that does
not agree with itself - gives no table: then the packets tell.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np

from jaxmm.data.media.container import Turn, turn_of

MAX_MOOV = 1 << 30  # bytes of a header
MAX_SAMPLES = 1 << 26  # frames: three weeks at 30 a second


class Table(NamedTuple):
    """The table of one track: its n frames in the order of decoding.

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


def has_moov(file: IO[bytes]) -> bool:
    """Whether an MP4 has its whole header: one that was not written to its end, or not loaded, has none."""
    place, size = _moov_range(file)
    return 0 < place <= place + size <= file.seek(0, io.SEEK_END)


def turn(file: IO[bytes], track: int) -> Turn:
    """The turn of a track; none where the header cannot be read."""
    try:
        moov = _moov(file)
        return _turn(moov, _track(moov, track))
    except (ValueError, LookupError, struct.error):
        return Turn()


def table(file: IO[bytes], track: int) -> Table | None:
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
        size, name = struct.unpack_from(">I4s", body, place)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", body, place + 8), 16
        size = size or len(body) - place
        if size < head:
            raise ValueError("a box is smaller than its head")
        if name == kind:
            yield body[place + head : place + size]
        place += size


def _box(body: memoryview, *kinds: bytes) -> memoryview:
    """The box at a path. Raises LookupError if there is none."""
    for kind in kinds:
        inner = next(_boxes(body, kind), None)
        if inner is None:
            raise LookupError(kind)
        body = inner
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
