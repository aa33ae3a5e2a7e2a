"""Compares the patches that jaxmm cuts with those of each family's image processor in ``transformers``.

The processor's own file is read as a run reads it: sizes, order and filter are what comes out of the folder.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from parity_models import PATCH, case, let_torchvision_import

# (height, width) of pictures: ordinary, long, high, as large as the limit and beyond it, smaller than a soft token.
SIZES = ((48, 64), (33, 50), (57, 401), (300, 21), (40, 40), (223, 211), (3, 5))


class Patches(NamedTuple):
    """What a processor makes of a picture: bytes as floats (rows * columns, patch_size**2 * 3), in rows of the grid."""

    values: np.ndarray
    grid: tuple[int, int]


class Processor(NamedTuple):
    """A family's image processor.

    Attributes:
      case: of ``parity_models``, whose model it goes with.
      make: the processor.
      patches: runs it on a picture.
    """

    case: str
    make: Callable[[], Any]
    patches: Callable[[Any, PIL.Image.Image], Patches]


def picture(height: int, width: int, rng: np.random.Generator) -> PIL.Image.Image:
    """Smooth colours under noise."""
    small = rng.integers(0, 256, (max(2, height // 9), max(2, width // 9), 3)).astype(np.uint8)
    smooth = PIL.Image.fromarray(small).resize((width, height), PIL.Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth).astype(int) + rng.integers(-20, 21, (height, width, 3))
    return PIL.Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _bytes(values: Any, processor: Any) -> np.ndarray:
    """Undoes the normalisation of (..., 3)."""
    return (np.asarray(values, np.float64) * processor.image_std + processor.image_mean) * 255


def _of_square(processor: Any, shown: PIL.Image.Image) -> Patches:
    """Of a processor that gives one picture, channels first."""
    pixels = np.asarray(processor(shown, return_tensors="np")["pixel_values"][0])
    pixels = _bytes(pixels.transpose(1, 2, 0), processor)
    rows, columns = pixels.shape[0] // PATCH, pixels.shape[1] // PATCH
    blocks = pixels.reshape(rows, PATCH, columns, PATCH, 3).transpose(0, 2, 1, 3, 4)
    return Patches(blocks.reshape(rows * columns, -1), (rows, columns))


def _of_qwen(processor: Any, shown: PIL.Image.Image) -> Patches:
    """Of one that gives patches by merge groups, each with two equal frames."""
    found = processor(shown, return_tensors="np")
    _, rows, columns = (int(n) for n in found["image_grid_thw"][0])
    values = np.asarray(found["pixel_values"]).reshape(-1, 3, 2, PATCH, PATCH)
    frames = _bytes(values.transpose(0, 2, 3, 4, 1), processor).reshape(len(values), 2, -1)
    if not np.array_equal(frames[:, 0], frames[:, 1]):
        raise AssertionError("the frames of a still picture differ")
    merge = processor.merge_size
    order = np.arange(rows * columns).reshape(rows // merge, merge, columns // merge, merge).transpose(0, 2, 1, 3)
    raster = np.empty_like(frames[:, 0])
    raster[order.reshape(-1)] = frames[:, 0]
    return Patches(raster, (rows, columns))


def _of_naflex(processor: Any, shown: PIL.Image.Image) -> Patches:
    found = processor(shown, return_tensors="pt")
    rows, columns = (int(n) for n in found["spatial_shapes"][0])
    values = np.asarray(found["pixel_values"][0])[: rows * columns]
    pixels = _bytes(values.reshape(len(values), -1, 3), processor)
    return Patches(pixels.reshape(len(values), -1), (rows, columns))


def _clip() -> Any:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": 4 * PATCH}, crop_size={"height": 4 * PATCH, "width": 4 * PATCH})


def _siglip() -> Any:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    return SiglipImageProcessorPil(size={"height": 5 * PATCH, "width": 5 * PATCH})


def _qwen() -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    size = {"shortest_edge": 16 * PATCH**2, "longest_edge": 400 * PATCH**2}
    return Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=2, size=size)


def _gemma() -> Any:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    return Gemma3ImageProcessorPil(size={"height": 4 * PATCH, "width": 4 * PATCH}, do_pan_and_scan=False)


def _lfm2_vl() -> Any:
    from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

    return Lfm2VlImageProcessor(
        do_image_splitting=False, min_tiles=1, max_tiles=1, use_thumbnail=False, downsample_factor=2,
        encoder_patch_size=PATCH, min_image_tokens=16, max_image_tokens=100, tile_size=16 * PATCH,
    )  # fmt: skip


PROCESSORS: Mapping[str, Processor] = {
    "lfm2_vl": Processor("siglip2 + llama", _lfm2_vl, _of_naflex),
    "llava, clip": Processor("llava, clip", _clip, _of_square),
    "llava, siglip": Processor("llava, siglip", _siglip, _of_square),
    "qwen2_5_vl": Processor("qwen2.5-vl", _qwen, _of_qwen),
    "qwen3_vl": Processor("qwen3-vl", _qwen, _of_qwen),
    "gemma3": Processor("gemma3", _gemma, _of_square),
}


def patch_difference(name: str, folder: Path, seed: int = 0) -> float:
    """The largest difference of a byte, over all pictures of ``SIZES``.

    Raises:
      AssertionError: if a grid is another.
    """
    from jaxmm.batch import ImageSpec
    from jaxmm.data import media
    from jaxmm.data.documents import Image
    from jaxmm.hf.start import image_settings, read_start

    let_torchvision_import()
    family = PROCESSORS[name]
    processor, rng = family.make(), np.random.default_rng(seed)
    config = case(family.case).config(np.random.default_rng(seed))
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    processor.save_pretrained(folder)
    start = read_start(str(folder), None, 2, 8)
    if start is None:
        raise AssertionError(f"{folder} is no model")
    spec, worst = ImageSpec(**image_settings(start)), 0.0
    for size in SIZES:
        shown, file = picture(*size, rng), io.BytesIO()
        shown.save(file, "PNG")
        values, grid = media.patches(Image(data=file.getvalue()), spec, size)
        theirs = family.patches(processor, shown)
        if grid != theirs.grid:
            raise AssertionError(f"{name}: a picture of {size} has the grid {grid}, theirs {theirs.grid}")
        places = media.patch_positions(*grid, spec)
        order = places[:, 0] * grid[1] + places[:, 1]
        worst = max(worst, float(np.abs(values - theirs.values[order]).max()))
    return worst
