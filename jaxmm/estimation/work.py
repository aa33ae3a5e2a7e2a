"""What instructions of a compiled program compute, and what they read and write of a device's large memory.

FLOPs are two for each multiply-add of a matmul, as in "model FLOPs", and one for each number that another operation
gives. Bytes are of arrays as they are held, padded to whole tiles: each fusion reads what it takes and writes what it
gives once; what lies in a faster memory costs none, and of an array that is cut or set in part, that part counts.
"""

from __future__ import annotations

import functools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxmm.estimation.hlo import Array, Instruction, Program

SLICING = ("dynamic-slice", "slice", "gather")
RENAMING = ("bitcast", "get-tuple-element", "tuple", "reshape", "opt-barrier", "optimization-barrier")
# What neither computes nor moves anything itself; the other end of what was started; what runs other computations.
FREE = (
    *RENAMING, "parameter", "constant", "after-all", "partition-id", "replica-id", "domain", "while", "conditional",
    "call", "copy-done", "async-done", "async-update", "send", "send-done", "recv", "recv-done",
)  # fmt: skip
MOVING = (
    *FREE, *SLICING, "copy", "copy-start", "async-start", "broadcast", "iota", "concatenate", "pad", "reverse",
    "transpose", "dynamic-update-slice", "scatter", "convert", "fusion", "custom-call", "rng-bit-generator",
)  # fmt: skip
FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape")
COLLECTIVE = re.compile(r"(all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute)")

# FLOPs of a kernel's call that HLO does not tell of; None for a call that is not known.
Kernel = Callable[[Instruction, Sequence[Array]], float | None]


class Work(NamedTuple):
    """Attributes:
    matrix: FLOPs of the matrix unit.
    other: operations of the other units, one for each number of a result.
    bytes: read from and written to a device's large memory.
    unknown: calls of kernels whose FLOPs are not known.
    """

    matrix: float = 0.0
    other: float = 0.0
    bytes: float = 0.0
    unknown: int = 0

    def __add__(self, more: Work) -> Work:  # type: ignore[override]
        sums = self.matrix + more.matrix, self.other + more.other, self.bytes + more.bytes
        return Work(*sums, self.unknown + more.unknown)

    def scaled(self, by: float) -> Work:
        return Work(self.matrix * by, self.other * by, self.bytes * by, round(self.unknown * by))


