"""The evaluate command by several real processes: the figures of one, and an end where one of them is stuck."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import small_run
from small_run import by_variables, free_port

PROGRAM = """
import os, signal, sys, types
from jaxmm import command, evaluate, sharding, train
from jaxmm.training import evaluator, held_out_samples

where = sys.argv.pop(1)
stop = lambda *args, **options: os.kill(os.getpid(), signal.SIGSTOP)
if os.environ.get("JAX_PROCESS_ID") == "1":
    if where == "within a batch":
        evaluator.sharding = types.SimpleNamespace(**{**vars(sharding), "place_batch": stop})
    elif where == "reading":
        evaluate.saved_params = stop
    elif where == "samples":
        held_out_samples.write_rows = stop
command.run(train.main if where == "samples" else evaluate.main)
"""


def start(where: str, arguments: list[str], devices: int, **variables: str) -> subprocess.Popen:
    clean = small_run.environment(devices, **variables)
    return subprocess.Popen([sys.executable, "-c", PROGRAM, where, *arguments], env=clean, cwd=small_run.ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


def outputs(processes: list[subprocess.Popen]) -> list[tuple[str, str]]:
    found = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), found
    return found


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    made = small_run.arguments(small_run.make_data(folder), folder / "cache")
    return [*made, "--config.steps=2", "--config.eval.every=0"]


@pytest.fixture(scope="module")
def workdir(arguments, tmp_path_factory) -> Path:
    from jaxmm import train

    folder = tmp_path_factory.mktemp("run")
    assert train.main([*arguments, f"--workdir={folder}"]) == 0
    return folder


@pytest.mark.slow
def test_two_processes_evaluate_to_the_figures_of_one_and_the_first_alone_tells_them(workdir):
    ask = [f"--workdir={workdir}"]
    told = {}
    for count in (1, 2):
        variables = by_variables(2, free_port()) if count == 2 else [{}]
        found = outputs([start("", ask, 8 // count, **mine) for mine in variables])
        told[count] = json.loads((workdir / "eval.json").read_text())["colours"]
        (workdir / "eval.json").unlink()
        assert "colours loss" in found[0][0]
        assert not any("colours loss" in out for out, _ in found[1:])
    assert told[2].pop("loss") == pytest.approx(told[1].pop("loss"), rel=1e-6)
    assert told[2] == told[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "line"),
    [
        pytest.param(
            "reading", "process 1 of 2 did not come to the list of checkpoints within 20 s", marks=pytest.mark.full
        ),
        ("within a batch", "process 1 of 2 did not come to the end of batch 1 of an evaluation within 20 s"),
        ("samples", "process 1 of 2 did not come to the answers of colours at step 2 within 30 s"),
    ],
)
def test_a_process_that_is_stuck_besides_the_steps_is_named_by_the_other(where, line, arguments, workdir, tmp_path):
    ask = [*arguments, f"--workdir={tmp_path}"] if where == "samples" else [f"--workdir={workdir}"]
    limit = {"JAXMM_BARRIER_SECONDS": line.split()[-2]}  # before JAX itself ends them; the samples follow compilations
    running = [start(where, ask, 4, **mine, **limit) for mine in by_variables(2, free_port())]
    try:
        _, told = running[0].communicate(timeout=240)
    finally:
        for process in running:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    assert running[0].returncode == 75, told
    assert f"error: {line}" in told
    assert "Traceback" not in told
