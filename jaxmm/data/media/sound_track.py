"""MP3, AAC and the sound tracks of films, through FFmpeg (PyAV): how many samples there are, and the samples.

FFmpeg is told which demuxer to use, and may open nothing but the file that it is given: left to guess, it would follow
a playlist to other files and URLs.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from jaxmm.data.media.medium import BadMedia

# The demuxers that are used. In these the last packets tell how long a track is, and a seek finds them.
_ENDS_KNOWN = ("matroska", "avi", "flv", "asf")
_NO_SEEK = ("aac", "flac")  # after a seek their times are guesses
DEMUXERS = ("mov", "mp3", "mpegts", "mpeg", *_ENDS_KNOWN, *_NO_SEEK)


_MICRO = 1_000_000
_TAIL = 10.0  # seconds before the end from which packets are walked
_LEAD = 0.5  # seconds that are decoded before a part: decoders need up to ten packets until they are right
_GAP = 0.01  # seconds that times may differ from the count of samples: containers round them to milliseconds
_MOST_BOXES, _MOST_TAGS = 1 << 18, 64  # that are looked at
_MOST_PLANES = 8  # PyAV looks for a ninth behind them
_SCALES = {"u1": 1 / 128, "i2": 1 / 32768, "i4": 1 / 2**31}


def may_miss(count: int) -> float:
    """How many of ``count`` samples may be missing: an encoder's padding or a broken packet, and 1% of a long clip."""
    return max(min(4096, count // 2), 0.01 * count)


class SoundTrack:
    """The first sound track of an open file.

    Attributes:
      rate: samples a second.
      is_quick: whether ``total`` takes no walk over the file.
    """

    def __init__(self, av: Any, container: Any, file: IO[bytes], kind: str):
        if not container.streams.audio:
            raise BadMedia("no audio")
        self._av, self._container, self._stream, self._kind = av, container, container.streams.audio[0], kind
        coder = self._stream.codec_context
        if coder is None or not coder.sample_rate:
            raise BadMedia("unreadable")
        self.rate: int = coder.sample_rate
        self._tick = self._stream.time_base.as_integer_ratio()  # a product with a Fraction takes as long as a frame
        # The time 0 of a film is where its first track begins, be it this one or not.
        self._zero = (container.start_time or 0) / _MICRO
        self._begin = self._sample(self._stream.start_time) if self._stream.start_time is not None else 0
        self._known = self._from_header(file)
        self.is_quick = self._known is not None

    def _sample(self, time: int) -> int:
        """The number of the sample at a time of the track."""
        return round((time * self._tick[0] / self._tick[1] - self._zero) * self.rate)

    def _from_header(self, file: IO[bytes]) -> int | None:
        """How many samples there are, where a header knows it; else None."""
        if self._kind == "mp3":
            return mp3_samples(file)
        if self._kind != "mov" or not self._stream.duration:
            return None
        place = file.tell()
        in_fragments = b"moof" in mov_boxes(file)
        file.seek(place)
        return (
            None
            if in_fragments
            else self._begin + round(float(self._stream.duration * self._stream.time_base) * self.rate)
        )

    def total(self) -> int:
        """How many samples a channel has, from time 0 on; without a header's word by a walk over its packets."""
        if self._known is None:
            self._known = 0
            length = self._container.duration
            if self._kind in _ENDS_KNOWN and length and length > 2 * _TAIL * _MICRO:
                self._seek(self._zero + length / _MICRO - _TAIL)
                self._known = self._end()
                if not self._known:
                    self._seek(self._zero)
            self._known = self._known or self._end()
            self._seek(self._zero)
        return self._known

    def _end(self) -> int:
        last = None
        for packet in self._container.demux(self._stream):
            if packet.pts is not None:
                last = max(packet.pts + (packet.duration or 0), last or 0)
        return 0 if last is None else max(self._sample(last), 0)

    def _seek(self, seconds: float) -> None:
        self._container.seek(int(seconds / self._stream.time_base), stream=self._stream, backward=True)

    def blocks(self, first: int, count: int) -> Iterator[np.ndarray]:
        """Decodes ``count`` samples from the first on: float32 (channels, n). At the end some may be missing.

        Where the track begins late there is silence; a few lost samples become silence, so that the others keep their
        times.

        Raises:
          BadMedia: if more is lost.
        """
        if first > 2 * _LEAD * self.rate and self._kind not in _NO_SEEK:
            self._seek(max(self._zero + first / self.rate - _LEAD, self._zero))
        want, last, lost, place = first, first + count, 0, None
        for frame in self._frames():
            told = place if frame.pts is None else self._sample(frame.pts)
            if place is None or (told is not None and abs(told - place) > _GAP * self.rate):
                place = told or 0
            values = _values(frame)
            if frame.sample_rate != self.rate:
                raise BadMedia("unreadable")
            if place > want:
                gap = min(place, last) - want
                lost += max(min(place, last) - max(want, self._begin), 0)
                if lost > may_miss(count):
                    raise BadMedia("truncated")
                yield np.zeros((1, gap), np.float32)
                want += gap
            values = values[:, max(want - place, 0) : max(last - place, 0)]
            place += frame.samples
            if values.shape[1]:
                yield values
                want += values.shape[1]
            if want >= last:
                return

    def _frames(self) -> Iterator[Any]:
        """Decodes what can be decoded: one broken packet is no broken file."""
        packed = None
        for packet in self._container.demux(self._stream):
            try:
                frames = packet.decode()
            except ValueError:  # av.error.InvalidDataError
                continue
            for frame in frames:
                if frame.format.is_planar and frame.layout.nb_channels >= _MOST_PLANES:
                    packed = packed or self._av.AudioResampler(
                        frame.format.packed.name, frame.layout, frame.sample_rate
                    )
                    yield from packed.resample(frame)
                else:
                    yield frame


def _values(frame: Any) -> np.ndarray:
    """float32 (channels, n); whole numbers scaled to [-1, 1)."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype == np.float32:
        return values
    scale = _SCALES.get(values.dtype.str[1:])
    if scale is None:
        with np.errstate(over="ignore"):
            return values.astype(np.float32, copy=False)
    values = values.astype(np.float32)
    return (values - 128 if scale == _SCALES["u1"] else values) * np.float32(scale)


@contextlib.contextmanager
def opened_track(av: Any, file: IO[bytes], kind: str) -> Iterator[SoundTrack]:
    """Opens a file by the demuxer ``kind``; ``av`` is the library.

    Raises:
      BadMedia: if there is no sound, or the file is shorter than its container says. FFmpeg's errors pass unchanged.
    """
    if is_cut(file, kind):
        raise BadMedia("truncated")
    file.seek(0)
    nothing_else = {"protocol_whitelist": "none"}
    with av.open(file, format=kind, options=nothing_else, metadata_errors="ignore") as container:
        track = SoundTrack(av, container, file, kind)
        for other in container.streams:
            if other is not container.streams.audio[0]:
                with contextlib.suppress(AttributeError):  # of older versions, which read the pictures over
                    other.discard = av.stream.Discard.all
        yield track


def is_cut(file: IO[bytes], kind: str) -> bool:
    """Whether a file is shorter than its container says, where that can be seen from its start."""
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    if kind == "mov":
        boxes = mov_boxes(file)
        return (
            b"moov" not in boxes or boxes[b"moov"] > end or boxes.get(b"mdat", 0) > end or boxes.get(b"moof", 0) > end
        )
    head = file.read(4096)
    if kind in ("avi", "aiff"):
        return 8 + struct.unpack_from("<I" if kind == "avi" else ">I", head, 4)[0] > end + 1
    if kind == "matroska":
        place = head.find(b"\x18\x53\x80\x67") + 4  # the segment, which holds all that follows
        if place < 4 or place >= len(head) or not head[place]:
            return False
        length = 9 - head[place].bit_length()
        size = int.from_bytes(head[place : place + length], "big") & ((1 << 7 * length) - 1)
        return size != (1 << 7 * length) - 1 and place + length + size > end
    return False


def mov_boxes(file: IO[bytes]) -> dict[bytes, int]:
    """Returns the outer boxes of an MP4 or MOV: for each name, where the last one of it ends, in bytes."""
    end = file.seek(0, io.SEEK_END)
    place, boxes = 0, {}
    for _ in range(_MOST_BOXES):
        if place + 8 > end:
            break
        file.seek(place)
        head = file.read(16)
        size, name = struct.unpack_from(">I4s", head)
        if size == 1 and len(head) == 16:
            size = struct.unpack_from(">Q", head, 8)[0]
        elif size == 0:
            size = end - place
        if size < 8:
            break  # no box
        place += size
        boxes[name] = place
    return boxes


def id3_end(file: IO[bytes]) -> int:
    """Returns where the ID3 tags at the start of a file end, in bytes."""
    place = 0
    for _ in range(_MOST_TAGS):
        file.seek(place)
        head = file.read(10)
        if len(head) < 10 or head[:3] != b"ID3":
            break
        size = 0
        for part in head[6:]:
            size = size << 7 | part & 127
        place += 10 + size + (10 if head[5] & 16 else 0)
    return place


def mp3_samples(file: IO[bytes]) -> int | None:
    """How many samples an MP3 has by its Xing or Info header, less the encoder's delay and padding where it tells them.

    None where there is no such header, or the file is longer than it says: then only a walk knows.

    Raises:
      BadMedia: if the file is shorter than it says.
    """
    place, end = file.tell(), file.seek(0, io.SEEK_END)
    start = id3_end(file)
    file.seek(start)
    head = file.read(4096)
    file.seek(place)
    sync = next((p for p in range(len(head) - 4) if _is_mp3(head[p : p + 4])), None)
    if sync is None:
        return None
    head = head[sync:]
    is_first, is_mono = (head[1] >> 3 & 3) == 3, head[3] >> 6 == 3  # MPEG 1, and not 2 or 2.5
    at = 4 + ((17 if is_mono else 32) if is_first else (9 if is_mono else 17))
    if head[at : at + 4] not in (b"Xing", b"Info") or len(head) < at + 160:
        return None
    flags = struct.unpack_from(">I", head, at + 4)[0]
    if not flags & 1:
        return None
    frames, size = struct.unpack_from(">II", head, at + 8)
    if not frames:
        return None
    if flags & 2:
        left = end - start - sync
        if left - size > min(size, left) // 16:
            return None  # one file behind another, which FFmpeg plays to the end
        if size - left > size // 100 + 2881:
            raise BadMedia("truncated")
    samples = frames * (1152 if is_first else 576)
    at += 8 + 4 * (1 + bool(flags & 2)) + 100 * bool(flags & 4) + 4 * bool(flags & 8)
    if head[at : at + 4] in (b"LAME", b"Lavf", b"Lavc"):
        edges = int.from_bytes(head[at + 21 : at + 24], "big")
        samples -= (edges >> 12) + 529 + max((edges & 4095) - 529, 0)  # 529 is the decoder's own delay
    return max(samples, 0)


def _is_mp3(head: bytes) -> bool:
    """Whether 4 bytes can begin a frame of MPEG audio, of layer I to III."""
    return (
        head[0] == 0xFF
        and head[1] & 0xE0 == 0xE0
        and head[1] >> 3 & 3 != 1
        and head[1] >> 1 & 3 != 0
        and head[2] >> 4 != 15
        and head[2] >> 2 & 3 != 3
    )


def coded_kind(head: bytes) -> str:
    """'mp3' or 'aac' where these bytes begin such a stream, or ''."""
    if len(head) >= 4 and _is_mp3(head):
        return "mp3"
    return "aac" if len(head) >= 2 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0 else ""
