"""The image settings of a folder: those of its processor, and the limits of the sizes that pictures are resized to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxmm.errors import UserError
from jaxmm.json_text import parse_json

Limits = tuple[int, int]  # least and most pixels
PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
RESAMPLES = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers

# The defaults of transformers' image processors, for what a folder does not say.
_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_SQUARES = {
    "resample": 1, "size": {"longest_edge": 4 * 364}, "max_image_size": {"longest_edge": 364},
    "do_image_splitting": True, **_HALF,
}  # fmt: skip
_CROP = {"resample": 3, "size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True, **_CLIP}
_GLM = {"resample": 3, "size": {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 15000}, **_CLIP}
DEFAULTS: dict[str, dict[str, Any]] = {
    "Lfm2VlImageProcessor": {
        "resample": 2, "min_image_tokens": 64, "max_image_tokens": 256, "do_image_splitting": True, "min_tiles": 2,
        "max_tiles": 10, "tile_size": 512, "max_pixels_tolerance": 2.0, "use_thumbnail": True, **_HALF,
    },
    "Siglip2ImageProcessor": {"resample": 2, "max_num_patches": 256, **_HALF},
    "CLIPImageProcessor": _CROP,
    "LlavaImageProcessor": _CROP,
    "LlavaNextImageProcessor": {
        **_CROP, "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    },
    "LlavaOnevisionImageProcessor": {
        "resample": 3, "size": {"height": 384, "width": 384}, **_CLIP,
        "image_grid_pinpoints": [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)],
    },
    "SiglipImageProcessor": {"resample": 3, "size": {"height": 224, "width": 224}, **_HALF},
    "Qwen2VLImageProcessor": {
        "resample": 3, "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}, **_CLIP,
    },
    "Gemma3ImageProcessor": {"resample": 2, "size": {"height": 224, "width": 224}, **_HALF},
    "Glm4vImageProcessor": _GLM, "Glm46VImageProcessor": _GLM,
    "PaddleOCRVLImageProcessor": {
        "resample": 3, "size": {"shortest_edge": 384 * 384, "longest_edge": 1536 * 1536}, **_CLIP,
    },
    "PixtralImageProcessor": {"resample": 3, "size": {"longest_edge": 1024}, **_CLIP},
    "Gemma4ImageProcessor": {
        "resample": 3, "max_soft_tokens": 280, "do_normalize": False, "image_mean": [0.0] * 3, "image_std": [1.0] * 3,
    },
    "GotOcr2ImageProcessor": {
        "resample": 3, "size": {"height": 384, "width": 384}, "min_patches": 1, "max_patches": 12, **_CLIP,
    },
    "Idefics3ImageProcessor": _SQUARES,
    "SmolVLMImageProcessor": _SQUARES,
}  # fmt: skip


def processor_kind(processor: dict[str, Any], default: str) -> str:
    """Returns the ``transformers`` class of a folder's processor, one of DEFAULTS, whatever its backend.

    Args:
      default: for a folder that does not name it.

    Raises:
      UserError: if it is another class.
    """
    named = processor.get("image_processor_type") or default
    kind = str(named).removesuffix("Fast").removesuffix("Pil")
    if kind not in DEFAULTS:
        raise UserError(f"images processed by {named or 'nothing'} are not supported: those are {', '.join(DEFAULTS)}")
    return kind


def read_processor(folder: Path, default: str) -> dict[str, Any]:
    """Returns a folder's image settings, completed by the defaults of its kind of processor; {} if it has none.

    ``default``: its kind, if the folder does not name it.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if not path.exists():
            continue
        whole = json_object(path)
        settings = whole.get("image_processor", whole)
        if not isinstance(settings, dict):
            raise UserError(f"{path} has no settings in 'image_processor': download it again")
        if settings:
            return DEFAULTS[processor_kind(settings, default)] | settings
    return {}


def json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises UserError for a file that is not JSON, or not an object."""
    try:
        parsed = parse_json(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is no JSON: download it again") from error
    if not isinstance(parsed, dict):
        raise UserError(f"{path} is no JSON object: download it again")
    return parsed


def limits(asked: Limits, own: Limits) -> Limits:
    """The limits that apply: those asked for, else one's own, which give way if the two would cross."""
    least, most = asked[0] or own[0], asked[1] or own[1]
    return (least if asked[0] else min(least, most)), (most if asked[1] else max(least, most))
