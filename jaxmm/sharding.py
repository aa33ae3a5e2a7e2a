"""The device mesh, the one table from logical to mesh axes, and placing trees and batches by it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmm.errors import UserError

AXES = ("data", "fsdp", "expert", "tensor", "context")
BATCH_AXES = ("data", "fsdp", "expert")  # rows of a batch are split over these
BETWEEN_SLICES = ("data", "fsdp")

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


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation's layout by logical axes, where a mesh is set; elsewhere returns it as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition(axes, x.shape, mesh))


def over_queries(f: Callable, heads: int, *, with_starts: bool = False) -> Callable:
    """Wraps ``f(q_BTHD, k_BSKD, v_BSKD, start_BT, end_BT)`` so that each device runs it on its own rows and heads and,
    where positions are sharded, on its own queries with all keys of the row, in their true order.

    Args:
      with_starts: f also takes ``start_BS``, where the interval of each key, as a query, starts; -1 where it is empty.
    """

    def starts(start_BT, end_BT):
        return [jnp.where(end_BT > start_BT, start_BT, -1)] if with_starts else []

    def wrapped(q_BTHD, k_BTKD, v_BTKD, start_BT, end_BT):
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return f(q_BTHD, k_BTKD, v_BTKD, start_BT, end_BT, *starts(start_BT, end_BT))
        B, T = start_BT.shape
        rows, positions, by_head, _ = partition(("rows", positions_axis(T), "heads", None), (B, T, heads, 1), mesh)

        def own(q, k, v, start, end):
            of_keys = [k, v, *starts(start, end)]
            if positions and mesh.shape["context"] > 1:
                of_keys = [zigzag_unshard(jax.lax.all_gather(x, "context", axis=1, tiled=True), mesh) for x in of_keys]
            return f(q, *of_keys[:2], start, end, *of_keys[2:])

        wide, narrow = PartitionSpec(rows, positions, by_head, None), PartitionSpec(rows, positions)
        run = jax.shard_map(own, in_specs=(wide, wide, wide, narrow, narrow), out_specs=wide, check_vma=False)
        return run(q_BTHD, k_BTKD, v_BTKD, start_BT, end_BT)

    return wrapped


def top_k(x_BTE: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """``lax.top_k`` of the last dim, each device of its own positions: XLA gathers those of all devices for it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return jax.lax.top_k(x_BTE, count)
    where = partition(("rows", positions_axis(x_BTE.shape[1])), x_BTE.shape[:2], mesh)
    own = functools.partial(jax.lax.top_k, k=count)
    values_BTK, index_BTK = jax.shard_map(own, in_specs=where, out_specs=where, check_vma=False)(x_BTE)
    return values_BTK, index_BTK


class Held(NamedTuple):
    """Which experts a device holds.

    Attributes:
      first: the number of the first of them.
      over: the axis of the mesh over which rows go to the devices that hold their experts; "" where the device has all
        rows that its experts need.
    """

    first: jax.Array | int = 0
    over: str = ""


def over_experts(f: Callable, chosen: int, *axes_of_kernels: tuple[str | None, ...]) -> Callable:
    """Wraps ``f(x_BTD, *of_positions, *kernels, held=) -> y_BTD`` so that each device runs it with its own experts.

    Inputs before the kernels are (B, T, ...), of a device's own positions; kernels are (E, ...), whole there but for
    their dims over ``expert`` and ``tensor``; ``axes_of_kernels`` are their logical axes. What lies over ``fsdp`` is
    gathered inside, so that its gradients are scattered as they are summed. Where experts are split over more devices
    than the ``chosen`` ones of a position, f exchanges as many rows as are chosen. Over fewer devices it would send
    more than all positions are: there f gets those of all devices of the axis, and what each makes of them is added up
    and sent back.
    """

    def wrapped(*inputs):
        mesh, count = jax.sharding.get_abstract_mesh(), len(inputs) - len(axes_of_kernels)
        if is_on_one_device():
            return f(*inputs, held=Held())
        B, T = inputs[0].shape[:2]
        of_positions = partition(("rows", positions_axis(T)), (B, T), mesh)
        of_kernels = [partition(axes, k.shape, mesh) for axes, k in zip(axes_of_kernels, inputs[count:], strict=True)]
        used = {axis for spec in of_kernels for axis in spec if axis and mesh.shape[axis] > 1}
        sends = "expert" in used and of_positions[0] is not None
        exchanges = sends and mesh.shape["expert"] > chosen

        def own(*inputs):
            near = inputs[:count]
            kernels = [_whole_over(k, spec, "fsdp") for k, spec in zip(inputs[count:], of_kernels, strict=True)]
            if sends and not exchanges:
                near = tuple(jax.lax.all_gather(x, "expert", axis=0, tiled=True) for x in near)
            first = jax.lax.axis_index("expert") * kernels[0].shape[0] if "expert" in used else 0
            y_BTD = f(*near, *kernels, held=Held(first, "expert" if exchanges else ""))
            if sends and not exchanges:
                y_BTD = jax.lax.psum_scatter(y_BTD, "expert", scatter_dimension=0, tiled=True)
            summed = sorted(used - {"fsdp"} - ({"expert"} if sends else set()))
            return jax.lax.psum(y_BTD, summed) if summed else y_BTD

        in_specs = (*[of_positions] * count, *of_kernels)
        return jax.shard_map(own, in_specs=in_specs, out_specs=of_positions, check_vma=False)(*inputs)

    return wrapped


def _whole_over(x: jax.Array, spec: PartitionSpec, axis: str) -> jax.Array:
    """x, gathered over a mesh axis where a dim of it lies over that; inside a ``shard_map``."""
    return jax.lax.all_gather(x, axis, axis=spec.index(axis), tiled=True) if axis in spec else x


