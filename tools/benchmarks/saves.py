"""What a save takes from the steps beside it: figures of ``--part=step``, of a shared checkpoint and of a near one.

Steps with a save among them and as many without run in turns, on one batch; what the former take longer is the save's:
the wait for the copy to the host, and what the writing threads take from the steps meanwhile.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxmm.checkpoints.near import Near
from jaxmm.measure.timing import Figure

LEAST, SECONDS = 4, 1.0  # steps of a turn, and seconds that they last


@dataclasses.dataclass
class Stepper:
    """Makes steps of a run on one batch, from a state that it keeps, as a step gives its arrays away."""

    step: Callable[[Any, Any], Any]
    state: Any
    batch: Any
    done: int = 0

    def __call__(self, count: int) -> float:
        """Seconds of so many steps."""
        import jax

        began = time.perf_counter()
        for _ in range(count):
            self.state, metrics = self.step(self.state, self.batch)
        self.done += count
        jax.block_until_ready(metrics)
        return time.perf_counter() - began


def saves(
    run: Any, stepper: Stepper, step_seconds: float, turns: int, folder: Path
) -> tuple[dict[str, Figure], list[str]]:
    """The figures, and what they were measured with.

    Args:
      step_seconds: of a step without a save, about.
      turns: of each kind that count.
      folder: for near checkpoints.
    """
    import jax

    if jax.process_count() > 1:
        return {}, ["what a save takes is measured in one process: those of a job would write into several folders"]
    count = max(LEAST, math.ceil(SECONDS / step_seconds))
    near = Near(str(folder / "near"), run.workdir, run.mesh, print)
    near.begin()

    def shared() -> float:
        began = time.perf_counter()
        run.checkpoints.save(stepper.done, run.held(stepper.state), {})
        return time.perf_counter() - began

    def on_node() -> float:
        began = time.perf_counter()
        near.save(stepper.done, run.held(stepper.state), {})
        return time.perf_counter() - began

    ways = {"save": (shared, run.checkpoints.wait), "near save": (on_node, near.wait)}
    waits: dict[str, list[float]] = {name: [] for name in ways}
    costs: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):  # the first imports and makes folders, and is not counted
        plain = stepper(count)
        for name, (begin, end) in ways.items():
            wait = begin()
            cost = wait + stepper(count) - plain
            end()
            if turn:
                waits[name].append(wait)
                costs[name].append(cost)
    every = run.config.checkpoint.every
    found = {f"{name}: {what}": Figure(seconds, "s") for what, all in (("wait", waits), ("cost", costs))
             for name, seconds in all.items()}  # fmt: skip
    if every:
        found["save / time between two"] = Figure([cost / (every * step_seconds) for cost in costs["save"]], "")
    size = sum(x.nbytes for x in jax.tree.leaves(run.held(stepper.state)))
    return found, [f"a save of {size / 2**20:.0f} MiB among {count} steps; between two are {every} "
                   f"(config.checkpoint.every), of whose time it may take 0.01"]  # fmt: skip
