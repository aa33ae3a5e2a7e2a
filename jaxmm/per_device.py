"""What each device runs on its own part of a batch: functions wrapped by ``shard_map`` over the mesh that is set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxmm import zigzag
from jaxmm.sharding import is_on_one_device, partition


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
        rows, positions, by_head, _ = partition(
            ("rows", zigzag.positions_axis(T), "heads", None), (B, T, heads, 1), mesh
        )

        def own(q, k, v, start, end):
            of_keys = [k, v, *starts(start, end)]
            if positions and mesh.shape["context"] > 1:
                of_keys = [zigzag.unshard(jax.lax.all_gather(x, "context", axis=1, tiled=True), mesh) for x in of_keys]
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
    where = partition(("rows", zigzag.positions_axis(x_BTE.shape[1])), x_BTE.shape[:2], mesh)
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

    Inputs before the kernels are (B, T, ...), of a device's own positions; kernels, and what else experts have, are
    (E, ...), whole there but for their dims over ``expert`` and ``tensor``; ``axes_of_kernels`` are their logical axes.
    What lies over ``fsdp`` is gathered inside, so that its gradients are scattered as they are summed. Where experts
    are split over more devices than the ``chosen`` ones of a position, f exchanges as many rows as are chosen. Over
    fewer devices it would send more than all positions are: there f gets those of all devices of the axis, and what
    each makes of them is added up and sent back.
    """

    def wrapped(*inputs):
        mesh, count = jax.sharding.get_abstract_mesh(), len(inputs) - len(axes_of_kernels)
        if is_on_one_device():
            return f(*inputs, held=Held())
        B, T = inputs[0].shape[:2]
        of_positions = partition(("rows", zigzag.positions_axis(T)), (B, T), mesh)
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
