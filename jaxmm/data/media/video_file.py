"""Video files and lists of frames to pixels: the header alone, and the frames that are asked for, each decoded once.

PyAV (FFmpeg) decodes. It reads only the bytes that are given to it: the format is recognised here, from a closed list,
and whatever a file names - a playlist's parts, another file with a MOV's data - is refused. Frame lists need no PyAV.

Pixels are those stored: where they are not square (a sample aspect ratio), they are not stretched, as decord,
torchcodec and OpenCV leave them, so that a model sees what it would there.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from types import ModuleType
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np

from jaxmm.data import files
from jaxmm.data.documents import Video
from jaxmm.data.media import container, mp4_table, picture
from jaxmm.data.media.frame_decoder import FrameDecoder, rgb
from jaxmm.data.media.medium import BadMedia
from jaxmm.data.media.opening import checked_av, opened_file
from jaxmm.data.media.picture import MAX_PIXELS, MAX_SIDE
from jaxmm.data.media.timeline import Timeline, frames_at, int32_terms, part, rate_of
from jaxmm.errors import UserError

FORMATS = "MP4, MOV, MKV, WebM, AVI, GIF, FLV or MPEG-TS"
LIST_RATE = Fraction(2)  # frames a second of a list that does not say it: LLaMA-Factory's lists are sampled already
LOST, LOST_SECONDS = 0.1, 1  # the part and the seconds that a file must lack to be called truncated by its header

ADVICE: Mapping[str, str] = {
    "missing": "a video's file is not there: set config.data.media_dir to the folder that its path counts from",
    "no file": "a video's path names a folder, a pipe, a socket or a device",
    "unreadable": f"a video's bytes are no {FORMATS} that can be decoded",
    "truncated": "a video's file ends early: download or write it again",
    "empty": "a video's file has no bytes",
    "too large": f"a video's frames have more than {MAX_PIXELS:,} pixels, or a side of more than {MAX_SIDE:,}: make "
    "it smaller",
    "changed": "a video is not as it was when it was prepared: touch its data file and prepare again",
    "no video": "a file has no moving pictures in it, as one of sound alone",
    "empty part": "no frame of a video lies between its start and its stop",
    "frames differ": "the pictures of a video's list of frames are not all of one size",
}


class VideoHeader(NamedTuple):
    """What a header tells.

    Attributes:
      height, width: of a frame as it is meant to be seen, in stored pixels: rotation applied.
      frames: of the part that counts.
      rate: frames a second; its terms fit an int32. The average where it varies.
    """

    height: int
    width: int
    frames: int
    rate: Fraction


class _Film(NamedTuple):
    """A header, and what reading needs beside it: ``first`` is the number of the part's first frame in the film."""

    header: VideoHeader
    first: int
    timeline: Timeline
    turn: container.Turn


def header(video: Video) -> VideoHeader:
    """Reads the header; nothing is decoded. MP4 and MOV list their frames there; other files are read through.

    Raises:
      BadMedia: if it cannot be used.
      UserError: if PyAV is missing.
    """
    if video.frames:
        return _list_header(video)[0]
    with _opened(video) as (file, kind):
        return _film(file, kind, video).header


