"""The least time of a training step: what each unit of a chip has to do, at its published peak, and which one binds.

Every time here is a forecast. ``least`` is as if all units worked at once; ``in_order`` follows the schedule of the
compiled program, in which an instruction waits for the one before, and only transfers between devices run beside.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmm.estimation import words
from jaxmm.estimation.chips import Machine, moved
from jaxmm.estimation.collectives import BETWEEN_SLICES, Collective, all_collectives, collectives
from jaxmm.estimation.hlo import Instruction, Program
from jaxmm.estimation.schedule import Forecast, forecast
from jaxmm.estimation.work import Kernel, Reader, Work

LISTED = 8  # collectives that are waited for, and users of memory, in the figures
MATRIX, MEMORY = "matrix unit", "memory"
# Matmuls of a pair of a query and a key in each of splash attention's kernels, of two FLOPs a number of a head.
SPLASH = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
TOWERS = {"models/towers/audio": "audio", "models/towers/": "vision"}  # whose attention it is, by a source's path


def attention_kernels(program: Program, shares: Mapping[str, float]) -> Kernel:
    """FLOPs of splash attention's kernels: of pairs that see each other, not of the rest of their blocks.

    Args:
      shares: of the pairs of a row that see each other, as of ``flops.attended_shares``.
    """

    def flops(call: Instruction, operands: Sequence[Any]) -> float | None:
        matmuls = next((count for name, count in SPLASH.items() if name in call.op_name), 0)
        heads = [array.dims for array in operands if len(array.dims) == 3 and array.dtype != "s32"]
        if not matmuls or len(heads) < 2:
            return None
        files = [frame.file for frame in program.frames_of(call)]
        part = next((name for mark, name in TOWERS.items() if any(mark in file for file in files)), "decoder")
        (count, queries, width), keys = heads[0], heads[1][1]
        return 2.0 * matmuls * width * count * queries * keys * shares[part]

    return flops


def of_program(
    program: Program, machine: Machine | None, mesh: Any, model_flops: float, shares: Mapping[str, float],
    choices: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """The figures of a compiled program; without a machine whose peaks are known, only what it does.

    Args:
      model_flops: of a step on all devices.
      shares: as of ``attention_kernels``.
      choices: of experts, a device's share of a microbatch's; 0 without experts.
    """
    reader = Reader(program, attention_kernels(program, shares), choices)
    work, users = _whole(reader)
    found, parts = collectives(program, mesh), all_collectives(program, mesh)
    figures: dict[str, Any] = {
        "matrix_flops": work.matrix, "other_operations": work.other, "memory_bytes": work.bytes,
        "kernels_of_unknown_flops": work.unknown,
        "most_memory_bytes": dict(sorted(users.items(), key=lambda each: -each[1])[:LISTED]),
    }  # fmt: skip
    if machine is None:
        return figures
    told = forecast(reader, parts, machine)
    figures |= _least(machine, work.matrix, work.bytes, found, model_flops)
    waits = _waits(program, told, found, machine)
    figures |= {
        "in_order_seconds": told.seconds,
        "in_order_mfu": _mfu(model_flops, machine, told.seconds),
        "in_order": {
            "by matrix unit": told.by_matrix, "by memory": told.by_memory,
            "waiting for links": sum(one.exposed for one in told.waits),
        },
        "waits": waits[:LISTED],
    }  # fmt: skip
    return figures | {"would_change_it": _hints(figures, model_flops, mesh.size)}


def by_formula(
    machine: Machine, figures: Mapping[str, Any], model_flops: float, recomputed_flops: float = 0.0,
    accumulation: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """The same for devices that nothing is compiled for.

    Each microbatch reads the parameters forward and backward, and writes and reads what is kept and its gradients; of
    several, each also reads and writes their sum. The update reads and writes moments and what learns, and reads the
    gradients. What lies in the host's memory passes that of the device too, both ways; the time between the two is not
    counted.

    Args:
      model_flops, recomputed_flops: of a step on all devices.
    """
    again = recomputed_flops / machine.mesh.size
    matrix = model_flops / machine.mesh.size + again
    parameters, gradients = figures["parameter_bytes"], figures["gradient_bytes"]
    kept = figures["kept_bytes"] + 2 * figures["host_bytes"]
    of_gradients = 2 * accumulation * gradients * (2 if accumulation > 1 else 1)
    of_update = 2 * (figures["optimizer_bytes"] + gradients)  # what learns is as large as its gradients
    memory = 2.0 * accumulation * (parameters + kept) + of_gradients + of_update
    found = []
    for name, count in figures["sent_bytes"].items():
        kind, axes = name.split(" over ")
        found.append((kind, count, tuple(axes.split("+"))))
    units = _of_units(machine, matrix, memory, found, model_flops)
    share = again / matrix if matrix else 0.0
    hints = _hints_of_units(units, share, accumulation * figures["host_bytes"])
    figures = {"matrix_flops": matrix, "recomputed_share": share, "memory_bytes": memory}
    return figures | units | {"would_change_it": hints}


def _whole(reader: Reader) -> tuple[Work, dict[str, float]]:
    """The work of a step, and the bytes of memory by who asked for them."""
    program, total, users = reader.program, Work(), defaultdict[str, float](float)
    fused = {
        each.attribute(name)
        for instructions in program.computations.values()
        for each in instructions
        for name in ("calls", "to_apply")
        if each.kind != "call"
    }
    for place, instructions in program.computations.items():
        if place in fused or not program.times[place]:
            continue
        for each in instructions:
            work = reader.work(place, each).scaled(program.times[place])
            total += work
            if work.bytes:
                users[str(words.asked(program, place, each))] += work.bytes
    return total, {who or "not known": count for who, count in users.items()}


def _least(
    machine: Machine, matrix: float, memory: float, found: Sequence[Collective], model_flops: float
) -> dict[str, Any]:  # fmt: skip
    return _of_units(machine, matrix, memory, [(one.kind, one.total, one.axes) for one in found], model_flops)


def _of_units(
    machine: Machine, matrix: float, memory: float, sent: Sequence[tuple[str, float, tuple[str, ...]]],
    model_flops: float,
) -> dict[str, Any]:  # fmt: skip
    seconds = {MATRIX: matrix / machine.flops, MEMORY: memory / machine.memory}
    received: dict[str, float] = defaultdict(float)
    for kind, size, axes in sent:
        between = f" {BETWEEN_SLICES}" if kind.endswith(BETWEEN_SLICES) else ""
        name = f"links over {'+'.join(axes)}{between}"
        count = math.prod(machine.mesh.shape.get(axis, 1) for axis in axes)
        received[name] += size if between else moved(kind, size, count)
        seconds[name] = seconds.get(name, 0.0) + machine.seconds(kind, size, axes)
    known = {name: value for name, value in seconds.items() if math.isfinite(value)}
    binds = max(known, key=lambda name: known[name])
    return {
        "is": "forecast, at published peaks",
        "peaks": {"flops": machine.flops, "memory_bytes": machine.memory, "link_bytes": machine.chip.link,
                  "network_bytes": machine.chip.network or None},
        "received_bytes": dict(received),
        "least_seconds_of": {name: seconds[name] if name in known else None for name in seconds},
        "binds": binds,
        "least_seconds": known[binds],
        "most_mfu": _mfu(model_flops, machine, known[binds]),
    }  # fmt: skip


def _mfu(model_flops: float, machine: Machine, seconds: float) -> float:
    return model_flops / (machine.flops * machine.mesh.size * seconds) if seconds else 0.0


def _waits(program: Program, told: Forecast, found: Sequence[Collective], machine: Machine) -> list[dict[str, Any]]:
    """What is waited for, by what sends it, the longest first: ``seconds`` of those that it takes, ``of``."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}

    def row(one: Collective) -> dict[str, Any]:
        key = words.of_collective(program, one), "+".join(one.axes)
        return rows.setdefault(key, {"what": key[0], "over": key[1], "seconds": 0.0, "of": 0.0, "bytes": 0})

    for wait in told.waits:
        row(wait.collective)["seconds"] += wait.exposed
    for one in found:
        row(one)["of"] += one.times * machine.seconds(one.kind, one.bytes, one.axes)
        row(one)["bytes"] += one.total
    return sorted((each for each in rows.values() if each["seconds"] > 0), key=lambda each: -each["seconds"])


