"""tools/benchmark.py --part=step: the figures of any config's step on any mesh, and a trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types

import benchmark
import jax
import pytest
import small_run
from benchmarks import step as benchmark_step

from jaxmm.runtime import startup
from jaxmm.training.throughput import Counts

SHARES = [f"share of {part}" for part in ("tower and connector", "decoder", "loss", "optimizer")]


def run(*flags: str) -> subprocess.CompletedProcess:
    program = [sys.executable, str(small_run.ROOT / "tools/benchmark.py"), *flags]
    environment = {**os.environ, "PYTHONPATH": str(small_run.ROOT), "JAXMM_HUGE_PAGES": "0"}
    return subprocess.run(program, cwd=small_run.ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_config_s_step_is_measured_on_its_own_mesh(tmp_path):
    data = small_run.make_data(tmp_path)
    output, trace = tmp_path / "step.json", tmp_path / "trace"
    done = run(
        "--part=step", *small_run.arguments(data, tmp_path / "cache"), "--repeats=2", f"--output={output}",
        f"--profile={trace}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    assert report["config"]["mesh"]["fsdp"] == 8
    (row,) = report["rows"]
    figures = {name: figure["median"] for name, figure in row["figures"].items()}
    for name in ("first step", "step", "tokens", "images", "model FLOPs", "peak memory"):
        assert figures[name] > 0, name
    assert 0 < figures["token fill"] <= 1
    assert set(SHARES) <= figures.keys()
    assert figures["save: wait"] > 0 < figures["near save: wait"]
    assert "save / time between two" in figures
    assert "MFU" not in figures, "a CPU's peak is not known"
    assert any("'fsdp': 8" in note for note in row["notes"])
    assert list(trace.rglob("*.xplane.pb"))


def test_where_there_are_no_shares_a_note_says_why(monkeypatch):
    run = types.SimpleNamespace(config=types.SimpleNamespace(accumulation=4, objective=""))
    shares, notes = benchmark_step.parts(run, None, None, None, None, 1)
    assert not shares
    assert "not in 4 microbatches" in notes[0]

    def out_of_memory(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")

    run.config.accumulation = 1
    monkeypatch.setattr(benchmark_step, "programs", out_of_memory)
    shares, notes = benchmark_step.parts(run, None, None, None, None, 1)
    assert not shares
    assert "ran out of memory" in notes[0]
    run.config.objective = "dpo"
    shares, notes = benchmark_step.parts(run, None, None, None, None, 1)
    assert not shares
    assert "config.objective=dpo" in notes[0]


def test_rates_of_a_job_are_those_of_all_its_rows():
    counts = [Counts(tokens=50, token_capacity=200, images=3, patches=40, patch_capacity=160, flops=1e14)]
    figures = benchmark_step.rates([2.0], counts, "TPU v4", 4, lambda own: [2 * number for number in own])
    names = ("tokens", "images", "token fill", "patch fill", "model FLOPs")
    assert [figures[name].median for name in names] == [50, 3, 0.5, 0.5, 100]
    assert figures["MFU"].median == pytest.approx(1e14 / (4 * 275e12))


@pytest.mark.parametrize("words", [["--part=step"], ["--part", "step"]])
def test_the_step_is_asked_for_in_one_word_or_in_two(words):
    assert benchmark.is_step(["--output=x", *words, "--repeats=2"])
    assert not benchmark.is_step(["--part", "data", "step"])


@pytest.mark.parametrize("process", [0, 1])
def test_of_a_job_of_several_processes_the_first_one_tells(process, monkeypatch, tmp_path, capsys):
    for name in ("join_processes", "keep_compiled", "split_cpu"):
        monkeypatch.setattr(startup, name, lambda *args: None)
    found = {"row": "step", "data": "none", "figures": {}, "notes": []}
    monkeypatch.setattr(benchmark, "measure", lambda *args: found)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    output = tmp_path / "step.json"
    config = small_run.ROOT / "configs/base.py"
    assert benchmark.main(["--part", "step", f"--config={config}", f"--output={output}"]) == 0
    assert output.exists() == (process == 0)
    assert ("step: none" in capsys.readouterr().out) == (process == 0)


def test_a_trace_is_of_the_step_alone():
    done = run("--part=data", "--profile=trace")
    assert done.returncode == 1
    assert "--profile is of --part=step" in done.stderr
