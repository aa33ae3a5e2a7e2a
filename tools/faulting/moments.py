"""Moments in the life of a run at which ``tools/faults.py`` kills it or sends it a signal."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from faulting.bench import STEPS, metrics
from faulting.process import TICK, Process

START = 5.0  # seconds, about, until a run makes its first step


class Moment(NamedTuple):
    """``has_come()`` says whether it is there; ``later``: seconds from then on."""

    what: str
    has_come: Callable[[], bool]
    later: float

    def wait(self, process: Process, limit: float) -> bool:
        """Whether it came before the process ended."""
        end = time.monotonic() + limit
        while process.is_running() and time.monotonic() < end:
            with contextlib.suppress(FileNotFoundError):  # folders may go while they are looked at
                if self.has_come():
                    time.sleep(self.later)
                    return process.is_running()
            time.sleep(TICK)
        return False


def of_train(rng: random.Random, workdir: Path, cache: Path) -> Moment:
    """Any moment: while it starts, prepares, steps, saves or ends."""
    kind = rng.choice(("start", "prepare", "step", "step", "save", "save", "end"))
    if kind == "start":
        return after(rng.uniform(0.05, START))
    if kind == "prepare" and not any(cache.glob("prepared/*/meta.json")):
        return Moment("in preparing", lambda: any(cache.glob("prepared/.*")), rng.uniform(0, 0.05))
    if kind == "save":
        begun, later = saves(workdir), rng.uniform(0, 0.1)
        return Moment("in a save", lambda: bool({n for n in saves(workdir) - begun if not n.isdigit()}), later)
    step = STEPS if kind == "end" else rng.randrange(1, STEPS)
    return Moment(f"after step {step}", lambda: str(step) in metrics(workdir)[0], rng.uniform(0, 0.2))


def after(seconds: float) -> Moment:
    return Moment(f"after {seconds:.2f} s", lambda: True, seconds)


def saves(workdir: Path) -> set[str]:
    """What lies in the folder of checkpoints."""
    folder = workdir / "checkpoints"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
