"""Puts the patches of a tile back into a picture, from the arrays of a batch alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxmm.batch import Batch
from jaxmm.image_spec import ImageSpec


class Picture(NamedTuple):
    """A tile as the tower gets it.

    Attributes:
      frames: uint8 (frames, height, width, 3), of rows x columns patches; several where the run has videos.
      patch: the row's first patch of it.
    """

    frames: np.ndarray
    rows: int
    columns: int
    patch: int

    @property
    def pixels(self) -> np.ndarray:
        """uint8 (height, width, 3): the first frame."""
        return self.frames[0]


def agree(holds: bool, name: str, what: str) -> None:
    """Raises ValueError, which names the document, where arrays contradict each other."""
    if not holds:
        raise ValueError(f"{name}: {what}")


def picture_of(batch: Batch, b: int, slots: np.ndarray, tile: int, spec: ImageSpec, name: str) -> Picture:
    """Puts the patches of a tile, which the soft tokens in ``slots`` are made of, back into a picture.

    Args:
      slots: of the soft-token table of patches.
      tile: its number in row ``b``, from 1.
      name: of the document, for errors.
    """
    _, rows, columns = batch.grids_BM3[b, tile - 1].tolist()
    group, side = spec.merge**2, spec.patch_size
    of_tile = (batch.patches.segments[b] == tile) & (batch.patches.positions[b, :, 1] >= 0)  # no class tokens
    patches = np.flatnonzero(of_tile)
    made_of = (slots[:, None] * group + np.arange(group)).reshape(-1)
    agree(
        len(patches) == rows * columns and np.array_equal(np.sort(made_of), patches),
        name, f"tile {tile} of {rows} x {columns} patches has {len(patches)}, and {len(slots)} soft tokens",
    )  # fmt: skip
    row, column = batch.patches.positions[b, patches, 1:].T
    agree(len(set(zip(row.tolist(), column.tolist(), strict=True))) == len(patches), name, "patches overlap")
    values = batch.patches.values[b, patches].reshape(len(patches), -1, side, side, 3)
    frames = np.zeros((values.shape[1], rows * side, columns * side, 3), np.uint8)
    grid = frames.reshape(-1, rows, side, columns, side, 3).transpose(1, 3, 0, 2, 4, 5)  # a view
    grid[row, column] = values
    return Picture(frames, rows, columns, int(patches[0]))
