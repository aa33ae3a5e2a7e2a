"""Clips of noise in a row, as the data side lays them out, for tests of audio towers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxmm.batch import Stream
from jaxmm.clip_spec import AudioSpec
from jaxmm.data.media import audio_geometry

SILENCE = -1.06  # what Whisper's log-mel has where nothing is heard


def clips_of(lengths: Sequence[int], mels: int, seed: int = 0) -> list[np.ndarray]:
    """Frames (n, mels) of each length."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, mels)).astype(np.float32) for n in lengths]


def stream_of(clips: Sequence[np.ndarray], audio: AudioSpec, frames: int = 0) -> tuple[Stream, list[np.ndarray]]:
    """Returns one row, and for each clip the rows of its soft tokens in the tower's output.

    Args:
      frames: of the row, what is left is padding; 0 is as many as the clips take.
    """
    taken = [int(audio_geometry.units(len(clip), audio)) for clip in clips]
    values = np.zeros((frames or sum(taken), audio.mels), np.float32)
    positions, segments = np.zeros((len(values), 1), np.int32), np.zeros(len(values), np.int32)
    at, first, rows = 0, 1, []
    for clip, units in zip(clips, taken, strict=True):
        here = slice(at, at + units)
        positions[here], segments[here] = audio_geometry.places(len(clip), audio, first)
        values[here] = SILENCE if audio.halo else 0.0
        values[at : at + len(clip)] = clip
        rows.append(audio_geometry.table_rows(at, audio) + audio_geometry.token_rows(len(clip), audio))
        at, first = at + units, first + audio_geometry.windows(len(clip), audio)
    return Stream(values[None], positions[None], segments[None]), rows