class Reader:
    """Reads the work of a program's instructions.

    Args:
      kernel: see ``Kernel``.
      choices: of experts, that a device has to multiply in a microbatch; 0 is as many as its slots.
    """

    def __init__(self, program: Program, kernel: Kernel = lambda call, operands: None, choices: float = 0.0) -> None:
        self.program, self._kernel, self._choices = program, kernel, choices
        self._by_name = {
            name: {each.name: each for each in instructions} for name, instructions in program.computations.items()
        }
        self._inside = functools.cache(self._of_computation)
        self._users = functools.cache(self._users_in)

    def work(self, place: str, one: Instruction) -> Work:
        """Of an instruction of a computation that is no part of a fusion; of what starts or ends a transfer between
        devices, what it reads and writes here."""
        computed = self._flops(place, one)
        return Work(computed.matrix, computed.other, self._bytes(place, one), computed.unknown)

    def operands(self, place: str, one: Instruction) -> list[Array]:
        names = self._by_name[place]
        return [array for name in one.operands if name in names for array in names[name].arrays]

    def _of_computation(self, name: str) -> Work:
        total = Work()
        for each in self.program.computations.get(name, []):
            total += self._flops(name, each)
        return total

    def _flops(self, place: str, one: Instruction) -> Work:
        if one.kind == "fusion":
            inside = self._inside(one.attribute("calls"))
            if matmul := grouped(one, self.operands(place, one)):
                return Work(matmul.flops * self._filled(matmul), inside.other / matmul.groups)
            return inside
        if one.kind == "custom-call":
            if matmul := grouped(one, self.operands(place, one)):
                return Work(matmul.flops * self._filled(matmul))
            if "ragged-dot-metadata" in one.op_name:  # where its groups begin and end
                return Work()
            known = self._kernel(one, self.operands(place, one))
            is_kernel = "tpu_custom_call" in one.rest
            return Work(matrix=known or 0.0, unknown=int(is_kernel and known is None))
        if one.kind == "dot":
            return Work(matrix=_dot(one, self.operands(place, one)))
        if one.kind == "convolution":
            return Work(matrix=convolution(one, self.operands(place, one)))
        if one.kind in MOVING or COLLECTIVE.match(one.kind):
            return Work()
        taken = self.operands(place, one) if one.kind.startswith("reduce") else one.arrays
        return Work(other=float(taken[0].items if taken else 0))

    def _filled(self, matmul: Grouped) -> float:
        """The part of a grouped matmul's slots that hold a choice."""
        return min(1.0, self._choices / matmul.rows) if self._choices else 1.0

    def _bytes(self, place: str, one: Instruction) -> float:
        if one.kind in FREE or one.kind.endswith("-done") or any(name in one.rest for name in FREE_CALLS):
            return 0.0
        names = self._by_name[place]
        taken = [names[name] for name in dict.fromkeys(one.operands) if name in names]
        if one.kind in ("copy-start", "async-start"):  # (from, to, ...), or ((from), to, ...)
            ends = [array for array in one.arrays if array.dims][-2:]  # of a slice, the whole array may be either
            moved = min((array.held_bytes for array in ends), default=0)
            return float(moved * sum(not array.space for array in ends))
        if matmul := grouped(one, self.operands(place, one)):  # of the slots it skips nothing is read or written
            arrays = [array for each in (*taken, one) for array in each.arrays if not array.space]
            return sum(array.held_bytes * (self._filled(matmul) if len(array.dims) == 2 else 1) for array in arrays)
        if one.kind == "fusion":
            inside = one.attribute("calls")
            reads = sum(self._read(inside, number, each) for number, each in enumerate(self._taken(place, one)))
            return reads + self._written(inside)
        if one.kind in SLICING:
            return 2.0 * _held(one.arrays)
        if one.kind == "dynamic-update-slice":
            return 2.0 * _held(taken[1].arrays if len(taken) > 1 else one.arrays)
        given = one.arrays[-1:] if one.kind.endswith("-start") else one.arrays
        return float(sum(_held(each.arrays) for each in taken) + _held(given))

    def _taken(self, place: str, one: Instruction) -> list[list[Array]]:
        names = self._by_name[place]
        return [names[name].arrays if name in names else [] for name in one.operands]

    def _users_in(self, name: str) -> dict[str, list[tuple[Instruction, int]]]:
        users: dict[str, list[tuple[Instruction, int]]] = defaultdict(list)
        for each in self.program.computations.get(name, []):
            for at, operand in enumerate(each.operands):
                users[operand].append((each, at))
        return users

    def _parameter(self, inside: str, number: int) -> Instruction | None:
        found = (
            each
            for each in self.program.computations.get(inside, [])
            if each.kind == "parameter" and each.rest.startswith(f"{number})")
        )
        return next(found, None)

    def _read(self, inside: str, number: int, arrays: Sequence[Array]) -> float:
        """Bytes that a fusion reads of what it takes in this place."""
        parameter, whole = self._parameter(inside, number), float(_held(arrays))
        return whole if parameter is None else min(self._read_of(inside, parameter.name, whole), whole)

    def _read_of(self, inside: str, name: str, whole: float) -> float:
        total = 0.0
        for user, at in self._users(inside)[name]:
            if user.kind in SLICING and at == 0:
                total += sum(array.held_bytes for array in user.arrays)
            elif user.kind == "fusion" and (inner := self._parameter(user.attribute("calls"), at)):
                total += self._read_of(user.attribute("calls"), inner.name, whole)
            elif user.kind in RENAMING:
                total += self._read_of(inside, user.name, whole)
            elif (user.kind == "dynamic-update-slice" and at == 0) or COLLECTIVE.match(user.kind):
                pass  # what is set in place; a collective's own bytes are counted with it
            else:
                return whole
        return total

    def _written(self, inside: str) -> float:
        """Bytes that a fusion writes: of what it sets in place, the part; what it passes on costs none."""
        instructions, names = self.program.computations.get(inside, []), self._by_name.get(inside, {})

        def of(one: Instruction) -> float:
            if one.kind == "tuple":
                return sum(of(names[operand]) for operand in one.operands if operand in names)
            if one.kind == "parameter" or COLLECTIVE.match(one.kind) or not _held(one.arrays):
                return 0.0
            if one.kind in RENAMING and one.operands and one.operands[0] in names:
                return min(of(names[one.operands[0]]), float(_held(one.arrays)))
            if one.kind == "dynamic-update-slice" and len(one.operands) > 1 and one.operands[1] in names:
                return float(sum(array.held_bytes for array in names[one.operands[1]].arrays))
            if one.kind == "fusion":
                return min(self._written(one.attribute("calls")), float(_held(one.arrays)))
            return float(_held(one.arrays))

        return of(instructions[-1]) if instructions else 0.0


