"""Log-mel frames: those of Whisper's own extractor, in a fraction of its time and memory."""

from __future__ import annotations

import functools
import tracemalloc
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from transformers import WhisperFeatureExtractor
from transformers.models.whisper import feature_extraction_whisper

from jaxmm.data.media.log_mel import log_mel, mel_filters

RATE = 16000
CLOSE = 1e-5


@pytest.fixture(autouse=True)
def _without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference in float64, also where torch is installed."""
    monkeypatch.setattr(feature_extraction_whisper, "is_torch_available", lambda: False)


@functools.cache
def extractor(mels: int, seconds: int = 30) -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds)


def mirrored(samples: np.ndarray, mels: int) -> np.ndarray:
    """The reference's frames of a clip alone."""
    options: dict[str, Any] = {"padding": "do_not_pad", "truncation": False, "return_tensors": "np"}
    return extractor(mels)(samples, sampling_rate=RATE, **options)["input_features"][0].T


def padded(samples: np.ndarray, mels: int, seconds: int) -> np.ndarray:
    """The reference's first frames of a clip that silence fills to ``seconds``."""
    values = extractor(mels, seconds)(samples, sampling_rate=RATE, return_tensors="np")["input_features"][0].T
    assert len(values) == seconds * 100
    return values[: len(samples) // 160]


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, count).astype(np.float32)


def tone(count: int, hertz: float = 440.0) -> np.ndarray:
    return (0.9 * np.sin(2 * np.pi * hertz * np.arange(count) / RATE)).astype(np.float32)


SOUNDS = {
    "noise": noise(RATE * 2 + 77),
    "a tone, whose weakest bands are at the floor": tone(RATE + 5),
    "a click in silence": np.eye(1, RATE, 5000, dtype=np.float32)[0],
    "silence": np.zeros(RATE, np.float32),
    "loud at the very end": np.append(1e-4 * noise(RATE), tone(150)),
    "faint": 1e-6 * noise(RATE),
}


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("sound", SOUNDS)
def test_frames_are_those_of_whisper(sound, mels):
    samples = SOUNDS[sound]
    ours = log_mel(samples, mels)
    assert ours.dtype == np.float32
    assert ours.shape == (len(samples) // 160, mels)
    np.testing.assert_allclose(ours, mirrored(samples, mels), atol=CLOSE)
    np.testing.assert_allclose(log_mel(samples, mels, silence=True), padded(samples, mels, 4), atol=CLOSE)


def test_the_end_is_heard_as_asked_for():
    samples = tone(RATE)
    assert np.abs(log_mel(samples, 80)[-1] - log_mel(samples, 80, silence=True)[-1]).max() > 0.01
    same = log_mel(samples, 80)[:-2], log_mel(samples, 80, silence=True)[:-2]
    np.testing.assert_allclose(*same, atol=CLOSE)


def test_the_floor_counts_from_frames_behind_the_end_too():
    samples = np.append(1e-5 * noise(RATE), np.float32([1.0]))  # heard best by the frame that is centred on it
    behind = padded(samples, 80, 2)
    np.testing.assert_allclose(log_mel(samples, 80, silence=True), behind, atol=CLOSE)
    assert behind.min() > mirrored(samples[:-1], 80).min() + 0.1


@pytest.mark.parametrize("short", [0, 1, 39, 40, 41, 159, 160, 199, 200, 201, 400, 401])
def test_a_clip_that_nearly_fills_its_piece_is_as_whisper_pads_it(short):
    samples = tone(RATE - short)
    ours = log_mel(samples, 80, silence=True, piece=100)
    np.testing.assert_allclose(ours, padded(samples, 80, 1), atol=CLOSE)


def test_pieces_count_from_the_start_of_a_clip():
    samples = noise(2 * RATE)
    np.testing.assert_array_equal(log_mel(samples, 80, silence=True, piece=100), log_mel(samples, 80))
    longer = log_mel(samples[:-200], 80, silence=True, piece=100)
    np.testing.assert_allclose(longer, padded(samples[:-200], 80, 2), atol=CLOSE)


@pytest.mark.parametrize("count", [0, 1, 159])
@pytest.mark.parametrize("silence", [False, True])
def test_less_than_a_hop_is_no_frame(count, silence):
    assert log_mel(noise(count), 80, silence=silence).shape == (0, 80)


@hypothesis.given(st.integers(160, 700), st.sampled_from([80, 128]), st.integers(0, 9))
def test_short_clips_are_mirrored_again_and_again_as_whisper_does(count, mels, seed):
    samples = noise(count, seed)
    np.testing.assert_allclose(log_mel(samples, mels), mirrored(samples, mels), atol=CLOSE)
    np.testing.assert_allclose(log_mel(samples, mels, silence=True), padded(samples, mels, 1), atol=CLOSE)


@pytest.mark.parametrize("count", [255, 256, 257, 258, 511, 512, 513])
def test_blocks_leave_no_seam(count):
    samples = noise(count * 160 + 3)
    np.testing.assert_allclose(log_mel(samples, 80), mirrored(samples, 80), atol=CLOSE)
    np.testing.assert_allclose(log_mel(samples, 80, silence=True), padded(samples, 80, 6), atol=CLOSE)


@pytest.mark.parametrize(("rate", "hop", "window"), [(8000, 80, 200), (16000, 100, 401), (24000, 300, 256)])
@pytest.mark.parametrize("silence", [False, True])
def test_any_rate_hop_and_window_is_defined(rate, hop, window, silence):
    frames = log_mel(noise(rate + 7), 40, rate=rate, hop=hop, window=window, silence=silence)
    assert frames.shape == ((rate + 7) // hop, 40)
    assert np.isfinite(frames).all()
    assert frames.std() > 0.01


@pytest.mark.parametrize("mels", [40, 80, 128])
def test_filters_are_those_of_whisper(mels):
    np.testing.assert_allclose(mel_filters(mels, RATE, 400), extractor(mels).mel_filters, rtol=2e-6, atol=1e-9)


def test_frames_are_written_where_they_belong():
    row = np.full((300, 80), 7.0, np.float32)
    samples = noise(RATE)
    given_back = log_mel(samples, 80, out=row[50:150])
    assert np.shares_memory(given_back, row)
    np.testing.assert_array_equal(row[50:150], log_mel(samples, 80))
    assert (row[:50] == 7).all()
    assert (row[150:] == 7).all()


@pytest.mark.parametrize(
    "out", [np.zeros((99, 80), np.float32), np.zeros((100, 80)), np.zeros((80, 100), np.float32).T]
)
def test_a_wrong_place_is_refused(out):
    with pytest.raises(ValueError, match="out must be"):
        log_mel(noise(RATE), 80, out=out)


@pytest.mark.parametrize("samples", [np.zeros((2, 800), np.float32), np.zeros(800, np.int16)])
def test_what_is_no_clip_is_refused(samples):
    with pytest.raises(ValueError, match="samples are"):
        log_mel(samples, 80)


def test_samples_stay_as_they_are():
    samples = noise(RATE)
    samples.flags.writeable = False
    log_mel(samples, 80)


def test_ten_minutes_take_little_memory():
    samples = noise(600 * RATE)
    out = np.empty((60000, 128), np.float32)
    log_mel(samples[:RATE], 128)
    tracemalloc.start()
    log_mel(samples, 128, out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
