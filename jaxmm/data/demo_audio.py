"""The embedded demo of audio: sounds one after another; questions about which sound, when and how often.

``demo_clips`` has the questions. Here is what is heard. Each sound is the same backwards; lengths and pauses are drawn
alike for the first and for the last, pitch and loudness are those of a whole recording. So no sound tells its time.
"""

from __future__ import annotations

import io
import wave
from typing import NamedTuple

import numpy as np

from jaxmm.data.demo_clips import Theme
from jaxmm.data.documents import Audio, Source

RATE, SECONDS = 16000, 1.6
SOUNDS = ("tone", "buzz", "hiss", "warble", "rattle")
LENGTHS = (0.16, 0.28)  # seconds of a sound
PAUSE, EDGE = 0.12, 0.03  # seconds between two, and before the first and after the last, at least
FADE = 0.01  # seconds in which a sound begins and ends
HERTZ, OCTAVES = 400.0, 2.0  # the lowest pitch, and how far above it others lie
WARBLE, BEATS = 0.45, 12.0  # the part of its pitch by which a warble rises and falls, and how often a second


class Sound(NamedTuple):
    name: str
    start: float  # seconds
    length: float


class Recording(NamedTuple):
    """The content of a recording; ``samples_of`` is a pure function of it."""

    sounds: tuple[Sound, ...]
    hertz: float
    loudness: float  # 0 to 1
    noise: float  # of the ground, as loudness
    grain: int  # seed of all that is noise


def training_source(seed: int = 0, examples: int = 6000) -> Source:
    """Returns the demo's training split."""
    return THEME.training_source(seed, examples)


def test_source(seed: int = 0, examples: int = 600) -> Source:  # noqa: PT028  (no pytest test, for all its name)
    """Returns the held-out questions, one a recording, labelled (kind,) or (kind, "unseen")."""
    return THEME.test_source(seed, examples)


def recording(rng: np.random.Generator, names: tuple[str, ...]) -> Recording:
    """Returns a recording in which these sounds are heard, in this order, all at one pitch."""
    lengths = rng.uniform(*LENGTHS, len(names))
    # The time that is left goes to pauses and both ends, all alike: backwards, times are drawn the same.
    left = SECONDS - lengths.sum() - PAUSE * (len(names) - 1) - 2 * EDGE
    pauses = rng.dirichlet(np.ones(len(names) + 1)) * left + PAUSE
    starts = EDGE - PAUSE + np.cumsum(pauses[:-1]) + np.cumsum(lengths) - lengths
    return Recording(
        sounds=tuple(Sound(*each) for each in zip(names, starts.tolist(), lengths.tolist(), strict=True)),
        hertz=float(HERTZ * 2 ** rng.uniform(0, OCTAVES)),
        loudness=float(10 ** rng.uniform(-0.8, -0.2)),
        noise=float(10 ** rng.uniform(-3.5, -2.2)),
        grain=int(rng.integers(2**32)),
    )


def samples_of(heard: Recording) -> np.ndarray:
    """Returns the recording as int16 (RATE * SECONDS,)."""
    rng = np.random.default_rng(heard.grain)
    samples = rng.standard_normal(round(RATE * SECONDS)) * heard.noise
    for sound in heard.sounds:
        first = round(sound.start * RATE)
        made = _wave(rng, sound, heard.hertz) * heard.loudness
        samples[first : first + len(made)] += made
    return (samples.clip(-1, 1) * 32767).round().astype(np.int16)


def _wave(rng: np.random.Generator, sound: Sound, hertz: float) -> np.ndarray:
    """One sound, float64 (n,) in [-1, 1], but for noise."""
    count = round(sound.length * RATE)
    time = (np.arange(count) - (count - 1) / 2) / RATE  # from its middle
    phase = 2 * np.pi * hertz * time
    if sound.name == "tone":
        shape = np.cos(phase)
    elif sound.name == "buzz":
        shape = 0.6 * np.sign(np.cos(phase))
    elif sound.name == "warble":
        shape = np.cos(phase + hertz * WARBLE / BEATS * np.sin(2 * np.pi * BEATS * time))
    else:
        shape = 0.35 * rng.standard_normal(count)
        if sound.name == "rattle":
            shape *= np.cos(2 * np.pi * 20 * time) > 0
    edge = np.minimum(np.arange(count), np.arange(count)[::-1]) / (FADE * RATE)
    return shape * np.minimum(edge, 1.0)


def clip(rng: np.random.Generator, names: tuple[str, ...]) -> Audio:
    """Returns a recording in which these sounds are heard, in this order, as the bytes of a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(samples_of(recording(rng, names)).astype("<i2").tobytes())
    return Audio(file.getvalue())


THEME = Theme(
    name="demo_audio",
    generator=1,
    things=SOUNDS,
    first="Which sound comes first?",
    last="Which sound comes last?",
    identity="What do you hear?",
    count="How often do you hear it?",
    clip=clip,
)
