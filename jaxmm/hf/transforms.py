"""How a foreign tensor becomes a parameter, and back, bit for bit. Transforms have names, which the tables use."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Transform(NamedTuple):
    """``into(array, shape)`` returns an array of our shape; ``out(array, inputs)`` returns the foreign tensor.

    ``inputs``: how many leading dims of a linear map's kernel are its input. ``shapes``: the shapes that the foreign
    tensor of a parameter of our shape may have; for a linear map they depend on the number of input dims. ``axis``: the
    dim of the foreign tensor along which several are fused. ``by_heads``: where several are fused, the parts of a head
    follow each other, head by head; else all of one part come before those of the next. ``either_way``: its last two
    dims are read the other way round, too, where their sizes tell.
    """

    into: Callable[[np.ndarray, Shape], np.ndarray]
    out: Callable[[np.ndarray, int], np.ndarray]
    shapes: Callable[[Shape], list[Shape]]
    axis: int = 0
    by_heads: bool = False
    either_way: bool = False


def _reshaped(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return array.reshape(shape)


def _transposed_out(array: np.ndarray, inputs: int) -> np.ndarray:
    return array.reshape(int(np.prod(array.shape[:inputs])), -1).T


def _transposed_shapes(shape: Shape) -> list[Shape]:
    return [(math.prod(shape[split:]), math.prod(shape[:split])) for split in range(1, len(shape))]


def _from_convolution(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A convolution's kernel (D, 3, [frames,] P, P) to ([frames,] P * P * 3, D), channels last."""
    last = np.moveaxis(array, 1, -1)
    return last.reshape(last.shape[0], -1).T.reshape(shape)


def _to_convolution(array: np.ndarray, inputs: int) -> np.ndarray:
    side = round((array.shape[-2] / 3) ** 0.5)
    frames = array.shape[:-2]
    return np.moveaxis(array.reshape(-1, array.shape[-1]).T.reshape(-1, *frames, side, side, 3), -1, 1)


