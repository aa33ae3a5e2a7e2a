"""Recordings: lengths from headers that agree with what is decoded, parts, rates and channels."""

from __future__ import annotations

import io
import struct
import sys
import wave

import av
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import soundfile
import soxr
from sounds import RATE, apart, by_ffmpeg, made, music, muxed, reason, whole, written

from jaxmm.data.documents import Audio
from jaxmm.data.media.audio_file import AudioHeader, header, read_samples, resampled_count

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


NOISY = ("m4a", "long m4a", "fragments", "mkv", "flv", "ts", "aac")  # AAC holds noise that the decoder draws


@pytest.mark.parametrize("kind", made())
@pytest.mark.parametrize("rate", [RATE, 16000])
def test_the_beginning_alone_has_the_bits_that_it_has_in_the_whole(kind, rate):
    audio, known = Audio(made()[kind]), header(Audio(made()[kind]))
    for most in (1, 9999, 10**8):
        ours = read_samples(audio, known, rate, most)
        np.testing.assert_allclose(ours, read_samples(audio, known, rate)[:most], atol=1e-4 if kind in NOISY else 0)


@pytest.mark.parametrize("kind", ["flac", "mkv flac", "long mp3"])
def test_nothing_is_decoded_behind_the_beginning(kind):
    """Much of the file's second half is no sound."""
    data = written(music(25), format="FLAC") if kind == "flac" else made()[kind]
    broken = data[: len(data) // 2] + bytes(len(data) // 4) + data[3 * len(data) // 4 :]
    known = header(Audio(data))
    assert reason(Audio(broken), known) == "truncated"
    for rate in (known.rate, 16000):
        ours = read_samples(Audio(broken), known, rate, rate)
        np.testing.assert_array_equal(ours, read_samples(Audio(data), known, rate)[:rate])


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
