"""Rows of the benchmark: sizes from headers, and JPEGs to patches in rows. One core, one thread."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from benchmarks.row import Measured, Row, Settings
from jaxmm.data.documents import Image
from jaxmm.data.media import geometry
from jaxmm.data.media.patches import patches
from jaxmm.data.media.picture import ORIENTATION, image_size
from jaxmm.image_spec import ImageSpec
from jaxmm.measure.pictures import natural
from jaxmm.measure.timing import Figure, in_turns, rates

HEIGHT, WIDTH = 480, 640
SPEC = ImageSpec(patch_size=16, merge=2, min_pixels=64 * 64, max_pixels=224 * 224)
QUALITY = 75  # Pillow's and libjpeg's default


def encoded(picture: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def header_lengths(settings: Settings) -> Measured:
    """Sizes of files, a format at a time and all together, half of those that can hold EXIF with an orientation."""
    one_core()
    rng = np.random.default_rng(settings.seed)
    exif = PIL.Image.Exif()
    exif[ORIENTATION], exif[0x010F], exif[0x0110] = 6, "A maker of cameras", "Its model"
    kinds: dict[str, list[Image]] = {}
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        for i in range(settings.count(8)):
            options = {"exif": exif.tobytes()} if i % 2 and kind != "GIF" else {}
            path = Path(settings.folder) / f"{i}.{kind.lower()}"
            path.write_bytes(encoded(natural(HEIGHT, WIDTH, rng), kind, **options))
            kinds.setdefault(kind, []).append(Image(path=str(path)))
    kinds["all"] = [image for images in kinds.values() for image in images]
    again = settings.count(25)

    def sizes(images: list[Image]) -> Callable[[], None]:
        def read() -> None:
            for _ in range(again):
                for image in images:
                    image_size(image)

        return read

    seconds = in_turns({kind: sizes(images) for kind, images in kinds.items()}, settings.repeats)
    return Measured({kind: rates(seconds[kind], again * len(kinds[kind]), "images") for kind in kinds})


def jpeg_patches(settings: Settings) -> Measured:
    """Encoded bytes to patches in the row of a batch; beside it Pillow alone and transformers' fast processor."""
    one_core()
    rng = np.random.default_rng(settings.seed)
    pictures = [encoded(natural(HEIGHT, WIDTH, rng), "JPEG", quality=QUALITY) for _ in range(settings.count(24))]
    rows, columns = geometry.grid_size(HEIGHT, WIDTH, SPEC)
    size, count = (columns * SPEC.patch_size, rows * SPEC.patch_size), rows * columns
    row_NP = np.zeros((len(pictures) * count, SPEC.patch_size**2 * 3), np.uint8)

    def ours(fast: bool) -> Callable[[], None]:
        def run() -> None:
            for i, data in enumerate(pictures):
                there = row_NP[i * count : (i + 1) * count]
                patches(Image(data=data), SPEC, (HEIGHT, WIDTH), fast=fast, out=there)

        return run

    def pillow(draft: bool) -> Callable[[], None]:
        def run() -> None:
            for data in pictures:
                with PIL.Image.open(io.BytesIO(data)) as opened:
                    if draft:
                        opened.draft(None, size)
                    opened.resize(size, PIL.Image.Resampling.BICUBIC)

        return run

    things = {"fast": ours(True), "exact": ours(False), "Pillow draft": pillow(True), "Pillow": pillow(False)}
    notes = [
        f"{HEIGHT} x {WIDTH} to {size[1]} x {size[0]} (the area of 224 x 224, the aspect kept), "
        f"{sum(map(len, pictures)) / len(pictures) / 1000:.0f} kB a picture",
        "Pillow: decoded and resized, without patches",
    ]
    try:
        things["transformers"] = transformers_fast(pictures, count)
        notes.append("transformers: its Siglip2ImageProcessor on torchvision, one picture a call, without rows")
    except Exception as error:  # torchvision raises what it likes where it does not go with torch
        notes.append(f"transformers' fast processor cannot be run here: {type(error).__name__}: {error}")
    seconds = in_turns(things, settings.repeats)
    figures = {name: rates(each, len(pictures), "images") for name, each in seconds.items()}
    if theirs := seconds.get("transformers"):
        for name in ("fast", "exact"):
            ratio = [a / b for a, b in zip(theirs, seconds[name], strict=True)]
            figures[f"{name} / transformers"] = Figure(ratio, "")
    return Measured(figures, notes)


def transformers_fast(pictures: list[bytes], patches: int) -> Callable[[], None]:
    """The fast image processor of the same family of models, on the same pictures."""
    import torch

    # Where torch and torchvision are of different builds, its own operators are missing, and no import goes on without
    # their names. The processor uses none of them.
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from transformers.models.siglip2.image_processing_siglip2 import Siglip2ImageProcessor

    torch.set_num_threads(1)
    processor = Siglip2ImageProcessor(patch_size=SPEC.patch_size, max_num_patches=patches)

    def run() -> None:
        for data in pictures:
            with PIL.Image.open(io.BytesIO(data)) as opened:
                processor(opened.convert("RGB"), return_tensors="pt")

    run()
    return run


def one_core() -> None:
    """Keeps this process on one core, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


ROWS = [
    Row(
        "headers",
        f"files of {WIDTH} x {HEIGHT}, the spectrum of photographs; EXIF with an orientation in every other one",
        {"all": ">= 5000"},
        header_lengths,
    ),
    Row(
        "jpeg",
        f"JPEGs of {WIDTH} x {HEIGHT} at quality {QUALITY}, the spectrum of photographs",
        {"fast": ">= 600", "exact": ">= 330"},
        jpeg_patches,
    ),
]
