"""Recordings that cannot be used, long ones and many: each a reason, bounded time and memory, no open file."""

from __future__ import annotations

import inspect
import io
import os
import re
import struct
import sys
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
from sounds import RATE, apart, made, music, reason, whole, written

from jaxmm.data.documents import Audio
from jaxmm.data.media import audio_file, sound_track, wav
from jaxmm.data.media.audio_file import ADVICE, AudioHeader, header, read_samples, resampled_count
from jaxmm.data.media.medium import BadMedia
from jaxmm.data.media.sound_track import DEMUXERS
from jaxmm.errors import UserError

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
def test_a_false_start_costs_no_walk_over_the_file(lead, monkeypatch):
    calls = got = 0

    class Counted(io.BytesIO):
        def read(self, size=-1, /):
            nonlocal calls, got
            data = super().read(size)
            calls, got = calls + 1, got + len(data)
            return data

    audio = Audio(lead + bytes(1 << 25))
    monkeypatch.setattr(audio_file, "opened_file", lambda part: Counted(part.data))
    assert reason(audio) in ("unreadable", "truncated")
    assert calls < 300_000
    assert got < 1.1 * len(audio.data)


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
