"""Sound files of all kinds for the tests, written by soundfile and FFmpeg."""

from __future__ import annotations

import functools
import io
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from jaxmm.data.documents import Audio
from jaxmm.data.media.audio_file import ADVICE, AudioHeader, header, read_samples
from jaxmm.data.media.medium import BadMedia

RATE = 44100


def music(seconds: float = 1.5, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """float64 (samples, channels): a rising tone in each, so that no two moments are alike."""
    time_S = np.arange(int(seconds * rate)) / rate
    pitch = 200 + 150 * np.arange(channels) + 300 * time_S[:, None]
    return 0.4 * np.sin(2 * np.pi * pitch * time_S[:, None])


def written(samples: np.ndarray, rate: int = RATE, **options: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **options)
    return file.getvalue()


def muxed(
    container: str, codec: str, samples: np.ndarray, rate: int = RATE, late: float = 0.0, **options: str
) -> bytes:
    """A file of one channel, by FFmpeg; with ``late`` it begins so many seconds after a picture."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options) as out:
        sound = out.add_stream(codec, rate=rate, layout="mono")
        if late:
            film = out.add_stream("mpeg4", rate=10, width=16, height=16, pix_fmt="yuv420p")
            for number in range(10):
                picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))
                picture.pts = number
                out.mux(film.encode(picture))
            out.mux(film.encode(None))
        frame = av.AudioFrame.from_ndarray(samples[:, 0].astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, round(late * rate)
        fitted = av.AudioResampler(sound.codec_context.format.name, "mono", rate)
        for part in fitted.resample(frame) + fitted.resample(None):
            out.mux(sound.encode(part))
        out.mux(sound.encode(None))
    return file.getvalue()


def by_ffmpeg(data: bytes) -> np.ndarray:
    """float (samples,) of a file of one channel, all that FFmpeg decodes."""
    with av.open(io.BytesIO(data)) as file:
        frames = [frame.to_ndarray().reshape(-1) for frame in file.decode(audio=0)]
    values = np.concatenate(frames)
    return values / 32768 if values.dtype == np.int16 else values / 2**31 if values.dtype == np.int32 else values


def whole(data: bytes, rate: int = RATE) -> np.ndarray:
    audio = Audio(data)
    return read_samples(audio, header(audio), rate)


def reason(audio: Audio, known: AudioHeader | None = None) -> str:
    """Why a recording cannot be used."""
    with pytest.raises(BadMedia) as raised:
        read_samples(audio, known or header(audio), RATE)
    assert raised.value.reason in ADVICE
    return raised.value.reason


@functools.cache
def made() -> dict[str, bytes]:
    """One file of each format, of one channel and 1.5 or, where parts are sought in it, 25 seconds."""
    sound, long = music(), music(25)
    opus, long_opus = music(rate=48000), music(25, rate=48000)
    return {
        "wav": written(sound, format="WAV", subtype="PCM_16"),
        "flac": written(sound, format="FLAC"),
        "ogg": written(sound, format="OGG"),
        "opus": written(opus, 48000, format="OGG", subtype="OPUS"),
        "aiff": written(sound, format="AIFF"),
        "mp3": written(sound, format="MP3"),
        "long mp3": written(long, format="MP3"),
        "vbr": without_xing(written(long, format="MP3", bitrate_mode="VARIABLE")),
        "m4a": muxed("ipod", "aac", sound),
        "long m4a": muxed("ipod", "aac", long),
        "fragments": muxed("mp4", "aac", long, movflags="frag_keyframe+empty_moov", frag_duration="1000000"),
        "mov": muxed("mov", "pcm_s16le", sound),
        "alac": muxed("mp4", "alac", sound),
        "mkv": muxed("matroska", "aac", long),
        "mkv flac": muxed("matroska", "flac", long),
        "webm": muxed("webm", "libopus", long_opus, 48000),
        "avi": muxed("avi", "mp3", long),
        "avi pcm": muxed("avi", "pcm_s16le", sound),
        "flv": muxed("flv", "aac", long),
        "ts": muxed("mpegts", "aac", long),
        "aac": muxed("adts", "aac", sound),
    }


def apart(ours: np.ndarray, expected: np.ndarray) -> int:
    """By how many samples the same sound is moved."""
    near = {k: np.abs(ours[500:9000] - expected[500 + k : 9000 + k]).max() for k in range(-450, 451)}
    best = min(near, key=lambda k: near[k])
    assert near[best] < 1e-3
    return abs(best)


def without_xing(mp3: bytes) -> bytes:
    """An MP3 without its first frame, which holds no sound but how many frames there are."""
    return mp3[mp3.index(mp3[:2], 100) :]