def _held(arrays: Sequence[Array]) -> int:
    """Bytes of those in a device's large memory."""
    return sum(array.held_bytes for array in arrays if not array.space)


class Grouped(NamedTuple):
    """A grouped matmul, ``lax.ragged_dot`` or its gradient of the kernels.

    Attributes:
      flops: where each row, or slot, meets the kernel of its group.
    """

    groups: int
    rows: int
    flops: float


def grouped(one: Instruction, operands: Sequence[Array]) -> Grouped | None:
    """What a call or a fusion is of a grouped matmul; None for others.

    libtpu calls a kernel of its own (``ragged-dot-none``), or writes a fusion of the matmul of all rows by the kernels
    of all groups, of which it skips the blocks that are not of a row's group (``ITERATION_SKIPPER_MODE_GROUP_STARTS``).
    """
    is_call = one.kind == "custom-call" and one.op_name.endswith("ragged-dot-none")
    if not is_call and '"is_ragged_dot":true' not in one.rest:
        return None
    arrays = [array for array in (*operands, *one.arrays) if array.dtype not in ("s32", "pred")]
    kernels = next((array.dims for array in arrays if len(array.dims) == 3), ())
    rows = max((array.dims[0] for array in arrays if len(array.dims) == 2), default=0)
    return Grouped(kernels[0], rows, 2.0 * rows * kernels[1] * kernels[2]) if kernels and rows else None


def _dot(one: Instruction, operands: Sequence[Array]) -> float:
    summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)
    dims = [int(n) for n in summed[1].split(",") if n] if summed else []
    return 2.0 * one.arrays[0].items * math.prod(operands[0].dims[dim] for dim in dims)


def convolution(one: Instruction, operands: Sequence[Array]) -> float:
    """FLOPs of a convolution, as which compilers for TPUs write matmuls too: of the taps that meet a number, not those
    that meet padding or what dilation puts between numbers."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest)
    if labels is None or len(operands) < 2:
        return 0.0
    left, right, out = operands[0].dims, operands[1].dims, one.arrays[0].dims
    window = dict(re.findall(r"(\w+)=([\d_x\-]+)", _braced(one.rest, "window")))
    taps = 1.0
    for place, letter in enumerate(sorted(letter for letter in labels[2] if letter.isdigit())):
        sizes = (left[labels[1].index(letter)], right[labels[2].index(letter)], out[labels[3].index(letter)])
        taps *= _met(
            *sizes, *(_of_window(window, name, place) for name in ("stride", "pad", "lhs_dilate", "rhs_dilate"))
        )
    groups = re.search(r"batch_group_count=(\d+)", one.rest)
    batch = out[labels[3].index("b")] / (int(groups[1]) if groups else 1)
    return 2.0 * batch * out[labels[3].index("f")] * right[labels[2].index("i")] * taps


def _braced(rest: str, name: str) -> str:
    found = re.search(rf"\b{name}=\{{([^}}]*)\}}", rest)
    return found[1] if found else ""


def _of_window(window: dict[str, str], name: str, place: int) -> int:
    """A window's number for a dim; of padding, that before it."""
    numbers = window.get(name, "").split("x")
    text = numbers[place] if place < len(numbers) and numbers[place] else ""
    return int(text.split("_")[0]) if text else (0 if name == "pad" else 1)


@functools.lru_cache(maxsize=4096)
def _met(size: int, window: int, out: int, stride: int, pad: int, left_dilate: int, right_dilate: int) -> int:
    """How often a tap of a window meets a number, over all places of a dim."""
    last, count = (size - 1) * left_dilate, 0
    for tap in range(window):
        at = tap * right_dilate - pad
        if left_dilate == 1:  # places o with 0 <= at + o * stride <= last
            lowest, highest = max(0, -(at // stride)), min(out - 1, (last - at) // stride)
            count += max(0, highest - lowest + 1)
        else:
            count += sum(0 <= (x := at + o * stride) <= last and x % left_dilate == 0 for o in range(out))
    return count
