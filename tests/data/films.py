"""Films that tests decode, written by PyAV, and how PyAV alone decodes them."""

import functools
import io
import struct
import tempfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

from jaxmm.data.documents import Video

CODECS = {"avi": "mpeg4", "gif": "gif", "webm": "libvpx-vp9"}
PIXELS = {"gif": "rgb8"}


@functools.cache
def made(
    kind: str = "mp4",
    n: int = 50,
    size: tuple[int, int] = (48, 64),
    codec: str = "",
    pixels: str = "",
    rate: Fraction | int = 30,
    times: tuple[int, ...] = (),
    rotation: int = 0,
    codec_options: tuple[tuple[str, str], ...] = (("g", "15"),),
    options: tuple[tuple[str, str], ...] = (),
) -> bytes:
    """A film of n different frames: at a rate, or at ``times`` in milliseconds."""
    height, width = size
    muxer = {"mkv": "matroska", "ts": "mpegts"}.get(kind, kind)
    # To a file: "faststart" opens it again by its name.
    with tempfile.NamedTemporaryFile() as file, av.open(file.name, "w", format=muxer, options=dict(options)) as film:
        codec = codec or CODECS.get(kind, "libx264")
        stream = film.add_stream(codec, rate=rate, options=dict(codec_options) if codec != "gif" else {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels or PIXELS.get(kind, "yuv420p")
        tick = Fraction(1, 1000) if times else 1 / Fraction(rate)
        stream.codec_context.time_base = tick
        if rotation:
            stream.set_display_rotation(rotation)
        film.start_encoding()
        for number in range(n):
            frame = av.VideoFrame.from_ndarray(drawn(number, height, width), "rgb24")
            frame.pts, frame.time_base = times[number] if times else number, tick
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
        film.close()
        return file.read()


def drawn(number: int, height: int, width: int) -> np.ndarray:
    """A picture whose corners differ, and that moves and changes its colour from one number to the next."""
    y, x = np.mgrid[0:height, 0:width]
    bright = (np.roll(x, 3 * number, 1) * 200 // width + (number * 37) % 56) % 256
    return np.stack([bright, y * 255 // height, np.full_like(x, number * 91 % 256)], -1).astype(np.uint8)


def decoded(data: bytes, **options: Any) -> list[np.ndarray]:
    """All frames in the order in which they are shown, by PyAV alone, turned as the decoder says."""
    with av.open(io.BytesIO(data), **options) as film:
        frames = list(film.decode(video=0))
        return [np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90) for frame in frames]


def sound() -> bytes:
    """An M4A: a film without pictures."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as film:
        stream = film.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16000, 0
        film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    return file.getvalue()


def grown(data: bytes, path: Sequence[bytes], kind: bytes, body: bytes) -> bytes:
    """An MP4 whose header comes last, with one box replaced, the boxes of the path around it resized."""
    place, around = 0, []
    for name in path:
        place = data.index(name, place) - 4
        around.append(place)
        place += 8
    at = data.index(kind, place) - 4
    (size,) = struct.unpack_from(">I", data, at)
    new = struct.pack(">I4s", len(body) + 8, kind) + body
    changed = bytearray(data[:at] + new + data[at + size :])
    for place in around:
        (size_around,) = struct.unpack_from(">I", changed, place)
        struct.pack_into(">I", changed, place, size_around + len(new) - size)
    return bytes(changed)


def edited(data: bytes, edits: Sequence[tuple[int, int]]) -> bytes:
    """An MP4 with another edit list: a length in milliseconds and a start in ticks of the track each."""
    rows = b"".join(struct.pack(">Iihh", long, start, 1, 0) for long, start in edits)
    return grown(data, (b"moov", b"trak", b"edts"), b"elst", struct.pack(">II", 0, len(edits)) + rows)


def with_reference(data: bytes, path: str) -> bytes:
    """A MOV whose data is said to lie in another file, by an absolute path."""
    name = path.encode()
    alias = b"\0" * 10 + b"\4disk".ljust(28, b"\0") + b"\0" * 12 + b"\1x".ljust(64, b"\0") + b"\0" * 16
    alias += (
        struct.pack(">hh", 1, 1)
        + b"\0" * 16
        + struct.pack(">hH", 2, len(name))
        + name.ljust(len(name) + len(name) % 2, b"\0")
    )
    alias += struct.pack(">hH", -1, 0)
    entry = struct.pack(">I4sI", len(alias) + 12, b"alis", 0) + alias
    whole = (b"moov", b"trak", b"mdia", b"minf", b"dinf")
    return grown(data, whole, b"dref", struct.pack(">II", 0, 1) + entry)


def video(data: bytes, **part: Any) -> Video:
    return Video(data=data, **part)


VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "mp4": {},
    "mp4 without an edit list": {"options": (("use_editlist", "0"),)},
    "mp4 in fragments": {"options": (("movflags", "frag_keyframe+empty_moov"),)},
    "mp4 with fragments after its table": {"options": (("movflags", "default_base_moof+frag_keyframe"),)},
    "mp4 with negative offsets": {"options": (("movflags", "negative_cts_offsets"),)},
    "mp4 at 29.97": {"rate": Fraction(30000, 1001)},
    "mp4 of odd size": {"size": (47, 63), "pixels": "yuv444p"},
    "mp4 of 10 bits": {"pixels": "yuv420p10le"},
    "mp4 of MPEG-4 with B frames": {"codec": "mpeg4", "codec_options": (("bf", "2"), ("g", "10"))},
    "mp4 of HEVC": {"codec": "libx265", "codec_options": (("x265-params", "keyint=12:log-level=none"),)},
    "mp4 with open groups": {"codec_options": (("x264-params", "open-gop=1:keyint=12:scenecut=0"),)},
    "mp4 refreshed slowly": {"codec_options": (("x264-params", "intra-refresh=1:keyint=12"), ("bf", "0"))},
    "mp4 interlaced": {"codec_options": (("x264-params", "interlaced=1:keyint=12"),)},
    "mp4 turned by 90": {"rotation": 90},
    "mp4 turned by 180": {"rotation": 180},
    "mp4 turned by 270": {"rotation": 270},
    "mp4 of one frame": {"n": 1},
    "mov": {"kind": "mov"},
    "mkv": {"kind": "mkv"},
    "mkv at 23.98": {"kind": "mkv", "rate": Fraction(24000, 1001)},
    "mkv turned by 90": {"kind": "mkv", "rotation": 90},
    "mkv turned by 180": {"kind": "mkv", "rotation": 180},
    "mkv of one frame": {"kind": "mkv", "n": 1},
    "mkv of FFV1": {"kind": "mkv", "codec": "ffv1"},
    "webm": {"kind": "webm", "codec_options": (("deadline", "realtime"), ("cpu-used", "8"), ("g", "12"))},
    "avi": {"kind": "avi", "codec_options": (("bf", "2"), ("g", "10"))},
    "avi of H.264": {"kind": "avi", "codec": "libx264"},
    "gif": {"kind": "gif", "rate": 10},
    "ts": {"kind": "ts"},
    "flv": {"kind": "flv", "codec": "libx264"},
}


def with_sound(data: bytes, seconds: int) -> bytes:
    """A Matroska of a film's pictures, and so many seconds of silence."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as film, av.open(file, "w", format="matroska") as out:
        pictures = out.add_stream_from_template(film.streams.video[0])
        silence = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        for packet in film.demux(video=0):
            if packet.size:
                packet.stream = pictures
                out.mux(packet)
        for second in range(seconds):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 8000, second * 8000
            out.mux(silence.encode(frame))
        out.mux(silence.encode(None))
    return file.getvalue()
