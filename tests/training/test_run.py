"""The start of a run: what it refuses in one line before its first step, and what it leaves then."""

from __future__ import annotations

import socket
import subprocess
import sys

import jax
import pytest
import small_run
from small_run import ROOT

from jaxmm import command, train
from jaxmm.errors import UserError
from jaxmm.training.run import Run
from jaxmm.workdir import own_folders


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    return small_run.arguments(small_run.make_data(folder), folder / "cache")


def test_a_port_that_is_in_use_ends_a_run_with_a_line_before_anything_is_made(arguments, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"config\.log\.prometheus: 127\.0\.0\.1:{port}: Address already in use"):
            train.main([*arguments, f"--config.log.prometheus=127.0.0.1:{port}", f"--workdir={tmp_path / 'run'}"])
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_mixture_name_that_is_not_there_lists_what_is(arguments, tmp_path):
    with pytest.raises(UserError, match="colours"):
        train.main([*arguments, "--config.data.mixture=colors:1", f"--workdir={tmp_path}"])


def test_a_mesh_that_does_not_divide_the_devices_is_refused(arguments, tmp_path):
    with pytest.raises(UserError, match="8 devices"):
        train.main([*arguments, "--config.mesh.fsdp=3", f"--workdir={tmp_path}"])


def test_a_batch_that_does_not_divide_the_mesh_is_refused(arguments, tmp_path):
    with pytest.raises(UserError, match=r"config\.batch_size 6"):
        train.main([*arguments, "--config.batch_size=6", f"--workdir={tmp_path}"])


def test_an_image_larger_than_a_row_is_refused_by_name(arguments, tmp_path):
    with pytest.raises(UserError, match=r"colours\.json.*patch_budget"):
        train.main([*arguments, "--config.patch_budget=4", f"--workdir={tmp_path}"])


def test_a_mistake_ends_in_one_line_and_status_1(tmp_path):
    argv = [sys.executable, "-m", "jaxmm.train", f"--config={ROOT / 'configs/base.py'}", "--config.data.pth=x"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "data.path" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_start_that_fails_before_its_first_step_leaves_nothing(arguments, tmp_path, monkeypatch):
    def refuse(run):
        own_folders.make(run.workdir / "model")
        raise UserError("no room on the device")

    monkeypatch.setattr(Run, "initial_state", refuse)
    with pytest.raises(UserError, match="no room on the device"):
        train.main([*arguments, f"--workdir={tmp_path / 'runs' / 'new'}"])
    assert list(tmp_path.iterdir()) == []


def test_a_run_killed_before_its_first_save_begins_again_from_what_its_config_says(arguments, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / own_folders.MARK).touch()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "qwen3_vl"}')  # of another start, without weights
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4}\n')
    (tmp_path / "first_save.json").write_text('{"step": 0}')
    (tmp_path / "skipped.jsonl").write_text('{"file": "a", "record": 1, "reason": "missing"}\n' * 200)
    run = Run(command.parse(arguments, train.FLAGS).config, tmp_path)
    assert run.start == 0
    assert run.recipe.start is None
    assert (run.skipped.met, len(run.skipped)) == (0, 0)


def test_the_compiled_step_is_the_very_same_program_with_the_monitor_on_and_off(arguments, tmp_path):
    def text(every: int) -> str:
        flags = [*arguments, f"--config.monitor.attention_every={every}"]
        run = Run(command.parse(flags, train.FLAGS, about="").config, tmp_path / f"{every}")
        with jax.set_mesh(run.mesh):
            state, batch = run.program.abstract_state(run.mesh), run.abstract_batch()
            return str(run.program.jitted(run.mesh).lower(state, batch).as_text())

    assert text(1) == text(-1)
