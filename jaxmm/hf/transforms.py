"""How a foreign tensor becomes a parameter, and back to the bit: named, so that tables can say which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Transform(NamedTuple):
    """``into(array, shape)`` gives an array of our shape; ``out(array, shape)`` one of the foreign shape."""

    into: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    out: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def _from_patches(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A convolution's kernel (D, 3, [frames,] P, P) to (frames * P * P * 3, D), channels last."""
    last = np.moveaxis(array, 1, -1)  # (D, [frames,] P, P, 3)
    return last.reshape(last.shape[0], -1).T.reshape(shape)


def _to_patches(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    D, channels, *rest = shape
    return np.moveaxis(array.reshape(-1, D).T.reshape(D, *rest, channels), -1, 1)


TRANSFORMS = {
    "copy": Transform(lambda x, shape: x.reshape(shape), lambda x, shape: x.reshape(shape)),
    "transpose": Transform(
        lambda x, shape: x.T.reshape(shape), lambda x, shape: x.reshape(-1, shape[0]).T.reshape(shape)
    ),
    "patches": Transform(_from_patches, _to_patches),
}


def into_parts(array: np.ndarray, transform: str, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """A foreign tensor as one parameter, or, fused along its first dim, as several of equal size."""
    parts = np.split(array, len(shapes), axis=0) if len(shapes) > 1 else [array]
    return [TRANSFORMS[transform].into(part, shape) for part, shape in zip(parts, shapes, strict=True)]


def out_of_parts(arrays: Sequence[np.ndarray], transform: str, shape: tuple[int, ...]) -> np.ndarray:
    """The foreign tensor of ``shape`` that ``into_parts`` makes these parameters of."""
    part = (shape[0] // len(arrays), *shape[1:])
    return np.concatenate([TRANSFORMS[transform].out(array, part) for array in arrays]).reshape(shape)
