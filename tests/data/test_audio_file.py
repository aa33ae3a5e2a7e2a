"""Recordings: lengths from headers that agree with what is decoded, parts, and files that are no sound."""

from __future__ import annotations

import functools
import inspect
import io
import os
import re
import struct
import sys
import time
import tracemalloc
import wave
from pathlib import Path
from typing import Any

import av
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import soundfile
import soxr

from jaxmm.data.documents import Audio
from jaxmm.data.media import audio_file, sound_track, wav
from jaxmm.data.media.audio_file import ADVICE, AudioHeader, header, read_samples, resampled_count
from jaxmm.data.media.medium import BadMedia
from jaxmm.data.media.sound_track import DEMUXERS
from jaxmm.errors import UserError

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


# Lengths


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("channels", [1, 2, 6, 8])
def test_a_plain_wav_is_what_libsndfile_reads(subtype, channels, monkeypatch):
    samples = music(0.7, channels=channels)
    for form in ("WAV", "WAVEX", "RF64"):
        data = written(samples, format=form, subtype=subtype)
        expected, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
        with monkeypatch.context() as without:
            for name in ("soundfile", "av", "soxr"):
                without.setitem(sys.modules, name, None)
            assert header(Audio(data)) == AudioHeader(len(samples), RATE)
            np.testing.assert_allclose(whole(data), expected.mean(1), atol=1e-7)


def test_the_standard_librarys_wav_is_read(tmp_path):
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 8000, 0, "NONE", ""))
        file.writeframes(struct.pack("<6h", 0, 16384, -32768, 32767, 100, -100))
    audio = Audio(path=str(path))
    assert header(audio) == (3, 8000)
    np.testing.assert_allclose(read_samples(audio, AudioHeader(3, 8000), 8000), [0.25, -0.5 / 32768, 0], atol=1e-9)


@pytest.mark.parametrize("subtype", ["ULAW", "ALAW", "IMA_ADPCM"])
def test_a_coded_wav_is_left_to_libsndfile(subtype):
    data = written(music(), format="WAV", subtype=subtype)
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    np.testing.assert_array_equal(whole(data), expected)


@pytest.mark.parametrize("kind", ["flac", "ogg", "opus", "aiff", "mp3", "long mp3"])
def test_files_of_sound_are_what_libsndfile_reads(kind):
    expected, rate = soundfile.read(io.BytesIO(made()[kind]), dtype="float32")
    assert header(Audio(made()[kind])) == (len(expected), rate)
    np.testing.assert_allclose(whole(made()[kind], rate), expected, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(made().keys() - {"ogg"}))  # FFmpeg loses the first 128 samples of a Vorbis
def test_lengths_are_those_that_decoding_gives(kind):
    data, expected = made()[kind], by_ffmpeg(made()[kind])
    known = header(Audio(data))
    ours = whole(data, known.rate)
    exact = kind in ("wav", "flac", "opus", "aiff", "mp3", "long mp3", "vbr", "mov", "alac", "aac", "avi", "ts")
    assert abs(known.samples - len(expected)) <= (0 if exact else 1100)  # an AAC frame of padding
    both = min(len(expected), len(ours))
    np.testing.assert_allclose(ours[:both], expected[:both], atol=1e-5)
    assert not ours[both:].any()


@pytest.mark.parametrize("kind", made())
@pytest.mark.parametrize(("start", "stop"), [(0.25, 1.0), (12.3456, 13.1), (20.0, 0.0)])
def test_a_part_is_a_part_of_the_whole(kind, start, stop):
    data = made()[kind]
    total, rate = header(Audio(data))
    part = Audio(data, start=start, stop=stop)
    if start > total / rate:
        assert reason(part) == "empty part"
        return
    known = header(part)
    last = min(round(stop * rate), total) if stop else total
    assert known == (last - round(start * rate), rate)
    ours, expected = read_samples(part, known, rate), whole(data, rate)[round(start * rate) : last]
    if kind in ("mkv", "mkv flac", "webm", "flv") and start > 1:  # these keep times in milliseconds
        assert apart(ours, expected) <= 50
    else:
        np.testing.assert_allclose(ours, expected, atol=1e-4)  # AAC holds noise that the decoder draws


@hypothesis.given(st.integers(1, 3000), st.integers(0, 3000), st.integers(0, 3000), st.sampled_from([8000, 11025]))
def test_header_and_samples_agree_on_every_part(count, start, length, rate):
    samples = np.arange(count) / 4096
    part = Audio(written(samples, rate, format="WAV", subtype="FLOAT"), "", start / rate, (start + length) / rate)
    if start >= count or (not length and start):
        assert reason(part) == "empty part"
        return
    expected = samples[start : start + length] if start + length else samples
    assert header(part) == (len(expected), rate)
    np.testing.assert_array_equal(read_samples(part, header(part), rate), expected.astype(np.float32))


