"""Recordings to samples: their length from headers alone, and decoding to one channel at one rate.

Preparing and planning need only lengths; the loader decodes, and only the part that counts. A plain WAV needs no
library; the others are the extra ``media``, imported when first needed.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import os
from collections.abc import Iterator, Mapping
from typing import IO, Any, NamedTuple, Protocol

import numpy as np

from jaxmm.data import files
from jaxmm.data.documents import Audio
from jaxmm.data.media.medium import BadMedia
from jaxmm.data.media.opening import NEEDS, checked_av, opened_file
from jaxmm.data.media.sound_track import coded_kind, id3_end, is_cut, may_miss, opened_track
from jaxmm.data.media.wav import BLOCK, Wav, wav_blocks, wav_header
from jaxmm.errors import UserError

MAX_HOURS = 12  # of a part
FORMATS = (
    "WAV", "FLAC", "MP3", "OGG", "Opus", "AIFF", "M4A", "AAC", "MP4", "MOV", "MKV", "WebM", "AVI", "FLV", "TS", "MPEG",
    "WMA",
)  # fmt: skip
READ = 4 * BLOCK  # samples a call of libsndfile: after each, soundfile seeks, and a FLAC's frame is decoded again
QUALITY = "HQ"  # soxr's, of about 20 bits

ADVICE: Mapping[str, str] = {
    "missing": "a recording's file is not there: set config.data.media_dir to the folder that its path counts from",
    "no file": "a recording's path names a folder, a pipe, a socket or a device",
    "unreadable": f"a recording's bytes are no sound of {', '.join(FORMATS)}",
    "truncated": "a recording's file ends early, or much of it is broken: download or write it again",
    "empty": "a recording's file has no bytes",
    "no audio": "a file has no sound track, or one without a sample: leave it out, or use its pictures alone",
    "empty part": "a recording ends before its part begins, or the part is shorter than a sample: correct its start "
    "and stop, in seconds",
    "not finite": "a recording holds a number that is not finite: write it again",
    "too large": f"a recording's part is longer than {MAX_HOURS} hours: give it a start and a stop",
    "changed": "a recording has another length than when it was prepared: touch its data file and prepare again",
}  # fmt: skip

# What files begin with, and the demuxer or reader that gets them. Nothing else is tried.
_MAGIC = (
    (b"OggS", "ogg"), (b"\x1aE\xdf\xa3", "matroska"), (b"FLV\x01", "flv"), (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (b"\x00\x00\x01\xba", "mpeg"),
)  # fmt: skip
_MOV = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
_UNKNOWN = 1 << 48  # libsndfile says more samples than this where a FLAC does not tell how many it has


class AudioHeader(NamedTuple):
    """What a header tells.

    Attributes:
      samples: how many a channel has, of the part that counts; at least 1.
      rate: samples a second.
    """

    samples: int
    rate: int


class _Sound(Protocol):
    """An open recording; ``total`` is how many samples a channel has, and takes no time if ``is_quick``."""

    rate: int
    is_quick: bool

    def total(self) -> int: ...

    def blocks(self, first: int, count: int) -> Iterator[np.ndarray]:
        """Decodes ``count`` samples from the first on, or fewer at the end: float32 (channels, n) at a time."""
        ...


def resampled_count(samples: Any, from_rate: Any, rate: int) -> Any:
    """How many samples there are at another rate, rounded up: ints, or int64 arrays of one shape."""
    return -(-samples * rate // from_rate)


def header(audio: Audio) -> AudioHeader:
    """Reads how long the part of a recording is: nothing is decoded.

    A part goes from the sample nearest to its start to the one nearest to its stop (halves to even), and no further
    than the recording. Where a header only estimates (MP3 without a Xing header, most films), packets are walked.

    Raises:
      BadMedia: if there is no such file, it cannot be used, or the part is empty.
      UserError: if a library is missing.
    """
    with _opened(audio) as sound:
        return AudioHeader(_part(audio, sound), sound.rate)


def read_samples(audio: Audio, known: AudioHeader, rate: int, most: int = 0) -> np.ndarray:
    """Decodes the part of a recording: float32 (resampled_count(known.samples, known.rate, rate),), the channels' mean.

    Decoders give a few samples more or less than headers say: those are cut, or become silence. Values beyond [-1, 1]
    stay as they are. Besides what it returns, it needs memory for seconds of sound only.

    Args:
      known: what ``header`` said when it was prepared.
      rate: samples a second that are returned.
      most: above 0, no more samples than these are returned, and nothing is decoded behind them.

    Raises:
      BadMedia: if it cannot be decoded so far, or has changed since.
      UserError: if a library is missing.
    """
    resample = None if known.rate == rate else _library("soxr").ResampleStream(known.rate, rate, 1, "float32", QUALITY)
    with _opened(audio) as sound:
        if sound.rate != known.rate:
            raise BadMedia("changed")
        if sound.is_quick and _part(audio, sound) != known.samples:
            raise BadMedia("changed")
        count = resampled_count(known.samples, known.rate, rate)
        out = np.zeros(min(count, most) if most else count, np.float32)
        place = heard = 0
        for block in _blocks(sound.blocks(_first(audio, sound.rate), known.samples)):
            if not np.isfinite(block).all():
                raise BadMedia("not finite")
            heard += len(block)
            place = _write(out, place, block if resample is None else resample.resample_chunk(block))
            if place == len(out) < count:
                return out
        missing = known.samples - heard
        if missing > may_miss(known.samples):
            raise BadMedia("truncated")
        if resample is not None:
            _write(out, place, resample.resample_chunk(np.zeros(missing, np.float32), last=True))
        return out


def _write(out: np.ndarray, place: int, values: np.ndarray) -> int:
    """Writes what fits; returns the place behind it."""
    values = values[: len(out) - place]
    out[place : place + len(values)] = values
    return place + len(values)


def _blocks(parts: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The mean of the channels, in blocks that are worth a call: float32 (n,) of some (channels, n)."""
    held: list[np.ndarray] = []
    count = 0
    for part in parts:
        if held and len(part) != len(held[0]):  # silence has one channel
            yield _mean(held)
            held, count = [], 0
        held.append(part)
        count += part.shape[1]
        if count >= BLOCK:
            yield _mean(held)
            held, count = [], 0
    if held:
        yield _mean(held)


