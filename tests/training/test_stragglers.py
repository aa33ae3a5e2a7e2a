"""The process that the others wait for is named with its cause, and none is where nobody loses time."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import small_run
from small_run import ROOT, by_variables, environment, free_port

from jaxmm.training.stragglers import Stragglers, Window, slowest


def test_the_process_that_waits_least_holds_the_others_up_and_its_data_says_whether_that_is_why():
    fast = Window(loop=20, data=0.5, barrier=6, idle=6)
    by_data, by_step = Window(20, 6.5, 0, 6), Window(20, 0.5, 0, 6)
    assert by_step.step == 19.5
    for slow, cause in ((by_data, "data"), (by_step, "device")):
        found = slowest([fast, fast, slow, fast])
        assert (found["process"], found["cause"], found["cost"]) == (2, cause, 0.3)
    assert found["seconds"] == {
        "step": [13.5, 13.5, 19.5, 13.5], "data": [0.5] * 4, "barrier": [6, 6, 0, 6],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("windows", "cost"),
    [
        ([Window(20, 0, 18, 0), Window(20, 18, 0, 0)], 0.0),  # its devices had steps to do all the time
        ([Window(20, 0, 18, 0), Window(20, 18, 0, 4)], 0.2),
        ([Window(20, 0, 1, 8), Window(20, 0, 1, 8)], 0.0),  # all are late alike
        ([Window(20, 0, 1, 8), Window(20, 0, 5, 8), Window(20, 0, 5, 8), Window(20, 0, 1, 8)], 0.2),
        ([Window(0, 0, 0, 0), Window(0, 0, 0, 0)], 0.0),  # no step was done
    ],
)
def test_what_a_running_step_hides_costs_nothing(windows, cost):
    assert slowest(windows)["cost"] == pytest.approx(cost)


def test_a_process_is_named_once_as_long_as_it_stays_the_same():
    said: list[str] = []
    rest: list[list[float]] = [[10, 0, 4, 4]]
    stragglers = Stragglers(lambda numbers: [*rest, list(numbers)], said.append)
    at = 0.0

    def window(data: float, idle: float) -> None:
        nonlocal at
        stragglers.begin_window(at, at)
        stragglers.waited(data)
        stragglers.met(0.5)
        found = stragglers.window(at + 10, at + idle)
        assert found["seconds"]["data"][1] == data, "of this window alone"
        at += 100

    for data, idle in ((4, 4), (4, 4), (0, 4), (0, 0.4), (4, 4)):
        window(data, idle)
    assert said == [
        "process 1 of 2 holds the others up, 35% of the time: it waited 4 s for data, the others 0 s",
        "process 1 of 2 holds the others up, 35% of the time: its own steps took 9.5 s, those of the others 6 s",
        "process 1 of 2 holds the others up, 35% of the time: it waited 4 s for data, the others 0 s",
    ]


SLOWED = """
import sys, time
from jaxmm import command, train
from jaxmm.training import loop
from jaxmm.training.step_ends import StepEnds

ends, steps, prefetch, counts_of = [], 0, loop.prefetch, loop.counts_of
begin = StepEnds.__init__
StepEnds.__init__ = lambda self, clock: (begin(self, clock), ends.append(self))[0]

def idle():  # until the devices have been idle for a second
    while ends[0].busy_until() == float("inf"):
        time.sleep(0.01)
    time.sleep(1)

def late_batches(*args):
    for item in prefetch(*args):
        if 2 <= steps < 6:
            idle()
        yield item

def late_after_steps(*args):
    global steps
    steps += 1
    if steps >= 6:
        idle()
    return counts_of(*args)

loop.prefetch, loop.counts_of = late_batches, late_after_steps
sys.argv[0] = "train"
command.run(train.main)
"""


@pytest.mark.slow
def test_a_process_of_a_real_job_that_is_late_is_named_first_for_its_data_and_then_for_its_steps(tmp_path):
    data = small_run.make_data(tmp_path)
    arguments = [*small_run.arguments(data, tmp_path / "cache"), "--config.steps=9", "--config.log.every=3"]
    arguments += ["--config.checkpoint.every=0", "--config.eval.path=", "--config.eval.mixture="]
    arguments += [f"--workdir={tmp_path / 'run'}"]
    programs = ["-m", "jaxmm.train"], ["-c", SLOWED]
    running = [
        subprocess.Popen(
            [sys.executable, *program, *arguments], env=environment(4, **variables), cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for program, variables in zip(programs, by_variables(2, free_port()), strict=True)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["stragglers"] for line in lines}
    for step, cause in ((6, "data"), (9, "device")):
        assert (found[step]["process"], found[step]["cause"]) == (1, cause)
        assert 0.05 < found[step]["cost"] < 1
    seconds = found[6]["seconds"]
    assert seconds["data"][1] > 2 > seconds["barrier"][1]
    assert seconds["barrier"][0] > 2
    assert outputs[0].count("process 1 of 2 holds the others up") == 2
    assert "holds the others up" not in outputs[1], "process 0 tells"