def test_a_part_ends_with_the_recording():
    audio = Audio(made()["wav"], start=1.0, stop=99.0)
    assert header(audio) == (RATE // 2, RATE)


@pytest.mark.parametrize("lead", [b"", b"ID3\x04\x00\x00\x00\x00\x08\x00" + bytes(1024)])
@pytest.mark.parametrize("trail", [b"", b"TAG" + bytes(125), b"APETAGEX" + bytes(6000)])
@pytest.mark.parametrize("kind", ["long mp3", "vbr"])
def test_tags_around_an_mp3_change_nothing(lead, trail, kind):
    data = lead + made()[kind] + trail
    assert header(Audio(data)) == header(Audio(made()[kind]))
    np.testing.assert_allclose(whole(data), whole(made()[kind]), atol=1e-6)


def test_an_mp3_behind_another_counts():
    data = made()["mp3"] + made()["long mp3"]
    known = header(Audio(data))
    assert abs(known.samples - len(by_ffmpeg(data))) <= 2500
    assert known.samples > 26 * RATE
    assert len(whole(data)) == known.samples


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_mp3_headers_of_every_kind_are_read(rate, channels):
    data = written(music(1, rate, channels), rate, format="MP3")
    assert header(Audio(data)) == (rate, rate)
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    np.testing.assert_allclose(whole(data, rate), expected.mean(1), atol=1e-5)


def test_a_flac_that_does_not_tell_its_length_is_walked():
    data = bytearray(made()["flac"])
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    assert header(Audio(bytes(data))) == header(Audio(made()["flac"]))
    np.testing.assert_allclose(whole(bytes(data)), whole(made()["flac"]), atol=1e-6)
    tagged = b"ID3\x04\x00\x00\x00\x00\x00\x10" + bytes(16) + made()["flac"]
    np.testing.assert_allclose(whole(tagged), whole(made()["flac"]), atol=1e-6)


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_track_that_begins_late_begins_in_silence(container):
    samples = music(3)
    late, soon = (muxed(container, "aac", samples, late=one) for one in (0.5, 0.0))
    values = whole(late)
    begin = np.flatnonzero(np.abs(values) > 0.05)[0] - np.flatnonzero(np.abs(whole(soon)) > 0.05)[0]
    assert abs(begin - RATE // 2) < 64
    part = Audio(late, start=0.25, stop=2.0)
    np.testing.assert_array_equal(read_samples(part, header(part), RATE), values[RATE // 4 : 2 * RATE])


# Rates


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000, 192000])
def test_another_rate_is_that_of_soxr(rate):
    samples = music(2.3, rate, channels=2)
    data = written(samples, rate, format="WAV", subtype="FLOAT")
    ours = whole(data, 16000)
    expected = soxr.resample(samples.astype(np.float32).mean(1), rate, 16000, quality="HQ")
    assert len(ours) == resampled_count(len(samples), rate, 16000)
    assert abs(len(ours) - len(expected)) <= 1
    np.testing.assert_allclose(ours[: len(expected)], expected[: len(ours)], atol=1e-4)


@hypothesis.given(st.integers(1, 50))
def test_a_few_samples_have_another_rate_too(count):
    values = whole(written(np.ones(count), format="WAV", subtype="FLOAT"), 16000)
    assert values.shape == (resampled_count(count, RATE, 16000),)
    assert np.isfinite(values).all()


@hypothesis.given(st.lists(st.integers(0, 10**10), min_size=1), st.sampled_from([8000, 44100, 192000]))
def test_counts_are_exact(samples, rate):
    counts = resampled_count(np.array(samples, np.int64), np.full(len(samples), rate, np.int64), 16000)
    assert counts.dtype == np.int64
    for count, one in zip(counts.tolist(), samples, strict=True):
        assert count == resampled_count(one, rate, 16000)
        assert (count - 1) * rate < one * 16000 <= count * rate


@pytest.mark.parametrize(
    ("container", "codec"), [("mov", "pcm_s16le"), ("mov", "pcm_u8"), ("matroska", "pcm_s32le"), ("mp4", "aac")]
)
@pytest.mark.parametrize("layout", ["stereo", "5.1", "7.1"])
def test_the_channels_of_a_film_are_one_by_their_mean(container, codec, layout):
    channels = av.AudioLayout(layout).nb_channels
    samples = music(2, 16000, 1).repeat(channels, 1).astype(np.float32)
    samples *= np.linspace(0.5, 1, channels, dtype=np.float32)
    samples[:, 3:4] *= channels < 6  # the bass of a 5.1, which AAC keeps no tone in
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        sound = out.add_stream(codec, rate=16000, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout=layout)
        frame.sample_rate, frame.pts = 16000, 0
        fitted = av.AudioResampler(sound.codec_context.format.name, layout, 16000)
        for part in fitted.resample(frame):
            out.mux(sound.encode(part))
        out.mux(sound.encode(None))
    values = whole(file.getvalue(), 16000)
    both = min(len(values), len(samples))
    assert both > 31900
    expected = samples.mean(1)[:both]
    error = np.abs(values[:both] - expected)[2000:-2000].max() / np.abs(expected).max()
    assert error < {"pcm_u8": 0.03, "aac": 0.2}.get(codec, 1e-3)


def test_values_beyond_one_stay():
    assert whole(written(np.array([3.5, -2.0]), format="WAV", subtype="FLOAT")).tolist() == [3.5, -2.0]


# Files that cannot be used


def test_reasons_of_files(tmp_path):
    assert reason(Audio(path=str(tmp_path / "none.wav"))) == "missing"
    assert reason(Audio(path=str(tmp_path))) == "no file"
    assert reason(Audio(b"")) == "empty"
    assert reason(Audio(b"not a sound")) == "unreadable"
    assert reason(Audio(written(np.zeros((0, 1)), format="WAV"))) == "no audio"
    assert reason(Audio(made()["wav"], start=2.0)) == "empty part"
    assert reason(Audio(made()["wav"], start=1.0, stop=0.5)) == "empty part"


def test_a_film_without_sound_has_no_audio():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        film = out.add_stream("mpeg4", rate=10, width=16, height=16, pix_fmt="yuv420p")
        out.mux(film.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))))
        out.mux(film.encode(None))
    assert reason(Audio(file.getvalue())) == "no audio"


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "aiff", "mp3", "long m4a", "mov", "mkv", "webm", "avi"])
@pytest.mark.parametrize("part", [0.5, 0.8])
def test_the_first_half_of_a_file_is_truncated(kind, part, capfd):
    data = made()[kind]
    assert reason(Audio(data[: int(len(data) * part)])) == "truncated"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "opus", "mp3", "vbr", "m4a", "mkv", "avi", "ts", "aac"])