def _mean(parts: list[np.ndarray]) -> np.ndarray:
    """The mean of the channels of some (channels, n), one after another: float32 (n,)."""
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    if len(whole) == 1:
        return whole[0]
    total = whole[0]
    with np.errstate(over="ignore", invalid="ignore"):
        for channel in whole[1:]:  # NumPy takes ten times as long for a sum over samples side by side
            total = total + channel
        return total / np.float32(len(whole))


def _first(audio: Audio, rate: int) -> int:
    return round(audio.start * rate) if math.isfinite(audio.start) and audio.start > 0 else 0


def _part(audio: Audio, sound: _Sound) -> int:
    """Returns how many samples the part has."""
    total = sound.total()
    if total < 1:
        raise BadMedia("no audio")
    first, last = _first(audio, sound.rate), total
    if audio.stop and math.isfinite(audio.stop):
        last = min(last, round(audio.stop * sound.rate))
    if last <= first:
        raise BadMedia("empty part")
    if last - first > MAX_HOURS * 3600 * sound.rate:
        raise BadMedia("too large")
    return last - first


@contextlib.contextmanager
def _opened(audio: Audio) -> Iterator[_Sound]:
    """Opens a recording by its header; every error inside becomes BadMedia, except UserError."""
    try:
        with opened_file(audio) as file, _sound(file) as sound:
            yield sound
    except (BadMedia, UserError):
        raise
    except MemoryError as error:
        raise BadMedia("too large") from error
    except files.NoFile as error:
        raise BadMedia("no file") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadMedia("missing") from error
    except Exception as error:  # decoders raise anything on broken files
        raise BadMedia("truncated" if isinstance(error, EOFError) else "unreadable") from error


