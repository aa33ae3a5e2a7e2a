"""A task run over items in worker processes that start from nothing, end with their parent, and say why they died.

Workers are fresh interpreters, not forks and not copies of the main program: they import what the task needs, which is
never JAX. Values go through pipes.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, Protocol

from jaxmm.errors import UserError
from jaxmm.machine import cores

TICK_SECONDS = 0.2  # between what a worker tells of its progress
_WORKERS_PER_CORE, _WORKERS_ANYWHERE = 4, 32  # each is a process with its own memory; more of them only wait


class WorkerDied(UserError):
    """A worker process ended without an answer; what it did not finish can be tried again."""


class Task(Protocol):
    """What workers do with an item: it pickles, and its class can be imported."""

    def __call__(self, item: Any, tick: Callable[..., None], /) -> None: ...

    def where(self, item: Any, /) -> str:
        """Names the item in messages."""
        ...


def run(task: Task, items: Sequence[Any], workers: int, tick: Callable[..., None], done: Callable[[Any], None]) -> None:
    """Calls ``task(item, tick)`` for each item, in this process if ``workers`` is 1, else in that many processes.

    Args:
      tick: takes ints, which the task gives it; here it is called with their sums since the last call.
      done: called here with each item that is finished, in any order.

    Raises:
      WorkerDied: if a worker process ends, with what it died of.
      Exception: what the task raised, with the worker's traceback as its cause. Other workers are ended.
    """
    if workers <= 1 or len(items) <= 1:
        for item in items:
            task(item, tick)
            done(item)
        return
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    packed = _framed(task)
    check_workers(min(workers, len(items)), "--workers")
    processes = [_start() for _ in range(min(workers, len(items)))]
    threads = [
        threading.Thread(target=_converse, args=(process, packed, task, waiting, events), daemon=True)
        for process in processes
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
        while not waiting.empty():
            waiting.get_nowait()
        for process in processes:
            process.kill()
        for process, thread in zip(processes, threads, strict=True):
            process.wait()
            if thread.ident is not None:
                thread.join()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


def _start() -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    # Processes are the parallelism; threads of the tokenizers library on top of them only fight.
    environment["TOKENIZERS_PARALLELISM"] = "false"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
        process_group=0,  # Ctrl-C is the parent's to handle
    )  # fmt: skip


def _converse(process: Any, packed: bytes, task: Task, waiting: queue.SimpleQueue, events: queue.SimpleQueue) -> None:
    """Gives items to a worker, one at a time, and passes on what it answers; runs in a thread of its own."""
    message = packed
    while True:
        try:
            item = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            _write(process.stdin, message + _framed(item))
            while (answer := _read(process.stdout))[0] == "tick":
                events.put(answer)
        except (EOFError, OSError):
            events.put(("error", WorkerDied(_died(process.wait(), task.where(item)))))
            return
        message = b""
        if answer[0] == "error":
            error, trace = answer[1]
            if not isinstance(error, UserError):
                error.__cause__ = RuntimeError(f"in a worker process:\n{trace}")
            events.put(("error", error))
            return
        events.put(("done", item))


def _framed(value: Any) -> bytes:
    packed = pickle.dumps(value)
    return struct.pack("<Q", len(packed)) + packed


def _write(pipe: BinaryIO, frames: bytes) -> None:
    pipe.write(frames)
    pipe.flush()


def _read(pipe: BinaryIO) -> Any:
    """Returns the next value; EOFError where the other side is gone, in the middle of it too."""
    head = pipe.read(8)
    packed = pipe.read(struct.unpack("<Q", head)[0]) if len(head) == 8 else b""
    if not packed:
        raise EOFError
    return pickle.loads(packed)


def _died(status: int, where: str) -> str:
    if status >= 0:
        return f"a worker process ended with status {status} while it read {where}: see what it printed above"
    name = signal.Signals(-status).name
    why = " (often: out of memory)" if -status == signal.SIGKILL else ""
    return f"a worker process was killed by {name}{why} while it read {where}: use fewer workers, then run it again"


def serve() -> None:
    """What a worker process does: reads a task and items from its input, and answers on its output."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()
    first: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, first, items), daemon=True).start()
    task = first.get()
    while True:
        item = items.get()
        try:
            if isinstance(task, Exception):
                raise task
            ticker = _Ticker(answers)
            task(item, ticker)
            ticker.flush()
            answer: tuple[str, Any] = ("done", None)
        except Exception as error:
            answer = ("error", (_sendable(error), traceback.format_exc()))
        _send(answers, answer)


def _listen(source: BinaryIO, first: queue.SimpleQueue, items: queue.SimpleQueue) -> None:
    """Reads on while the task works, so that a parent that is gone is noticed at once."""
    try:
        into = first
        while True:
            try:
                into.put(_read(source))
            except EOFError:
                return
            except Exception as error:  # a task that cannot be imported here, most likely
                into.put(error)
            into = items
    finally:
        os._exit(1)


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _send(answers: BinaryIO, answer: Any) -> None:
    try:
        _write(answers, _framed(answer))
    except BrokenPipeError:
        os._exit(1)


class _Ticker:
    """Adds up what a task tells, and sends it now and then."""

    def __init__(self, answers: BinaryIO):
        self._answers = answers
        self._sums: list[int] = []
        self._sent = time.monotonic()

    def __call__(self, *counts: int) -> None:
        self._sums = [a + b for a, b in zip(self._sums or [0] * len(counts), counts, strict=True)]
        if time.monotonic() - self._sent >= TICK_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._sums:
            _send(self._answers, ("tick", self._sums))
        self._sums, self._sent = [], time.monotonic()


def check_workers(count: int, name: str) -> None:
    """Raises UserError, by the setting's name, for more worker processes than this machine can use."""
    most = max(_WORKERS_PER_CORE * cores(), _WORKERS_ANYWHERE)
    if count > most:
        raise UserError(f"{name} is {count}: at most {most} processes are started on this machine's {cores()} cores")
