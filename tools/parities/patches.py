"""The patches of images, ours against those of each family's image processor in ``transformers``, before normalising.

Pictures of odd sizes go through both, from encoded bytes to the order in which the tower sees its patches: through the
processor's PIL backend where it has one, through torchvision's where that is the only one.
"""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from parities.batch import cut, travelling_order
from parities.models import let_torchvision_import
from parities.tiny.parts import QWEN, Case

PATCHES = 1  # levels of 255 that are allowed

KINDS = {
    "Lfm2VlImageProcessor": "lfm2_vl.image_processing_lfm2_vl",
    "CLIPImageProcessorPil": "clip.image_processing_pil_clip",
    "SiglipImageProcessorPil": "siglip.image_processing_pil_siglip",
    "Qwen2VLImageProcessorPil": "qwen2_vl.image_processing_pil_qwen2_vl",
    "Gemma3ImageProcessorPil": "gemma3.image_processing_pil_gemma3",
    "Glm4vImageProcessorPil": "glm4v.image_processing_pil_glm4v",
    "Glm46VImageProcessorPil": "glm46v.image_processing_pil_glm46v",
    "PaddleOCRVLImageProcessorPil": "paddleocr_vl.image_processing_pil_paddleocr_vl",
    "PixtralImageProcessorPil": "pixtral.image_processing_pil_pixtral",
    "Gemma4ImageProcessorPil": "gemma4.image_processing_pil_gemma4",
    "GotOcr2ImageProcessorPil": "got_ocr2.image_processing_pil_got_ocr2",
    "Idefics3ImageProcessorPil": "idefics3.image_processing_pil_idefics3",
    "SmolVLMImageProcessorPil": "smolvlm.image_processing_pil_smolvlm",
    "LlavaNextImageProcessorPil": "llava_next.image_processing_pil_llava_next",
    "LlavaOnevisionImageProcessorPil": "llava_onevision.image_processing_pil_llava_onevision",
}
# As published: of LFM2-VL-450M, llava-1.5-7b, llava-v1.6-mistral-7b, llava-onevision-qwen2-0.5b, Qwen2-VL-2B,
# Qwen2.5-VL-3B, Qwen3-VL-2B, gemma-3-4b, InternVL3-1B, gemma-4-31B, paligemma-3b-224, Mistral-Small-3.1, GLM-4.1V-9B,
# GLM-4.6V-Flash, Idefics3-8B, SmolVLM2-2.2B, PaddleOCR-VL.
PUBLISHED = {
    "lfm2_vl": {"patch_size": 16}, "llava": {"patch_size": 14, "image_size": 336},
    "llava_next": {"patch_size": 14, "image_size": 336}, "llava_onevision": {"patch_size": 14, "image_size": 384},
    "qwen2_vl": {"patch_size": 14}, "qwen2_5_vl": {"patch_size": 14, "window_size": 112},
    "qwen3_vl": {"patch_size": 16}, "qwen3_vl_moe": {"patch_size": 16}, "qwen3_5": {"patch_size": 16},
    "qwen3_5_moe": {"patch_size": 16}, "gemma4": {"patch_size": 16, "position_embedding_size": 10240},
    "paligemma": {"patch_size": 14, "image_size": 224},
    "gemma3": {"patch_size": 14, "image_size": 896}, "internvl": {"patch_size": 14, "image_size": 448},
    "glm4v": {"patch_size": 14, "image_size": 336}, "glm46v": {"patch_size": 14, "image_size": 336},
    "glm4v_moe": {"patch_size": 14, "image_size": 336}, "glm_ocr": {"patch_size": 14, "image_size": 336},
    "mistral3": {"patch_size": 14, "image_size": 1540}, "llava_pixtral": {"patch_size": 16, "image_size": 1024},
    "idefics3": {"patch_size": 14, "image_size": 364}, "smolvlm": {"patch_size": 14, "image_size": 384},
    "paddleocr_vl": {"patch_size": 14, "image_size": 384},
}  # fmt: skip


class Side(NamedTuple):
    """A family's two ways from a picture to patches."""

    family: str
    theirs: Any  # the image processor
    image: Any  # our ImageSpec