def over_row_parts(f: Callable, whole: int) -> Callable:
    """Wraps ``f(*inputs) -> (of rows, sums)`` so that each device runs it on its own rows, or parts of sharded ones.

    All inputs but number ``whole``, parameters by ("vocab", "embed"), have a first dim of rows. The sums are added up
    over the devices, once; one of a parameter's shape ends up where that parameter lies.
    """

    def wrapped(*inputs):
        mesh = jax.sharding.get_abstract_mesh()
        count = jax.tree.leaves(inputs[0])[0].shape[0]
        rows = () if mesh.empty or mesh.size == 1 else _row_axes(count, mesh)
        if all(mesh.shape[axis] == 1 for axis in rows):  # XLA fails on a parameter split over another axis alone
            return f(*inputs)
        axes_of = {}  # mesh axes that a parameter is split over, by its shape
        for shape in {x.shape for x in jax.tree.leaves(inputs[whole])}:
            by_axis = partition(("vocab", "embed"), shape, mesh)
            axes_of[shape] = [axis if axis in rows and mesh.shape[axis] > 1 else None for axis in by_axis]

        def own(*inputs):
            of_rows, sums = f(*inputs)
            return of_rows, jax.tree.map(summed, sums)

        def summed(x):
            """Adds up over the devices; what is of a parameter's shape is split as that parameter is."""
            split = {axis: dim for dim, axis in enumerate(axes_of.get(x.shape, ())) if axis}
            for axis, dim in split.items():
                x = jax.lax.psum_scatter(x, axis, scatter_dimension=dim, tiled=True)
            return jax.lax.psum(x, tuple(axis for axis in rows if axis not in split))

        of_rows, sums = jax.eval_shape(f, *inputs)
        by_row = PartitionSpec(rows)
        run = jax.shard_map(
            own,
            in_specs=tuple(PartitionSpec() if i == whole else by_row for i in range(len(inputs))),
            out_specs=(
                jax.tree.map(lambda x: by_row, of_rows),
                jax.tree.map(lambda x: PartitionSpec(*axes_of.get(x.shape, ())), sums),
            ),
            axis_names=set(rows),
            check_vma=False,
        )
        return run(*inputs)

    return wrapped


def _row_axes(rows: int, mesh: Any) -> tuple[str, ...]:
    """The mesh axes that rows, or parts of sharded rows, can be split over: () if there are none."""
    candidates = (partition((name,), (rows,), mesh)[0] for name in ("row_parts", "rows"))
    return next((axes for axes in candidates if axes), ())


# Zigzag context sharding: of the 2 * C chunks of a row, device r of C holds chunks r and 2 * C - 1 - r. The later a
# query, the more keys it sees in causal attention, so that this balances the work.
CHUNK = 16  # a chunk's length is a multiple of it


def _context(mesh: Any = None) -> int:
    mesh = mesh or jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["context"]


def positions_axis(length: int) -> str | None:
    """The logical axis of the positions of rows of this length: "positions" where they can be sharded, else None."""
    return "positions" if length % zigzag_multiple(_context()) == 0 else None


def _order(C: int) -> np.ndarray:
    """The chunks in the order in which devices hold them."""
    return np.array([chunk for r in range(C) for chunk in (r, 2 * C - 1 - r)])


def _in_order(x: jax.Array, order: np.ndarray) -> jax.Array:
    chunks = x.reshape(x.shape[0], len(order), -1, *x.shape[2:])
    return chunks[:, order].reshape(x.shape)


def zigzag_multiple(context: int) -> int:
    """What a row's length must be a multiple of to be sharded over a ``context`` axis of this size; 1 if that is -1."""
    return 2 * context * CHUNK if context > 1 else 1


def report_whole_rows(mesh: Mesh, lengths: Mapping[str, int]) -> list[str]:
    """One line for each length of a row, by its config key, that ``context`` does not split."""
    multiple = zigzag_multiple(mesh.shape["context"])
    return [
        f"not split over mesh axis 'context': rows of {length}; give config.{key} as a multiple of {multiple}"
        for key, length in lengths.items()
        if length % multiple
    ]


def zigzag_shard(x: jax.Array) -> jax.Array:
    """Puts (B, T, ...) in the zigzag order of devices; as it is where positions are not sharded."""
    if _context() == 1 or not positions_axis(x.shape[1]):
        return x
    return constrain(_in_order(x, _order(_context())), "rows", "positions", *[None] * (x.ndim - 2))


def zigzag_unshard(x: jax.Array, mesh: Any = None) -> jax.Array:
    """The inverse of ``zigzag_shard``."""
    if _context(mesh) == 1 or not positions_axis(x.shape[1]):
        return x
    return _in_order(x, np.argsort(_order(_context(mesh))))


def are_sharded(length: int) -> bool:
    """Whether the positions of rows of this length are sharded over several devices."""
    return _context() > 1 and positions_axis(length) is not None


def as_rows(x: jax.Array) -> jax.Array:
    """Makes each device's part of a zigzag-sharded row a row of its own: (B, T, ...) to (B * C, T / C, ...)."""
    if not are_sharded(x.shape[1]):
        return x
    return constrain(x.reshape(x.shape[0] * _context(), -1, *x.shape[2:]), "row_parts", *[None] * (x.ndim - 1))


def own_chunks() -> list[Any]:
    """The numbers of the chunks that a device holds; for code that each device runs on its own."""
    r = jax.lax.axis_index("context")
    return [r, 2 * _context() - 1 - r]
