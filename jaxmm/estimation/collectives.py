"""What a compiled program sends between devices: bytes by kind of collective and by mesh axis, from its HLO text."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxmm.estimation.hlo import Instruction, Program, plain

MANUAL = "1"  # the channel of every collective that stands in a shard_map; the partitioner's have one each
RAGGED = "ragged-all-to-all"
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", RAGGED, "collective-permute")
BETWEEN_SLICES = "between slices"

_PART = re.compile(r"calls=%?([\w.\-]+)")
_BETWEEN = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


class Collective(NamedTuple):
    """One operation.

    Attributes:
      kind: one of KINDS; over the network between TPU slices, where a host sends it, with "between slices".
      bytes: of what it gives on one device, each time.
      times: it runs in a step.
      axes: of the mesh, over which it sends.
      place: the computation it stands in.
      asked: its instruction.
    """

    kind: str
    bytes: int
    times: int
    axes: tuple[str, ...]
    place: str
    asked: Instruction

    @property
    def total(self) -> int:
        return self.bytes * self.times


def collectives(program: Program, mesh: Mesh) -> list[Collective]:
    """Those of a program that was compiled for this mesh; of TPU slices, that of one.

    Of the parts in which a collective runs beside other work, one counts.
    """
    parts = {name for each in itertools.chain(*program.computations.values()) for name in _PART.findall(each.rest)}
    largest: dict[tuple[str, str, str], Collective] = {}
    for one in all_collectives(program, mesh):
        channel = re.search(r"channel_id=(\d+)", one.asked.rest)
        key = one.kind, channel[1] if channel else "", ""
        if not channel or channel[1] == MANUAL:  # told apart by shape in parts, elsewhere each is one of its own
            is_part = one.place in parts and one.kind != RAGGED  # which has a part to itself
            key = *key[:2], plain(one.asked.shape) if is_part else f"{one.place}/{one.asked.name}"
        if key not in largest or one.total > largest[key].total:
            largest[key] = one
    return list(largest.values())


def all_collectives(program: Program, mesh: Mesh) -> list[Collective]:
    """The same with each part of a collective as one of its own."""
    groupings, found = _groupings(mesh), []
    for name, instructions in program.computations.items():
        for each in instructions:
            kind = each.kind.removesuffix("-start")
            if kind == "send" and (between := _BETWEEN.search(each.rest)):
                kind = f"{between[1].lower().replace('_', '-')} {BETWEEN_SLICES}"
            elif kind not in KINDS:
                continue
            axes = _crossing(mesh) if each.kind == "send" else _axes(each.rest, groupings, mesh)
            size = _size(each)
            if kind == RAGGED:  # from rows to room for the worst case, or back: as much as is in the rows
                sources = [other for other in instructions if other.name in each.operands[:1]]
                size = min([size, *map(_size, sources)])
            found.append(Collective(kind, size, program.times[name], axes, name, each))
    return [one for one in found if one.times and one.axes]


def by_kind_and_axes(found: Sequence[Collective]) -> dict[tuple[str, str], int]:
    """Bytes a step and device, by kind and by axes ("data+fsdp")."""
    total: dict[tuple[str, str], int] = defaultdict(int)
    for one in found:
        total[one.kind, "+".join(one.axes)] += one.total
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def _size(instruction: Instruction) -> int:
    """Bytes of the result; of an operation that is only started, of the last of its arrays."""
    sizes = [array.bytes for array in instruction.arrays]
    if instruction.kind == "send":
        return sizes[0]
    if instruction.kind.endswith("-start") and instruction.shape.startswith("("):
        return max(sizes, default=0)
    return sum(sizes)


Grouping = frozenset[frozenset[int]]


def _grouped(ids: np.ndarray, dims: Sequence[int]) -> Grouping:
    """The devices that differ only along these dims, together."""
    last = np.moveaxis(ids, dims, range(ids.ndim - len(dims), ids.ndim))
    return frozenset(frozenset(row.tolist()) for row in last.reshape(-1, math.prod(int(ids.shape[d]) for d in dims)))


def _groupings(mesh: Mesh) -> dict[Grouping, tuple[str, ...]]:
    """For each set of the mesh's axes, the devices of a slice it groups; numbered as they are in the mesh."""
    shape = [size // parts for size, parts in zip(mesh.devices.shape, _slices(mesh), strict=True)]
    ids = np.arange(math.prod(shape)).reshape(shape)
    wide = [dim for dim, size in enumerate(shape) if size > 1]
    sets = itertools.chain.from_iterable(itertools.combinations(wide, n) for n in range(1, len(wide) + 1))
    return {_grouped(ids, dims): tuple(mesh.axis_names[d] for d in dims) for dims in sets}


def _slices(mesh: Mesh) -> list[int]:
    """How many TPU slices each axis crosses; 1 where there is one slice, or none."""
    first = mesh.devices[(0,) * mesh.devices.ndim]
    lines = (np.moveaxis(mesh.devices, dim, 0).reshape(size, -1)[:, 0] for dim, size in enumerate(mesh.devices.shape))
    number = [{getattr(device, "slice_index", 0) for device in line} for line in lines]
    return [len(slices) if first.platform == "tpu" else 1 for slices in number]


def _crossing(mesh: Mesh) -> tuple[str, ...]:
    return tuple(axis for axis, parts in zip(mesh.axis_names, _slices(mesh), strict=True) if parts > 1)


def _axes(rest: str, groupings: dict[Grouping, tuple[str, ...]], mesh: Mesh) -> tuple[str, ...]:
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", rest):
        ends = [tuple(map(int, pair.split(","))) for pair in re.findall(r"\{(\d+,\d+)\}", pairs[1])]
        differ = {
            axis
            for source, target in ends
            for axis, a, b in zip(
                mesh.axis_names, *(np.unravel_index(i, mesh.devices.shape) for i in (source, target)), strict=True
            )
            if a != b
        }
        return tuple(axis for axis in mesh.axis_names if axis in differ)
    grouping = _replica_groups(rest, mesh.size)
    if grouping is None or all(len(group) == 1 for group in grouping):
        return ()
    return groupings.get(grouping, ("other",))


def _replica_groups(rest: str, devices: int) -> Grouping | None:
    """The groups in one of the ways in which HLO writes them."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))?\s*\{([^}]*)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        chosen = [list(sizes).index(name) for name in re.findall(r"'([^']+)'", named[3])]
        ids = np.arange(devices)
        if order := re.match(r"\[([\d,]+)\]T\(([\d,]+)", named[2] or ""):
            ids = ids.reshape([int(n) for n in order[1].split(",")]).transpose([int(n) for n in order[2].split(",")])
        return _grouped(ids.reshape(list(sizes.values())), chosen)
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        ids = np.arange(devices).reshape([int(n) for n in iota[3].split(",")])
        if iota[4]:
            ids = ids.transpose([int(n) for n in iota[4].split(",")])
        return frozenset(frozenset(row.tolist()) for row in ids.reshape(int(iota[1]), int(iota[2])))
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", rest):
        groups = re.findall(r"\{([\d,]+)\}", listed[1])
        return frozenset(frozenset(map(int, group.split(","))) for group in groups)
    return frozenset([frozenset(range(devices))]) if "replica_groups={}" in rest else None
