"""The text of a compiled program (HLO): its computations, how often each runs, its arrays, and who asked for what."""

from __future__ import annotations

import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

BYTES = {"pred": 1, "bf16": 2, "f16": 2, "c64": 8, "c128": 16}  # others have their bits in their name
ENTRY = "ENTRY"  # the name that the computation has here with which a program begins

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_END = re.compile(r"\}(\s|$)")  # not the last line of a kernel's metadata, which goes on behind its braces
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$", re.DOTALL)
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"(?:body|calls|to_apply|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OPERAND = re.compile(r"%?([A-Za-z_][\w.\-]*)(?=\s*(?:,|$))")


class Array(NamedTuple):
    """An array as a device holds it.

    Attributes:
      dims: its sizes.
      order: its dims, the fastest first.
      tile: sides that the fastest dims are padded to multiples of, the last for the fastest; () for none.
      space: of memory; 0 is a device's large one.
    """

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def items(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Of its numbers alone."""
        return self.items * item_bytes(self.dtype)

    @property
    def held_bytes(self) -> int:
        """With padding to whole tiles."""
        sizes = list(self.dims)
        for dim, side in zip(self.order, reversed(self.tile), strict=False):
            sizes[dim] = -(-sizes[dim] // side) * side
        return math.prod(sizes) * item_bytes(self.dtype)


class Instruction(NamedTuple):
    name: str
    shape: str
    kind: str
    rest: str

    @property
    def arrays(self) -> list[Array]:
        """What it gives."""
        return list(_arrays(self.shape))

    @property
    def operands(self) -> list[str]:
        """The names of what it takes."""
        return _operands(self.rest)

    @property
    def op_name(self) -> str:
        """The path of JAX's transformations and primitives that it comes from; "" where there is none."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.rest)
        return found[1] if found else ""

    @property
    def called(self) -> list[str]:
        """The computations that it runs."""
        found = _CALLED.findall(self.rest)
        for group in _BRANCHES.findall(self.rest):
            found += [one.strip().lstrip("%") for one in group.split(",")]
        return found

    def attribute(self, name: str) -> str:
        """The computation that an attribute names; "" without it."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""


class Frame(NamedTuple):
    """A line of a source file, in a function."""

    file: str
    function: str
    line: int


Computations = dict[str, list[Instruction]]


class Program(NamedTuple):
    """A compiled program.

    Attributes:
      computations: the instructions of each, in the order of the schedule where there is one.
      times: each computation runs in a step.
      frames: by the number that instructions give as ``stack_frame_id``: lines of source files, the innermost first;
        empty where the program tells of none.
    """

    computations: Computations
    times: dict[str, int]
    frames: dict[int, list[Frame]]

    def frames_of(self, one: Instruction) -> list[Frame]:
        """The lines that an instruction comes from, the innermost first."""
        number = re.search(r"stack_frame_id=(\d+)", one.rest)
        return self.frames.get(int(number[1]), []) if number else []


def read(text: str) -> Program:
    """Reads the optimised HLO of a program."""
    found = dict(_computations(text))
    return Program(found, _times(found), _frames(text))


def _computations(text: str) -> Iterator[tuple[str, list[Instruction]]]:
    name, instructions = "", list[Instruction]()
    for line in _lines(text):
        if head := _COMPUTATION.match(line):
            name, instructions = (ENTRY if head[1] else head[2]), []
        elif _END.match(line) and name:
            yield name, instructions
            name = ""
        elif name and (match := _INSTRUCTION.match(line)):
            instructions.append(Instruction(*match.groups()))


def _lines(text: str) -> Iterator[str]:
    """Lines, with those over which a kernel's metadata goes as one."""
    begun: list[str] = []
    for line in text.splitlines():
        begun.append(line)
        if re.search(r"kernel_metadata=\{\s*$", begun[0]) and not line.startswith("}"):
            continue
        yield "\n".join(begun)
        begun = []
    yield from begun


def _times(found: Computations) -> dict[str, int]:
    """How often each computation runs in a step."""
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, instructions in found.items():
        for each in instructions:
            often = trips(each, found) if each.kind == "while" else 1
            for one in each.called:
                callers[one].append((name, often))
    known: dict[str, int] = {ENTRY: 1}

    def of(name: str) -> int:
        if name not in known:
            known[name] = 0  # of nobody, until its callers are counted
            known[name] = sum(of(caller) * often for caller, often in callers[name])
        return known[name]

    return {name: of(name) for name in found}


def trips(loop: Instruction, found: Computations) -> int:
    """How often a loop runs: what the compiler noted, or the constant that its condition compares a counter with, over
    what the body adds to it each time. Counters are taken to begin with 0."""
    if noted := _TRIPS.search(loop.rest):
        return int(noted[1])
    condition, body = (found.get(loop.attribute(name), []) for name in ("condition", "body"))
    limit = max((number for each in condition if (number := _constant(each)) is not None), default=1)
    places = [_place(each) for each in condition if each.kind == "get-tuple-element"]
    steps = [step for place in places if (step := _step(body, place, found))]
    return -(-limit // (steps[0] if len(steps) == 1 else 1))


def _constant(one: Instruction) -> int | None:
    """The number of an integer constant."""
    match = re.match(r"(\d+)\)", one.rest) if one.kind == "constant" and re.match(r"[su]32\[\]", one.shape) else None
    return int(match[1]) if match else None


def _place(one: Instruction) -> int:
    """Which of a tuple's elements an instruction takes."""
    match = re.search(r"index=(\d+)", one.rest)
    return int(match[1]) if match else -1


def _step(body: Sequence[Instruction], place: int, found: Computations) -> int:
    """What a loop's body adds to an element of its tuple; 0 where that is not seen."""
    by_name = {each.name: each for each in body}
    elements = body[-1].operands if body and body[-1].kind == "tuple" else []

    def added(name: str) -> int | None:
        one = by_name.get(name)
        if one is None:
            return None
        if one.kind == "get-tuple-element":
            return 0 if _place(one) == place else None
        if one.kind == "add" and len(one.operands) == 2:
            first, second = one.operands
            for before, by in ((first, second), (second, first)):
                number = _constant(by_name[by]) if by in by_name else None
                if number is not None and (sum_before := added(before)) is not None:
                    return sum_before + number
        if one.kind == "fusion" and len(one.operands) == 1 and added(one.operands[0]) == 0:
            inside = found.get(one.attribute("calls"), [])
            if [each.kind for each in inside if each.kind not in ("parameter", "constant")] == ["add"]:
                return next((number for each in inside if (number := _constant(each)) is not None), None)
        return added(one.operands[0]) if one.kind in ("copy", "bitcast") else None

    return (added(elements[place]) or 0) if 0 <= place < len(elements) else 0


def plain(shape: str) -> str:
    """A shape without its layout."""
    return re.sub(r"\{[^}]*\}", "", shape)


def item_bytes(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)
    return BYTES.get(dtype) or (max(1, int(bits[0]) // 8) if bits else 0)


def _frames(text: str) -> dict[int, list[Frame]]:
    tables: dict[str, list[str]] = {}
    heading = ""
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            tables[heading := line] = []
        elif heading and re.match(r"\d+ ", line):
            tables[heading].append(line.split(" ", 1)[1])
        elif heading and line.strip():
            break
    if "StackFrames" not in tables:
        return {}
    files, functions = ([name.strip('"') for name in tables[key]] for key in ("FileNames", "FunctionNames"))

    def numbers(row: str) -> dict[str, int]:
        return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", row)}

    places = []
    for row in map(numbers, tables["FileLocations"]):
        places.append(Frame(files[row["file_name_id"] - 1], functions[row["function_name_id"] - 1], row["line"]))
    parents = [numbers(row) for row in tables["StackFrames"]]
    found: dict[int, list[Frame]] = {}
    for number, _ in enumerate(parents, 1):
        chain: list[Frame] = []
        at = number
        while at and len(chain) < len(parents):
            chain.append(places[parents[at - 1]["file_location_id"] - 1])
            at = parents[at - 1].get("parent_frame_id", 1) - 1  # as it is printed, one more
        found[number] = chain
    return found


@functools.lru_cache(maxsize=1 << 14)
def _arrays(shape: str) -> tuple[Array, ...]:
    found = []
    for dtype, dims, layout in _ARRAY.findall(re.sub(r"/\*.*?\*/", "", shape)):
        order, _, rest = layout.partition(":")
        tile, space = re.search(r"T\(([\d,]+)\)", rest), re.search(r"S\((\d+)\)", rest)
        found.append(
            Array(
                dtype, _numbers(dims), _numbers(order), _numbers(tile[1]) if tile else (), int(space[1]) if space else 0
            )
        )
    return tuple(one for one in found if one.dtype != "token")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n.strip().isdigit())


def _operands(rest: str) -> list[str]:
    depth, end = 0, len(rest)
    for at, letter in enumerate(rest):
        if letter in "([{":
            depth += 1
        elif letter in ")]}":
            if depth == 0:
                end = at
                break
            depth -= 1
    inside = re.sub(r"/\*.*?\*/", "", rest[:end])
    inside = re.sub(r"\{[^{}]*\}|\[[\d,]*\]", "", inside)
    return list(_OPERAND.findall(inside))
