"""From a video's header to its frames, in numbers only: which ones are taken, their size, and their times."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from jaxmm.clip_spec import VideoSpec
from jaxmm.data.media.geometry import Bounds, grid_size
from jaxmm.image_spec import ImageSpec


class Sampled(NamedTuple):
    """How a video is taken: ints, or int64 arrays of one shape.

    Attributes:
      frames: how many are taken.
      temporal: temporal patches that these make, the last one filled up.
      rows, columns: patches of a frame.
    """

    frames: Any
    temporal: Any
    rows: Any
    columns: Any


def sampled(height: Any, width: Any, count: Any, num: Any, den: Any, spec: ImageSpec) -> Sampled:
    """Returns how videos are taken, as their family's processor in transformers takes them.

    Args:
      height, width: of a frame, in pixels.
      count: frames of the video, at least 1.
      num, den: frames a second, as a fraction.
    """
    video = spec.video
    assert video is not None, "a run that has videos has a spec of them"
    frames = frame_count(count, np.asarray(num, np.float64) / den, video)
    temporal = -(-frames // video.frames)
    if spec.side:
        rows, columns = grid_size(height, width, spec)
    elif (
        video.of_clip and not spec.least_side
    ):  # as Qwen3-VL's: a frame smaller than a soft token is first brought to it
        factor = spec.patch_size * spec.merge
        scale = np.maximum(np.maximum(factor / np.asarray(height), factor / np.asarray(width)), 1.0)
        height, width = (height * scale).astype(np.int64), (width * scale).astype(np.int64)
    if not spec.side:
        rows, columns = grid_size(height, width, spec, _bounds(frames, video))
    return Sampled(frames, temporal, rows, columns)


def frame_count(count: Any, rate: Any, video: VideoSpec) -> Any:
    """Returns how many of ``count`` frames are taken; ``rate``: frames a second, float."""
    if video.sampling in RULES:
        pairs = np.stack(np.broadcast_arrays(np.asarray(count, np.float64), rate))
        each, at = np.unique(pairs.reshape(2, -1), axis=1, return_inverse=True)
        counts = np.array([_count_by_rule(int(n), float(of), video) for n, of in each.T], np.int64)
        taken = counts[at.reshape(-1)].reshape(pairs.shape[1:])
        return taken if taken.ndim else int(taken)
    wanted = np.asarray(count, np.float64) / rate * video.fps
    if video.sampling in ("ends", "even"):
        taken = np.minimum(np.clip(wanted.astype(np.int64), video.min_frames, video.max_frames), count)
    else:
        most = np.minimum(video.max_frames, count) // video.frames * video.frames
        taken = np.minimum(np.minimum(np.maximum(wanted, video.min_frames), most), count).astype(np.int64)
        taken = taken // video.frames * video.frames
        taken = np.where(taken > 0, taken, np.minimum(count, video.frames))  # fewer than a temporal patch
    return taken if taken.ndim else int(taken)


def _count_by_rule(count: int, rate: float, video: VideoSpec) -> int:
    """How many frames one of RULES takes, in whole temporal patches; or as many as are asked for at most or least."""
    by_rule = len(_by_rule(count, rate, video))
    bounded = min(max(by_rule, min(video.min_frames, count)), video.max_frames)
    return -(-by_rule // video.frames) * video.frames if bounded == by_rule else bounded


@functools.lru_cache(maxsize=1 << 15)
def _by_rule(count: int, rate: float, video: VideoSpec) -> np.ndarray:
    """int64, ascending: the numbers of the frames that one of RULES takes of a video."""
    return np.unique(RULES[video.sampling](count, rate, video)).astype(np.int64)


def _steps(count: int, rate: float, video: VideoSpec) -> np.ndarray:
    """As transformers' Glm4vVideoProcessor."""
    seconds, most = count / rate, int(video.max_seconds * video.fps)
    if not video.max_seconds or seconds <= video.max_seconds:
        wanted = np.arange(max(int(seconds * video.fps), 1)) * rate / video.fps
    elif most >= count:
        wanted = np.arange(count, dtype=np.float64)
    else:
        wanted = np.linspace(0, seconds, most) * rate
    return np.minimum(np.ceil(wanted), count - 1)