def _convolution_shapes(shape: Shape) -> list[Shape]:
    *frames, pixels, width = shape
    side = math.isqrt(pixels // 3)
    return [(width, 3, *frames, side, side)]


def _convolution_of_frames_shapes(shape: Shape) -> list[Shape]:
    return _convolution_shapes(shape if len(shape) == 3 else (1, *shape))


def _to_convolution_of_frames(array: np.ndarray, inputs: int) -> np.ndarray:
    """As ``_to_convolution``, with a dim of frames even if there is only one frame."""
    return _to_convolution(array if array.ndim == 3 else array[None], inputs)


TRANSFORMS = {
    "copy": Transform(_reshaped, lambda x, _: x, lambda shape: [shape]),
    "side by side": Transform(_reshaped, lambda x, _: x, lambda shape: [shape], -1, either_way=True),
    # the last two dims the other way round
    "one above the other": Transform(
        lambda x, _: x.swapaxes(-1, -2), lambda x, _: x.swapaxes(-1, -2), lambda shape: [_swapped(shape)], -2
    ),
    "flat": Transform(_reshaped, lambda x, _: x.reshape(-1), lambda shape: [(math.prod(shape),)]),
    "after one": Transform(_reshaped, lambda x, _: x[None], lambda shape: [(1, *shape)]),
    "after two": Transform(_reshaped, lambda x, _: x[None].reshape(1, 1, -1), lambda shape: [(1, 1, math.prod(shape))]),
    "transpose": Transform(lambda x, shape: x.T.reshape(shape), _transposed_out, _transposed_shapes),
    "transpose by heads": Transform(
        lambda x, shape: x.T.reshape(shape), _transposed_out, _transposed_shapes, by_heads=True
    ),
    "reversed": Transform(lambda x, _: x.T, lambda x, _: x.T, lambda shape: [shape[::-1]]),  # of all dims
    # (channels, 1, positions) of a convolution of each channel by itself to (positions, *channels)
    "depthwise": Transform(
        lambda x, shape: x[:, 0].T.reshape(shape),
        lambda x, _: x.reshape(len(x), -1).T[:, None],
        lambda shape: [(math.prod(shape[1:]), 1, shape[0])],
    ),
    # (O, D * G) of vectors whose G patches stand side by side for each of D channels, as torch's unfold has them
    "unfolded": Transform(
        lambda x, shape: x.reshape(shape[2], shape[1], shape[0]).T,
        lambda x, _: x.T.reshape(x.shape[2], -1),
        lambda shape: [(shape[2], shape[1] * shape[0])],
    ),
    # (O, D, side, side) of patches to (side * side, D, O)
    "convolution of patches": Transform(
        lambda x, shape: x.transpose(2, 3, 1, 0).reshape(shape),
        lambda x, _: x.reshape(*[math.isqrt(len(x))] * 2, *x.shape[1:]).transpose(3, 2, 0, 1),
        lambda shape: [(shape[2], shape[1], *[math.isqrt(shape[0])] * 2)],
    ),
    "convolution": Transform(_from_convolution, _to_convolution, _convolution_shapes),
    "convolution of frames": Transform(_from_convolution, _to_convolution_of_frames, _convolution_of_frames_shapes),
}


def foreign_shapes(transform: str, shapes: Sequence[Shape]) -> list[Shape]:
    """The shapes that the foreign tensor of one parameter, or of several ones fused, may have."""
    one = TRANSFORMS[transform]
    of_each = zip(*(one.shapes(shape) for shape in shapes), strict=True)
    fused = {whole for parts in of_each if (whole := _fused(parts, one.axis)) is not None}
    return sorted(fused | {_swapped(shape) for shape in fused} if one.either_way else fused)


def _fused(parts: Sequence[Shape], axis: int) -> Shape | None:
    """The shape of arrays joined along a dim; None where their other dims differ."""
    if len(parts) == 1:  # of any dims, even none
        return parts[0]
    axis %= len(parts[0])
    if len({(*part[:axis], *part[axis + 1 :]) for part in parts}) > 1:
        return None
    return (*parts[0][:axis], sum(part[axis] for part in parts), *parts[0][axis + 1 :])


def _swapped(shape: Shape) -> Shape:
    """With the last two dims the other way round."""
    return (*shape[:-2], shape[-1], shape[-2])


def into_parts(array: np.ndarray, transform: str, shapes: Sequence[Shape]) -> list[np.ndarray]:
    """A foreign tensor as one parameter, or, fused along a dim, as several."""
    one = TRANSFORMS[transform]
    if one.either_way and array.shape != _fused([one.shapes(shape)[0] for shape in shapes], one.axis):
        array = array.swapaxes(-1, -2)
    if one.by_heads:
        array = turned(array, shapes[0][-2], len(shapes))
    sizes = [math.prod(shape) for shape in shapes]
    ends = [array.shape[one.axis] * end // sum(sizes) for end in np.cumsum(sizes[:-1])] if len(shapes) > 1 else []
    parts = np.split(array, ends, axis=one.axis) if ends else [array]
    return [one.into(part, shape) for part, shape in zip(parts, shapes, strict=True)]


def out_of_parts(arrays: Sequence[np.ndarray], transform: str, inputs: int = 0) -> np.ndarray:
    """The foreign tensor that ``into_parts`` splits into these parameters."""
    one = TRANSFORMS[transform]
    parts = [one.out(array, inputs) for array in arrays]
    whole = np.concatenate(parts, axis=one.axis) if len(parts) > 1 else parts[0]
    return turned(whole, len(arrays), arrays[0].shape[-2]) if one.by_heads else whole


def turned(array: np.ndarray, outer: int, inner: int) -> np.ndarray:
    """Rows in blocks of (outer, inner) as blocks of (inner, outer)."""
    return array.reshape(outer, inner, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
