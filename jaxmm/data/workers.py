"""Worker processes that make things of arrays: each runs one function, and its arrays come back in shared memory.

Our own and not a library's, for what a long run needs of them: a worker that dies says so at once; a Ctrl-C that the
run catches to save does not end its workers; a run that is killed leaves none behind; and a worker imports neither the
program's main module nor JAX.

A result is pickled with its arrays out of band (PEP 574). The worker copies them into a slot of a file that both
processes map, and here they are views of it. A slot is used again once nothing here can reach an array in it; one that
JAX took without a copy, or is still copying to a device, is reached from there.
"""

from __future__ import annotations

import collections
import contextlib
import mmap
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from jaxmm.errors import UserError

ALIGNMENT = 64  # of arrays in a slot, in bytes: what JAX takes without a copy where host and device are one
SLOT_UNIT = 1 << 16  # slots are multiples of this many bytes, as mapping wants it


ENDED = (EOFError, BrokenPipeError, ConnectionResetError)  # what a pipe raises whose other end is closed


class Made(NamedTuple):
    """A result: the pickle without its arrays' bytes, and how many each has."""

    result: bytes
    sizes: list[int]


class Failed(NamedTuple):
    """What the function raised."""

    error: Exception
    trace: str


class Slot(NamedTuple):
    """A part of the shared file, mapped."""

    offset: int
    size: int
    memory: mmap.mmap


class Slots:
    """The shared file. Any thread may take a slot; it comes back by itself."""

    def __init__(self) -> None:
        # Not /dev/shm: containers give it a few megabytes, and what writes past them is killed without a word.
        if hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("jaxmm-batches")
        else:
            with tempfile.TemporaryFile() as file:
                self.fd = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.fd)
        self.size = 0  # bytes of all slots there are
        self._lock = threading.Lock()
        self._free: collections.deque[Slot] = collections.deque()

    def take(self, size: int) -> tuple[Slot, np.ndarray]:
        """Returns a free slot of at least ``size`` bytes, and the array that owns its memory.

        The slot is free again when that array and all views of it are gone.
        """
        slot = None
        with self._lock:
            for _ in range(len(self._free)):
                found = self._free.popleft()
                if found.size >= size:
                    slot = found
                    break
                self._free.append(found)
            if slot is None:
                size = -(-max(size, 1) // SLOT_UNIT) * SLOT_UNIT
                os.ftruncate(self.fd, self.size + size)
                slot = Slot(self.size, size, mmap.mmap(self.fd, size, offset=self.size))
                self.size += size
        memory = np.frombuffer(slot.memory, np.uint8)
        # Without the lock, which this thread may hold when the garbage collector runs; appending is atomic.
        weakref.finalize(memory, self._free.append, slot).atexit = False
        return slot, memory


class Worker:
    """One process that runs ``function``, for one thread at a time."""

    def __init__(self, function: bytes, slots: Slots):
        """``function`` is pickled."""
        self._slots = slots
        ours, theirs = socket.socketpair()
        program = f"import sys; sys.path[:] = {sys.path!r}; from jaxmm.data.workers import main; " + (
            f"main({theirs.fileno()}, {slots.fd})"
        )
        # In a session of its own: a Ctrl-C in the terminal is for the run to deal with.
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            pass_fds=(theirs.fileno(), slots.fd),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()  # so that the pipe ends with the worker
        self._connection = Connection(ours.detach())
        self._end = weakref.finalize(self, _end, self._process)
        self._started = False
        self._function = function

    @property
    def pid(self) -> int:
        return self._process.pid

    def __call__(self, *args: Any) -> Any:
        """Returns ``function(*args)``, its arrays in shared memory.

        Raises:
          UserError: if the process has died.
        """
        try:
            if not self._started:
                self._connection.send_bytes(self._function)
                self._started = True
            self._connection.send(args)
            made: Made | Failed = self._connection.recv()
            if isinstance(made, Made):
                places = np.cumsum([0, *(_aligned(size) for size in made.sizes)]).tolist()
                slot, memory = self._slots.take(places[-1])
                self._connection.send((slot.offset, slot.size, places))
                self._connection.recv()
        except ENDED as error:
            raise UserError(f"a data worker (process {self.pid}) {self._cause()}") from error
        if isinstance(made, Failed):
            made.error.add_note(f"in a data worker:\n{made.trace}")
            raise made.error
        result, sizes = made
        return pickle.loads(result, buffers=[memory[a : a + n] for a, n in zip(places, sizes, strict=False)])

    def _cause(self) -> str:
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closed its pipe and hangs: lower config.data.workers, or set it to 0"
        if status == -signal.SIGKILL:
            return (
                "was killed (SIGKILL), most likely because memory ran out: lower config.data.workers, or set it to 0, "
                "and run the same command again"
            )
        if status == -signal.SIGBUS:
            return "was ended by SIGBUS: a file that it had mapped was cut short, most likely one of the prepared data"
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        return f"{how}: what it printed is above; config.data.workers=0 makes batches in this process"

    def close(self) -> None:
        self._end()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _end(process: subprocess.Popen) -> None:
    process.kill()  # it holds nothing that could be left half done
    process.wait()  # a thread that waits for it now finds its pipe closed; ours closes when that thread has let go


class Workers:
    """Several workers with the same function. Any number of threads may call it; as many as workers run at once."""

    def __init__(self, function: Callable[..., Any], count: int):
        """``function`` is pickled once; a result may hold arrays anywhere in it."""
        self.slots = Slots()
        pickled = pickle.dumps(function, protocol=5)
        self._workers = [Worker(pickled, self.slots) for _ in range(count)]
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._workers]

    def __call__(self, *args: Any) -> Any:
        worker = self._idle.get()
        try:
            return worker(*args)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Ends the processes; what they made stays."""
        for worker in self._workers:
            worker.close()


def main(connection_fd: int, slots_fd: int) -> None:
    """A worker's life: it ends with its pipe."""
    # A scheduler may send it to every process of a job, when only the run knows what to do.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(connection_fd)
    with contextlib.suppress(*ENDED):  # the run has ended
        _serve(connection, slots_fd)


def _serve(connection: Connection, slots_fd: int) -> None:
    memories: dict[int, np.ndarray] = {}
    pickled = connection.recv_bytes()
    function: Callable[..., Any] | None = None
    while True:
        args = connection.recv()
        buffers: list[memoryview] = []

        def keep(buffer: pickle.PickleBuffer, buffers: list[memoryview] = buffers) -> bool:
            """Takes an array's bytes out of the pickle; empty ones stay."""
            raw = buffer.raw()
            if raw.nbytes:
                buffers.append(raw)
            return not raw.nbytes

        try:
            if function is None:
                function = pickle.loads(pickled)
            result = pickle.dumps(function(*args), protocol=5, buffer_callback=keep)
        except Exception as error:
            connection.send(Failed(_sendable(error), traceback.format_exc()))
            continue
        connection.send(Made(result, [buffer.nbytes for buffer in buffers]))
        offset, size, places = connection.recv()
        if offset not in memories:
            memories[offset] = np.frombuffer(mmap.mmap(slots_fd, size, offset=offset), np.uint8)
        for place, buffer in zip(places, buffers, strict=False):
            memories[offset][place : place + buffer.nbytes] = np.frombuffer(buffer, np.uint8)
        connection.send(True)


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