def test_broken_bytes_are_a_reason_or_sound_of_the_right_length(kind, capfd):
    rng = np.random.default_rng(7)
    reasons: set[str] = set()
    for attempt in range(12):
        data = bytearray(made()[kind])
        first = int(rng.integers(0, 200 if attempt % 2 else len(data)))
        data[first : first + 40] = rng.bytes(40)
        audio = Audio(bytes(data))
        try:
            known = header(audio)
            if known.samples > 1 << 26:
                continue
            values = read_samples(audio, known, RATE)
        except BadMedia as error:
            reasons.add(error.reason)
        else:
            assert values.shape == (resampled_count(known.samples, known.rate, RATE),)
    assert reasons <= set(ADVICE)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["mkv", "ts", "flv", "long m4a"])
def test_one_broken_packet_moves_nothing(kind):
    data = bytearray(made()[kind])
    data[len(data) // 2 : len(data) // 2 + 30] = bytes(30)
    expected, ours = whole(made()[kind]), whole(bytes(data))
    assert len(ours) == len(expected)
    assert np.abs(ours - expected).max() > 0.1
    assert apart(ours[22 * RATE :], expected[22 * RATE :]) <= 50


@pytest.mark.parametrize("kind", ["long mp3", "vbr"])
def test_one_broken_frame_of_an_mp3_is_no_broken_file(kind):
    data = bytearray(made()[kind])
    data[len(data) // 2 : len(data) // 2 + 30] = bytes(30)
    assert abs(len(whole(bytes(data))) - len(whole(made()[kind]))) <= 2 * 1152


@pytest.mark.parametrize("lead", [b"RIFF\0\0\0\0WAVE", b"\0\0\0\x08ftyp" * 400000, b"ID3\x04" + bytes(6)])
def test_a_false_start_costs_no_walk_over_the_file(lead):
    start = time.thread_time()
    assert reason(Audio(lead + bytes(1 << 25))) in ("unreadable", "truncated")
    assert time.thread_time() - start < 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_what_is_not_finite_is_no_sound(value):
    samples = music()
    samples[50000] = value
    assert reason(Audio(written(samples, format="WAV", subtype="DOUBLE"))) == "not finite"


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "m4a"])
def test_a_file_that_changed_is_told(kind):
    known = header(Audio(made()[kind]))
    assert reason(Audio(made()[kind]), known._replace(samples=known.samples - 1)) == "changed"
    assert reason(Audio(made()[kind]), known._replace(rate=8000)) == "changed"


def test_a_walked_file_that_lost_its_end_is_truncated():
    known = header(Audio(made()["vbr"]))
    assert reason(Audio(made()["vbr"][:-20000]), known) == "truncated"


PLAYLISTS = {
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile '{}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "mpd": '<?xml version="1.0"?><MPD><BaseURL>{}</BaseURL></MPD>',
    "text": "{}",
}


