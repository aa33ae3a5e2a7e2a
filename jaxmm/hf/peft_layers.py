"""Factors of PEFT's adapters, a module of a layer each, as those of our maps: one array for all layers of each map."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxmm.hf.map_names import NamedMap
from jaxmm.models.adapters import factors_at
from jaxmm.models.lora import scale_of
from jaxmm.models.tree import ParamPath


@dataclasses.dataclass
class Factors:
    """The tensors of one Linear's adapter, (rank, inputs), (outputs, rank) and (outputs,)."""

    name: str  # of the module, as the folder writes it
    into: np.ndarray | None = None
    out: np.ndarray | None = None
    magnitude: np.ndarray | None = None


class Stack(NamedTuple):
    """Factors of all layers of a Linear or a part of it, (L, rank, inputs), (L, outputs, rank) and (L, outputs)."""

    into: np.ndarray
    out: np.ndarray
    magnitude: np.ndarray | None
    scale: float


def stacked(of_layers: Mapping[int, Factors], layers: int, config: Mapping[str, Any], use_rslora: bool) -> Stack:
    """One array of the factors of all layers. Layers without an adapter have zeros, which never learn."""
    ranks = {layer: len(factors.into) for layer, factors in of_layers.items()}  # type: ignore[arg-type]
    scales = {
        layer: scale_of("rslora" if use_rslora else "lora", ranks[layer], alpha_of_module(config, factors.name))
        for layer, factors in of_layers.items()
    }
    widest = max(ranks, key=lambda layer: ranks[layer])
    first, scale = of_layers[widest], scales[widest]
    assert first.into is not None
    assert first.out is not None
    into = np.zeros((layers, ranks[widest], first.into.shape[1]), np.float32)
    out = np.zeros((layers, len(first.out), ranks[widest]), np.float32)
    magnitude = None if first.magnitude is None else np.zeros((layers, len(first.out)), np.float32)
    for layer, factors in of_layers.items():
        into[layer, : ranks[layer]] = factors.into
        out[layer, :, : ranks[layer]] = factors.out
        if not math.isclose(scales[layer], scale):
            out[layer] *= np.float32(scales[layer] / scale)
        if magnitude is not None and factors.magnitude is not None:
            magnitude[layer] = factors.magnitude.reshape(-1)
    return Stack(into, out, magnitude, scale)


def alpha_of_module(config: Mapping[str, Any], module: str) -> float:
    """As PEFT finds it: by the first pattern that a module's name, or the end of it after a dot, is."""
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(alpha)
    return float(config.get("lora_alpha", 8))


def of_parts(stack: Stack, one: NamedMap) -> dict[ParamPath, Stack]:
    """The factors of each of our maps that a Linear is.

    Where each column of the second factor is of one part alone, as ``peft_write`` has it, a part gets its own. Else
    the first factor is that of all parts.
    """
    count = len(one.paths)
    if count == 1:
        return {one.paths[0]: stack}
    outs = [np.moveaxis(out, 0, 1) for out in one.split(np.moveaxis(stack.out, 1, 0))]
    magnitudes: list[Any] = [None] * count
    if stack.magnitude is not None:
        magnitudes = [magnitude.T for magnitude in one.split(stack.magnitude.T)]
    used = np.array([(out != 0).any((0, 1)) for out in outs])
    if not (used.sum(0) == 1).all():
        return {
            path: Stack(stack.into, out, magnitude, stack.scale)
            for path, out, magnitude in zip(one.paths, outs, magnitudes, strict=True)
        }
    parts: dict[ParamPath, Stack] = {}
    for path, out, magnitude, own in zip(one.paths, outs, magnitudes, used, strict=True):
        if not own.any() and magnitude is None:
            continue
        columns = own if own.any() else used[used.any(1)][0]  # lengths alone: with zeros for the second factor
        parts[path] = Stack(stack.into[:, columns], out[:, :, columns], magnitude, stack.scale)
    return parts


def of_map(
    part: Stack, path: ParamPath, shape: tuple[int, ...], inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> dict[ParamPath, np.ndarray]:
    """The factors of a map of ours, by path."""
    layers, rank = shape[: inputs[0]], part.into.shape[1]
    into, out = (tuple(shape[dim] for dim in side) for side in (inputs, outputs))
    arrays = {
        "into": part.into.swapaxes(1, 2).reshape(*layers, *into, rank),
        "out": part.out.swapaxes(1, 2).reshape(*layers, rank, *out),
    }
    if part.magnitude is not None:
        arrays["magnitude"] = part.magnitude.reshape(*layers, *out)
    return {(*factors_at(path), name): np.ascontiguousarray(x) for name, x in arrays.items()}