# Temporal patches a second of a video that is not longer than so many seconds; the most seconds and frames that count.
DYNAMIC, LONGEST, MOST = ((30.0, 3.0), (300.0, 1.0), (np.inf, 0.5)), 2400.0, 640


def _dynamic(count: int, rate: float, video: VideoSpec) -> np.ndarray:
    """As transformers' Glm46VVideoProcessor, which adds up the times at which a frame is due."""
    seconds, last = count / rate, count - 1
    patches = next(of for longest, of in DYNAMIC if min(seconds, LONGEST) <= longest)
    wanted = max(min(int(min(seconds, LONGEST) * patches * video.frames), MOST), 1)
    if count < wanted:
        return np.linspace(0, last, wanted).astype(np.int64)
    step = 1 / (video.frames * patches)
    due = np.cumsum(np.full(int(seconds / step) + 2, step))
    due = np.append(0.0, due[due < int(seconds)])
    order = np.arange(len(due))
    first = np.searchsorted(np.arange(count) * (1 / rate), due)
    numbers = np.maximum.accumulate(first - order) + order  # each frame once
    numbers = numbers[numbers < count]
    if len(numbers) == wanted:
        return numbers
    start, stop = (int(numbers[0]), int(numbers[-1])) if len(numbers) < wanted else (0, last)
    return np.linspace(start, stop, wanted).astype(np.int64)


RULES = {"steps": _steps, "dynamic": _dynamic}


def _bounds(frames: Any, video: VideoSpec) -> Bounds:
    """The bounds on the size of a frame."""
    least, most, total = video.min_pixels, video.max_pixels, video.total_pixels
    if video.of_clip:
        capped = np.maximum(np.minimum(most, total // frames), int(least * 1.05)) * frames
        most = capped if most else total
        times = np.rint(np.asarray(frames) / video.frames).astype(np.int64) * video.frames
        return Bounds(least, most, frames, np.maximum(times, 1))
    if total:
        most = np.maximum(np.minimum(most, total * video.frames // frames), int(least * 1.05))
    return Bounds(least, most)


def frame_numbers(frames: int, count: int, rate: float, video: VideoSpec) -> np.ndarray:
    """Returns int64 (temporal patches, video.frames): the numbers of the frames in each temporal patch.

    Args:
      frames: how many are taken of the video's ``count``.
      rate: frames a second.
    """
    by_rule = _by_rule(count, rate, video) if video.sampling in RULES else np.zeros(0, np.int64)
    if len(by_rule) and -(-len(by_rule) // video.frames) == -(-frames // video.frames):
        taken = by_rule
    elif video.sampling == "even":
        taken = np.arange(frames, dtype=np.int64) * count // frames
    elif video.sampling != "stride":
        taken = np.linspace(0, count - 1, frames).round().astype(np.int64)
    else:  # in single precision, as torch.arange
        taken = (np.arange(frames) * (count / frames)).astype(np.float32).astype(np.int64)
    missing = -len(taken) % video.frames
    return np.append(taken, np.repeat(taken[-1:], missing)).reshape(-1, video.frames)


def seconds_of(numbers: np.ndarray, rate: float) -> np.ndarray:
    """Returns float64 (temporal patches,): the mean time of the first and last frame of each, from the clip's start."""
    times = numbers / rate
    return (times[:, 0] + times[:, -1]) / 2


def seconds_apart(frames: int, count: int, rate: float, video: VideoSpec) -> float:
    """Returns the seconds from a temporal patch to the next, where ``frames`` are taken of ``count`` frames."""
    return video.frames / (frames / count * rate)


def times_of(temporal: int, seconds: float, video: VideoSpec) -> tuple[int, ...]:
    """Returns the position of each temporal patch along the first text axis (Qwen2.5-VL), in single precision.

    Args:
      seconds: from one to the next.
    """
    if not video.positions_per_second:
        return ()
    interval = np.float32(video.positions_per_second) * np.float32(seconds)
    return tuple((np.arange(temporal, dtype=np.float32) * interval).astype(np.int64).tolist())
