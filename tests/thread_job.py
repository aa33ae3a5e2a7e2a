"""A job of five processes that are threads of this one, for what they tell each other at the coordinator."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from typing import Any

import jax
import pytest

from jaxmm.runtime import barrier


class Coordinator:
    """As much of a job's key-value store as a Barrier asks of it, for threads in place of processes."""

    def __init__(self, processes: int):
        self.held: dict[str, str] = {}
        self.read: collections.Counter[str] = collections.Counter()  # values, by the thread that has read them
        self.changed, self.all_here = threading.Condition(), threading.Barrier(processes)

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        with self.changed:
            self.held[key] = value
            self.changed.notify_all()

    def key_value_delete(self, folder: str) -> None:
        with self.changed:
            self.held = {key: value for key, value in self.held.items() if not key.startswith(f"{folder}/")}

    def key_value_dir_get(self, folder: str) -> list[tuple[str, str]]:
        with self.changed:
            found = [(key, value) for key, value in self.held.items() if key.startswith(f"{folder}/")]
        self.read[threading.current_thread().name] += len(found)
        return found

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.held, milliseconds / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: nothing")
            self.read[threading.current_thread().name] += 1
            return self.held[key]

    def wait_at_barrier(self, name: str, milliseconds: int) -> None:
        self.all_here.wait(milliseconds / 1000)


def make_job(monkeypatch: pytest.MonkeyPatch) -> Coordinator:
    """A job of five threads, whose names are their numbers."""
    made = Coordinator(5)
    monkeypatch.setattr(barrier, "coordinator", lambda: made)
    monkeypatch.setattr(jax, "process_count", lambda: 5)
    monkeypatch.setattr(jax, "process_index", lambda: int(threading.current_thread().name))
    return made


def in_threads(process: Callable[[int], Any]) -> list[Any]:
    """What each of the five finds."""
    found: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: process(n)}), name=str(n)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [found.get(n) for n in range(5)]
