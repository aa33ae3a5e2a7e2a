"""Recordings given as samples become WAV files in memory, without a change that could be heard."""

from __future__ import annotations

import io
import struct
import wave

import numpy as np
import pytest

from jaxmm.data.readers import clips
from readers.reading import Folder, only


@pytest.mark.parametrize("channels", [1, 2])
def test_samples_of_16_bits_become_a_wav_of_16_bits(folder: Folder, channels):
    whole = np.random.default_rng(0).integers(-(2**15), 2**15, (channels, 50))
    array = (whole / 2**15).tolist()
    audio = {"array": array[0] if channels == 1 else array, "sampling_rate": 16000, "path": "gone.wav", "bytes": None}
    (part, _) = only(folder.source([{"text": "A.", "audio": audio}])).turns[0].parts
    with wave.open(io.BytesIO(part.data)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (channels, 2, 16000)
        assert np.array_equal(np.frombuffer(file.readframes(50), "<i2").reshape(50, channels), whole.T)


def test_samples_that_16_bits_would_change_become_a_wav_of_floats():
    samples = np.float32([0.1, -0.25, 1.5, 0])
    for array in (samples.tolist(), [samples.tolist()] * 3):
        data = clips.wav(array, 44100)
        channels = 3 if isinstance(array[0], list) else 1
        assert data[:4] + data[8:16] == b"RIFFWAVEfmt "
        assert len(data) == 8 + struct.unpack("<I", data[4:8])[0]
        assert struct.unpack("<HHIIHH", data[20:36]) == (3, channels, 44100, 44100 * 4 * channels, 4 * channels, 32)
        assert data[38:50] == b"fact" + struct.pack("<II", 4, 4)
        assert np.array_equal(
            np.frombuffer(data[58:], "<f4").reshape(4, channels), samples[:, None].repeat(channels, 1)
        )
        soundfile = pytest.importorskip("soundfile")
        read, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
        assert rate == 44100
        assert np.array_equal(read[:, 0], samples)


@pytest.mark.parametrize(
    ("array", "rate", "line"),
    [
        ([0.5], None, "sampling_rate of a recording must be a whole number, not None"),
        ([0.5], 0, "must be a whole number, not 0"),
        ([0.5], 16000.5, "must be a whole number"),
        ([0.5, None], 16000, "must be numbers from -1 to 1"),
        ([100, -3000], 16000, "must be numbers from -1 to 1"),
        ([[[0.5]]], 16000, r"must be \(n,\) or \(channels, n\)"),
        ([[0.5], [0.5, 0.5]], 16000, "are no numbers"),
        (["a"], 16000, "are no numbers"),
        ([[0.5]] * 100, 16000, r"must be \(n,\) or \(channels, n\), not \(100, 1\)"),
    ],
)
def test_what_are_no_samples_is_told(array, rate, line):
    with pytest.raises(ValueError, match=line):
        clips.wav(array, rate)
