"""Real processes under one job, joined as SLURM or a cluster's variables say: the losses and figures of one process."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import small_run
from small_run import by_variables, free_port, start
from thread_job import in_threads

from jaxmm import command, train
from jaxmm.data.packing.plan import Row
from jaxmm.errors import STRANDED, StrandedError, UserError
from jaxmm.runtime import barrier, startup
from jaxmm.runtime.barrier import Barrier, Stop
from jaxmm.runtime.patience import seconds_of
from jaxmm.training.run import Run

STEPS = 4
GLOO = "UNKNOWN: Gloo ReduceScatter failed: [external/gloo/gloo/transport/tcp/buffer.cc:72] Read timeout [127.0.0.1]:2"


def finished(processes: list[subprocess.Popen], workdir: Path) -> list[dict[str, Any]]:
    """The lines of the log, one a step."""
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def alone_in_this_process(arguments: list[str], workdir: Path) -> list[dict[str, Any]]:
    assert train.main([*arguments, f"--workdir={workdir}"]) == 0
    return finished([], workdir)


def losses(lines: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in lines]


def assert_close_figures(found: Any, wanted: Any) -> None:
    """Equal to 1e-4, number by number: the models have learnt for some steps, each in its own rounding."""

    def close(a: Any, b: Any) -> None:
        assert a == b if isinstance(a, str) else abs(a - b) < 1e-4

    jax.tree.map(close, found, wanted)


def counted(line: dict[str, Any]) -> list[float]:
    """What a line says that no clock changes: rates, which the first step has none of, times the step's seconds."""
    rates = [line[name] * line["step_seconds"] for name in ("tokens_per_second", "images_per_second") if line[name]]
    return [*rates, line["token_fill"], line["patch_fill"], line["examples_seen"], line["examples_skipped"]]


def planned(arguments: list[str], workdir: Path, steps: int) -> list[list[Row]]:
    """The rows of each batch."""
    plan = Run(command.parse(arguments, train.FLAGS, about="").config, workdir).plan
    return [plan.batch(k) for k in range(steps)]


def images_of(rows: list[Row], processes: int) -> list[int]:
    """Pieces of the first source, which has an image in each document, by the process that loads them."""
    found = np.array([sum(piece.source == 0 for piece in row) for row in rows])
    return found.reshape(processes, -1).sum(1).tolist()


