"""Worker processes: results are what the function returns, memory is nobody's twice, and ends are clean."""

from __future__ import annotations

import gc
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from jaxmm.data.workers import ALIGNMENT, SLOT_UNIT, Workers
from jaxmm.errors import UserError


class Mixed(NamedTuple):
    """Arrays of all kinds, at several depths."""

    pixels: np.ndarray
    nested: list[tuple[np.ndarray, str]]
    empty: np.ndarray


def mixed(seed: int) -> Mixed:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (3, 5, 7), dtype=np.uint8)
    return Mixed(pixels, [(rng.standard_normal(11, np.float32), f"made of {seed}")], np.zeros((0, 3), np.int32))


def counting(number: int) -> np.ndarray:
    """An array that fills more than half of a slot."""
    return np.full(SLOT_UNIT // 8 * 5, number, np.uint8)


def growing(number: int) -> np.ndarray:
    return np.full(SLOT_UNIT * number, number, np.uint8)


class Dying:
    """Gives its process number, and then does something else."""

    def __init__(self, how: str):
        self.how, self.calls = how, 0

    def __call__(self):
        self.calls += 1
        if self.calls == 1:
            return os.getpid()
        if self.how == "exit":
            os._exit(3)
        if self.how == "hang up":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.how == "cut":
            with tempfile.TemporaryFile() as file:
                file.write(bytes(1 << 16))
                file.flush()
                mapped = mmap.mmap(file.fileno(), 1 << 16)
                file.truncate(0)
                mapped[9]
        raise {"error": ValueError, "end of file": EOFError, "unsendable": Unsendable}[self.how]("slots and patches")


class Unsendable(Exception):
    """Does not unpickle: it wants two arguments and keeps one."""

    def __init__(self, one, two=None):
        super().__init__(one)
        self.made = lambda: two


@pytest.fixture
def pool():
    made: list[Workers] = []

    def start(function, count=1) -> Workers:
        made.append(Workers(function, count))
        return made[-1]

    yield start
    for workers in made:
        workers.close()


def test_a_result_is_what_the_function_returns(pool):
    workers = pool(mixed)
    for seed in range(3):
        found, wanted = workers(seed), mixed(seed)
        assert isinstance(found, Mixed)
        assert found.nested[0][1] == f"made of {seed}"
        pairs = zip(
            (found.pixels, found.nested[0][0], found.empty), (wanted[0], wanted[1][0][0], wanted[2]), strict=True
        )
        for a, b in pairs:
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        assert found.pixels.ctypes.data % ALIGNMENT == found.nested[0][0].ctypes.data % ALIGNMENT == 0
        found.pixels[:] = 0  # it belongs to whoever has it


def test_memory_that_anything_still_shows_is_never_given_out_again(pool):
    workers = pool(counting)
    views = [workers(number)[number : number + 3].reshape(3, 1) for number in range(6)]  # views alone remain
    gc.collect()
    assert [view.ravel().tolist() for view in views] == [[number] * 3 for number in range(6)]
    assert workers.slots.size == 6 * SLOT_UNIT


def test_memory_that_nothing_shows_is_used_again(pool):
    workers = pool(counting)
    for number in range(20):
        assert (workers(number) == number).all()
    assert workers.slots.size <= 2 * SLOT_UNIT  # the last result lives until the next has been named


def test_a_larger_result_gets_a_larger_place(pool):
    workers = pool(growing)
    for number in (1, 3, 2, 3, 1):
        found = workers(number)
        assert found.size == SLOT_UNIT * number
        assert (found == number).all()
        del found
    assert workers.slots.size == SLOT_UNIT * (1 + 3)


def test_results_outlive_the_workers(pool):
    workers = pool(counting)
    found = workers(7)
    workers.close()
    del workers
    gc.collect()
    assert (found == 7).all()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("exit", "exit status 3.*config.data.workers"),
        ("hang up", "ended by SIGSEGV"),
        ("cut", "ended by SIGBUS: a file"),
    ],
)
def test_a_worker_that_dies_is_a_line_that_says_how(pool, how, message):
    workers = pool(Dying(how))
    assert workers() == workers.pids[0]
    with pytest.raises(UserError, match=message) as caught:
        workers()
    assert f"process {workers.pids[0]}" in str(caught.value)


@pytest.mark.parametrize(
    ("how", "kind"), [("error", ValueError), ("end of file", EOFError), ("unsendable", RuntimeError)]
)
def test_an_error_in_the_function_is_raised_here_with_where_it_was(pool, how, kind):
    workers = pool(Dying(how))
    workers()
    with pytest.raises(kind, match="slots and patches") as caught:
        workers()
    assert "in __call__" in caught.value.__notes__[0]
    with pytest.raises(kind):
        workers()  # and the worker lives on


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_outlive_a_ctrl_c_and_a_terminate_and_end_with_the_run():
    """The run is a program of its own: it gets a terminal's signal to its whole group, and then is killed."""
    program = (
        "import operator, os, signal, time\n"
        "from jaxmm.data.workers import Workers\n"
        "signal.signal(signal.SIGINT, lambda *_: None)\n"
        "workers = Workers(operator.add, 2)\n"
        "workers(1, 1), workers(1, 1)\n"
        "os.killpg(0, signal.SIGINT)\n"
        "for pid in workers.pids:\n"
        "    os.kill(pid, signal.SIGTERM)\n"
        "time.sleep(0.2)\n"
        "print(workers(2, 3), workers(4, 5), *workers.pids, flush=True)\n"
        "time.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True)
    first, second, *pids = map(int, run.stdout.readline().split())
    assert (first, second) == (5, 9)
    assert all(map(is_running, pids))
    run.kill()
    run.communicate()
    deadline = time.monotonic() + 60
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


def test_closing_ends_the_processes(pool):
    workers = pool(counting, 2)
    workers(1)
    workers.close()
    assert not any(map(is_running, workers.pids))
