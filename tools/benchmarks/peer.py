"""Rows of the benchmark: our training step against that of ``transformers`` and PyTorch, on the same weights and batch.

Each side is a process of its own, with a loader of its own where the row says so, and they step in turns. The first
losses must agree: it is the same work.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from peer.pairs import PairsCase
from peer.side import SIDES

from benchmarks.row import Measured, Row, Settings, tell
from jaxmm.errors import UserError
from jaxmm.measure.case import PeerCase
from jaxmm.measure.timing import Figure

STEPS = 3  # of a side, before it is the next one's turn
WARM = 4  # not counted: compiling, and what allocators learn
SLOW = 5  # times the float32 step: what takes longer is left out, and told
START = 60  # seconds that a side may take to come up
TOOLS = Path(__file__).resolve().parents[1]
AGREE = 1e-3  # of the first losses, in float32
TORCH = SIDES[1:]


class Side:
    """A process that steps when asked."""

    def __init__(self, name: str, folder: Path, seed: int, module: str = "peer.side"):
        self.name, self.module = name, module
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, f"--side={name}", f"--folder={folder}",
             f"--seed={seed}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            cwd=TOOLS,
        )  # fmt: skip

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()

    def steps(self, count: int, within: float | None = None) -> dict[str, Any]:
        """Runs steps; returns the process's answer. Raises TimeoutError if there is none ``within`` so many seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], within)[0]:
            raise TimeoutError
        line = self.process.stdout.readline()
        if not line:
            raise UserError(
                f"the side '{self.name}' ended: run python -m {self.module} --side={self.name} in tools/ to see why"
            )
        return json.loads(line)


def made(case: PeerCase | PairsCase, folder: Path, seed: int, module: str = "peer.side") -> None:
    """Writes the case, and the model that all sides start from."""
    tell("making the model that all sides start from")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "case.json").write_text(json.dumps(dataclasses.asdict(case)))
    flags = ["--side=make", f"--folder={folder}", f"--seed={seed}"]
    subprocess.run([sys.executable, "-m", module, *flags], check=True, cwd=TOOLS, stderr=subprocess.DEVNULL)


def compare(case: PeerCase, settings: Settings) -> Measured:
    """Steps all sides in turns."""
    if importlib.util.find_spec("torch") is None:
        raise UserError("--part=peer runs PyTorch too: pip install -e '.[parity]'")
    folder = Path(settings.folder)
    made(case, folder, settings.seed)
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    first: dict[str, list[float]] = {}
    left_out: list[str] = []
    # Two at a time: what is not stepped still takes memory, and PyTorch's threads.
    for theirs in TORCH:
        if left_out:  # bfloat16 does not get faster by being compiled
            left_out.append(theirs)
            continue
        tell(f"jaxmm beside {theirs}: both start and compile")
        with Side("jaxmm", folder, settings.seed) as ours, Side(theirs, folder, settings.seed) as other:
            allowed = None  # of the compiled side a time says nothing, as compiling is in it
            if theirs == "torch-bf16":
                allowed = START + 2 * SLOW * float(np.median(seconds[f"{TORCH[0]} beside {TORCH[0]}"]))
            try:
                begun = other.steps(2, allowed)
            except TimeoutError:
                tell(f"{theirs} is left out: it has not stepped twice in {allowed:.0f} s")
                left_out.append(theirs)
                continue
            first["jaxmm"] = ours.steps(WARM)["losses"]
            first[theirs] = begun["losses"] + other.steps(WARM - 2)["losses"]
            apart = np.abs(np.array(first["jaxmm"]) - first[theirs]).max()
            if not apart <= (AGREE if theirs == TORCH[0] else 0.05):
                raise UserError(f"losses of jaxmm and {theirs} differ by {apart:.2g}: it is not the same work")
            for turn in range(1, settings.repeats + 1):
                tell(f"jaxmm beside {theirs}: turn {turn} of {settings.repeats}")
                for side in (ours, other):
                    stepped = side.steps(STEPS)
                    seconds[f"{side.name} beside {theirs}"] = [
                        *seconds.get(f"{side.name} beside {theirs}", []), float(np.median(stepped["seconds"]))
                    ]  # fmt: skip
                    peaks[side.name] = max(stepped["peak"], peaks.get(side.name, 0.0))
    where = "documents are read and their JPEGs decoded while it steps" if case.loader else "the batch is in memory"
    notes = [f"{case.rows} rows of {case.length} positions; {where}", *pairs(seconds)]
    if left_out:
        notes.append(
            f"{', '.join(left_out)} left out: a step takes more than {SLOW} times that of float32, as on processors "
            f"without bfloat16"
        )
    return Measured(figures(seconds, peaks), notes)