def by_slurm(nodes: int, tasks: int, job: int) -> list[dict[str, str]]:
    """The variables of a step's tasks, whose nodes are all this machine; JAX makes the port of the job's number."""
    step = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(nodes * tasks)}
    step["SLURM_STEP_TASKS_PER_NODE"] = f"{tasks}(x{nodes})"
    place = [{"SLURM_NODEID": str(i // tasks), "SLURM_LOCALID": str(i % tasks)} for i in range(nodes * tasks)]
    return [{**step, **mine, "SLURM_PROCID": str(i)} for i, mine in enumerate(place)]


def test_all_processes_get_the_same_numbers_and_only_the_first_reads_those_of_all(job):
    def process(n: int) -> list[Any]:
        own = Barrier("numbers")
        sums = [own.total([n // 2, 0.1 * k], n // 2, "a sum") for k in range(3)]  # two processes hold the same share
        return [*sums, own.each([n, math.inf], "each")]

    first, *others = in_threads(process)
    for k in range(3):
        assert first[k] == pytest.approx([0 + 1 + 2, 3 * 0.1 * k]), "of three shares"
    assert first[3] == [[n, math.inf] for n in range(5)]
    assert all(found == first for found in others)
    assert job.read == {"0": 3 * 3 + 5, **{str(n): 4 for n in range(1, 5)}}
    assert {key.split("/")[2] for key in job.held} == {"4"}, "what all have read is gone"


def test_a_first_process_that_tells_nothing_is_named(job, monkeypatch):
    monkeypatch.setenv("JAXMM_BARRIER_SECONDS", "1")
    monkeypatch.setattr(job, "key_value_dir_get", lambda folder: sys.exit("killed"))

    def process(n: int) -> str:
        try:
            Barrier("numbers").each([n], "a line of the log")
        except (StrandedError, SystemExit) as error:
            return str(error)
        return ""

    _, *others = in_threads(process)
    assert others == ["process 0 came to a line of the log and told nothing within 1 s"] * 4


@pytest.mark.parametrize("text", ["1h", "0", "0.5", "-3", "10000000", "²"])
def test_seconds_that_are_none_are_one_line(text, monkeypatch):
    for variable in ("JAXMM_BARRIER_SECONDS", "JAXMM_JOIN_SECONDS"):
        monkeypatch.setenv(variable, text)
        with pytest.raises(UserError, match=f"^{variable}={text}: give whole seconds, from 1 to 1000000$"):
            seconds_of(variable, 600)
    with pytest.raises(UserError, match="JAXMM_BARRIER_SECONDS"):
        Barrier("numbers")
    monkeypatch.setenv("JAXMM_BARRIER_SECONDS", "")
    assert seconds_of("JAXMM_BARRIER_SECONDS", 600) == 600, "empty is as not set"


@pytest.mark.slow
def test_processes_of_one_job_give_the_losses_and_figures_of_one_process(tmp_path):
    data = small_run.make_data(tmp_path)
    whole = (data / "23.png").read_bytes()
    (data / "23.png").write_bytes(whole[:50])  # its size is there, its pixels are not: one process finds out
    arguments = [*small_run.arguments(data, tmp_path / "cache"), f"--config.steps={STEPS}", "--config.log.every=1"]
    arguments += ["--config.eval.every=0", "--config.checkpoint.every=100", "--config.eval.examples=8"]
    arguments += ["--config.monitor.attention_every=2", "--config.monitor.heatmaps=2"]
    rows = planned(arguments, tmp_path / "plan", STEPS + 2)
    assert all(len(set(images_of(batch, 2))) == 2 for batch in rows), "uneven parts"
    one = alone_in_this_process(arguments, tmp_path / "one")
    assert len(one) == STEPS
    alone = [*arguments, "--config.eval.path=", "--config.eval.mixture="]  # without what the first two have run
    jobs = {"two": by_variables(2, free_port()), "slurm": by_slurm(2, 2, free_port() % 4096)}
    found = {}
    for name, variables in jobs.items():
        what = arguments if name == "two" else alone
        running = [start(what, tmp_path / name, 8 // len(variables), **mine) for mine in variables]
        found[name] = finished(running, tmp_path / name)
    np.testing.assert_allclose(losses(found["two"]), losses(one), rtol=1e-6)
    assert losses(found["slurm"]) == losses(found["two"]), "to the bit, whatever the number of processes"
    for lines in found.values():
        assert [line["step"] for line in lines if "attention" in line] == [2, 4]
        assert_close_figures([line.get("attention") for line in lines], [line.get("attention") for line in one])
        for line, wanted in zip(lines, one, strict=True):
            np.testing.assert_allclose(counted(line), counted(wanted), rtol=1e-12)
    alone.append(f"--config.steps={STEPS + 2}")
    resumed = alone_in_this_process(alone, tmp_path / "two")
    begun = [sum(piece.first == 0 for row in batch for piece in row) for batch in rows]
    assert [line["examples_seen"] for line in resumed] == np.cumsum(begun).tolist(), "other processes count on"


@pytest.mark.slow
@pytest.mark.full  # the same of clips is in training/test_clip_runs.py
def test_batches_without_images_in_some_processes_or_in_all_have_the_losses_of_one_process(tmp_path):
    data = small_run.make_data(tmp_path)
    arguments = [*small_run.arguments(data, tmp_path / "cache"), f"--config.steps={STEPS}", "--config.log.every=1"]
    arguments += ["--config.data.mixture=colours:0.02,pages:0.98", "--config.eval.path=", "--config.eval.mixture="]
    batches = planned(arguments, tmp_path / "plan", STEPS)
    with_images = [sum(n > 0 for n in images_of(batch, 2)) for batch in batches]
    assert {0, 1} <= set(with_images), "in a step no process has images, in another one alone"
    one = alone_in_this_process(arguments, tmp_path / "one")
    variables = by_variables(2, free_port())
    two = finished([start(arguments, tmp_path / "two", 4, **mine) for mine in variables], tmp_path / "two")
    assert len(one) == STEPS
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-6)


def until(condition, process: subprocess.Popen, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step_and_one_that_is_stuck_is_named(tmp_path):
    data = small_run.make_data(tmp_path)
    arguments = [*small_run.arguments(data, tmp_path / "cache"), "--config.steps=100000", "--config.log.every=1"]
    arguments += ["--config.eval.every=0", "--config.checkpoint.every=0", "--config.eval.examples=8"]
    workdir = tmp_path / "run"
    metrics = workdir / "metrics.jsonl"

    def begun(more_than: int, **variables: str) -> list[subprocess.Popen]:
        running = [start(arguments, workdir, 4, **mine, **variables) for mine in by_variables(2, free_port())]
        until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > more_than, running[0])
        return running

    running = begun(2)
    running[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [128 + signal.SIGTERM] * 2, outputs
    assert "and saved; the same command goes on at step" in outputs[0]
    (saved,) = (int(folder.name) for folder in (workdir / "checkpoints").iterdir() if folder.name.isdigit())

    # Long enough for one process to read its programs after the other, and over before JAX misses 50 s of heartbeats.
    running = begun(saved + 2, JAXMM_BARRIER_SECONDS="30")
    try:
        running[1].send_signal(signal.SIGSTOP)
        output = running[0].communicate(timeout=240)[0]
    finally:
        for process in running:
            process.kill()
    assert running[0].returncode == STRANDED, output
    assert "error: process 1 of 2 did not come to the end of step" in output or "did not come to step" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_block_that_is_slow_in_one_process_is_left_by_all_together_where_all_are_alive():
    program = (
        "import time; from jaxmm.runtime import startup; startup.join_processes(); import jax\n"
        "from jaxmm.runtime.barrier import Barrier\n"
        "with Barrier('block').together('a long block'): time.sleep(5 * jax.process_index())\n"
        "began = time.monotonic()\n"
        "with Barrier('next').together('another'): pass\n"
        "print('waited', round(time.monotonic() - began))\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("XLA_FLAGS")} | {"JAXMM_BARRIER_SECONDS": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ask = [sys.executable, "-c", program]
    running = [subprocess.Popen(ask, env=clean | mine, **pipes) for mine in by_variables(2, free_port())]
    told = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], told
    assert all("waited 0" in out for out, _ in told)
    assert "a long block takes longer than 2 s; all processes are alive" in told[0][1]


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


def test_what_fails_in_one_process_ends_all_with_a_line(monkeypatch):
    brought = []
    others = 0
    monkeypatch.setattr(Barrier, "largest", lambda self, n, where: brought.append(n) or max(n, others))
    with Barrier("files").agreed("the first files"):
        pass
    with pytest.raises(OSError, match="full"), Barrier("files").agreed("the first files"):
        raise OSError("full")
    others = 2  # the second process brings its number
    line = "process 1 failed at the first files: its log says why"
    with pytest.raises(UserError, match=line), Barrier("files").agreed("the first files"):
        pass
    assert brought == [0, 1, 0]


def test_a_process_that_cannot_go_on_ends_all_before_the_next_step(monkeypatch):
    others = 15
    monkeypatch.setattr(Barrier, "largest", lambda self, n, where: max(n, others))
    stop = Stop(Barrier("test"))
    assert stop.agreed(4) == 15
    with pytest.raises(UserError, match="too many"):
        stop.agreed(4, UserError("too many"))
    others = 1003
    with pytest.raises(UserError, match="process 3 cannot go on to step 4: its log says why"):
        stop.agreed(4)


@pytest.mark.parametrize(("number", "ignored"), [(1, False), (15, False), (2, False), (1, True)])
def test_a_signal_is_noted_and_one_that_nohup_ignores_stays_ignored(number, ignored):
    old = signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with Stop(Barrier("test")) as stop:
            signal.raise_signal(number)
            assert stop.signal == (0 if ignored else number)
    finally:
        signal.signal(number, old)


def test_a_collective_that_another_process_left_is_one_line():
    said = r"^a collective .* failed \(Gloo ReduceScatter failed: .* Read timeout"
    with pytest.raises(StrandedError, match=said), barrier.collectives():
        raise jax.errors.JaxRuntimeError(f"{GLOO}\nmore")
    nccl = "INTERNAL: NCCL operation ncclGroupEnd() failed: remote process exited or there was a network error"
    with pytest.raises(StrandedError, match=r"failed \(NCCL operation ncclGroupEnd"), barrier.collectives():
        raise jax.errors.JaxRuntimeError(nccl)
    with pytest.raises(jax.errors.JaxRuntimeError, match="cuda error"), barrier.collectives():
        raise jax.errors.JaxRuntimeError("INTERNAL: NCCL operation ncclGroupEnd() failed: unhandled cuda error")
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"), barrier.collectives():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