def pictures(seed: int, largest: int) -> Iterator[tuple[str, bytes, tuple[int, int]]]:
    """(what it is, PNG bytes, (height, width)) of pictures of many sizes and modes, edges and noise in each."""
    rng = np.random.default_rng(seed)
    sizes = [(1, 1), (3, 5), (37, 53), (64, 64), (30, 400), (411, 23), (97, 131), (9, 180), (112, 56)]
    sizes += [(largest, largest // 2 + 1), (largest // 3, largest + 7), (largest, largest)]
    for number, (height, width) in enumerate(sizes):
        y, x = np.mgrid[:height, :width]
        waves = [np.sin(x / rng.uniform(1, 40) + y / rng.uniform(1, 40)) * 90 + 128 for _ in range(3)]
        pixels = np.stack(waves, -1) + rng.normal(0, 30, (height, width, 3))
        pixels[height // 3 : height // 2, width // 4 :] = rng.integers(0, 2, 3) * 255
        picture = PIL.Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        modes = {2: "L", 4: "RGBA", 6: "P", 8: "LA"}
        if modes.get(number, "") in ("RGBA", "LA"):
            picture.putalpha(PIL.Image.fromarray((x * 255 // width).astype(np.uint8)))
        picture = picture.convert(modes.get(number, "RGB"))
        file = io.BytesIO()
        picture.save(file, "PNG")
        yield f"{picture.mode} {height} x {width}", file.getvalue(), (height, width)


def side_of(case: Case, folder: Path, published: bool = False) -> Side:
    """Saves a config and a processor as ``transformers`` does, and reads them as a run would.

    Args:
      published: with the sizes of the family's published models, not with the case's tiny ones.
    """
    let_torchvision_import()
    from jaxmm.hf.pretrained import image_settings, read_start
    from jaxmm.image_spec import ImageSpec

    config = case.config(np.random.default_rng(0))
    if published:
        vision = config.vision_config
        for key, value in PUBLISHED[case.family].items():
            is_pair = isinstance(getattr(vision, key), (list, tuple))
            setattr(vision, key, [value, value] if is_pair else value)
        if case.family == "gemma3":
            config.mm_tokens_per_image = 256
        if case.family == "smolvlm":
            config.scale_factor = 3
        if case.family == "llava_onevision":
            sides = range(384, 7 * 384, 384)
            config.image_grid_pinpoints = [[height, width] for height in sides for width in sides]
        if case.family == "llava_next":
            config.image_grid_pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    theirs = processor_of(case.family, config, published)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    theirs.save_pretrained(folder)
    start = read_start(str(folder), None, 2, 0)
    assert start is not None, "a config.json makes a model's folder"
    return Side(case.family, theirs, ImageSpec(**image_settings(start)))


def processor_of(family: str, config: Any, published: bool) -> Any:
    """The family's image processor, for the sizes of a config."""
    vision = config.vision_config
    patch = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
    given = getattr(vision, "image_size", 0)
    side = given if isinstance(given, int) else given[0]
    square = {"height": side, "width": side}
    if family == "lfm2_vl":
        least, most = (64, 256) if published else (4, 20)
        return _make(
            "Lfm2VlImageProcessor", encoder_patch_size=patch, downsample_factor=config.downsample_factor,
            min_image_tokens=least, max_image_tokens=most, do_convert_rgb=True,
            tile_size=512 if published else 3 * patch * config.downsample_factor,
        )  # fmt: skip
    if family == "llava" and vision.model_type == "clip_vision_model":
        return _make("CLIPImageProcessorPil", size={"shortest_edge": side}, crop_size=square)
    if family == "llava_next":
        sizes = config.image_grid_pinpoints
        return _make(
            "LlavaNextImageProcessorPil", size={"shortest_edge": side}, crop_size=square, image_grid_pinpoints=sizes
        )
    if family == "llava_onevision":
        return _make("LlavaOnevisionImageProcessorPil", size=square, image_grid_pinpoints=config.image_grid_pinpoints)
    if family in ("llava", "paligemma"):
        return _make("SiglipImageProcessorPil", size=square)
    if family in QWEN:
        merge, area = vision.spatial_merge_size, (patch * vision.spatial_merge_size) ** 2
        least, most = (4, 1280) if published else (4, 50)
        frames = vision.temporal_patch_size
        sides = {"patch_size": patch, "merge_size": merge, "temporal_patch_size": frames}
        if family.startswith("glm"):
            is_46v = family in ("glm46v", "glm_ocr")
            kind = "Glm46VImageProcessorPil" if is_46v else "Glm4vImageProcessorPil"
            area *= frames  # of all frames of a patch
            return _make(kind, **sides, size={"shortest_edge": least * area, "longest_edge": most * area})
        size = {"shortest_edge": least * area, "longest_edge": most * area}
        half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if not family.startswith("qwen2") else {}
        return _make("Qwen2VLImageProcessorPil", **sides, size=size, **half)
    if family == "paddleocr_vl":
        merge, area = vision.spatial_merge_size, (patch * vision.spatial_merge_size) ** 2
        size = {"shortest_edge": 188 * area, "longest_edge": 3600 * area} if published else {
            "shortest_edge": 4 * area, "longest_edge": 50 * area
        }  # fmt: skip
        return _make("PaddleOCRVLImageProcessorPil", patch_size=patch, merge_size=merge, size=size)
    if family == "gemma3":
        return _make(
            "Gemma3ImageProcessorPil", size=square, do_pan_and_scan=True, pan_and_scan_max_num_crops=4,
            pan_and_scan_min_crop_size=256 if published else 20, pan_and_scan_min_ratio_to_activate=1.2,
        )  # fmt: skip
    if family in ("idefics3", "smolvlm"):
        kind = {"idefics3": "Idefics3ImageProcessorPil", "smolvlm": "SmolVLMImageProcessorPil"}[family]
        return _make(kind, size={"longest_edge": 4 * side}, max_image_size={"longest_edge": side})
    if family in ("mistral3", "llava_pixtral"):
        token = patch * getattr(config, "spatial_merge_size", 1)  # PixtralProcessor gives its image processor this
        return _make("PixtralImageProcessorPil", patch_size=token, size={"longest_edge": side if published else 100})
    if family == "gemma4":
        pool, most = vision.pooling_kernel_size, 280 if published else 70
        return _make("Gemma4ImageProcessorPil", patch_size=patch, pooling_kernel_size=pool, max_soft_tokens=most)
    return _make("GotOcr2ImageProcessorPil", size=square, crop_to_patches=True, max_patches=12 if published else 5)


def _make(kind: str, **settings: Any) -> Any:
    return getattr(importlib.import_module(f"transformers.models.{KINDS[kind]}"), kind)(**settings)


def their_tiles(side: Side, data: bytes, is_alone: bool = True) -> list[np.ndarray]:
    """float (height, width, 3), from 0 to 255, of each tile that a picture becomes; ``is_alone``: in its document."""
    processor, patch, merge = side.theirs, side.image.patch_size, side.image.merge
    picture = PIL.Image.open(io.BytesIO(data))
    inputs = processor([picture] if is_alone else [[picture, picture]], return_tensors="np")
    values = np.asarray(inputs["pixel_values"], np.float64)
    if side.family == "lfm2_vl":
        tiles = []
        for tile, (rows, columns) in zip(values, np.asarray(inputs["spatial_shapes"]).tolist(), strict=True):
            blocks = tile[: rows * columns].reshape(rows, columns, patch, patch, 3)
            tiles.append(blocks.transpose(0, 2, 1, 3, 4).reshape(rows * patch, columns * patch, 3))
    elif side.family == "gemma4":
        columns, rows = (np.asarray(inputs["image_position_ids"])[0].max(0) + 1).tolist()
        blocks = values[0, : rows * columns].reshape(rows, columns, patch, patch, 3)
        tiles = [blocks.transpose(0, 2, 1, 3, 4).reshape(rows * patch, columns * patch, 3)]
    elif side.family == "paddleocr_vl":
        _, rows, columns = np.asarray(inputs["image_grid_thw"])[0].tolist()
        blocks = values.reshape(rows, columns, 3, patch, patch)
        tiles = [blocks.transpose(0, 3, 1, 4, 2).reshape(rows * patch, columns * patch, 3)]
    elif side.family in QWEN:
        _, rows, columns = np.asarray(inputs["image_grid_thw"])[0].tolist()
        groups = rows // merge, columns // merge, merge, merge
        blocks = values.reshape(*groups, 3, processor.temporal_patch_size, patch, patch)[:, :, :, :, :, 0]
        tiles = [blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * patch, columns * patch, 3)]
    else:
        tiles = list(values.reshape(-1, *values.shape[-3:]).transpose(0, 2, 3, 1))
    if not is_alone:
        tiles = tiles[:1]
    elif side.image.split and side.image.split.whole_first:
        tiles = tiles[1:] + tiles[:1]
    return [(tile * np.array(processor.image_std) + np.array(processor.image_mean)) * 255 for tile in tiles]


def picture_difference(side: Side, data: bytes, size: tuple[int, int], is_alone: bool = True) -> float:
    """The largest difference of a level, infinite where sizes differ; patches are compared as they travel."""
    from jaxmm.data.documents import Image
    from jaxmm.data.media.mosaic import beside_others
    from jaxmm.data.media.patches import patches

    tiles, spec = their_tiles(side, data, is_alone), side.image if is_alone else beside_others(side.image)
    ours, grid = patches(Image(data=data), spec, size)
    wanted = []
    for tile in tiles:
        rows, columns = tile.shape[0] // spec.patch_size, tile.shape[1] // spec.patch_size
        order, _ = travelling_order(rows, columns, spec.merge, spec.window)
        tile = tile[: rows * spec.patch_size, : columns * spec.patch_size]  # a tower does not see the rest
        wanted.append(cut(tile, spec.patch_size)[order])
    if ours.shape != np.concatenate(wanted).shape or grid != (rows, columns):
        return float("inf")
    return float(np.abs(ours - np.concatenate(wanted)).max())


def patch_difference(case: Case, folder: Path, published: bool = False, seed: int = 0) -> tuple[float, str]:
    """The largest difference over all pictures, and the picture that has it."""
    side = side_of(case, folder, published)
    worst, where = 0.0, ""
    for name, data, size in pictures(seed, 1200 if published else 160):
        if side.family in QWEN and max(size) / min(size) > 200:
            continue  # their processor raises
        difference = picture_difference(side, data, size)
        if side.image.split and side.image.split.beside:
            difference = max(difference, picture_difference(side, data, size, is_alone=False))
        if difference > worst:
            worst, where = difference, name
    return worst, where
