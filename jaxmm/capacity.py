"""Refuses what cannot run: models and caches that do not fit into memory, and rows that cannot be split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmm.errors import UserError
from jaxmm.machine import host_memory
from jaxmm.models.compute import Compute
from jaxmm.models.decoder_spec import ATTENTIONS, DecoderSpec
from jaxmm.models.flops import parameter_counts
from jaxmm.models.multimodal import ModelSpec, abstract_params, flat_axes
from jaxmm.models.trainable import Trainable
from jaxmm.models.tree import flat

FLOAT8 = 1  # bytes, at the least, of a moment of a parameter


def device_memory(devices: Sequence[Any]) -> float:
    """Bytes that each of these devices has, all of this process: of CPUs their share of the host's; inf if unknown."""
    if devices[0].platform == "cpu":
        return host_memory() / len(devices)
    return (devices[0].memory_stats() or {}).get("bytes_limit", math.inf)


def check_model(spec: ModelSpec, trainable: Trainable, mesh: Mesh) -> None:
    """Raises UserError where the parameters and one moment of each that learns do not fit on the mesh's devices."""
    parameters, axes = flat(abstract_params(spec)).items(), flat_axes(spec)
    held = sum(
        math.prod(x.shape) * (x.dtype.itemsize + FLOAT8 * trainable.learns(path))
        / (mesh.shape["expert"] if "expert" in axes[path][1] else 1)
        for path, x in parameters
    )  # fmt: skip
    count = sum(parameter_counts(abstract_params(spec.plain)).values())
    _refuse(
        held / (mesh.shape["fsdp"] * mesh.shape["tensor"]), device_memory(mesh.local_devices), "each device",
        f"a model of {count:.3g} parameters",
        "make it smaller, or raise config.mesh.fsdp or tensor",
    )  # fmt: skip


def check_states(spec: DecoderSpec, mesh: Mesh) -> None:
    """Raises UserError where rows would be split between devices, and layers carry a state through whole rows."""
    if spec.has_state and mesh.shape["context"] > 1:
        kinds = ", ".join(sorted(set(spec.mixer_of_layers()) - set(ATTENTIONS)))
        raise UserError(
            f"config.mesh.context={mesh.shape['context']} splits rows between devices, and this decoder has layers "
            f"that carry a state through whole rows ({kinds}): set config.mesh.context=1, and fsdp or tensor higher"
        )


def check_cache(spec: DecoderSpec, compute: Compute, rows: int, positions: int, devices: Sequence[Any]) -> None:
    """Raises UserError where the keys and values of so many positions do not fit on a device."""
    # What layers without attention keep does not grow with positions.
    numbers = sum(
        len(spec.layers_of(kind)) * sizes.kv_heads * sizes.head_dim for kind, sizes in spec.attention_sizes().items()
    )
    size = jnp.dtype(compute.dtype).itemsize * 2 * numbers * rows * positions
    what = f"writing {positions} tokens of {rows} answers"
    _refuse(size, device_memory(devices), "the device", what, "lower --max_tokens or --batch_size")


def _refuse(needed: float, available: float, where: str, what: str, advice: str) -> None:
    if needed > available:
        raise UserError(f"{what} takes {_told(needed)} or more, and {where} has {_told(available)}: {advice}")


def _told(size: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} PB"
