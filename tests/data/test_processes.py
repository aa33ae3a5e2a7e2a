"""Worker processes and the engine on them: how one ended is told, and no error makes the others wait."""

from __future__ import annotations

import os
import pickle
import signal

import pytest

from jaxmm.data.prepare import local_engine
from jaxmm.data.processes import Ended, TooManyWorkers, Worker


def serve(channel, function, value) -> None:
    channel.send(function(value))


def end(how: str) -> None:
    os.kill(os.getpid(), getattr(signal, how))


@pytest.mark.parametrize(
    ("how", "told", "cause"),
    [
        ("SIGKILL", "was killed by SIGKILL, most likely because memory ran out", "memory"),
        ("SIGSEGV", "was ended by SIGSEGV: what it printed is above", ""),
        ("SIGBUS", "was ended by SIGBUS: a file that it had mapped was cut short while it was read", "file"),
    ],
)
def test_how_a_worker_ended_is_told_with_its_cause(how, told, cause):
    worker = Worker(pickle.dumps(end), serve)
    worker.send(how)
    with pytest.raises(Ended) as caught:
        worker.receive()
    assert (caught.value.how, caught.value.cause) == (told, cause)
    worker.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_for_the_whole_job_ends_no_worker(number):
    worker = Worker(pickle.dumps(abs), serve)
    worker.send(-1)
    assert worker.receive() == 1
    os.kill(worker.pid, number)
    worker.send(-2)
    assert worker.receive() == 2
    worker.close()


class Task:
    """Works, or does what its name says."""

    def __init__(self, how: str = ""):
        self.how = how

    def __call__(self, item, tick) -> None:
        if self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        tick(item)

    def where(self, item) -> str:
        raise LookupError("nowhere")


def test_an_error_that_nobody_foresaw_ends_the_engine_with_it():
    with pytest.raises(LookupError, match="nowhere"):
        local_engine.run(Task("die"), [1, 2], 2, lambda *counts: None, lambda item: None)
    with pytest.raises((pickle.PicklingError, AttributeError), match=r"lambda|local"):
        local_engine.run(Task(), [lambda: 0, lambda: 1], 2, lambda *counts: None, lambda item: None)


def test_items_are_done_once_and_ticks_add_up():
    ticked, done = [], []
    local_engine.run(Task(), list(range(20)), 3, ticked.append, done.append)
    assert (sum(ticked), sorted(done)) == (sum(range(20)), list(range(20)))


def test_more_workers_than_the_machine_has_room_for_are_refused():
    with pytest.raises(TooManyWorkers, match="--workers is 100000: at most"):
        local_engine.run(Task(), range(200_000), 100_000, lambda *counts: None, lambda item: None)
