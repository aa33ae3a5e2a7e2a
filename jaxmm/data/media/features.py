"""Feature vectors as a medium: the output of a vision tower for a picture, ready-made in ``.npy`` files.

As for an image, preparing and planning read only a file's header; the loader reads the vectors. Those of clips are in
``clip_features.py``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import IO, Any, ClassVar

import numpy as np

from jaxmm.batch import Batch, Stream
from jaxmm.data import files
from jaxmm.data.documents import Features
from jaxmm.data.media import geometry
from jaxmm.data.media.extents import Extent, Extents
from jaxmm.data.media.medium import Array, BadMedia, Filled, Item, Medium, Settings, Space
from jaxmm.data.media.opening import opened_file
from jaxmm.errors import UserError
from jaxmm.image_spec import ImageSpec

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class FeaturesMedium(Medium):
    """Vectors of one width D, which is their kind in the index: a grid of them, or (n, 1) in tower order."""

    name, kind = "features", 1
    part: ClassVar[type] = Features
    budgets, stream = ("features",), "features"
    dims: ClassVar[tuple[int, ...]] = (2, 3)  # that an array may have
    advice: ClassVar[Mapping[str, str]] = {
        "no features": "a file of feature vectors must be a .npy of floats, (rows, columns, D) or (n, D)",
        "not finite": "a file of feature vectors holds a number that is not finite",
    }

    @property
    def modality(self) -> str:
        return self.made_of or "image"

    def has(self, kinds: Any) -> Any:
        return kinds > 0

    def widths(self, kinds: np.ndarray) -> list[int]:
        """The widths D of its media among some kinds of the index, each once, ascending."""
        return sorted(abs(int(kind) - self.kind) + 1 for kind in np.unique(kinds[self.has(kinds)]))

    def extent(self, part: Any) -> Extent:
        *grid, width = read_header(part, self.dims)
        return Extent(grid[0], grid[1] if len(grid) == 2 else 1, width)

    def packed(self, part: Any) -> dict[str, Any]:
        return ({"path": part.path} if part.path else {"data": part.data}) | {"features": True}

    def is_packed(self, packed: Mapping[str, Any]) -> bool:
        return "features" in packed

    def units(self, extents: Extents, spec: ImageSpec) -> Array:
        height, width, merge = extents.height, extents.width, spec.merge
        if spec.split:
            raise UserError(
                f"{extents.source} has feature vectors in place of images, but this model splits images into tiles: "
                f"give pictures"
            )
        if spec.row_break:
            raise UserError(
                f"{extents.source} has feature vectors in place of images, but this model has {spec.row_break} between "
                f"the rows of an image: give pictures"
            )
        # Vectors in tower order, (n, 1), need whole groups; a grid needs whole squares.
        uneven = np.where(width == 1, height % merge**2, height % merge + width % merge) > 0
        check_even(uneven, extents, spec)
        return height * width

    def group(self, spec: ImageSpec) -> int:
        return spec.merge**2

    def too_large(self, item: Item, tokens: int, budgets: Any, spec: ImageSpec) -> str:
        return (
            f"{item.units} feature vectors for an image ({tokens} tokens), more than a row holds (config.seq_len "
            f"{budgets.tokens}, {budgets.targets} targets): raise config.seq_len, or config.target_budget if it is set"
        )

    def empty(self, rows: int, budgets: Any, spec: ImageSpec, widths: Mapping[str, int]) -> dict[str, Any]:
        return {"features": empty_stream(rows, budgets.features, widths.get("features", 0))}

    def fill(self, space: Space, item: Item, spec: ImageSpec, settings: Settings) -> Filled:
        stream, b = self.array(space.batch), space.b
        assert isinstance(stream, Stream), "a source with features has a budget for them"
        first = space.taken.get(self.stream, 0)
        there = slice(first, first + item.units)
        stream.values[b, there] = self.read(item, spec, settings)
        stream.positions[b, there, 0] = np.arange(item.units)
        stream.segments[b, there] = space.media.get(self.stream, 0) + 1
        return self.filled(item, spec)

    def read(self, item: Item, spec: ImageSpec, settings: Settings) -> np.ndarray:
        """Its vectors in the order in which they travel: float32 (units, D). Raises as ``fill``."""
        return read_vectors(item.part, spec, item.extent)

    def filled(self, item: Item, spec: ImageSpec) -> Filled:
        """Where its soft tokens stand: in reading order."""
        height, width, merge = item.extent.height, item.extent.width, spec.merge
        grid = (height // merge, width // merge) if width > 1 else (height // merge**2, 1)
        return Filled(np.arange(item.soft_tokens), (1, *grid))

    def array(self, batch: Batch) -> Stream | tuple[()]:
        return batch.features or ()


def check_even(uneven: np.ndarray, extents: Extents, spec: ImageSpec) -> None:
    """Raises UserError for the first of some grids of vectors that do not merge."""
    if uneven.any():
        which = int(np.argmax(uneven))
        raise UserError(
            f"{extents.source} has feature vectors of {extents.height[which]} x {extents.width[which]}, which do not "
            f"merge by {spec.merge} x {spec.merge}: set config.image.merge to a number that divides them"
        )


def empty_stream(rows: int, count: int, width: int) -> Stream | None:
    """A stream of so many vectors a row, without content; None where there are none, or no source has a width."""
    if not (count and width):
        return None
    values = np.zeros((rows, count, width), np.float32)
    return Stream(values, np.zeros((rows, count, 1), np.int32), np.zeros((rows, count), np.int32))


def read_vectors(features: Features, spec: ImageSpec, known: Extent) -> np.ndarray:
    """Reads float32 (n, D) vectors in tower order.

    Args:
      known: the extent that was recorded when it was prepared.

    Raises:
      BadMedia: if the file cannot be used, or has changed since.
    """
    vectors = read_array(FeaturesMedium(), features, known)
    return in_groups(vectors, spec) if vectors.ndim == 3 else vectors


def in_groups(vectors: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """Lays vectors (..., rows, columns, D) out in merge groups, in reading order: (..., rows * columns, D)."""
    unwindowed = dataclasses.replace(spec, window=0)  # soft tokens of ready-made features are in reading order
    row, column = geometry.patch_positions(vectors.shape[-3], vectors.shape[-2], unwindowed).T
    return vectors[..., row, column, :]


def read_array(medium: FeaturesMedium, part: Any, known: Extent) -> np.ndarray:
    """Reads a file of vectors as float32, of the shape that it has. Raises as ``read_vectors``."""
    if medium.extent(part) != known:
        raise BadMedia("changed")
    try:
        with opened_file(part) as file:
            vectors = np.load(file, allow_pickle=False)
    except MemoryError as error:
        raise BadMedia("too large") from error
    except (OSError, ValueError, EOFError) as error:
        raise BadMedia("truncated") from error  # its header was whole
    with np.errstate(over="ignore"):
        vectors = np.asarray(vectors, np.float32)
    if not np.isfinite(vectors).all():
        raise BadMedia("not finite")
    return vectors


def read_header(part: Any, dims: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape in the header. Raises BadMedia if it cannot be used or the file is shorter than it says."""
    try:
        with opened_file(part) as file:
            shape, kind = _read_header(file)
            start, size = file.tell(), file.seek(0, 2)
    except files.NoFile as error:
        raise BadMedia("no file") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadMedia("missing") from error
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise BadMedia("no features") from error
    most = np.iinfo(np.int32).max
    if kind not in (np.float16, np.float32, np.float64) or len(shape) not in dims or not 0 < math.prod(shape) < most:
        raise BadMedia("no features")
    if size - start < math.prod(shape) * kind.itemsize:
        raise BadMedia("truncated")
    return shape


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], Any]:
    version = np.lib.format.read_magic(file)
    shape, _, kind = _HEADERS[version](file)
    return shape, kind
