"""How videos and recordings are taken: what the data side must know of a model, beside its ``ImageSpec``."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

SAMPLINGS = ("stride", "ends", "even", "steps", "dynamic")
AFTER = ("space", "all")


@dataclasses.dataclass(frozen=True)
class VideoSpec:
    """How a video becomes frames, temporal patches and soft tokens. Patches and merging are those of ``ImageSpec``.

    Attributes:
      frames: of the video that one patch spans (a temporal patch); the last frame is repeated to fill it.
      fps: frames a second that are sampled.
      min_frames, max_frames: of a video; a shorter video has what it has.
      sampling: which of n frames k are: "stride" is ``int(i * n / k)`` with k whole temporal patches (Qwen2-VL), "ends"
        is ``linspace(0, n - 1, k)``, rounded, any k (Qwen3-VL), "even" is ``i * n // k``, any k (LLaVA-OneVision).
        "steps" are the first frames at or behind every ``1 / fps`` seconds (GLM-4.1V), "dynamic" are more a second of
        a shorter video, whatever ``fps`` (GLM-4.6V); where these would be fewer than min_frames or more than
        max_frames, it is "ends" with so many.
      max_seconds: for "steps", of a longer video so many frames as of one of this length; 0 is no limit.
      min_pixels, max_pixels: bounds on the area of a frame.
      total_pixels: the most pixels of all frames together: of them a frame has its share, but always 1.05 min_pixels.
        0 is no limit.
      of_clip: frames are resized so that all together are within bounds: ``min_pixels`` is then of all frames,
        ``total_pixels`` must be set, and ``max_pixels`` may be 0, for no limit (Qwen3-VL).
      stamp, stamp_end: text before and after each temporal patch, special tokens included; format strings of
        ``seconds`` (the mean time of its frames, from the start of the clip), ``first`` (that of the first one),
        ``whole`` (that without its fraction) and ``number`` (from 1). It is no target.
      positions_per_second: with several text axes, how far a second moves along the first one; 0 numbers temporal
        patches instead, each as a picture of its own where there is a stamp.
      pool: the soft tokens of a frame are resized bilinearly to 1 / pool of their rows and columns, rounded up
        (LLaVA-OneVision).
      newline: the model's vector that ends rows of pictures ends a video, once.
      after: text goes on after the largest row or column ("space"), or after the largest of all axes ("all").
      row_tokens, row_patches: a document longer than these gets fewer frames; 0 is no limit.
    """

    frames: int = 2
    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 128
    sampling: str = "stride"
    max_seconds: float = 0.0
    min_pixels: int = 64 * 64
    max_pixels: int = 256 * 256
    total_pixels: int = 0
    of_clip: bool = False
    stamp: str = ""
    stamp_end: str = ""
    positions_per_second: float = 0.0
    pool: int = 1
    newline: bool = False
    after: str = "space"
    row_tokens: int = 0
    row_patches: int = 0

    def key(self) -> dict[str, Any]:
        """Its values for what is kept on disk: those that came later are there only where they are set."""
        values, later = dataclasses.asdict(self), {"max_seconds": 0.0, "pool": 1, "newline": False}
        return {name: value for name, value in values.items() if name not in later or value != later[name]}

    def __post_init__(self) -> None:
        if self.frames < 1 or not 1 <= self.min_frames <= self.max_frames:
            raise ValueError(
                f"min_frames {self.min_frames} and max_frames {self.max_frames} must be positive, in order"
            )
        if not 0 < self.fps < math.inf:
            raise ValueError(f"fps is {self.fps}: it must be a number above 0")
        most = self.total_pixels if self.of_clip else self.max_pixels
        if not 0 < self.min_pixels <= most:
            raise ValueError(f"min_pixels {self.min_pixels} and max_pixels {most} must be positive, in order")
        if self.stamp and (self.pool > 1 or self.newline):
            raise ValueError("a video with time stamps is not pooled, nor does a vector end it")
        for name, value, known in (("sampling", self.sampling, SAMPLINGS), ("after", self.after, AFTER)):
            if value not in known:
                raise ValueError(f"{name} '{value}' is not one of {', '.join(known)}")


@dataclasses.dataclass(frozen=True)
class AudioSpec:
    """How sound becomes log-mel frames and soft tokens: what the data side must know of an audio tower.

    A clip is cut into pieces, and a piece into chunks of frames, the last one filled up. A chunk becomes a fixed number
    of tower positions; those that stand on no frame of the clip are no soft tokens. ``data/media/audio_geometry.py``
    has the numbers that follow.

    Attributes:
      rate: samples a second.
      mels: bands of a frame.
      hop, window: samples from a frame to the next, and those that a frame sees.
      chunk: frames of a chunk.
      chunk_positions: tower positions of a chunk, whole soft tokens.
      pool: tower positions that become one soft token.
      attend: chunks that attend to each other; 0 is all of a piece.
      halo: frames that the stem sees behind the last one of a piece that is not full; they take places of the stream.
      piece: frames of a piece, whole chunks; 0 is one piece, however long.
      filled: a piece is filled up with silence, which is attended to and becomes soft tokens (Whisper, Voxtral).
      silence: the end of a piece is seen as silence follows it, and not mirrored, and a part of a hop is one more frame
        (Whisper).
      least: samples; a shorter clip is filled up with silence to so many.
      max_seconds: above 0, only so much of a clip is taken, from its start.
    """

    rate: int = 16000
    mels: int = 80
    hop: int = 160
    window: int = 400
    chunk: int = 100
    chunk_positions: int = 13
    pool: int = 1
    attend: int = 8
    halo: int = 0
    piece: int = 0
    filled: bool = False
    silence: bool = False
    least: int = 0
    max_seconds: float = 0.0

    @property
    def stride(self) -> int:
        """Frames from a tower position to the next, in a chunk."""
        return -(-self.chunk // self.chunk_positions)

    @property
    def chunk_tokens(self) -> int:
        """Rows of the soft-token table that a chunk takes."""
        return self.chunk_positions // self.pool

    def __post_init__(self) -> None:
        least = {"rate": 1, "mels": 1, "hop": 1, "window": 1, "chunk": 1, "chunk_positions": 1, "pool": 1}
        for name, bound in (least | {"attend": 0, "halo": 0, "piece": 0}).items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} of audio is {getattr(self, name)}: it must be {bound} or above")
        if self.chunk_positions % self.pool:
            raise ValueError(f"chunk_positions {self.chunk_positions} must be whole soft tokens of {self.pool}")
        if -(-self.chunk // self.stride) != self.chunk_positions:
            raise ValueError(f"a chunk of {self.chunk} frames cannot have {self.chunk_positions} positions, evenly")
        if self.piece % self.chunk:
            raise ValueError(f"a piece of {self.piece} frames must be whole chunks of {self.chunk}")
        if self.filled and not self.piece:
            raise ValueError("a piece without an end cannot be filled")