@pytest.mark.parametrize("name", ["a.mp3", "a.m4a", "a.mp4", "a.wav"])
@pytest.mark.parametrize("playlist", PLAYLISTS)
def test_a_playlist_opens_no_other_file(name, playlist, tmp_path, monkeypatch):
    sound = tmp_path / "sound.mp3"
    sound.write_bytes(made()["mp3"])
    path = tmp_path / name
    monkeypatch.setattr(av, "open", None)  # FFmpeg never sees it
    for lead in (b"", b"\0\0\0\0"):
        path.write_bytes(lead + PLAYLISTS[playlist].format(sound).encode())
        assert reason(Audio(path=str(path))) == "unreadable"


@pytest.mark.parametrize("lead", [b"ID3\x04\x00\x00\x00\x00\x00\x00", b"\xff\xfb\x90\x00", b"\0\0\0\x08ftyp"])
def test_a_playlist_behind_a_false_start_opens_none_either(lead, tmp_path, monkeypatch):
    sound = tmp_path / "sound.mp3"
    sound.write_bytes(made()["mp3"])
    used, opened = [], av.open
    monkeypatch.setattr(av, "open", lambda *a, **o: (used.append(o["format"]), opened(*a, **o))[1])
    for playlist in PLAYLISTS.values():
        reason(Audio(lead + playlist.format(sound).encode()))
    assert set(used) <= set(DEMUXERS)


@pytest.mark.parametrize(("kind", "library"), [("flac", "soundfile"), ("mp3", "av"), ("m4a", "av"), ("wav", "soxr")])
def test_a_missing_library_is_one_line(kind, library, monkeypatch):
    known = header(Audio(made()[kind]))
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=r"pip install 'jaxmm\[media\]'"):
        read_samples(Audio(made()[kind]), known, 16000)
    if kind == "wav":
        assert len(whole(made()["wav"], RATE)) == known.samples


# Long files, and many


def hours_of_wav(path: Path, hours: float, rate: int = 16000) -> Audio:
    """A file of silence that takes no room on the disk."""
    size = int(hours * 3600) * rate * 2
    long = struct.pack("<4sIQQQI", b"ds64", 28, size + 72, size, size // 2, 0)
    head = struct.pack("<4sI4s", b"RF64", 0xFFFFFFFF, b"WAVE") + long
    head += struct.pack("<4sIHHIIHH4sI", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", 0xFFFFFFFF)
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
    return Audio(path=str(path))


def test_hours_are_counted_by_the_header(tmp_path):
    audio = hours_of_wav(tmp_path / "a.wav", 10, 96000)
    assert header(audio) == (10 * 3600 * 96000, 96000)
    part = audio._replace(start=9 * 3600.0, stop=9 * 3600 + 1.0)
    assert read_samples(part, header(part), 16000).shape == (16000,)
    assert reason(hours_of_wav(tmp_path / "b.wav", 12.1)) == "too large"


def test_an_hour_takes_little_more_memory_than_its_samples(tmp_path):
    audio = hours_of_wav(tmp_path / "a.wav", 1, 16000)
    known = header(audio)
    tracemalloc.start()
    values = read_samples(audio, known, 8000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < values.nbytes + (values.nbytes >> 2) + (8 << 20)


def test_a_wav_to_a_pipe_and_one_that_was_never_closed_are_read_to_the_end():
    data = bytearray(made()["wav"])
    assert data[36:40] == b"data"
    for whole_size, size in ((0xFFFFFFFF, 0xFFFFFFFF), (0x7FFFF024, 0x7FFFF000), (0, 0)):
        struct.pack_into("<I", data, 4, whole_size)
        struct.pack_into("<I", data, 40, size)
        assert header(Audio(bytes(data))) == header(Audio(made()["wav"]))


@pytest.mark.parametrize(("kind", "least"), [("wav", 2000), ("mp3", 500)])
def test_headers_are_read_by_the_thousand(kind, least, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(made()[kind])
    audio, seconds = Audio(path=str(path)), []
    for _ in range(5):
        start = time.thread_time()
        for _ in range(50):
            header(audio)
        seconds.append((time.thread_time() - start) / 50)
    assert 1 / min(seconds) > least


def test_no_file_stays_open():
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for data in made().values():
        header(Audio(data))
        with pytest.raises(BadMedia):
            read_samples(Audio(data[: len(data) // 2]), AudioHeader(10**8, RATE), RATE)
    assert (len(os.listdir("/proc/self/fd")) if before else 0) == before


def test_every_reason_in_the_source_has_advice():
    source = "".join(map(inspect.getsource, (audio_file, sound_track, wav)))
    reasons = set(re.findall(r'BadMedia\("([^"]+)"', source))
    assert reasons >= {"truncated", "not finite"}
    assert reasons <= set(ADVICE)
