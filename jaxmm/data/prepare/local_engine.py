"""Runs a task over items in worker processes on this machine."""

from __future__ import annotations

import contextlib
import pickle
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from jaxmm.data.processes import Channel, Ended, Failed, Worker, check_workers
from jaxmm.errors import UserError

TICK_SECONDS = 0.2  # between two progress reports of a worker


class WorkerDied(UserError):
    """A worker process ended without an answer; what it did not finish can be tried again."""


class Task(Protocol):
    """The work on an item. It must pickle, and its class must be importable."""

    def __call__(self, item: Any, tick: Callable[..., None], /) -> None: ...

    def where(self, item: Any, /) -> str:
        """Names the item in messages."""
        ...


def run(task: Task, items: Sequence[Any], workers: int, tick: Callable[..., None], done: Callable[[Any], None]) -> None:
    """Calls ``task(item, tick)`` for each item, in this process if ``workers`` is 1, else in that many processes.

    Args:
      tick: takes ints. The task calls it with counts; here it is called with their sums since the last call.
      done: called here with each item that is finished, in any order.

    Raises:
      WorkerDied: if a worker process ends; the message says how.
      Exception: what the task raised, with the worker's traceback as its cause. The other workers are ended.
    """
    if workers <= 1 or len(items) <= 1:
        for item in items:
            task(item, tick)
            done(item)
        return
    check_workers(min(workers, len(items)), "--workers")
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    pickled = pickle.dumps(task)
    started = [Worker(pickled, _serve) for _ in range(min(workers, len(items)))]
    threads = [
        threading.Thread(target=_converse, args=(worker, task, waiting, events), daemon=True) for worker in started
    ]
    try:
        for thread in threads:
            thread.start()
        left = len(items)
        while left:
            kind, value = events.get()
            if kind == "tick":
                tick(*value)
            elif kind == "done":
                left -= 1
                done(value)
            else:
                raise value
    finally:
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.get_nowait()
        for worker in started:
            worker.close()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def _converse(worker: Worker, task: Task, waiting: queue.SimpleQueue, events: queue.SimpleQueue) -> None:
    """Gives items to a worker, one at a time, and forwards its answers; runs in a thread of its own."""
    with contextlib.suppress(queue.Empty):
        while True:
            item = waiting.get_nowait()
            try:
                _do(worker, task, item, events)
            except BaseException as error:  # whatever it is, the main thread waits for an event
                events.put(("error", error))
                return
            events.put(("done", item))


def _do(worker: Worker, task: Task, item: Any, events: queue.SimpleQueue) -> None:
    try:
        worker.send(item)
        while isinstance(answer := worker.receive(), list):
            events.put(("tick", answer))
    except Ended as ended:
        less = ", with fewer workers" if ended.cause == "memory" else ""
        raise WorkerDied(
            f"a worker process {ended.how}; it read {task.where(item)}: run the same command again{less}"
        ) from ended
    if isinstance(answer, Failed):
        if isinstance(answer.error, UserError):
            raise answer.error
        raise answer.error from RuntimeError(f"in a worker process:\n{answer.trace}")


# In the worker


def _serve(channel: Channel, task: Callable[..., None], item: Any) -> None:
    """Runs the task on the item. Sends lists with the sums of its ticks, then True."""
    ticker = _Ticker(channel)
    task(item, ticker)
    ticker.flush()
    channel.send(True)


class _Ticker:
    """Adds up a task's ticks, and sends the sums from time to time."""

    def __init__(self, channel: Channel):
        self._channel = channel
        self._sums: list[int] = []
        self._sent = time.monotonic()

    def __call__(self, *counts: int) -> None:
        self._sums = [a + b for a, b in zip(self._sums or [0] * len(counts), counts, strict=True)]
        if time.monotonic() - self._sent >= TICK_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._sums:
            self._channel.send(self._sums)
        self._sums, self._sent = [], time.monotonic()
