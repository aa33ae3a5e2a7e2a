"""Feature vectors of clips as media: what a tower makes of a video or a recording, ready-made in ``.npy`` files.

How a clip was sampled or heard is settled in its file. Of a video only how fast its frames follow each other is told
beside it, which the positions of some families depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from jaxmm.batch import Batch, Stream
from jaxmm.data.documents import AudioFeatures, VideoFeatures
from jaxmm.data.media import sampling
from jaxmm.data.media.extents import Extent, Extents
from jaxmm.data.media.features import (
    FeaturesMedium,
    check_even,
    empty_stream,
    in_groups,
    read_array,
    read_header,
)
from jaxmm.data.media.medium import Array, BadMedia, Filled, Item, Medium, Settings
from jaxmm.data.media.timeline import int32_terms
from jaxmm.errors import UserError
from jaxmm.image_spec import ImageSpec

WIDTHS = 1 << 20  # kinds of a medium, one for each width from 1 on
VIDEO_FEATURES, AUDIO_FEATURES = -WIDTHS, -2 * WIDTHS  # of a width of 1; a larger one lies below


class ClipFeaturesMedium(FeaturesMedium):
    """What both have in common: a kind for each width, below that of the medium."""

    def has(self, kinds: Any) -> Any:
        return (kinds <= self.kind) & (kinds > self.kind - WIDTHS)

    def kind_of(self, width: int) -> int:
        """Raises BadMedia for a width that no tower has."""
        if width >= WIDTHS:
            raise BadMedia("no features")
        return self.kind + 1 - width

    def packed(self, part: Any) -> dict[str, Any]:
        return Medium.packed(self, part)

    def is_packed(self, packed: Mapping[str, Any]) -> bool:
        return Medium.is_packed(self, packed)


class VideoFeaturesMedium(ClipFeaturesMedium):
    """Vectors of a video: a grid of them for each frame. They travel in the stream of those of images."""

    name, plural, part, kind, made_of = "video_features", "videos", VideoFeatures, VIDEO_FEATURES, "video"
    dims = (4,)
    advice: ClassVar[Mapping[str, str]] = {
        **FeaturesMedium.advice,
        "no features": "a file of a video's feature vectors must be a .npy of floats, (frames, rows, columns, D)",
    }

    def extent(self, part: VideoFeatures) -> Extent:
        frames, rows, columns, width = read_header(part, self.dims)
        rate = int32_terms(Fraction(part.fps)) if 0 < part.fps < float("inf") else Fraction(0)
        return Extent(rows, columns, self.kind_of(width), frames, rate)

    def content(self, part: VideoFeatures, named: Callable[[str], str]) -> bytes:
        return super().content(part, named) + repr(part.fps).encode()

    def packed(self, part: VideoFeatures) -> dict[str, Any]:
        return super().packed(part) | {"fps": part.fps}

    def unpacked(self, packed: Mapping[str, Any]) -> VideoFeatures:
        return VideoFeatures(packed.get("data", b""), packed.get("path", ""), packed["fps"])

    def units(self, extents: Extents, spec: ImageSpec) -> Array:
        if spec.video and spec.video.stamp:
            raise UserError(
                f"{extents.source} has feature vectors of videos: this model reads a time before each frame, which "
                f"they do not tell; leave it out, or give the videos themselves"
            )
        if spec.video and (spec.video.pool > 1 or spec.video.newline):
            raise UserError(
                f"{extents.source} has feature vectors of videos: this model pools those of a frame, which is not "
                f"supported; leave it out, or give the videos themselves"
            )
        height, width = extents.height, extents.width
        check_even(height % spec.merge + width % spec.merge > 0, extents, spec)
        return extents.length * height * width

    def too_large(self, item: Item, tokens: int, budgets: Any, spec: ImageSpec) -> str:
        return (
            f"{item.units} feature vectors for a video ({tokens} tokens), more than a row holds (config.seq_len "
            f"{budgets.tokens}): raise config.seq_len, encode it with fewer frames, or leave such documents out by "
            f"config.data.long_documents=drop"
        )

    def empty(self, rows: int, budgets: Any, spec: ImageSpec, widths: Mapping[str, int]) -> dict[str, Any]:
        return {}  # the images' own

    def read(self, item: Item, spec: ImageSpec, settings: Settings) -> np.ndarray:
        vectors = in_groups(read_array(self, item.part, item.extent), spec)
        return (vectors[::-1] if settings.backwards else vectors).reshape(item.units, -1)

    def filled(self, item: Item, spec: ImageSpec) -> Filled:
        extent, video, merge = item.extent, spec.video, spec.merge
        assert video is not None, "a run that has videos has a spec of them"
        seconds = 1 / float(extent.rate) if extent.rate else video.frames / video.fps
        grid = (extent.length, extent.height // merge, extent.width // merge)
        return Filled(np.arange(item.soft_tokens), grid, sampling.times_of(extent.length, seconds, video))

    def used(self, batch: Batch) -> dict[str, np.ndarray]:
        return {}  # told with the images


class AudioFeaturesMedium(ClipFeaturesMedium):
    """Vectors of a recording, each of which becomes a soft token. They travel in a stream of their own."""

    name, plural, part, kind, made_of = "audio_features", "recordings", AudioFeatures, AUDIO_FEATURES, "audio"
    budgets, stream = ("audio_features",), "audio_features"
    dims = (2,)
    advice: ClassVar[Mapping[str, str]] = {
        **FeaturesMedium.advice,
        "no features": "a file of a recording's feature vectors must be a .npy of floats, (n, D)",
    }

    def extent(self, part: AudioFeatures) -> Extent:
        count, width = read_header(part, self.dims)
        return Extent(count, 1, self.kind_of(width))

    def units(self, extents: Extents, spec: ImageSpec) -> Array:
        return np.asarray(extents.height, np.int64)

    def group(self, spec: ImageSpec) -> int:
        return 1

    def too_large(self, item: Item, tokens: int, budgets: Any, spec: ImageSpec) -> str:
        return (
            f"{item.units} feature vectors for a recording ({tokens} tokens), more than a row holds (config.seq_len "
            f"{budgets.tokens}): raise config.seq_len, or leave such documents out by config.data.long_documents=drop"
        )

    def empty(self, rows: int, budgets: Any, spec: ImageSpec, widths: Mapping[str, int]) -> dict[str, Any]:
        stream = empty_stream(rows, budgets.get(self.stream), widths.get(self.stream, 0))
        return {} if stream is None else {self.stream: stream}

    def read(self, item: Item, spec: ImageSpec, settings: Settings) -> np.ndarray:
        vectors = read_array(self, item.part, item.extent)
        return vectors[::-1] if settings.backwards else vectors

    def filled(self, item: Item, spec: ImageSpec) -> Filled:
        return Filled(np.arange(item.soft_tokens), (1, 1, item.soft_tokens))

    def array(self, batch: Batch) -> Stream | tuple[()]:
        return batch.media.get(self.stream, ())
