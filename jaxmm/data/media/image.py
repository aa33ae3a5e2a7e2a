"""Images as a medium: what they take of a row, and how their patches fill it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from jaxmm.batch import Batch, Stream
from jaxmm.data.documents import Image
from jaxmm.data.media import geometry, mosaic
from jaxmm.data.media.extents import Extent, Extents
from jaxmm.data.media.medium import Array, Filled, Inner, Item, Medium, Settings, Space
from jaxmm.data.media.patches import Edges, fill
from jaxmm.data.media.picture import FORMATS, MAX_PIXELS, MAX_SIDE, image_size
from jaxmm.image_spec import ImageSpec, SplitSpec

IMAGE = 0

# Up to four passes over data teach about as much as new data (Muennighoff et al., 2023). In later passes over a small
# set a model memorises the pictures, so jitter begins there.
JITTER_FROM = 4


class ImageMedium(Medium):
    """Pictures, each cut into one tile of patches or several. Its extent is in pixels, EXIF orientation applied."""

    name, part, kind, is_seen = "image", Image, IMAGE, True
    budgets, stream = ("patches", "items"), "patches"
    advice: ClassVar[Mapping[str, str]] = {
        "missing": "an image's file is not there: set config.data.media_dir to the folder that its path counts from, "
        "or, where the column is no picture, config.data.columns=image=",
        "no file": "an image's path names a folder, a pipe, a socket or a device",
        "unreadable": f"an image's bytes are no picture of {', '.join(FORMATS)}",
        "truncated": "an image's file ends early: download or write it again",
        "empty": "an image's file has no bytes",
        "too large": f"an image has more than {MAX_PIXELS:,} pixels, a side of more than {MAX_SIDE:,}, a file of more "
        "than 1 GiB, or scans that take too long: make it smaller",
        "changed": "an image has another size than when it was prepared: touch its data file and prepare again",
    }

    def extent(self, part: Image) -> Extent:
        return Extent(*image_size(part))

    def packed(self, part: Image) -> dict[str, Any]:
        return {"path": part.path} if part.path else {"data": part.data}

    def unpacked(self, packed: Mapping[str, Any]) -> Image:
        return Image(**packed)

    def is_packed(self, packed: Mapping[str, Any]) -> bool:
        return bool(packed) and not packed.keys() - {"data", "path"}

    def units(self, extents: Extents, spec: ImageSpec) -> Array:
        return _by_company(_units, extents, spec)

    def group(self, spec: ImageSpec) -> int:
        return spec.merge**2

    def soft_tokens(self, units: Array, extents: Extents, spec: ImageSpec) -> Array:
        if spec.newline:
            return _by_company(_ended_tokens, extents, spec)
        extra = spec.extra * _tiles(extents, spec) if spec.extra else 0
        return (units - extra) // spec.merge**2

    def needs(self, units: Array, extents: Extents, spec: ImageSpec) -> dict[str, Array]:
        return {"patches": units, "items": _by_company(_tiles, extents, spec)}

    def has_inner(self, spec: ImageSpec) -> bool:
        return bool(spec.row_break) or (spec.split is not None and spec.split.has_text)

    def inner_keys(self, units: Array, extents: Extents, spec: ImageSpec) -> tuple[Array, ...]:
        if not spec.split:
            return super().inner_keys(units, extents, spec)
        return geometry.tile_grid(extents.height, extents.width, spec)  # few, where sizes are many

    def inner(self, units: int, extent: Extent, spec: ImageSpec) -> list[Inner]:
        split = spec.split
        if split is None:
            rows, columns = (side // spec.merge for side in geometry.one_grid(extent.height, extent.width, spec))
            return [Inner(row * columns, spec.row_break) for row in range(1, rows)]
        tiling = geometry.one_tiling(extent.height, extent.width, spec)
        texts = _between(tiling, split) if tiling.squares else [split.alone]
        grids = tiling.grids
        sizes = [math.prod(grids[tile]) // spec.merge**2 for tile in _reading_order(tiling, spec)]
        starts = [end - size for end, size in zip(itertools.accumulate(sizes), sizes, strict=True)]
        return [Inner(at, text) for at, text in zip(starts, texts, strict=True)]

    def has_intro(self, extents: Extents | Extent, spec: ImageSpec) -> Array:
        if spec.split is None or not spec.split.intro:
            return super().has_intro(extents, spec)
        return geometry.tile_count(extents.height, extents.width, spec) > 1

    def too_large(self, item: Item, tokens: int, budgets: Any, spec: ImageSpec) -> str:
        tiles = f"{item.needs['items']} tiles, " if spec.has_tiles else ""
        advice = (
            "raise these, or leave such documents out by config.data.long_documents=drop"
            if spec.has_tiles
            else "raise these or lower config.image.max_pixels"
        )
        return (
            f"an image of {tiles}{item.units} patches ({tokens} tokens), more than a row holds (config.patch_budget "
            f"{budgets.patches}, config.seq_len {budgets.tokens}): {advice}"
        )

    def empty(self, rows: int, budgets: Any, spec: ImageSpec, widths: Mapping[str, int]) -> dict[str, Any]:
        B, N, M = rows, budgets.patches, budgets.items
        values = np.zeros((B, N, spec.patch_bytes), np.uint8)
        patches = Stream(values, np.zeros((B, N, 3), np.int32), np.zeros((B, N), np.int32))
        return {"patches": patches, "grids_BM3": np.zeros((B, M, 3), np.int32)}

    def fill(self, space: Space, item: Item, spec: ImageSpec, settings: Settings) -> Filled:
        patches, b = space.batch.patches, space.b
        if item.extent.together > 1:
            spec = mosaic.beside_others(spec)
        tiling = geometry.one_tiling(item.extent.height, item.extent.width, spec)
        grids = tiling.grids
        sizes = [rows * columns + spec.extra for rows, columns in grids]
        first = space.taken.get("patches", 0)
        starts = [first + end - size for end, size in zip(itertools.accumulate(sizes), sizes, strict=True)]
        there = [slice(start, start + size - spec.extra) for start, size in zip(starts, sizes, strict=True)]
        frames = [frames_of(patches.values[b, tile], spec) for tile in there]
        out = [places[0] for places in frames]
        fill(out, item.part, spec, item.extent[:2], edges_of(item, settings), fast=settings.fast_decode)
        for places in frames:
            for other in places[1:]:  # a still picture is as many equal frames
                other[...] = places[0]
        write_tiles(space, starts, grids, spec)
        if spec.newline:
            firsts = (np.array(starts) - first) // spec.merge**2
            rows, mixture = mosaic.reading(firsts, *item.extent[:2], tiling.rows, tiling.columns, spec)
            return Filled(rows, (1, len(rows), 1), mixture=mixture)
        rows = np.concatenate([
            (starts[tile] - first) // spec.merge**2 + in_reading_order(grids[tile], spec)
            for tile in _reading_order(tiling, spec)
        ])  # fmt: skip
        if spec.bidirectional:  # each tile in itself
            side = grids[-1][0] // spec.merge, grids[-1][1] // spec.merge
            return Filled(rows, (len(grids), *side), apart=True)
        # Tiles of several sizes make one column: text of one axis asks only how many soft tokens there are.
        columns = grids[0][1] // spec.merge if len(set(grids)) == 1 else 1
        return Filled(rows, (1, len(rows) // columns, columns))

    def clear(self, space: Space) -> None:
        super().clear(space)
        space.batch.grids_BM3[space.b, space.taken.get("items", 0) :] = 0

    def array(self, batch: Batch) -> Stream:
        return batch.patches

    def used(self, batch: Batch) -> dict[str, np.ndarray]:
        return super().used(batch) | {"items": (batch.grids_BM3[..., 0] > 0).sum(1)}


def _reading_order(tiling: geometry.Tiling, spec: ImageSpec) -> list[int]:
    """The tiles of a picture, by their numbers as they travel, in the order in which their soft tokens are read."""
    squares = list(range(tiling.squares))
    return [tiling.squares, *squares] if spec.split and spec.split.whole_first else [*squares, tiling.squares]


def _between(tiling: geometry.Tiling, split: SplitSpec) -> list[str]:
    """What stands before each tile of a picture that is split, in reading order."""
    numbers = list(itertools.product(range(1, tiling.rows + 1), range(1, tiling.columns + 1)))
    texts = [split.square.format(row=row, column=column) for row, column in numbers]
    texts[1:] = [split.between + text for text in texts[1:]]
    if split.whole_first:
        return ["", split.whole + texts[0], *texts[1:]]
    ends = ["", *[split.row_end if column == tiling.columns else "" for _, column in numbers]]
    return [end + text for end, text in zip(ends, [*texts, split.whole], strict=True)]


def frames_of(values: np.ndarray, spec: ImageSpec) -> list[np.ndarray]:
    """The places of each frame in the patches (N, spec.patch_bytes) of a tile: (N, patch_size**2 * 3) each, views."""
    size = spec.patch_size**2 * 3
    return [values[:, start : start + size] for start in range(0, spec.patch_bytes, size)]


def write_tiles(space: Space, starts: Sequence[int], grids: Sequence[tuple[int, int]], spec: ImageSpec) -> None:
    """Writes all of some tiles but their pixels: positions and segments of their patches, and their grids.

    Args:
      starts: the first patch position of each.
      grids: (rows, columns) of patches of each.
    """
    patches, b = space.batch.patches, space.b
    for number, (start, grid) in enumerate(zip(starts, grids, strict=True), start=space.taken.get("items", 0)):
        there = slice(start, start + grid[0] * grid[1])
        patches.positions[b, there, 1:] = _patch_positions(*grid, spec)
        patches.segments[b, there] = number + 1
        space.batch.grids_BM3[b, number] = 1, *grid
        learned = slice(there.stop, there.stop + spec.class_tokens)
        patches.positions[b, learned, 1] = -1
        patches.positions[b, learned, 2] = np.arange(spec.class_tokens)
        patches.segments[b, learned] = number + 1


def in_reading_order(grid: tuple[int, int], spec: ImageSpec) -> np.ndarray:
    """int64 (soft tokens,): the place of each soft token of a tile among those that travel."""
    return np.argsort(geometry.group_order(grid[0] // spec.merge, grid[1] // spec.merge, spec))


def _by_company(count: Callable[[Extents, ImageSpec], Array], extents: Extents, spec: ImageSpec) -> Array:
    """Counts something of images, of which those that share a document with others may be taken otherwise."""
    alone = count(extents, spec)
    if (beside := mosaic.beside_others(spec)) is spec:
        return alone
    counts = np.asarray(np.where(extents.together > 1, count(extents, beside), alone))
    return counts if counts.ndim else int(counts)


def _units(extents: Extents, spec: ImageSpec) -> Array:
    """Returns how many patch positions images take."""
    rows, columns = geometry.grid_size(extents.height, extents.width, spec)
    patches = rows * columns + spec.extra
    return patches + (_tiles(extents, spec) - 1) * spec.tile_patches if spec.has_tiles else patches


def _ended_tokens(extents: Extents, spec: ImageSpec) -> Array:
    """Returns how many soft tokens images have whose rows the model's vector ends."""
    height, width = extents.height, extents.width
    return mosaic.soft_tokens(height, width, *geometry.tile_grid(height, width, spec), spec)


def _tiles(extents: Extents, spec: ImageSpec) -> Array:
    """Returns how many tiles images become."""
    if spec.has_tiles:
        return geometry.tile_count(extents.height, extents.width, spec)
    return 0 * np.asarray(extents.kind, np.int64) + 1


@functools.lru_cache(maxsize=4096)
def _patch_positions(rows: int, columns: int, spec: ImageSpec) -> np.ndarray:
    return geometry.patch_positions(rows, columns, spec)


def edges_of(item: Item, settings: Settings) -> Edges | None:
    """Returns random edges: different in each pass over an image, but the same in whichever process loads it."""
    if not settings.jitter or item.epoch < JITTER_FROM:
        return None
    rng = np.random.default_rng((settings.seed, item.source, item.number, item.epoch))
    return Edges(*rng.uniform(-settings.jitter, settings.jitter, 4).tolist())
