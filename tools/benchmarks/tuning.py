"""Rows of the benchmark: a step of adapters over frozen weights, beside PEFT and PyTorch, and beside our own full step.

Each side is a process of its own, as in ``peer``, and they step in turns.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.peer import AGREE, STEPS, TOOLS, WARM, WIDE, Side
from benchmarks.row import Measured, Row, Settings
from jaxmm.errors import UserError
from jaxmm.measure.case import PeerCase
from jaxmm.measure.timing import Figure

RANK = 16
LORA = dataclasses.replace(WIDE, rank=RANK)


def in_turns(sides: Sequence[tuple[str, Side]], repeats: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of a step of each side, a number a turn, and its peak memory in bytes."""
    seconds: dict[str, list[float]] = {name: [] for name, _ in sides}
    peaks = dict.fromkeys(seconds, 0.0)
    for _ in range(repeats):
        for name, side in sides:
            found = side.steps(STEPS)
            seconds[name].append(float(np.median(found["seconds"])))
            peaks[name] = max(peaks[name], found["peak"])
    return seconds, peaks


def made(case: PeerCase, folder: Path, seed: int) -> None:
    """Writes the case, and the model that all sides start from."""
    folder.mkdir(parents=True, exist_ok=True)
    case.save(folder / "case.json")
    flags = ["--side=make", f"--folder={folder}", f"--seed={seed}"]
    subprocess.run([sys.executable, "-m", "peer.side", *flags], check=True, cwd=TOOLS, stderr=subprocess.DEVNULL)


def beside_peft(case: PeerCase, settings: Settings) -> Measured:
    """The step of adapters, theirs and ours."""
    if importlib.util.find_spec("peft") is None:
        raise UserError("--part=tuning runs PEFT and PyTorch too: pip install -e '.[parity]'")
    folder = Path(settings.folder)
    made(case, folder, settings.seed)
    base = sum(file.stat().st_size for file in (folder / "model").glob("*.safetensors"))
    with Side("jaxmm", folder, settings.seed) as ours, Side("torch-float32", folder, settings.seed) as theirs:
        first = [side.steps(WARM)["losses"] for side in (ours, theirs)]
        apart = abs(first[0][0] - first[1][0])  # behind it, the factors that begin at random differ
        if not apart <= AGREE:
            raise UserError(f"the first losses of jaxmm and PEFT differ by {apart:.2g}: it is not the same work")
        seconds, peaks = in_turns([("jaxmm", ours), ("peft", theirs)], settings.repeats)
    ratios = [a / b for a, b in zip(seconds["jaxmm"], seconds["peft"], strict=True)]
    beyond = {name: peak - base for name, peak in peaks.items()}
    figures = {
        "time / peft": Figure(ratios, ""),
        "memory beyond the base / peft": Figure([beyond["jaxmm"] / beyond["peft"]], ""),
        **{f"step, {name}": Figure([1000 * s for s in each], "ms") for name, each in seconds.items()},
        **{f"memory beyond the base, {name}": Figure([each / 2**20], "MiB") for name, each in beyond.items()},
    }
    return Measured(figures, [f"rank {case.rank} on all linear maps; {base / 2**20:.0f} MiB of frozen weights"])


def beside_full(case: PeerCase, settings: Settings) -> Measured:
    """The step of adapters beside that of all weights, both ours."""
    if importlib.util.find_spec("torch") is None:
        raise UserError("--part=tuning makes its model with PyTorch: pip install -e '.[parity]'")
    folder, whole = Path(settings.folder) / "adapters", Path(settings.folder) / "whole"
    made(case, folder, settings.seed)
    whole.mkdir(parents=True, exist_ok=True)
    dataclasses.replace(case, rank=0).save(whole / "case.json")
    if not (whole / "model").exists():
        os.symlink(folder / "model", whole / "model")
    with Side("jaxmm", folder, settings.seed) as lora, Side("jaxmm", whole, settings.seed) as full:
        for side in (lora, full):
            side.steps(WARM)
        seconds, _ = in_turns([("adapters", lora), ("all weights", full)], settings.repeats)
    ratios = [a / b for a, b in zip(seconds["adapters"], seconds["all weights"], strict=True)]
    times = {f"step, {name}": Figure([1000 * s for s in each], "ms") for name, each in seconds.items()}
    return Measured({"time / all weights": Figure(ratios, ""), **times}, [f"rank {case.rank} on all linear maps"])


ROWS = [
    Row(
        "lora_peft",
        f"adapters of rank {RANK} on tower 12x384 and decoder 8x512; the rows of `wide`",
        {"time / peft": "<= 0.6", "memory beyond the base / peft": "<= 1.15"},
        functools.partial(beside_peft, LORA),
    ),
    Row(
        "lora_full",
        "the same step beside that of all weights",
        {"time / all weights": "<= 0.75"},
        functools.partial(beside_full, LORA),
    ),
]
