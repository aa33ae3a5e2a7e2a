"""Ready-made media: feature vectors in ``.npy`` files, and what the index knows of any medium.

A file's header is all that preparing and planning need, as of an image; vectors are read in the loader.
"""

from __future__ import annotations

import dataclasses
import math
from typing import IO, Any, NamedTuple

import numpy as np

from jaxmm.batch import ImageSpec
from jaxmm.data import files
from jaxmm.data.documents import Features, Media, Tokens
from jaxmm.data.media import geometry, image
from jaxmm.data.media.image import BadMedia

IMAGE, TOKENS = 0, -1  # kinds of media in the index; what is above 0 is the width of feature vectors

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Extent(NamedTuple):
    """What the index knows of a medium: see ``prepared.Columns``."""

    height: int
    width: int
    kind: int = IMAGE


def extent(medium: Media) -> Extent:
    """Returns the extent of a medium, from its header.

    Raises:
      BadMedia: if it cannot be used.
    """
    if isinstance(medium, Tokens):
        return Extent(1, len(medium.ids), TOKENS)
    if isinstance(medium, Features):
        *grid, width = _header(medium)
        return Extent(grid[0], grid[1] if len(grid) == 2 else 1, width)
    return Extent(*image.image_size(medium))


def feature_widths(image_kind_I: np.ndarray) -> list[int]:
    """The widths of the feature vectors in a source, each once."""
    return np.unique(image_kind_I[image_kind_I > IMAGE]).tolist()


def read_vectors(features: Features, spec: ImageSpec, known: Extent) -> np.ndarray:
    """Reads float32 (n, D) vectors in tower order.

    Args:
      known: the extent it had when it was prepared.

    Raises:
      BadMedia: if they cannot be used, or are now others.
    """
    if extent(features) != known:
        raise BadMedia("changed")
    try:
        with image.opened_file(features) as file:
            found = np.load(file, allow_pickle=False)
    except MemoryError as error:
        raise BadMedia("too large") from error
    except (OSError, ValueError, EOFError) as error:
        raise BadMedia("truncated") from error  # its header was whole
    if found.ndim == 3:
        in_groups = dataclasses.replace(spec, window=0)  # soft tokens of ready-made features are in reading order
        row, column = geometry.patch_positions(found.shape[0], found.shape[1], in_groups).T
        found = found[row, column]
    with np.errstate(over="ignore"):
        found = np.asarray(found, np.float32)
    if not np.isfinite(found).all():
        raise BadMedia("not finite")
    return found


def _header(features: Features) -> tuple[int, ...]:
    """Returns the shape that the header tells, if the file is as long as it says."""
    try:
        with image.opened_file(features) as file:
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
