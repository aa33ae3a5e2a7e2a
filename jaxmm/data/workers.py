"""Worker processes that return arrays: each runs one function, and its arrays come back in shared memory.

A result is pickled with its arrays out of band (PEP 574). The worker copies them into a slot of a file that both
processes map, and in this process they are views of it. A slot is reused once nothing here references an array in it.
JAX holds such a reference while it uses an array without a copy, or still copies it to a device.
"""

from __future__ import annotations

import collections
import functools
import mmap
import os
import pickle
import queue
import tempfile
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxmm.data.processes import Channel, Ended, Failed, Worker
from jaxmm.errors import UserError

ALIGNMENT = 64  # bytes, of arrays in a slot: with it JAX needs no copy where host and device are one
SLOT_UNIT = 1 << 16  # slots are multiples of this many bytes, as mmap requires


ADVICE = {
    "memory": "; run the same command again with fewer config.data.workers, or with 0",
    "file": "; most likely one of the prepared data: prepare it again",
    "": "; config.data.workers=0 makes batches in this process",
}


class Made(NamedTuple):
    """A result: the pickle without its arrays' bytes, and the number of bytes of each array."""

    result: bytes
    sizes: list[int]


class Slot(NamedTuple):
    """A part of the shared file, mapped."""

    offset: int
    size: int
    memory: mmap.mmap


class Slots:
    """The shared file. Any thread may take a slot; it is returned automatically."""

    def __init__(self) -> None:
        # Not /dev/shm: containers give it a few megabytes, and a process that writes past them is killed silently.
        if hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("jaxmm-batches")
        else:
            with tempfile.TemporaryFile() as file:
                self.fd = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.fd)
        self.size = 0  # bytes of all slots
        self._lock = threading.Lock()
        self._free: collections.deque[Slot] = collections.deque()

    def take(self, size: int) -> tuple[Slot, np.ndarray]:
        """Returns a free slot of at least ``size`` bytes, and the uint8 array that owns its memory.

        The slot is free again when that array and all views of it are gone.
        """
        slot = None
        with self._lock:
            for _ in range(len(self._free)):
                candidate = self._free.popleft()
                if candidate.size >= size:
                    slot = candidate
                    break
                self._free.append(candidate)
            if slot is None:
                size = -(-max(size, 1) // SLOT_UNIT) * SLOT_UNIT
                os.ftruncate(self.fd, self.size + size)
                slot = Slot(self.size, size, mmap.mmap(self.fd, size, offset=self.size))
                self.size += size
        memory = np.frombuffer(slot.memory, np.uint8)
        # No lock here: this thread may hold it when the garbage collector runs. Appending is atomic.
        weakref.finalize(memory, self._free.append, slot).atexit = False
        return slot, memory


class Workers:
    """Several workers with the same function. Any number of threads may call it; one call runs in each worker."""

    def __init__(self, function: Callable[..., Any], count: int):
        """``function`` is pickled once; a result may hold arrays anywhere in it."""
        self.slots = Slots()
        pickled = pickle.dumps(function, protocol=5)
        serve = functools.partial(_serve, self.slots.fd)
        self._workers = [Worker(pickled, serve, [self.slots.fd]) for _ in range(count)]
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._workers]

    def __call__(self, *args: Any) -> Any:
        """Returns ``function(*args)``, with its arrays in shared memory.

        Raises:
          UserError: if the worker process has died.
          Exception: what the function raised, with the worker's traceback as a note.
        """
        worker = self._idle.get()
        try:
            return self._made_by(worker, args)
        except Ended as ended:
            raise UserError(f"a data worker (process {worker.pid}) {ended.how}{ADVICE[ended.cause]}") from ended
        finally:
            self._idle.put(worker)

    def _made_by(self, worker: Worker, args: tuple[Any, ...]) -> Any:
        worker.send(args)
        made = worker.receive()
        if isinstance(made, Made):
            places = np.cumsum([0, *(_aligned(size) for size in made.sizes)]).tolist()
            try:
                slot, memory = self.slots.take(places[-1])
            except (OSError, MemoryError):
                worker.close()  # it waits for a place, and would take the next call's arguments for one
                raise
            worker.send((slot.offset, slot.size, places))
            filled = worker.receive()
        else:
            filled = made
        if isinstance(filled, Failed):
            filled.error.add_note(f"in a data worker:\n{filled.trace}")
            raise filled.error
        result, sizes = made
        return pickle.loads(result, buffers=[memory[a : a + n] for a, n in zip(places, sizes, strict=False)])

    def close(self) -> None:
        """Ends the processes; their results stay valid."""
        for worker in self._workers:
            worker.close()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


# In the worker


def _serve(fd: int, channel: Channel, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Calls the function, receives the places for its arrays, and copies them there."""
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        """Takes an array's bytes out of the pickle; empty ones stay."""
        raw = buffer.raw()
        if raw.nbytes:
            buffers.append(raw)
        return not raw.nbytes

    result = pickle.dumps(function(*args), protocol=5, buffer_callback=keep)
    channel.send(Made(result, [buffer.nbytes for buffer in buffers]))
    offset, size, places = channel.receive()
    memory = _mapped(fd, offset, size)
    for place, buffer in zip(places, buffers, strict=False):
        memory[place : place + buffer.nbytes] = np.frombuffer(buffer, np.uint8)
    channel.send(True)


@functools.cache
def _mapped(fd: int, offset: int, size: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(fd, size, offset=offset), np.uint8)
