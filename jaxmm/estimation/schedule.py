"""How long a compiled program takes at least in the order of its schedule, and which collectives nothing hides.

Each instruction takes as long as its FLOPs or its bytes do at the chip's peaks, whichever is longer. A transfer between
devices that is started and waited for apart runs beside what stands between, one after the other over the same axes.
What is not hidden is exposed. Latencies, and what a kernel wastes, count nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from jaxmm.estimation.chips import Machine
from jaxmm.estimation.collectives import Collective
from jaxmm.estimation.hlo import ENTRY, Instruction, trips
from jaxmm.estimation.work import Reader

_FUSED_PAIR = re.compile(r"async-collective-(?:start|done)((?:\.\d+)*)$")


class Wait(NamedTuple):
    """Seconds of a step that devices wait for a collective."""

    collective: Collective
    exposed: float


class Forecast(NamedTuple):
    """Seconds of a step.

    Attributes:
      seconds: all of it.
      by_matrix, by_memory: of what is limited by the matrix unit, and by memory.
      waits: of each collective, the longest first.
    """

    seconds: float
    by_matrix: float
    by_memory: float
    waits: list[Wait]


class _Times:
    """Sums of a computation, once."""

    def __init__(self) -> None:
        self.seconds = self.by_matrix = self.by_memory = 0.0
        self.exposed: dict[tuple[str, str], float] = defaultdict(float)

    def add(self, other: _Times, often: int) -> None:
        self.seconds += often * other.seconds
        self.by_matrix += often * other.by_matrix
        self.by_memory += often * other.by_memory
        for key, seconds in other.exposed.items():
            self.exposed[key] += often * seconds


def forecast(reader: Reader, found: Sequence[Collective], machine: Machine) -> Forecast:
    """The program's times on a machine.

    Args:
      found: all collectives of the program, each part of one for itself.
    """
    computations = reader.program.computations
    of_instruction = {(one.place, one.asked.name): one for one in found}
    inside: dict[str, Collective] = {one.place: one for one in found}  # of a fusion's computation
    known: dict[str, _Times] = {}

    def collective_of(place: str, one: Instruction) -> Collective | None:
        if one.kind in ("fusion", "async-start"):
            return inside.get(one.attribute("calls"))
        return of_instruction.get((place, one.name))

    def lasting(one: Collective) -> float:
        return machine.seconds(one.kind, one.bytes, one.axes)

    def of(place: str) -> _Times:
        if place in known:
            return known[place]
        known[place] = total = _Times()
        busy: dict[tuple[str, ...], float] = defaultdict(float)  # until when, by axes
        running: dict[str, tuple[Collective, float]] = {}  # by the name that ends it: which, and when it is done

        def wait(one: Collective, until: float) -> None:
            if (exposed := until - total.seconds) > 0:
                total.exposed[one.place, one.asked.name] += exposed
                total.seconds = until

        for each in computations.get(place, []):
            if each.kind == "while":
                total.add(of(each.attribute("body")), trips(each, reader.program.computations))
                continue
            if each.kind in ("conditional", "call"):
                total.add(max((of(name) for name in each.called), key=lambda one: one.seconds, default=_Times()), 1)
                continue
            work = reader.work(place, each)
            by_matrix, by_memory = work.matrix / machine.flops, work.bytes / machine.memory
            one, pair = collective_of(place, each), _FUSED_PAIR.search(each.name)
            is_start = (each.kind.endswith("-start") and each.kind != "copy-start") or (
                pair is not None and "start" in each.name
            )
            if one is not None and is_start:
                busy[one.axes] = max(busy[one.axes], total.seconds) + lasting(one)
                running["done" + pair[1] if pair else each.name] = (one, busy[one.axes])
                continue
            if each.kind.endswith("-done") or pair is not None:
                for name in ("done" + pair[1] if pair else "", *each.operands[:1]):
                    if name in running:
                        wait(*running.pop(name))
                        break
                continue
            if one is not None and not work.matrix and "async_collective_fusion" not in each.rest:  # all wait for it
                busy[one.axes] = max(busy[one.axes], total.seconds) + lasting(one)
                wait(one, busy[one.axes])
                continue
            total.seconds += max(by_matrix, by_memory)
            if by_matrix >= by_memory:
                total.by_matrix += by_matrix
            else:
                total.by_memory += by_memory
        return total

    whole = of(ENTRY)
    waits = [Wait(one, whole.exposed[one.place, one.asked.name]) for one in found]
    return Forecast(whole.seconds, whole.by_matrix, whole.by_memory, sorted(waits, key=lambda one: -one.exposed))