def ratios_of(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Our time over theirs by their side, pair by pair."""
    return {
        theirs: [
            a / b for a, b in zip(seconds[f"jaxmm beside {theirs}"], seconds[f"{theirs} beside {theirs}"], strict=True)
        ]
        for theirs in TORCH
        if f"{theirs} beside {theirs}" in seconds
    }


def pairs(seconds: dict[str, list[float]]) -> list[str]:
    """Each pair of turns as a note of its own: both times, and their ratio."""
    return [
        f"pair {number}: jaxmm {ours:.4g} s, {theirs} {others:.4g} s, ratio {ratio:.3f}"
        for theirs, ratios in ratios_of(seconds).items()
        for number, (ours, others, ratio) in enumerate(
            zip(seconds[f"jaxmm beside {theirs}"], seconds[f"{theirs} beside {theirs}"], ratios, strict=True), 1
        )
    ]


def figures(seconds: dict[str, list[float]], peaks: dict[str, float]) -> dict[str, Figure]:
    """Ratios pair by pair, times and memory."""
    ratios = ratios_of(seconds)
    best = max(ratios, key=lambda theirs: float(np.median(ratios[theirs])))
    table = {f"time / {theirs}": Figure(ratios[theirs], "") for theirs in ratios}
    table["time / torch's best"] = Figure(ratios[best], "")
    table["peak memory / torch-float32"] = Figure([peaks["jaxmm"] / peaks["torch-float32"]], "")
    for theirs in ratios:
        table[f"jaxmm beside {theirs}"] = Figure([1000 * s for s in seconds[f"jaxmm beside {theirs}"]], "ms")
        table[theirs] = Figure([1000 * s for s in seconds[f"{theirs} beside {theirs}"]], "ms")
    for side, peak in peaks.items():
        table[f"peak memory, {side}"] = Figure([peak / 2**20], "MiB")
    return table


def drawn(seed: int) -> PeerCase:
    """A case of sizes that a seed decides."""
    rng = np.random.default_rng(seed)

    def one_of(*values: int) -> int:
        return int(rng.choice(values))

    heads, vision_heads = one_of(4, 6, 8), one_of(3, 4, 6)
    return PeerCase(
        loader=True, vision_layers=one_of(3, 5, 6), vision_width=64 * vision_heads, vision_heads=vision_heads,
        vision_mlp=one_of(512, 768, 1152), grid=one_of(8, 10, 12), layers=one_of(3, 5, 6), width=64 * heads,
        heads=heads, kv_heads=one_of(*(k for k in (1, 2, heads) if heads % k == 0)), mlp=one_of(688, 1024, 1376),
        vocabulary=one_of(2048, 8192, 16384), rows=4, documents=one_of(3, 5, 6), text=one_of(40, 90, 120),
    )  # fmt: skip


def of_drawn(number: int, settings: Settings) -> Measured:
    case = drawn(100 * number + settings.seed)
    measured = compare(case, settings)
    return measured._replace(notes=[*measured.notes, str(case)])


SMALL = PeerCase()
WIDE = PeerCase(
    vision_layers=12, vision_width=384, vision_heads=6, vision_mlp=1536, layers=8, width=512, heads=8, kv_heads=8,
    mlp=1376, vocabulary=32000,
)  # fmt: skip

ROWS = [
    Row(
        "small",
        "tower 4x192 at 224/16, decoder 4x256, MLP 688, vocabulary 4096; four documents of 196 image and 60 text "
        "positions in a row",
        {"time / torch-float32": "<= 0.45", "time / torch's best": "<= 0.75", "peak memory / torch-float32": "<= 1.0"},
        functools.partial(compare, SMALL),
    ),
    Row(
        "wide",
        "tower 12x384, MLP 1536, decoder 8x512, MLP 1376, vocabulary 32000; the same rows",
        {"time / torch-float32": "<= 0.5", "time / torch's best": "<= 0.75"},
        functools.partial(compare, WIDE),
    ),
    Row(
        "drawn_1",
        "sizes drawn by the seed, loader included",
        {"time / torch-float32": "<= 0.55", "time / torch's best": "<= 0.75"},
        functools.partial(of_drawn, 1),
    ),
    Row(
        "drawn_2",
        "sizes drawn by the seed, loader included",
        {"time / torch-float32": "<= 0.55", "time / torch's best": "<= 0.75"},
        functools.partial(of_drawn, 2),
    ),
]
