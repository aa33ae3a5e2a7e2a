"""When this process's devices had a step to do: a thread waits for each step's results, and notes the time."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
from collections.abc import Callable
from typing import Any

import jax


class StepEnds:
    """Notes when each step has ended. The loop itself reads a step's results only when the next one runs.

    Args:
      clock: seconds.

    Attributes:
      idle: seconds between a step's end and the start of the next, without pauses.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun = self._ended = 0
        self._free = -math.inf  # since when there is nothing to do; meant where all that has begun has ended
        self._steps: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[float] = queue.SimpleQueue()
        self.idle = 0.0
        threading.Thread(target=self._watch, name="step ends", daemon=True).start()

    def __enter__(self) -> StepEnds:
        return self

    def __exit__(self, *error: object) -> None:
        self._steps.put(None)  # it may wait for a step that never ends

    def begun(self, results: Any) -> None:
        """Tells of a step that has just been dispatched."""
        if self._begun and (free := self.busy_until()) < math.inf:
            self.idle += self._clock() - free
        self._begun += 1
        self._steps.put(results)

    def paused(self) -> None:
        """Tells that up to now no step was due: the loop has evaluated, saved or logged."""
        if self._ended == self._begun:
            self._free = self._clock()

    def next_end(self) -> float:
        """When the next step ended, from the first on: waits for it. Ask once for each step.

        A CPU may run a step within its dispatch: to the loop, it ends when the next one is dispatched.
        """
        return self._ends.get()

    def busy_until(self) -> float:
        """The time by the clock when the last step ended; infinite while it runs."""
        return self._free if self._ended == self._begun else math.inf

    def _watch(self) -> None:
        while (results := self._steps.get()) is not None:
            with contextlib.suppress(Exception):  # the loop meets it, too, and tells it
                jax.block_until_ready(results)
            del results
            self._free = self._clock()
            self._ended += 1
            self._ends.put(self._free)
