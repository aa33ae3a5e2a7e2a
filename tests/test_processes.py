"""Real processes under one job, joined as SLURM or a cluster's variables say: the losses of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_run

from jaxmm import startup
from jaxmm.errors import UserError

STEPS = 4


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start(arguments: list[str], workdir: Path, devices: int, **variables: str) -> subprocess.Popen:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "XLA_FLAGS", "JAX_NUM"))}
    clean |= {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAXMM_HUGE_PAGES": "0", **variables}
    command = [sys.executable, "-m", "jaxmm.train", *arguments, f"--workdir={workdir}"]
    return subprocess.Popen(command, env=clean, cwd=small_run.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)  # fmt: skip


def losses(processes: list[subprocess.Popen], workdir: Path) -> list[float]:
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def by_variables(count: int, port: int) -> list[dict[str, str]]:
    address = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count)}
    return [{**address, "JAX_PROCESS_ID": str(i)} for i in range(count)]


def by_slurm(count: int, job: int) -> list[dict[str, str]]:
    """The variables of a step on one node; JAX makes the port of the job's number."""
    step = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count)}
    return [{**step, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(count)]


@pytest.mark.slow
def test_processes_of_one_job_give_the_losses_of_one_process(tmp_path):
    data = small_run.make_data(tmp_path)
    arguments = [*small_run.arguments(data, tmp_path / "cache"), f"--config.steps={STEPS}", "--config.log.every=1"]
    arguments += ["--config.eval.every=0", "--config.checkpoint.every=100", "--config.eval.examples=8"]
    one = losses([start(arguments, tmp_path / "one", 8)], tmp_path / "one")
    assert len(one) == STEPS
    jobs = {"two": by_variables(2, free_port()), "slurm": by_slurm(2, free_port() % 4096)}
    found = {}
    for name, variables in jobs.items():
        running = [start(arguments, tmp_path / name, 4, **mine) for mine in variables]
        found[name] = losses(running, tmp_path / name)
    np.testing.assert_allclose(found["two"], one, rtol=1e-6)
    assert found["slurm"] == found["two"], "to the bit, run after run"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_NUM_PROCESSES is set but not JAX_COORDINATOR_ADDRESS"),
        (
            {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2", "JAX_COORDINATOR_ADDRESS": "here:1"},
            "JAX_PROCESS_ID=2 of JAX_NUM_PROCESSES=2: they are counted from 0",
        ),
    ],
)
def test_a_job_that_is_said_by_halves_is_one_line(variables, message, monkeypatch):
    for name in startup.JOB:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        startup.join_processes()
