"""Videos as a medium: frames are taken by the run's ``VideoSpec``, and each temporal patch is a tile of patches.

The index has what a header tells: size, number of frames, and rate. So frames a second, the size of frames and all else
of a ``VideoSpec`` may change without preparing again.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from jaxmm.batch import Batch, Stream
from jaxmm.clip_spec import VideoSpec
from jaxmm.data.documents import Image, Video
from jaxmm.data.media import mosaic, sampling, video_file
from jaxmm.data.media.extents import Extent, Extents
from jaxmm.data.media.image import edges_of, frames_of, in_reading_order, write_tiles
from jaxmm.data.media.medium import Array, Filled, Inner, Item, Medium, Settings, Space
from jaxmm.data.media.patches import fill_frame
from jaxmm.image_spec import ImageSpec

VIDEO = -2


class VideoMedium(Medium):
    """Films. A temporal patch (``VideoSpec.frames`` frames) is a tile, and takes of the budgets of images."""

    name, plural, part, kind, is_seen = "video", "videos", Video, VIDEO, True
    budgets, stream = ("patches", "items"), "patches"
    advice: ClassVar[Mapping[str, str]] = video_file.ADVICE

    # Preparing

    def extent(self, part: Video) -> Extent:
        header = video_file.header(part)
        return Extent(header.height, header.width, VIDEO, header.frames, header.rate)

    def path(self, part: Video) -> str:
        return part.path or (part.frames[0].path if part.frames else "")

    def paths(self, part: Video) -> tuple[str, ...]:
        return (part.path,) if part.path else tuple(frame.path for frame in part.frames if frame.path)

    def size(self, part: Video) -> int:
        return len(part.data) + len(part.path) + sum(len(frame.data) + len(frame.path) for frame in part.frames)

    def content(self, part: Video, named: Callable[[str], str]) -> bytes:
        pictures = [named(frame.path).encode() if frame.path else frame.data for frame in part.frames]
        settings = repr((part.start, part.stop, part.fps)).encode()
        return b"\0".join([super().content(part, named), settings, *pictures])

    def packed(self, part: Video) -> dict[str, Any]:
        content: dict[str, Any] = {"medium": self.name, "cut": [part.start, part.stop]}
        if part.frames:
            frames = [{"path": frame.path} if frame.path else {"data": frame.data} for frame in part.frames]
            return content | {"frames": frames, "fps": part.fps}
        return content | ({"path": part.path} if part.path else {"data": part.data})

    def unpacked(self, packed: Mapping[str, Any]) -> Video:
        frames = tuple(Image(**frame) for frame in packed.get("frames", ()))
        start, stop = packed["cut"]
        return Video(packed.get("data", b""), packed.get("path", ""), frames, packed.get("fps", 0.0), start, stop)

    def pixels(self, extent: Extent, is_resized: bool = False) -> tuple[int, int] | None:
        return None if is_resized else super().pixels(extent)

    # Planning

    def units(self, extents: Extents, spec: ImageSpec) -> Array:
        taken = _sampled(extents, spec)
        return taken.temporal * (taken.rows * taken.columns + spec.extra)

    def group(self, spec: ImageSpec) -> int:
        return spec.merge**2

    def step(self, units: Array, extents: Extents, spec: ImageSpec) -> Array:
        """Patch positions of a temporal patch."""
        taken = _sampled(extents, spec)
        return taken.rows * taken.columns + spec.extra

    def least_steps(self, spec: ImageSpec) -> int:
        video = _spec(spec)
        return -(-video.min_frames // video.frames)

    def soft_tokens(self, units: Array, extents: Extents, spec: ImageSpec) -> Array:
        taken = _sampled(extents, spec)
        rows, columns = (mosaic.frame_side(side // spec.merge, spec) for side in (taken.rows, taken.columns))
        return units // self.step(units, extents, spec) * rows * columns + self.fixed_tokens(spec)

    def fixed_tokens(self, spec: ImageSpec) -> int:
        return int(_spec(spec).newline)

    def needs(self, units: Array, extents: Extents, spec: ImageSpec) -> dict[str, Array]:
        return {"patches": units, "items": units // self.step(units, extents, spec)}

    def has_inner(self, spec: ImageSpec) -> bool:
        return bool(_spec(spec).stamp or _spec(spec).stamp_end)

    def inner(self, units: int, extent: Extent, spec: ImageSpec) -> list[Inner]:
        video = _spec(spec)
        _, frames, grid = _taken(units, extent, spec)
        rate, each = float(extent.rate), math.prod(grid) // spec.merge**2
        numbers = sampling.frame_numbers(frames, extent.length, rate, video)
        means, firsts = sampling.seconds_of(numbers, rate).tolist(), (numbers[:, 0] / rate).tolist()
        times = [
            {"seconds": mean, "first": first, "whole": int(first), "number": n}
            for n, (mean, first) in enumerate(zip(means, firsts, strict=True), start=1)
        ]
        said = [video.stamp.format(**of_one) for of_one in times]
        ends = ["", *(video.stamp_end.format(**of_one) for of_one in times)]
        texts = [end + stamp for end, stamp in itertools.zip_longest(ends, said, fillvalue="")]
        return [Inner(n * each, text) for n, text in enumerate(texts)]

    def why_cut_short(self, spec: ImageSpec) -> str:
        tokens, patches = _spec(spec).row_tokens, _spec(spec).row_patches
        room = " and ".join([f"{tokens} tokens"] * bool(tokens) + [f"{patches} patches"] * bool(patches))
        return f"videos get fewer frames, as a row of {room} cannot hold them"

    def too_large(self, item: Item, tokens: int, budgets: Any, spec: ImageSpec) -> str:
        return (
            f"a video of {item.needs['items']} temporal patches, {item.units} patches ({tokens} tokens), more than a "
            f"row holds (config.patch_budget {budgets.patches}, config.seq_len {budgets.tokens}): raise these or lower "
            f"config.video.max_pixels"
        )

    # Assembling

    def fill(self, space: Space, item: Item, spec: ImageSpec, settings: Settings) -> Filled:
        video, extent = _spec(spec), item.extent
        patches, b, first = space.batch.patches, space.b, space.taken.get("patches", 0)
        temporal, frames, grid = _taken(item.units, extent, spec)
        numbers = self.numbers(item.units, extent, spec)
        size = item.units // temporal
        if settings.backwards:
            numbers = extent.length - 1 - numbers
        starts = range(first, first + item.units, size)
        places: dict[int, list[np.ndarray]] = {}
        for start, those in zip(starts, numbers.tolist(), strict=True):
            tile = patches.values[b, start : start + size - spec.extra]
            for number, place in zip(those, frames_of(tile, spec), strict=True):
                places.setdefault(number, []).append(place)
        known = video_file.VideoHeader(extent.height, extent.width, extent.length, extent.rate)
        edges = edges_of(item, settings)
        wanted = sorted(places)
        for number, frame in zip(wanted, video_file.read_frames(item.part, known, wanted), strict=True):
            fill_frame(places[number], frame, spec, grid, edges)
        write_tiles(space, starts, [grid] * temporal, spec)
        for number, start in enumerate(starts):
            patches.positions[b, start : start + size, 0] = number
        rows, columns = grid[0] // spec.merge, grid[1] // spec.merge
        seconds = sampling.seconds_apart(frames, extent.length, float(extent.rate), video)
        times = sampling.times_of(temporal, seconds, video)
        order = np.stack([(start - first) // spec.merge**2 + in_reading_order(grid, spec) for start in starts])
        read, mixture = mosaic.reading_film(order.reshape(temporal, rows, columns), spec)
        shape = (temporal, rows, columns) if len(read) == order.size else (1, len(read), 1)
        return Filled(read, shape, times, apart=bool(video.stamp), mixture=mixture)

    def patches_per_second(self, units: int, extent: Extent, spec: ImageSpec) -> float:
        """How many temporal patches are taken of a second."""
        _, frames, _ = _taken(units, extent, spec)
        return 1 / sampling.seconds_apart(frames, extent.length, float(extent.rate), _spec(spec))

    def numbers(self, units: int, extent: Extent, spec: ImageSpec) -> np.ndarray:
        """int64 (temporal patches, frames of one): which frames of a video are taken."""
        _, frames, _ = _taken(units, extent, spec)
        return sampling.frame_numbers(frames, extent.length, float(extent.rate), _spec(spec))

    def array(self, batch: Batch) -> Stream:
        return batch.patches

    def used(self, batch: Batch) -> dict[str, np.ndarray]:
        return {}  # told with the images


def _spec(spec: ImageSpec) -> VideoSpec:
    assert spec.video is not None, "a run that has videos has a spec of them"
    return spec.video


def _sampled(extents: Extents, spec: ImageSpec) -> sampling.Sampled:
    return sampling.sampled(extents.height, extents.width, extents.length, extents.rate_num, extents.rate_den, spec)


@functools.lru_cache(maxsize=1 << 15)  # a clip is asked for again in each round of shortening, and when it is read
def _whole(extent: Extent, spec: ImageSpec) -> sampling.Sampled:
    return sampling.sampled(
        extent.height, extent.width, extent.length, extent.rate.numerator, extent.rate.denominator, spec
    )


def _taken(units: int, extent: Extent, spec: ImageSpec) -> tuple[int, int, tuple[int, int]]:
    """How a video of so many patch positions is taken: temporal patches, frames, and (rows, columns) of patches.

    Where a row cannot hold it, it has fewer temporal patches than its spec asks for, all of them full.
    """
    whole = _whole(extent, spec)
    temporal = units // (whole.rows * whole.columns + spec.extra)
    frames = whole.frames if temporal == whole.temporal else temporal * _spec(spec).frames
    return temporal, frames, (whole.rows, whole.columns)
