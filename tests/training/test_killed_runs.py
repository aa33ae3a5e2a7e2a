"""Real kills at random: the run goes on to the same bits, and every second of its life has a kind."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import small_run
from small_run import assert_same_bits, saved, start, wait_for

from jaxmm import train
from jaxmm.atomic import read_lines
from jaxmm.training.timeline import Life


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    return small_run.arguments(small_run.make_data(tmp_path), tmp_path / "cache")


def timeline_of(workdir: Path) -> list[dict]:
    return read_lines(workdir / "timeline.jsonl")  # the last line may be half written


def stop_with_steps_to_lose(process: subprocess.Popen, workdir: Path) -> None:
    """Stops a process when its timeline has steps that no checkpoint has."""
    while True:
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.05)
        has = max(int(folder.name) for folder in (workdir / "checkpoints").iterdir() if folder.name.isdigit())
        if timeline_of(workdir)[-1]["step"] > has:
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.05)
        assert process.poll() is None


def wait_for_starts(workdir: Path, count: int, seconds: float = 90) -> None:
    """Until so many starts stand in the timeline: a start that is killed before that is none."""
    end = time.monotonic() + seconds
    while [line["event"] for line in timeline_of(workdir)].count("start") < count:
        assert time.monotonic() < end, f"no start {count} in the timeline"
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_at_random_and_resumed_the_parameters_are_bit_equal_and_no_second_is_missing(arguments, tmp_path):
    argv = [*arguments, "--config.steps=30", "--config.eval.every=0", "--config.log.every=1"]
    assert train.main([*argv, f"--workdir={tmp_path / 'whole'}"]) == 0
    rng, killed = random.Random(0), tmp_path / "killed"
    began = time.time()
    for kill in range(4):
        process = start(argv, killed, 8)
        wait_for(killed / "checkpoints" / str(2 * (kill + 1)))
        wait_for_starts(killed, kill + 1)
        time.sleep(rng.random() / 2)
        if not kill:
            stop_with_steps_to_lose(process, killed)
        process.kill()
        process.communicate()
    assert train.main([*argv, f"--workdir={killed}"]) == 0
    took = time.time() - began
    assert_same_bits(saved(tmp_path / "whole", 30), saved(killed, 30))
    lines = timeline_of(killed)
    told = json.loads((killed / "summary.json").read_text())["goodput"]
    assert [line["event"] for line in lines].count("start") == told["starts"] == 5
    life = Life()
    for line in lines:
        life.add(line)
    wall = lines[-1]["time"] - lines[0]["time"]
    assert sum(life.seconds.values()) == pytest.approx(wall, rel=0.01)
    assert told["total_seconds"] < wall + 0.01 < took + 0.1, "the first process began after this test"
    assert min(told["seconds"][kind] for kind in ("starting", "stepping", "saving", "lost", "down")) > 0
