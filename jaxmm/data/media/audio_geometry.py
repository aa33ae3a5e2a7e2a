"""From a clip's number of frames to its places in a row, in numbers only: units, attention windows, soft tokens.

A clip takes whole chunks of the stream. Only its last one is not full of frames, so that the soft tokens of a clip are
the first ones that its chunks make, without a gap.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxmm.clip_spec import AudioSpec


def seen_frames(frames: Any, spec: AudioSpec) -> Any:
    """Frames of a clip that are attended to: with ``filled`` those of whole pieces, the rest of silence.

    Args:
      frames: of the clip, 0 or more: an int, or an int array, as in all functions here.
    """
    return -(-frames // spec.piece) * spec.piece if spec.filled else frames


def units(frames: Any, spec: AudioSpec) -> Any:
    """Frames of the stream that a clip takes: its own, its halo, and what fills up the last chunk."""
    whole, rest = _pieces(frames, spec)
    seen = rest + spec.halo
    seen = np.minimum(seen, spec.piece) if spec.piece else seen  # behind a full piece the stem sees zeros
    return _like(frames, whole * spec.piece + (rest > 0) * (-(-seen // spec.chunk) * spec.chunk))


def windows(frames: Any, spec: AudioSpec) -> Any:
    """How many attention windows a clip has; their numbers are the segments of its frames."""
    whole, rest = _pieces(frames, spec)
    return _like(frames, whole * _windows_of(spec.piece, spec) + (rest > 0) * _windows_of(rest, spec))


def soft_tokens(frames: Any, spec: AudioSpec) -> Any:
    """How many soft tokens a clip has; a clip of a frame or two may have none, where positions are pooled."""
    chunks, rest = np.divmod(np.asarray(seen_frames(frames, spec), np.int64), spec.chunk)
    return _like(frames, (chunks * spec.chunk_positions + -(-rest // spec.stride)) // spec.pool)


def table_rows(units: Any, spec: AudioSpec) -> Any:
    """Rows of the soft-token table that so many units of the stream take, whole chunks."""
    return units // spec.chunk * spec.chunk_tokens


def token_rows(frames: int, spec: AudioSpec) -> np.ndarray:
    """int64 (soft tokens,): the row of each soft token, from the clip's first in the tower's output."""
    return np.arange(soft_tokens(frames, spec))


class Places(NamedTuple):
    """What a clip writes into its units of the stream, beside the frames: behind these, values are the halo's or 0.

    Attributes:
      positions: int32 (units, 1), the frame's number in its piece; -1 behind the last one.
      segments: int32 (units,), the attention window; 0 behind the last frame.
    """

    positions: np.ndarray
    segments: np.ndarray


def places(frames: int, spec: AudioSpec, first: int = 1) -> Places:
    """Returns the positions and segments of a clip.

    Args:
      first: the number of its first attention window: one more than the row has used.
    """
    unit = np.arange(units(frames, spec))
    piece, place = np.divmod(unit, spec.piece or max(len(unit), 1))
    window = piece * _windows_of(spec.piece, spec) if spec.piece else np.zeros_like(unit)
    if spec.attend:
        window += place // (spec.attend * spec.chunk)
    is_frame = unit < seen_frames(frames, spec)  # all pieces but the last are full
    positions, segments = np.where(is_frame, place, -1), np.where(is_frame, first + window, 0)
    return Places(positions[:, None].astype(np.int32), segments.astype(np.int32))


def _pieces(frames: Any, spec: AudioSpec) -> tuple[np.ndarray, np.ndarray]:
    """How many full pieces a clip has, and the frames of the last one, 0 where that is full too."""
    frames = np.asarray(seen_frames(frames, spec), np.int64)
    return (frames // spec.piece, frames % spec.piece) if spec.piece else (np.zeros_like(frames), frames)


def _windows_of(frames: Any, spec: AudioSpec) -> Any:
    """Attention windows of a piece with this many frames, above 0."""
    return -(-frames // (spec.attend * spec.chunk)) if spec.attend else 1


def _like(frames: Any, count: np.ndarray) -> Any:
    """An int where ``frames`` is one, an int64 array elsewhere."""
    return count if np.ndim(frames) else int(count)
