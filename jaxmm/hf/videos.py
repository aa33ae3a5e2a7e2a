"""How families take videos: the settings of a folder's video processor as those of a ``VideoSpec``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmm.batch import ImageSpec, VideoSpec
from jaxmm.errors import UserError
from jaxmm.hf.processors import json_object

VIDEO_FILE = "video_preprocessor_config.json"
Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Videos:
    """The video processor of a family.

    Attributes:
      processor: its class in ``transformers``.
      sampling, of_clip, stamp, stamp_end: as in ``VideoSpec``.
      least, most: the class's default bounds on pixels (``size``).
      has_seconds: positions of text count seconds (``tokens_per_second`` of the tower's config).
    """

    processor: str
    sampling: str
    least: int
    most: int
    of_clip: bool = False
    stamp: str = ""
    stamp_end: str = ""
    has_seconds: bool = False

    def settings(self, folder: Path, config: Settings, frames: int) -> dict[str, Any]:
        """Returns the fields of ``VideoSpec`` by the folder's processor, and by the class's defaults.

        Args:
          folder: of the model, or of a run that keeps its small files.
          config: of the whole model.
          frames: of a temporal patch, by the tower.

        Raises:
          UserError: for another processor, and for values of it that are not followed.
        """
        processor = _read(folder)
        kind = str(processor.get("video_processor_type") or self.processor)
        if kind != self.processor:
            raise UserError(f"{folder}: videos processed by {kind} are not supported: those by {self.processor} are")
        size = processor.get("size") or {}
        least = int(processor.get("min_pixels") or size.get("shortest_edge") or self.least)
        most = int(processor.get("max_pixels") or size.get("longest_edge") or self.most)
        taken: dict[str, Any] = {
            "frames": frames, "fps": float(processor.get("fps") or 2.0), "sampling": self.sampling,
            "min_frames": int(processor.get("min_frames") or 4), "max_frames": int(processor.get("max_frames") or 768),
            "of_clip": self.of_clip, "stamp": self.stamp, "stamp_end": self.stamp_end, "min_pixels": least,
        }  # fmt: skip
        taken |= {"max_pixels": 0, "total_pixels": most} if self.of_clip else {"max_pixels": most}
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
        most = video.total_pixels if video.of_clip else video.max_pixels
        own = {key: value for key, value in _read(folder).items() if key not in ("min_pixels", "max_pixels")}
        return {
            "image_mean": list(mean), "image_std": list(std), **own, "video_processor_type": self.processor,
            "do_sample_frames": True, "fps": video.fps, "min_frames": video.min_frames, "max_frames": video.max_frames,
            "size": {"shortest_edge": video.min_pixels, "longest_edge": most}, "patch_size": image.patch_size,
            "merge_size": image.merge, "temporal_patch_size": video.frames,
        }  # fmt: skip

    def _cap(self, processor: Settings, config: Settings) -> dict[str, int]:
        """The further limit of a processor with ``cap_pixels_per_frame``."""
        vision = config["vision_config"]
        area = (int(vision["patch_size"]) * int(vision["spatial_merge_size"])) ** 2
        if self.of_clip:
            return {"max_pixels": int(processor.get("max_video_tokens") or 768) * area}
        return {"total_pixels": int(int(processor.get("max_video_tokens") or 128000) * area * 0.9)}


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


QWEN2_VIDEOS = Videos("Qwen2VLVideoProcessor", "stride", 128 * 28 * 28, 28 * 28 * 768)
QWEN2_5_VIDEOS = dataclasses.replace(QWEN2_VIDEOS, has_seconds=True)
QWEN3_VIDEOS = Videos(
    "Qwen3VLVideoProcessor", "ends", 128 * 32 * 32, 32 * 32 * 768, of_clip=True,
    stamp="<{seconds:.1f} seconds><|vision_start|>", stamp_end="<|vision_end|>",
)  # fmt: skip
