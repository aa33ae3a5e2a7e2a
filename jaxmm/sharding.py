"""The device mesh, the one table from logical to mesh axes, and placing trees and batches by it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmm.errors import UserError

AXES = ("data", "fsdp", "expert", "tensor", "context")
BATCH_AXES = ("data", "fsdp", "expert")  # rows of a batch are split over these
BETWEEN_SLICES = ("data", "fsdp")
_SENT_BYTES = 1 << 26  # from one process to all at a time

# Logical axis of a parameter's or an activation's dim -> mesh axis. Dims not named here are whole on each device.
RULES: dict[str, str | tuple[str, ...]] = {
    "rows": BATCH_AXES,
    "positions": "context",
    "row_parts": (*BATCH_AXES, "context"),
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "expert": "expert",
}


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Builds the mesh over all devices; one axis may be -1 and takes what the others leave.

    ``expert``, ``tensor`` and ``context`` stay inside a node or a slice as far as they fit; ``data`` and then ``fsdp``
    go across.
    JAX lists devices node by node; slices of TPUs are told apart by their index.

    Raises:
      UserError: if the sizes do not multiply to the number of devices, or not to that of the slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    unknown = sorted(set(sizes) - set(AXES))
    if unknown:
        raise UserError(f"config.mesh has no axis '{unknown[0]}': the axes are {', '.join(AXES)}")
    wanted = {axis: int(sizes.get(axis, 1)) for axis in AXES}
    shown = ", ".join(f"{axis}={size}" for axis, size in wanted.items())
    free = [axis for axis, size in wanted.items() if size == -1]
    fixed = math.prod(size for size in wanted.values() if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in wanted.values()):
        raise UserError(f"config.mesh ({shown}) must be positive sizes, at most one of them -1")
    if free and len(devices) % fixed == 0:
        wanted[free[0]] = len(devices) // fixed
    if math.prod(wanted.values()) != len(devices):
        raise UserError(
            f"config.mesh ({shown}) does not divide the {len(devices)} devices here: "
            f"the sizes must multiply to {len(devices)}, with one axis at -1 to fill"
        )
    shape, types = tuple(wanted[axis] for axis in AXES), (AxisType.Auto,) * len(AXES)
    slices = _slices(devices)
    if slices == 1:
        try:
            return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
        except NotImplementedError:  # JAX's word for a size that no sides of a TPU's torus, whole ones, have
            laid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
            return Mesh(laid, AXES, axis_types=types)
    across = _across(wanted, slices)
    if math.prod(across) != slices:
        raise UserError(
            f"config.mesh ({shown}) cannot be laid over {slices} slices: make data, or data x fsdp, a multiple of "
            f"{slices}"
        )
    within = [size // parts for size, parts in zip(shape, across, strict=True)]
    laid = mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    return Mesh(laid, AXES, axis_types=types)


def _slices(devices: Sequence[Any]) -> int:
    """How many TPU slices, of fast links each, these devices are of; 1 for others, whose nodes JAX may number so."""
    return len({getattr(device, "slice_index", 0) for device in devices}) if devices[0].platform == "tpu" else 1


def _across(sizes: Mapping[str, int], slices: int) -> list[int]:
    """How many slices each axis spans: ``data`` as many as it can, ``fsdp`` those that are left."""
    spans: list[int] = []
    for axis in AXES:
        spans.append(math.gcd(sizes[axis], slices // math.prod(spans)) if axis in BETWEEN_SLICES else 1)
    return spans


def platform() -> str:
    """What a program that is traced is for, "cpu", "gpu" or "tpu": the mesh that is set, else this process."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def is_on_one_device() -> bool:
    """Whether a program that is traced is for one device: by the mesh that is set."""
    mesh = jax.sharding.get_abstract_mesh()
    return bool(mesh.empty or mesh.size == 1)


