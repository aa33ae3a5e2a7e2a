"""Feature vectors as a medium: the output of a vision tower for a picture, ready-made in ``.npy`` files.

As for an image, preparing and planning read only a file's header; the loader reads the vectors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import IO, Any, ClassVar

import numpy as np

from jaxmm.batch import Batch, ImageSpec, Stream
from jaxmm.data import files
from jaxmm.data.documents import Features
from jaxmm.data.media import geometry
from jaxmm.data.media.extents import Extent, Extents
from jaxmm.data.media.medium import Array, BadMedia, Filled, Item, Medium, Settings, Space
from jaxmm.data.media.opening import opened_file
from jaxmm.errors import UserError

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class FeaturesMedium(Medium):
    """Vectors of one width D, which is their kind in the index: a grid of them, or (n, 1) in tower order."""

    name, part, kind = "features", Features, 1
    budgets, stream = ("features",), "features"
    advice: ClassVar[Mapping[str, str]] = {
        "no features": "a file of feature vectors must be a .npy of floats, (rows, columns, D) or (n, D)",
        "not finite": "a file of feature vectors holds a number that is not finite",
    }

    def has(self, kinds: Any) -> Any:
        return kinds > 0

    def extent(self, part: Features) -> Extent:
        *grid, width = _header(part)
        return Extent(grid[0], grid[1] if len(grid) == 2 else 1, width)

    def packed(self, part: Features) -> dict[str, Any]:
        return ({"path": part.path} if part.path else {"data": part.data}) | {"features": True}

    def is_packed(self, packed: Mapping[str, Any]) -> bool:
        return "features" in packed

    def units(self, extents: Extents, spec: ImageSpec) -> Array:
        height, width, merge = extents.height, extents.width, spec.merge
        # Vectors in tower order, (n, 1), need whole groups; a grid needs whole squares.
        uneven = np.where(width == 1, height % merge**2, height % merge + width % merge) > 0
        if uneven.any():
            which = int(np.argmax(uneven))
            raise UserError(
                f"{extents.source} has feature vectors of {height[which]} x {width[which]}, which do not merge by "
                f"{merge} x {merge}: set config.image.merge to a number that divides them"
            )
        return height * width

    def group(self, spec: ImageSpec) -> int:
        return spec.merge**2

    def too_large(self, item: Item, tokens: int, budgets: Any, spec: ImageSpec) -> str:
        return (
            f"{item.units} feature vectors for an image ({tokens} tokens), more than a row holds (config.seq_len "
            f"{budgets.tokens}, {budgets.targets} targets): raise config.seq_len, or config.target_budget if it is set"
        )

    def empty(self, rows: int, budgets: Any, spec: ImageSpec, width: int) -> dict[str, Any]:
        B, F = rows, budgets.features
        if not F:
            return {"features": None}
        values = np.zeros((B, F, width), np.float32)
        return {"features": Stream(values, np.zeros((B, F, 1), np.int32), np.zeros((B, F), np.int32))}

    def fill(self, space: Space, item: Item, spec: ImageSpec, settings: Settings) -> Filled:
        stream, b = space.batch.features, space.b
        assert stream is not None, "a source with features has a budget for them"
        first = space.taken.get("features", 0)
        there = slice(first, first + item.units)
        stream.values[b, there] = read_vectors(item.part, spec, item.extent)
        stream.positions[b, there, 0] = np.arange(item.units)
        stream.segments[b, there] = space.media.get("features", 0) + 1
        height, width, merge = item.extent.height, item.extent.width, spec.merge
        grid = (height // merge, width // merge) if width > 1 else (height // merge**2, 1)
        return Filled(np.arange(item.soft_tokens), (1, *grid))

    def array(self, batch: Batch) -> Stream | tuple[()]:
        return batch.features or ()


def feature_widths(image_kind_I: np.ndarray) -> list[int]:
    """Returns the widths of a source's feature vectors, each once, ascending."""
    return np.unique(image_kind_I[image_kind_I > 0]).tolist()


def read_vectors(features: Features, spec: ImageSpec, known: Extent) -> np.ndarray:
    """Reads float32 (n, D) vectors in tower order.

    Args:
      known: the extent that was recorded when it was prepared.

    Raises:
      BadMedia: if the file cannot be used, or has changed since.
    """
    if FeaturesMedium().extent(features) != known:
        raise BadMedia("changed")
    try:
        with opened_file(features) as file:
            vectors = np.load(file, allow_pickle=False)
    except MemoryError as error:
        raise BadMedia("too large") from error
    except (OSError, ValueError, EOFError) as error:
        raise BadMedia("truncated") from error  # its header was whole
    if vectors.ndim == 3:
        in_groups = dataclasses.replace(spec, window=0)  # soft tokens of ready-made features are in reading order
        row, column = geometry.patch_positions(vectors.shape[0], vectors.shape[1], in_groups).T
        vectors = vectors[row, column]
    with np.errstate(over="ignore"):
        vectors = np.asarray(vectors, np.float32)
    if not np.isfinite(vectors).all():
        raise BadMedia("not finite")
    return vectors


def _header(features: Features) -> tuple[int, ...]:
    """Returns the shape in the header. Raises BadMedia if it cannot be used or the file is shorter than it says."""
    try:
        with opened_file(features) as file:
            shape, kind = _read_header(file)
            start, size = file.tell(), file.seek(0, 2)
    except files.NoFile as error:
        raise BadMedia("no file") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadMedia("missing") from error
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise BadMedia("no features") from error
    most = np.iinfo(np.int32).max
    if kind not in (np.float16, np.float32, np.float64) or len(shape) not in (2, 3) or not 0 < math.prod(shape) < most:
        raise BadMedia("no features")
    if size - start < math.prod(shape) * kind.itemsize:
        raise BadMedia("truncated")
    return shape


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], Any]:
    version = np.lib.format.read_magic(file)
    shape, _, kind = _HEADERS[version](file)
    return shape, kind
