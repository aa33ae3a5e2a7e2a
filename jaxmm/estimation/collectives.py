"""What a compiled program sends between devices: bytes by kind of collective and by mesh axis, from its HLO text."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

MANUAL = "1"  # the channel of every collective that stands in a shard_map; the partitioner's have one each
RAGGED = "ragged-all-to-all"
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", RAGGED, "collective-permute")
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "c64": 8, "c128": 16}  # others have their bits in their name

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_END = re.compile(r"\}(\s|$)")  # not the last line of a kernel's metadata, which goes on behind its braces
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_PART = re.compile(r"calls=%?([\w.\-]+)")
_CALLED = re.compile(r"(?:body|calls|to_apply|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_BETWEEN = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """One operation.

    Attributes:
      kind: one of KINDS; over the network between TPU slices, where a host sends it, with "between slices".
      bytes: of what it gives on one device, each time.
      times: it runs in a step.
      axes: of the mesh, over which it sends.
    """

    kind: str
    bytes: int
    times: int
    axes: tuple[str, ...]

    @property
    def total(self) -> int:
        return self.bytes * self.times


class _Instruction(NamedTuple):
    name: str
    shape: str
    kind: str
    rest: str


def collectives(text: str, mesh: Mesh) -> list[Collective]:
    """Reads the optimised HLO of a program that was compiled for this mesh; of TPU slices, that of one.

    Loops count as often as their condition says they run, where it compares with a constant. Of the parts in which a
    collective runs beside other work, one counts.
    """
    computations = dict(_computations(text))
    parts = {name for each in itertools.chain(*computations.values()) for name in _PART.findall(each.rest)}
    times = _times(computations)
    groupings = _groupings(mesh)
    largest: dict[tuple[str, str, str], Collective] = {}
    for name, instructions in computations.items():
        for each in instructions:
            kind = each.kind.removesuffix("-start")
            if kind == "send" and (between := _BETWEEN.search(each.rest)):
                kind = f"{between[1].lower().replace('_', '-')} between slices"
            elif kind not in KINDS:
                continue
            channel = re.search(r"channel_id=(\d+)", each.rest)
            key = kind, channel[1] if channel else "", ""
            if not channel or channel[1] == MANUAL:  # told apart by shape in parts, elsewhere each is one of its own
                is_part = name in parts and kind != RAGGED  # which has a part to itself
                key = *key[:2], _plain(each.shape) if is_part else f"{name}/{each.name}"
            axes = _crossing(mesh) if each.kind == "send" else _axes(each.rest, groupings, mesh)
            size = _size(each)
            if kind == RAGGED:  # from rows to room for the worst case, or back: as much as is in the rows
                operand = re.match(r"(?:[^%,]* )?%?([\w.\-]+)", each.rest)
                sources = [other for other in instructions if operand and other.name == operand[1]]
                size = min([size, *map(_size, sources)])
            one = Collective(kind, size, times[name], axes)
            if key not in largest or one.total > largest[key].total:
                largest[key] = one
    return [one for one in largest.values() if one.times and one.axes]


def by_kind_and_axes(found: Sequence[Collective]) -> dict[tuple[str, str], int]:
    """Bytes a step and device, by kind and by axes ("data+fsdp")."""
    total: dict[tuple[str, str], int] = defaultdict(int)
    for one in found:
        total[one.kind, "+".join(one.axes)] += one.total
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def _computations(text: str) -> Iterator[tuple[str, list[_Instruction]]]:
    name, instructions = "", list[_Instruction]()
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name, instructions = ("ENTRY" if head[1] else head[2]), []
        elif _END.match(line) and name:
            yield name, instructions
            name = ""
        elif name and (match := _INSTRUCTION.match(line)):
            instructions.append(_Instruction(*match.groups()))


def _times(computations: dict[str, list[_Instruction]]) -> dict[str, int]:
    """How often each computation runs in a step."""
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, instructions in computations.items():
        for each in instructions:
            called = _CALLED.findall(each.rest)
            for group in _BRANCHES.findall(each.rest):
                called += [one.strip().lstrip("%") for one in group.split(",")]
            often = _trips(each, computations) if each.kind == "while" else 1
            for one in called:
                callers[one].append((name, often))
    known: dict[str, int] = {"ENTRY": 1}

    def of(name: str) -> int:
        if name not in known:
            known[name] = 0  # of nobody, until its callers are counted
            known[name] = sum(of(caller) * often for caller, often in callers[name])
        return known[name]

    return {name: of(name) for name in computations}


def _trips(loop: _Instruction, computations: dict[str, list[_Instruction]]) -> int:
    """How often a loop runs: what the compiler noted, or the constant that its condition compares a counter with."""
    if noted := _TRIPS.search(loop.rest):
        return int(noted[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    constants = [
        int(match[1])
        for each in computations.get(condition[1] if condition else "", [])
        if each.kind == "constant"
        and re.match(r"[su]32\[\]", each.shape)
        and (match := re.match(r"(\d+)\)", each.rest))
    ]
    return max(constants, default=1)


def _size(instruction: _Instruction) -> int:
    """Bytes of the result; of an operation that is only started, of the last of its arrays."""
    sizes = [
        math.prod(int(n) for n in dims.split(",") if n) * _item_bytes(dtype)
        for dtype, dims in _SHAPE.findall(_plain(instruction.shape))
        if dtype != "token"
    ]
    if instruction.kind == "send":
        return sizes[0]
    if instruction.kind.endswith("-start") and instruction.shape.startswith("("):
        return max(sizes, default=0)
    return sum(sizes)


def _plain(shape: str) -> str:
    """A shape without its layout."""
    return re.sub(r"\{[^}]*\}", "", shape)


def _item_bytes(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)
    return BYTES.get(dtype) or (max(1, int(bits[0]) // 8) if bits else 0)


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