def check_rows(mesh: Mesh, batch_size: int, accumulation: int) -> None:
    """Raises UserError where the rows of a batch do not divide evenly over devices and accumulation steps."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size % (shards * accumulation):
        raise UserError(
            f"config.batch_size {batch_size} does not divide into {shards} row shards (mesh data x fsdp x expert) "
            f"times config.accumulation {accumulation}: make it a multiple of {shards * accumulation}"
        )


def check_experts(mesh: Mesh, experts: Any) -> None:
    """Raises UserError where the experts of a spec, None for none, do not divide over the mesh axis ``expert``."""
    size, count = mesh.shape["expert"], experts.count if experts else 0
    if size > 1 and (not count or count % size):
        raise UserError(
            f"config.mesh.expert {size} does not divide the {count} experts of the model"
            if count
            else f"config.mesh.expert is {size}, and the model has no experts: use config.mesh.data or fsdp"
        )


def partition(axes: Sequence[str | None], shape: Sequence[int], mesh: Any) -> PartitionSpec:
    """The PartitionSpec of an array by RULES.

    A dim that its mesh axes do not divide stays whole (see ``replicated_dims`` for the report of these).

    Raises:
      ValueError: if ``axes`` does not fit ``shape``, or one mesh axis would be used for two dims.
    """
    if len(axes) != len(shape):
        raise ValueError(f"logical axes {tuple(axes)} do not fit shape {tuple(shape)}")
    entries: list[Any] = []
    used: set[str] = set()
    for name, size in zip(axes, shape, strict=True):
        rule = RULES.get(name) if name else None
        mesh_axes = (rule,) if isinstance(rule, str) else rule or ()
        twice = used & set(mesh_axes)
        if twice:
            raise ValueError(f"mesh axis '{twice.pop()}' is used twice by logical axes {tuple(axes)}")
        used |= set(mesh_axes)
        divides = mesh_axes and size % math.prod(mesh.shape[a] for a in mesh_axes) == 0
        entries.append((mesh_axes if len(mesh_axes) > 1 else mesh_axes[0]) if divides else None)
    return PartitionSpec(*entries)


def replicated_dims(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh) -> list[str]:
    """The logical axes that have a rule but stay whole, because their size is no multiple of the mesh axis."""
    spec = partition(axes, shape, mesh)
    return [name for name, entry in zip(axes, spec, strict=True) if name in RULES and entry is None]


def report_replicated(mesh: Mesh, parameters: Mapping[tuple[str, ...], tuple[Any, Any]]) -> list[str]:
    """One line for each logical axis that the mesh cannot split evenly, so that nothing is whole in silence."""
    places: dict[str, str] = {}
    for path, (shape, axes) in parameters.items():
        for name in replicated_dims(axes, shape, mesh):
            places.setdefault(name, f"{name} of {'.'.join(path)} {tuple(shape)}")
    return [f"not split over mesh axis '{RULES[name]}': {where}" for name, where in places.items()]


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of any array whose first dim is rows of a batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of a global batch whose shards are addressable here, in order: what this process must load."""
    index_map = row_sharding(mesh).addressable_devices_indices_map((batch_size,))
    shards = [index[0] for index in index_map.values() if index is not None]
    return sorted({row for rows in shards for row in range(*rows.indices(batch_size))})


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts this process's rows (a pytree of NumPy arrays) on its devices as global arrays."""
    where = row_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, where)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(where, np.asarray(x)), batch)


def microbatches(batch: Any, count: int) -> Any:
    """A batch (a pytree of (B, ...)) as ``count`` of them, (count, B / count, ...).

    Rows go to microbatches in strides, which keeps each device's rows its own.
    """
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1), batch)


def fetched(x: jax.Array) -> np.ndarray:
    """The whole array on the host, in every process of a job; all of them must ask."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def sent(values: np.ndarray | None, shape: Sequence[int], dtype: Any, source: int) -> np.ndarray:
    """What one process has, in all of them, bit for bit; all must ask.

    Args:
      values: of the process ``source``; others give None.
    """
    from jax.experimental import multihost_utils

    count = math.prod(shape) * np.dtype(dtype).itemsize
    data = np.zeros(count, np.uint8)
    if values is not None:
        data[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    for begin in range(0, count, _SENT_BYTES):
        part = data[begin : begin + _SENT_BYTES]
        block = np.zeros(1 << (len(part) - 1).bit_length(), np.uint8)  # of few sizes: each is compiled
        block[: len(part)] = part
        block = multihost_utils.broadcast_one_to_all(block, is_source=jax.process_index() == source)
        part[:] = block[: len(part)]
    return data.view(dtype).reshape(shape)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation's layout by logical axes, where a mesh is set; elsewhere returns it as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition(axes, x.shape, mesh))