def _hints_of_units(units: Mapping[str, Any], recomputed: float, of_host: float) -> list[str]:
    """What would change the least time, where no schedule is known.

    Args:
      recomputed: the share of the matrix unit's FLOPs that are recomputation.
      of_host: bytes that go to the host's memory and come back.
    """
    hints, binds, seconds = [], units["binds"], units["least_seconds_of"]
    if of_host:
        hints.append(f"{of_host / 2**30:.3g} GiB go to the host's memory and come back: no time here counts that")
    if recomputed > 0.1 and binds == MATRIX:
        hints.append(
            f"{recomputed:.0%} of the matrix unit's FLOPs are recomputation: config.compute.remat=dots or offload "
            f"recompute less, where memory has room"
        )
    if binds not in (MATRIX, MEMORY):
        longer = f"{binds} take {seconds[binds] / seconds[MATRIX]:.2g} times as long as the matrix unit"
        if set(binds.split()[-1].split("+")) <= {"data", "fsdp"}:
            hints.append(
                f"{longer}, and no longer with more rows: so many times the rows a device and microbatch hide them "
                f"(config.batch_size, or a smaller config.accumulation), as far as memory has room"
            )
        else:
            hints.append(f"{longer}: a smaller config.mesh.tensor, expert or context sends less")
    return hints


def _hints(figures: Mapping[str, Any], model_flops: float, devices: int) -> list[str]:
    """What would change the time, by what it is made of."""
    hints, whole = [], figures["in_order_seconds"]
    again = 1 - model_flops / devices / figures["matrix_flops"] if figures["matrix_flops"] else 0.0
    if again > 0.1:
        hints.append(
            f"{again:.0%} of the matrix unit's FLOPs are not the model's (recomputation, padding): "
            f"config.compute.remat=dots or offload recompute less, where memory has room"
        )
    if figures["in_order"]["by memory"] > 0.25 * whole:
        most = next(iter(figures["most_memory_bytes"]), "")
        hints.append(
            f"{figures['in_order']['by memory'] / whole:.0%} of the time is limited by memory, most of all by {most}"
        )
    by_axes: dict[str, float] = defaultdict(float)
    for wait in figures["waits"]:
        by_axes[wait["over"]] += wait["seconds"]
    for axes, seconds in by_axes.items():
        if seconds > 0.03 * whole:
            rows = "more rows a device (config.batch_size), or config.mesh.data for a part of fsdp where the state fits"
            fewer = "a smaller config.mesh.tensor, expert or context"
            remedy = rows if set(axes.split("+")) <= {"data", "fsdp"} else fewer
            hints.append(f"{seconds / whole:.0%} of the time waits for links over {axes}: {remedy}")
    return hints
