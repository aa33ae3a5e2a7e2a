"""What cannot fit into memory is refused before it is made: the system would end the process without a word."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmm.batch import ImageSpec
from jaxmm.data.assemble import empty_batch
from jaxmm.data.lengths import Budgets
from jaxmm.errors import UserError
from jaxmm.models.compute import Compute
from jaxmm.models.decoder import DecoderSpec
from jaxmm.models.multimodal import ModelSpec, flat_axes

FLOAT, FLOAT8 = 4, 1  # bytes: of a parameter, and at the least of its moment
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def host_memory() -> int:
    """Bytes of this host, or of the container that this process is in."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in _LIMITS:
        if os.path.exists(limit) and (text := Path(limit).read_text().strip()).isdigit():
            sizes.append(int(text))
    return min(sizes)


def device_memory(devices: Sequence[Any]) -> float:
    """Bytes that each of these devices has, all of this process: of CPUs their share of the host's; inf if unknown."""
    if devices[0].platform == "cpu":
        return host_memory() / len(devices)
    return (devices[0].memory_stats() or {}).get("bytes_limit", math.inf)


def check_model(spec: ModelSpec, frozen: Sequence[str], mesh: Mesh) -> None:
    """Raises UserError where the parameters and one moment of each that learns do not fit on the mesh's devices."""
    counts = [(path[0] not in frozen, math.prod(shape)) for path, (shape, _) in flat_axes(spec).items()]
    held = sum(count * (FLOAT + FLOAT8 * learns) for learns, count in counts)
    _refuse(
        held / (mesh.shape["fsdp"] * mesh.shape["tensor"]), device_memory(mesh.local_devices), "each device",
        f"a model of {sum(count for _, count in counts):.3g} parameters",
        "make it smaller, or raise config.mesh.fsdp or tensor",
    )  # fmt: skip


def check_batch(rows: int, budgets: Budgets, image: ImageSpec, feature_width: int = 0) -> None:
    """Raises UserError where so many rows, which this process makes of a batch, do not fit into the host's memory."""
    row = sum(x.nbytes for x in jax.tree.leaves(empty_batch(1, budgets, image, feature_width)))
    advice = "lower config.batch_size, config.seq_len or config.patch_budget"
    _refuse(rows * row, host_memory(), "this host", f"a batch of {rows} rows of {budgets.tokens} tokens", advice)


def check_cache(spec: DecoderSpec, compute: Compute, rows: int, positions: int, devices: Sequence[Any]) -> None:
    """Raises UserError where the keys and values of so many positions do not fit on a device."""
    size = jnp.dtype(compute.dtype).itemsize * 2 * spec.layers * spec.kv_heads * spec.head_dim * rows * positions
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