def read_frames(video: Video, known: VideoHeader, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """Yields uint8 (height, width, 3) RGB for each number, over white where a frame is transparent.

    Of a film at a variable rate, number i is what is on display at time i / rate. Repeats give the same array.

    Args:
      known: as ``header`` gave it.
      numbers: ascending, of frames of the part, from 0 to ``known.frames - 1``; they may repeat.

    Raises:
      BadMedia: if it cannot be decoded, or its header is not ``known``.
      UserError: if PyAV is missing.
    """
    numbers = list(numbers)
    if numbers != sorted(numbers) or (numbers and not 0 <= numbers[0] <= numbers[-1] < known.frames):
        raise ValueError(f"frames {numbers} of {known.frames}")
    if video.frames:
        yield from _list_frames(video, known, numbers)
        return
    with _opened(video) as (file, kind):
        film = _film(file, kind, video)
        if film.header != known:
            raise BadMedia("changed")
        places = frames_at(film.timeline, known.rate, [film.first + number for number in numbers])
        seen, shown = -1, np.empty(0, np.uint8)
        with (
            _demuxed(file, kind, max_pixels=str(MAX_PIXELS)) as demuxed,
            contextlib.closing(FrameDecoder(demuxed, _stream(demuxed), film.timeline, kind, places)) as decoder,
        ):
            height, width = film.turn.size(known.height, known.width)
            for place in places:
                if place != seen:
                    seen, shown = place, film.turn.pixels(rgb(decoder.frame(place), height, width))
                yield shown


def _list_header(video: Video) -> tuple[VideoHeader, range]:
    rate = int32_terms(Fraction(video.fps)) if 0 < video.fps < float("inf") else LIST_RATE
    those = part(len(video.frames), rate, video.start, video.stop)
    if not those:
        raise BadMedia("empty part")
    return VideoHeader(*picture.image_size(video.frames[0]), len(those), rate), those


def _list_frames(video: Video, known: VideoHeader, numbers: list[int]) -> Iterator[np.ndarray]:
    header, those = _list_header(video)
    if header != known:
        raise BadMedia("changed")
    seen, shown = -1, np.empty(0, np.uint8)
    for number in numbers:
        if number != seen:
            seen, shown = number, np.asarray(picture.decode(video.frames[those[number]]))
            if shown.shape[:2] != (known.height, known.width):
                raise BadMedia("frames differ")
        yield shown


# Opening


def _av() -> ModuleType:
    return checked_av("video")


@contextlib.contextmanager
def _opened(video: Video) -> Iterator[tuple[IO[bytes], str]]:
    """Opens a file and recognises its format; every error inside becomes BadMedia, except UserError."""
    _av()
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(opened_file(video))
        except files.NoFile as error:
            raise BadMedia("no file") from error
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BadMedia("missing") from error
        except OSError as error:
            raise BadMedia("unreadable") from error
        try:
            kind = container.format_of(file.read(container.PROBE))
            if not kind:
                raise BadMedia("unreadable")
            yield file, kind
        except (BadMedia, UserError):
            raise
        except MemoryError as error:
            raise BadMedia("too large") from error
        except Exception as error:  # FFmpeg's errors are of many classes
            raise BadMedia("unreadable") from error


def _refused(url: str, *_: Any) -> NoReturn:
    raise PermissionError(f"a video file names {url[:80]}, which is not opened")


@contextlib.contextmanager
def _demuxed(file: IO[bytes], kind: str, **options: str) -> Iterator[Any]:
    """Opens what a file holds, as a format that was recognised."""
    if kind == "mov" and not mp4_table.has_moov(file):
        raise BadMedia("truncated")
    file.seek(0)
    # The plain object hides a file's name, which PyAV would hand to FFmpeg.
    with _av().open(
        _Bytes(file),
        "r",
        format=kind,
        options=options,
        container_options={"enable_drefs": "0"} if kind == "mov" else {},
        io_open=_refused,
        metadata_errors="replace",
    ) as demuxed:
        yield demuxed


class _Bytes:
    """The bytes of a file, and nothing else of it."""

    def __init__(self, file: IO[bytes]):
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _stream(demuxed: Any) -> Any:
    """The first video stream that is not the picture of a record's cover."""
    for stream in demuxed.streams.video:
        if not stream.disposition & (_av().stream.Disposition.attached_pic | _av().stream.Disposition.timed_thumbnails):
            if stream.codec_context is None:
                raise BadMedia("unreadable")
            return stream
    raise BadMedia("no video")


# The header


class _Found(NamedTuple):
    """What a whole file tells, whatever part of it counts: (height, width) as stored, and rates that it declares."""

    size: tuple[int, int]
    turn: container.Turn
    timeline: Timeline
    declared: tuple[Fraction | None, ...]


# What was found in files that had to be read through, so that their parts and later passes need not be.
_WALKED: dict[tuple[int, ...], _Found] = {}
MOST_WALKED = 64  # a timeline is some 150 KB for ten minutes


def _film(file: IO[bytes], kind: str, video: Video) -> _Film:
    identity = None if kind == "mov" else _identity(file)
    walked = _WALKED.get(identity) if identity else None
    if walked is None:
        walked = _found(file, kind)
    if identity:
        if len(_WALKED) >= MOST_WALKED:
            _WALKED.clear()
        _WALKED[identity] = walked
    rate = rate_of(walked.timeline, walked.declared)
    those = part(len(walked.timeline.times), rate, video.start, video.stop)
    if not those:
        raise BadMedia("empty part")
    known = VideoHeader(*walked.turn.size(*walked.size), len(those), rate)
    return _Film(known, those.start, walked.timeline, walked.turn)


def _identity(file: IO[bytes]) -> tuple[int, ...] | None:
    """What a file on this machine keeps as long as nobody writes to it; None for other bytes."""
    try:
        known = os.fstat(file.fileno())
    except (AttributeError, OSError):
        return None
    return known.st_dev, known.st_ino, known.st_size, known.st_mtime_ns, known.st_ctime_ns


def _found(file: IO[bytes], kind: str) -> _Found:
    # FFmpeg would decode the first frames to learn what is not needed: how their colours are stored.
    with _demuxed(file, kind, skip_frame="all") as demuxed:
        stream = _stream(demuxed)
        height, width = stream.height, stream.width
        if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
            raise BadMedia("too large")
        if min(height, width) < 1:
            raise BadMedia("unreadable")
        declared = stream.average_rate, stream.base_rate, stream.guessed_rate
        if kind == "mov":
            turn, timeline = _listed(file, demuxed, stream)
        else:
            turn, timeline = _walked(file, kind, demuxed, stream)
    return _Found((height, width), turn, timeline, declared)


def _listed(file: IO[bytes], demuxed: Any, stream: Any) -> tuple[container.Turn, Timeline]:
    """The timeline by an MP4's own table, or by its packets where the table has none or FFmpeg reads another one."""
    place = file.tell()
    table = mp4_table.table(file, stream.id)
    turn = table.turn if table else mp4_table.turn(file, stream.id)
    size = file.seek(0, io.SEEK_END)
    file.seek(place)
    packet = next(demuxed.demux(stream), None)
    if table is None or packet is None or packet.pts is None or stream.time_base != Fraction(1, table.tick):
        return turn, _timeline(demuxed, stream, *([packet] if packet else []))
    (same,) = np.nonzero(table.starts == packet.pos)
    if len(same) != 1 or stream.frames != len(table.times) or not table.is_shown.any():
        return turn, _timeline(demuxed, stream, packet)
    times = table.times + (packet.pts - int(table.times[same[0]]))  # by FFmpeg's clock
    order = np.argsort(times[table.is_shown], kind="stable")
    shown, is_there = times[table.is_shown][order], (table.ends <= size)[table.is_shown][order]
    tick = Fraction(1, table.tick)
    there = np.flatnonzero(is_there)
    if not len(there):
        raise BadMedia("truncated")
    _check_whole(int(shown[there[-1]] - shown[0] + table.last) * tick, int(shown[-1] - shown[0] + table.last) * tick)
    keys = np.sort(times[table.is_key & table.is_shown])
    return turn, Timeline(shown, int(shown[-1]) + table.last, tick, keys)


def _walked(file: IO[bytes], kind: str, demuxed: Any, stream: Any) -> tuple[container.Turn, Timeline]:
    """The timeline by the packets of a file whose header does not list them, or says it only about."""
    head = container.Matroska()
    if kind == "matroska":
        place = file.tell()
        head = container.matroska(file)
        file.seek(place)
    timeline = _timeline(demuxed, stream, seconds=head.seconds, is_counted=kind == "avi")
    if kind == "avi" and stream.frames:
        _check_whole(Fraction(len(timeline.times)), Fraction(stream.frames), stream.average_rate or 1)
    return head.turn, timeline


def _timeline(demuxed: Any, stream: Any, *first: Any, seconds: float = 0.0, is_counted: bool = False) -> Timeline:
    """The timeline by packets.

    Args:
      first: the packets that were read already.
      seconds: that the header says the longest stream takes; 0 is unknown.
      is_counted: whether only the order of decoding is to be trusted, as in an AVI.
    """
    times, orders, keys, ends, others = [], [], [], [0], Fraction(0)
    for packet in (*first, *_packets(demuxed)):
        if packet.stream_index != stream.index:
            others = max(others, ((packet.pts or 0) + (packet.duration or 0)) * packet.time_base)
        elif packet.size and not packet.is_discard:
            times.append(packet.pts)
            orders.append(packet.dts)
            keys += [packet.pts] if packet.is_keyframe else []
            ends.append(packet.duration or 0)
    if not times:
        raise BadMedia("no video")
    if is_counted or None in times:
        is_counted, keys = True, []
        times = orders if None not in orders else list(range(len(times)))
    shown = np.sort(np.array(times, np.int64))
    tick = Fraction(stream.time_base)
    last = ends[-1] or (int(np.median(np.diff(shown))) if len(shown) > 1 else 0)
    end = int(shown[-1]) + last
    if seconds:
        _check_whole(max(end * tick, others), Fraction(seconds))
    return Timeline(shown, end, tick, np.sort(np.array(keys, np.int64)), is_counted)


def _packets(demuxed: Any) -> Iterator[Any]:
    """All packets, up to the end or to the first one that cannot be read."""
    with contextlib.suppress(_av().FFmpegError, OSError):
        yield from demuxed.demux()


def _check_whole(there: Fraction, promised: Fraction, a_second: Fraction | int = 1) -> None:
    """Raises BadMedia if clearly less is there than was promised, both in seconds, or so many of them a second."""
    if promised - there > max(LOST * promised, LOST_SECONDS * a_second):
        raise BadMedia("truncated")
