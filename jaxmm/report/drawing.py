"""Draws clips for people: frames side by side, and log-mel frames in colours, with what was heard as a wave."""

from __future__ import annotations

import itertools

import numpy as np
from PIL import Image as PILImage

# From silence to the loudest band, evenly: each step is brighter than the one before, for any eye.
_HEAT = ((16, 14, 42), (52, 32, 110), (122, 40, 132), (202, 62, 108), (246, 128, 82), (252, 200, 120), (254, 248, 222))


def sheet(frames: np.ndarray, columns: int) -> np.ndarray:
    """Frames uint8 (n, height, width, 3) in rows of so many, as one picture; what is left of the last row is black."""
    count, height, width, _ = frames.shape
    rows = -(-count // columns)
    drawn = np.zeros((rows * columns, height, width, 3), np.uint8)
    drawn[:count] = frames
    return drawn.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)


def scaled(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Frames uint8 (n, height, width, 3), each by itself, at another (width, height)."""
    if size == (frames.shape[2], frames.shape[1]):
        return frames
    is_larger = size[0] > frames.shape[2]
    how = PILImage.Resampling.NEAREST if is_larger else PILImage.Resampling.BOX
    return np.stack([np.asarray(PILImage.fromarray(frame).resize(size, how)) for frame in frames])


def spectrogram(frames_FM: np.ndarray) -> np.ndarray:
    """Log-mel frames as a picture, uint8 (mels, frames, 3): time goes to the right, and the lowest band is last."""
    low, high = float(frames_FM.min()), float(frames_FM.max())
    return heat((frames_FM.T[::-1] - low) / max(high - low, 1e-6))


def heat(parts: np.ndarray) -> np.ndarray:
    """Numbers from 0 to 1 as colours, uint8 (..., 3); each is brighter than the ones below it."""
    steps = np.linspace(0.0, 1.0, len(_HEAT))
    table = np.stack([np.interp(np.linspace(0.0, 1.0, 256), steps, channel) for channel in zip(*_HEAT, strict=True)], 1)
    return table.round().astype(np.uint8)[(parts * 255).round().astype(np.uint8)]


def wave_heights(samples: np.ndarray, columns: int) -> np.ndarray:
    """float32 (columns,): the largest sample, by size, of as many even stretches; the loudest is 1."""
    ends = np.linspace(0, len(samples), columns + 1).astype(np.int64)
    loud = np.abs(samples)
    tall = np.array([loud[a : max(b, a + 1)].max(initial=0.0) for a, b in itertools.pairwise(ends)])
    return (tall / max(float(tall.max()), 1e-6)).astype(np.float32)
