"""What ``estimate`` prints of its figures, for people: a table, the forecast in a few lines, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxmm import formatting
from jaxmm.estimation.saving import PART

UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
WAITS = 3  # that are printed
JAX_TAKES, GPU_FRACTION = 0.75, 0.95  # of a GPU's memory: what JAX takes by itself, and what it can be told to take


def in_units(count: float) -> str:
    """Bytes in the largest unit of which there is one, to three digits."""
    unit = next((unit for unit in ("GiB", "MiB", "KiB") if count >= UNITS[unit]), "B")
    return f"{count / UNITS.get(unit, 1):.3g} {unit}"


def rows(figures: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Rows of a table: all figures but the forecasts, and whether the step fits, which ``verdict`` says."""
    found: list[tuple[str, Any]] = []
    for name, value in figures.items():
        if name in ("roofline", "save", "fits"):
            continue
        if name == "target":
            value = {**value, "mesh": " ".join(f"{axis}={size}" for axis, size in value["mesh"].items())}
        if name == "parameters":
            value = {**value, "of all parts": sum(value.values())}
        pairs = [(f"{name} {key}", each) for key, each in value.items()] if isinstance(value, dict) else [(name, value)]
        found += [(key.replace("memory_is", "memory is"), _cell(key, each)) for key, each in pairs]
    return found


def _cell(key: str, value: Any) -> Any:
    if "bytes" in key or key == "target memory":
        return in_units(value)
    if key.startswith("parameters "):
        return formatting.short(value)
    if "flops" in key:
        return f"{value:.3g}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def forecast(roofline: Mapping[str, Any], save: Mapping[str, Any]) -> list[str]:
    """The roofline in a few lines, and the save in one; [] where no time is known."""
    if "least_seconds" not in roofline:
        return []
    lines = ["", "Forecast, at published peaks; nothing of it was measured:"]
    for unit, seconds in sorted(roofline["least_seconds_of"].items(), key=lambda each: -(each[1] or 0)):
        time = "no peak published" if seconds is None else f"{seconds:.3g} s"
        again = roofline.get("recomputed_share", 0.0) if unit == "matrix unit" else 0.0
        lines.append(
            f"  {unit}: {time}{f', {again:.0%} of it recomputation' if again else ''}"
            f"{', which binds' if unit == roofline['binds'] else ''}"
        )
    lines.append(f"  least time of a step {roofline['least_seconds']:.3g} s: MFU at most {roofline['most_mfu']:.2f}")
    if "in_order_seconds" in roofline:
        parts = ", ".join(f"{seconds:.3g} s {name}" for name, seconds in roofline["in_order"].items())
        lines.append(
            f"  in the order of the schedule {roofline['in_order_seconds']:.3g} s ({parts}): "
            f"MFU {roofline['in_order_mfu']:.2f}"
        )
        for wait in roofline["waits"][:WAITS]:
            lines.append(f"  waits {wait['seconds']:.2g} s for the {wait['what']}, over {wait['over']}")
        if unknown := roofline["kernels_of_unknown_flops"]:
            lines.append(f"  the FLOPs of {unknown} calls of kernels are not known, and not counted")
    lines += [f"  {hint}" for hint in roofline["would_change_it"]]
    return lines + ([_save_line(save)] if save else [])


def _save_line(save: Mapping[str, Any]) -> str:
    return (
        f"  a save copies {in_units(save['bytes'])} of each device to its host: from "
        f"{in_units(save['copied_per_second'])}/s on that is at most {PART:.0%} of the "
        f"{save['seconds_between']:,.0f} s between two (config.checkpoint.every={save['every']})"
    )


def verdict(figures: Mapping[str, Any]) -> str:
    """Whether the step fits a device, in one line."""
    target = figures["target"]
    has = f"{in_units(target['memory'])} ({target['memory_is']})"
    if "peak_bytes" not in figures:
        return f"Does not fit: the compiler refuses it for {has}"
    peak = in_units(figures["peak_bytes"])
    if figures["fits"]:
        line = f"Fits: at its peak a device holds {peak} of {has}"
        if target["platform"] == "gpu" and figures["peak_bytes"] > JAX_TAKES * target["memory"]:
            line += f", of which JAX takes {JAX_TAKES:.0%}: set XLA_PYTHON_CLIENT_MEM_FRACTION={GPU_FRACTION}"
        return line
    return (
        f"Does not fit: at its peak a device would hold {peak}, of {has}; with more devices in config.mesh.fsdp each "
        f"holds less state, with config.compute.remat=full and fewer rows less is kept for the backward pass"
    )
