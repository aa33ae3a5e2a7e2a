"""How families take videos: the settings of a folder's video processor as those of a ``VideoSpec``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmm.clip_spec import VideoSpec
from jaxmm.errors import UserError
from jaxmm.hf.processors import json_object
from jaxmm.image_spec import ImageSpec

VIDEO_FILE = "video_preprocessor_config.json"
Settings = Mapping[str, Any]
NO_LIMIT = 1 << 20  # frames of a video


@dataclasses.dataclass(frozen=True)
class Videos:
    """The video processor of a family.

    Attributes:
      processor: its class in ``transformers``.
      sampling, of_clip, stamp, stamp_end, pool, newline: as in ``VideoSpec``.
      least, most: the class's default bounds on pixels (``size``); 0 and 0 for one whose frames are squares of the
        tower's own size.
      fps: frames a second, by default.
      min_frames, max_frames: its default bounds on frames; 0 and 0 for a class that has none.
      max_seconds: as in ``VideoSpec``, by default (``max_duration``).
      others: those of other classes, which some folders of the family name.
      has_seconds: positions of text count seconds (``tokens_per_second`` of the tower's config).
    """

    processor: str
    sampling: str
    least: int = 0
    most: int = 0
    fps: float = 2.0
    of_clip: bool = False
    stamp: str = ""
    stamp_end: str = ""
    pool: int = 1
    newline: bool = False
    has_seconds: bool = False
    min_frames: int = 4
    max_frames: int = 768
    max_seconds: float = 0.0
    others: tuple[Videos, ...] = ()

    def settings(self, folder: Path, config: Settings, frames: int) -> dict[str, Any]:
        """Returns the fields of ``VideoSpec`` by the folder's processor, and by the class's defaults.

        Args:
          folder: of the model, or of a run that keeps its small files.
          config: of the whole model.
          frames: of a temporal patch, by the tower.

        Raises:
          UserError: for another processor, and for values of it that are not followed.
        """
        return self._of(folder)._settings(_read(folder), config, frames)

    def check(self, folder: Path, config: Settings, mean: Sequence[float], std: Sequence[float]) -> None:
        """Raises UserError where a folder makes other pixels of frames than the tower takes; arguments as of
        ``settings``, and what pictures are normalised by."""
        stored, chosen = _read(folder), self._of(folder)
        for key, own in (("image_mean", mean), ("image_std", std)):
            said = stored.get(key, own)
            if tuple(said if isinstance(said, Sequence) else [said] * 3) != tuple(own):
                raise UserError(
                    f"{folder}: its video processor has {key}={said}, its image processor {list(own)}: make them equal"
                )
        square = dict.fromkeys(("height", "width"), _side(config)) if not chosen.most else None
        if square and stored.get("size", square) != square:
            raise UserError(
                f"{folder}: its video processor makes frames of {stored['size']}, its tower takes {square}: make them "
                f"equal"
            )

    def _of(self, folder: Path) -> Videos:
        """This one, or the other one that a folder names. Raises UserError for none of them."""
        kind = str(_read(folder).get("video_processor_type") or self.processor)
        known = {one.processor: one for one in (self, *self.others)}
        if kind not in known:
            raise UserError(
                f"{folder}: videos processed by {kind} are not supported: those by {' or '.join(known)} are"
            )
        return known[kind]

    def _settings(self, processor: Settings, config: Settings, frames: int) -> dict[str, Any]:
        size = processor.get("size") or {}
        least = int(processor.get("min_pixels") or size.get("shortest_edge") or self.least)
        most = int(processor.get("max_pixels") or size.get("longest_edge") or self.most)
        taken: dict[str, Any] = {
            "frames": frames, "fps": float(processor.get("fps") or self.fps), "sampling": self.sampling,
            "min_frames": int(processor.get("min_frames") or self.min_frames or 1),
            "max_frames": int(processor.get("max_frames") or self.max_frames or NO_LIMIT),
            "max_seconds": float((self.max_seconds and processor.get("max_duration")) or self.max_seconds),
            "of_clip": self.of_clip, "stamp": self.stamp, "stamp_end": self.stamp_end, "min_pixels": least,
            "pool": self.pool, "newline": self.newline,
        }  # fmt: skip
        taken |= {"max_pixels": 0, "total_pixels": most} if self.of_clip else {"max_pixels": most}
        if not self.most:
            taken |= {"min_pixels": 1, "max_pixels": _side(config) ** 2}
        if self.sampling == "even" and processor.get("num_frames"):
            taken |= dict.fromkeys(("min_frames", "max_frames"), int(processor["num_frames"]))
        if processor.get("cap_pixels_per_frame"):
            taken |= self._cap(processor, config)
        if self.has_seconds:
            taken["positions_per_second"] = float(config["vision_config"].get("tokens_per_second") or 4)
        return taken

    def written(self, folder: Path, image: ImageSpec, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
        """Returns the settings of a processor that takes videos as a run did, from those of the folder.

        Args:
          image: of the run, with its ``video``.
          mean, std: of pixels from 0 to 1, by channel.
        """
        video = image.video
        assert video is not None, "a family that takes videos has a spec of them"
        chosen = self._of(folder)
        own = {key: value for key, value in _read(folder).items() if key not in ("min_pixels", "max_pixels")}
        return {
            "image_mean": list(mean), "image_std": list(std), **own, "video_processor_type": chosen.processor,
            "do_sample_frames": True, "fps": video.fps, **chosen._bounds_written(video),
            **chosen._size_written(image, video),
        }  # fmt: skip

    def _size_written(self, image: ImageSpec, video: VideoSpec) -> dict[str, Any]:
        if not self.most:
            return {"size": {"height": image.side, "width": image.side}}
        most = video.total_pixels if video.of_clip else video.max_pixels
        return {
            "size": {"shortest_edge": video.min_pixels, "longest_edge": most}, "patch_size": image.patch_size,
            "merge_size": image.merge, "temporal_patch_size": video.frames,
        }  # fmt: skip

    def _bounds_written(self, video: VideoSpec) -> dict[str, int | None]:
        """Bounds on frames as the class has them. What it cannot be told is told to people."""
        bounds: dict[str, int | None] = {"min_frames": video.min_frames, "max_frames": video.max_frames}
        if self.max_frames:
            return bounds
        if self.sampling == "even" and video.min_frames == video.max_frames:
            return {"num_frames": video.max_frames, "fps": None}  # either may be set
        if tuple(bounds.values()) != (1, NO_LIMIT):
            print(f"warning: {self.processor} knows no {' and '.join(bounds)}, which this run has had", file=sys.stderr)
        return {"num_frames": None} if self.sampling == "even" else {}

    def _cap(self, processor: Settings, config: Settings) -> dict[str, int]:
        """The further limit of a processor with ``cap_pixels_per_frame``."""
        vision = config["vision_config"]
        area = (int(vision["patch_size"]) * int(vision["spatial_merge_size"])) ** 2
        if self.of_clip:
            return {"max_pixels": int(processor.get("max_video_tokens") or 768) * area}
        return {"total_pixels": int(int(processor.get("max_video_tokens") or 128000) * area * 0.9)}


def _side(config: Settings) -> int:
    """Pixels along a side of a tower of squares, by the config of the whole model."""
    size = config["vision_config"]["image_size"]
    return int(size if isinstance(size, int) else size[0])


def _read(folder: Path) -> dict[str, Any]:
    """The settings of a folder's video processor; {} if it has none of its own."""
    if (folder / VIDEO_FILE).exists():
        return json_object(folder / VIDEO_FILE)
    if (folder / "processor_config.json").exists():
        settings = json_object(folder / "processor_config.json").get("video_processor") or {}
        return settings if isinstance(settings, dict) else {}
    return {}


def asked_for(own: Settings, config: Settings) -> VideoSpec:
    """Returns a spec: what a run's ``config.video`` says, where 0 and "" are one's own.

    Args:
      own: fields of ``VideoSpec``.

    Raises:
      UserError: for values that do not go together.
    """
    asked = {key: value for key, value in config.items() if value}
    own = dict(own)
    if "fps" in asked and (asked.get("sampling") or own.get("sampling")) == "dynamic":
        raise UserError(
            "config.video.fps is not followed by config.video.sampling=dynamic, which takes more frames a second of a "
            "shorter video: leave it out, or give config.video.sampling too"
        )
    area = "total_pixels" if own.get("of_clip") else "max_pixels"
    for least, most in (("min_frames", "max_frames"), ("min_pixels", area)):  # one's own gives way to what is asked for
        if most in asked and least not in asked:
            own[least] = min(own[least], asked[most])
        if least in asked and most not in asked:
            own[most] = max(own[most], asked[least])
    try:
        return VideoSpec(**{**own, **asked})
    except (TypeError, ValueError) as error:
        raise UserError(f"config.video: {error}") from error


# Its class has no frames a second: one, by our choice.
ONEVISION_VIDEOS = Videos(
    "LlavaOnevisionVideoProcessor", "even", fps=1.0, pool=2, newline=True, min_frames=0, max_frames=0
)
QWEN2_VIDEOS = Videos("Qwen2VLVideoProcessor", "stride", 128 * 28 * 28, 28 * 28 * 768)
QWEN2_5_VIDEOS = dataclasses.replace(QWEN2_VIDEOS, has_seconds=True)
QWEN3_VIDEOS = Videos(
    "Qwen3VLVideoProcessor", "ends", 128 * 32 * 32, 32 * 32 * 768, of_clip=True,
    stamp="<{seconds:.1f} seconds><|vision_start|>", stamp_end="<|vision_end|>",
)  # fmt: skip
GLM4V_VIDEOS = Videos(
    "Glm4vVideoProcessor", "steps", 112 * 112, 28 * 28 * 2 * 30000, of_clip=True, stamp="<|begin_of_image|>",
    stamp_end="<|end_of_image|>{whole}", min_frames=0, max_frames=0, max_seconds=300.0,
)  # fmt: skip
GLM46V_VIDEOS = dataclasses.replace(
    GLM4V_VIDEOS,
    processor="Glm46VVideoProcessor",
    sampling="dynamic",
    stamp_end="<|end_of_image|>{first:.1f} seconds",
    max_seconds=0.0,
)