@contextlib.contextmanager
def _sound(file: IO[bytes]) -> Iterator[_Sound]:
    kind = kind_of(file)
    if kind == "wav" and (wav := wav_header(file)):
        yield _Plain(file, wav)
    elif kind in ("wav", "flac", "ogg", "aiff"):
        if (kind == "ogg" and _ogg_is_cut(file)) or (kind == "aiff" and is_cut(file, kind)):
            raise BadMedia("truncated")
        library = _library("soundfile")
        with library.SoundFile(_for_libsndfile(file), closefd=False) as opened:
            if opened.frames < _UNKNOWN:
                yield _Coded(opened, library.LibsndfileError)
                return
        file.seek(0, io.SEEK_END)  # libsndfile moved the descriptor: what the file has read ahead does not fit it
        with opened_track(checked_av("audio"), file, kind) as track:
            yield track
    else:
        with opened_track(checked_av("audio"), file, kind.removesuffix(" in ID3")) as track:
            yield track


def kind_of(file: IO[bytes]) -> str:
    """Which reader gets a file, by its first bytes: never by its name, and never by trying.

    Raises:
      BadMedia: if it begins as none that is known.
    """
    file.seek(0)
    head = file.read(4096)
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[4:8] in _MOV:
        return "mov"
    if head[:4] == b"fLaC":
        return "flac"
    if head[:1] == b"G" and head[188:189] == b"G" == head[376:377]:
        return "mpegts"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[:3] == b"ID3":
        file.seek(id3_end(file))
        behind = file.read(4096)
        return "flac in ID3" if behind[:4] == b"fLaC" else coded_kind(behind.lstrip(b"\0")) or "mp3"
    kind = coded_kind(head.lstrip(b"\0"))
    if not kind:
        raise BadMedia("unreadable")
    return kind


class _Plain:
    """A WAV of plain samples."""

    is_quick = True

    def __init__(self, file: IO[bytes], wav: Wav):
        self._file, self._wav, self.rate = file, wav, wav.rate

    def total(self) -> int:
        return self._wav.samples

    def blocks(self, first: int, count: int) -> Iterator[np.ndarray]:
        return wav_blocks(self._file, self._wav, first, count)


def _for_libsndfile(file: IO[bytes]) -> Any:
    """A file on this machine as its descriptor, which is read without Python; any other as it is. At its start."""
    file.seek(0)
    if isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO):
        os.lseek(file.fileno(), 0, os.SEEK_SET)  # the file has read ahead
        return file.fileno()
    return _Calm(file)


class _Calm:
    """A file that stays where it is when told to seek before its start: soundfile prints such an error and goes on."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.read, self.tell = file.read, file.tell

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return self._file.tell()


class _Coded:
    """What libsndfile reads."""

    is_quick = True

    def __init__(self, opened: Any, error: type[Exception]):
        self._opened, self._error, self.rate = opened, error, int(opened.samplerate)

    def total(self) -> int:
        return int(self._opened.frames)

    def blocks(self, first: int, count: int) -> Iterator[np.ndarray]:
        try:
            self._opened.seek(first)
            for start in range(0, count, READ):
                block = self._opened.read(min(READ, count - start), dtype="float32", always_2d=True)
                if not len(block):
                    return
                for part in range(0, len(block), BLOCK):
                    yield block[part : part + BLOCK].T
        except self._error as error:
            raise BadMedia("truncated") from error  # its header was whole


def _ogg_is_cut(file: IO[bytes]) -> bool:
    """Whether an Ogg file ends within a page. (What libsndfile counts is what is there, and no error.)"""
    end = file.seek(0, io.SEEK_END)
    first = file.seek(max(end - (1 << 17), 0))  # two pages
    tail = file.read()
    place = tail.rfind(b"OggS\0")
    if place < 0 or len(tail) < place + 27:
        return True
    sizes = tail[place + 27 : place + 27 + tail[place + 26]]
    return first + place + 27 + tail[place + 26] + sum(sizes) > end


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: soundfile without libsndfile
        raise UserError(f"audio {NEEDS}") from error
