"""Processes of a job as workers of Ray: what is asked of the cluster, what reaches them, that none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from small_run import ROOT

from jaxmm import train_on_ray
from jaxmm.errors import UserError
from jaxmm.runtime import ray_job

PLAIN = f"--config={ROOT / 'configs/base.py'}"


def workers(monkeypatch, tmp_path, *flags: str) -> ray_job.Workers:
    asked = []
    monkeypatch.setattr(train_on_ray, "run", lambda argv, workers, **_: asked.append((argv, workers)))
    train_on_ray.main([PLAIN, f"--workdir={tmp_path}", *flags])
    return asked[0][1]


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ([], (1, 1, 1, 0, None, 20, 600)),
        (["--workers=4", "--gpus=8", "--cpus=16"], (4, 4, 16, 8, None, 20, 600)),
        (["--workers=2:8", "--failures=-1", "--grow_every=1800"], (2, 8, 1, 0, None, -1, 1800)),
    ],
)
def test_flags_say_what_is_asked_of_the_cluster(flags, asked, monkeypatch, tmp_path):
    assert workers(monkeypatch, tmp_path, *flags) == asked


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--workers=0", "give a number, or the least and the most"),
        ("--workers=4:2", "give a number, or the least and the most"),
        ("--workers=many", "give a number, or the least and the most"),
        ("--workers=²", "give a number, or the least and the most"),
        ("--cpus=0", "give 1 or more CPUs"),
        ("--gpus=-1", "0 or more GPUs"),
        ("--failures=-5", "--failures=-5: give 0 or more, or -1 for never"),
        ("--grow_every=0", "--grow_every=0: give seconds, 1 or more"),
        ("--wrokers=2", "unknown flag --wrokers"),
        ("--config.batch_sise=2", "batch_size"),
    ],
)
def test_a_mistake_is_told_before_ray_is_asked(flag, line, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=line):
        workers(monkeypatch, tmp_path, flag)


def test_train_gets_all_other_flags_as_they_were_given(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(train_on_ray, "run", lambda argv, *_, **__: given.extend(argv))
    monkeypatch.chdir(tmp_path)
    train_on_ray.main([PLAIN, "--workers", "2", "--config.steps", "7", "--workdir=here", "--config.eval.path="])
    assert given == [PLAIN, "--config.steps=7", "--config.eval.path=", f"--workdir={tmp_path / 'here'}"]


def test_a_workdir_in_a_store_keeps_its_url_and_rays_notes_stay_here(monkeypatch, tmp_path):
    given: dict[str, object] = {}
    monkeypatch.setattr(train_on_ray, "run", lambda argv, workers, **of: given.update(of, argv=argv))
    monkeypatch.setenv("JAXMM_SPOOL", str(tmp_path / "spool"))
    train_on_ray.main([PLAIN, f"--workdir=file://{tmp_path}/runs/mine"])
    assert given["argv"] == [PLAIN, f"--workdir=file://{tmp_path}/runs/mine"]
    assert Path(str(given["storage"])).parent == tmp_path / "spool"
    assert not Path(str(given["storage"])).is_relative_to(Path(str(tmp_path / "spool" / str(given["name"]))))


def test_without_ray_a_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs Ray Train .*jaxmm\[ray\]"):
        ray_job.run([], ray_job.Workers(1, 1), "run", str(tmp_path))


def test_settings_reach_the_processes_and_not_which_one_this_is():
    env = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "a",
        "JAX_PROCESS_ID": "3",
        "AWS_REGION": "eu-west-1",
        "GOOGLE_APPLICATION_CREDENTIALS": "/key",
        "WANDB_MODE": "offline",
        "HOME": "/root",
        "JAXMM_BARRIER_SECONDS": "9",
    }
    assert ray_job.passed(env) == {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "a",
        "AWS_REGION": "eu-west-1",
        "GOOGLE_APPLICATION_CREDENTIALS": "/key",
        "WANDB_MODE": "offline",
        "JAXMM_BARRIER_SECONDS": "9",
    }


def test_a_process_ends_with_its_worker_however_that_ends(tmp_path):
    """The kernel ends it: nothing that is left would hold the device and the workdir."""
    worker = textwrap.dedent(f"""
        import os, subprocess, sys
        train = subprocess.Popen([sys.executable, "-m", "jaxmm.runtime.ray_job", str(os.getpid()), "{PLAIN}",
                                  "--workdir={tmp_path / "run"}", "--config.steps=100000"])
        print(train.pid, flush=True)
        train.wait()
    """)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", worker], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    train = int(process.stdout.readline())
    until(lambda: "jaxmm.train" in words(train))
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not words(train))


def words(pid: int) -> list[str]:
    """Of a process's command; none once it has ended."""
    try:
        return [word for word in Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0") if word]
    except OSError:
        return []


def until(has_come, limit: float = 300) -> None:
    end = time.monotonic() + limit
    while not has_come():
        assert time.monotonic() < end
        time.sleep(0.02)
