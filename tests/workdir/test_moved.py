"""A run that has saved needs none of the folders it began with: they may be moved, and others may take their place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from made_folders import byte_level_tokenizer
from small_run import saved

from jaxmm import evaluate, export, generate, train
from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.checkpoints.chosen import chosen_step
from jaxmm.errors import UserError
from jaxmm.workdir.kept_folders import keep_tokenizer, tokenizer_folder


class World(NamedTuple):
    """Two runs, the second from the first's older checkpoint; what they began with is gone, as ``gone``."""

    first: Path
    second: Path
    arguments: list[str]
    gone: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    root = tmp_path_factory.mktemp("moved")
    (root / "data").mkdir()
    plain = small_run.arguments(small_run.make_data(root / "data"), tmp_path_factory.getbasetemp() / "cache")
    byte_level_tokenizer().save_pretrained(root / "begun" / "tokenizer")
    arguments = [
        *plain, f"--config.data.tokenizer={root / 'begun' / 'tokenizer'}", "--config.checkpoint.every=1",
        "--config.eval.every=1", "--config.eval.examples=8",
    ]  # fmt: skip
    first, second = root / "begun" / "first", root / "second"
    assert train.main([*arguments, "--config.steps=2", f"--workdir={first}"]) == 0
    on = [f"--config.init_from={first}@1", "--config.steps=1", "--config.optimizer.rate=0.0"]
    assert train.main([*arguments, *on, f"--workdir={second}"]) == 0
    (root / "begun").rename(root / "gone")
    return World(root / "gone" / "first", second, [*arguments, *on], root / "gone")


@pytest.mark.slow
def test_a_run_starts_from_the_checkpoint_that_is_named(world):
    older, newest, ours = (
        {name: value for name, value in saved(*which).items() if name.startswith("params.")}
        for which in ((world.first, 1), (world.first, 2), (world.second, 1))
    )
    small_run.assert_same_bits(older, ours)
    assert any(not np.array_equal(newest[name], ours[name]) for name in ours)


@pytest.mark.slow
def test_a_run_is_asked_exported_and_evaluated_without_what_it_began_with(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert generate.main([f"--workdir={world.second}", "--prompt=Colour?", "--max_tokens=2"]) == 0
    assert export.main([f"--workdir={world.second}", "--output=out"]) == 0
    assert evaluate.main([f"--workdir={world.second}"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_run_goes_on_without_what_it_began_with_and_keeps_what_is_said_of_it(world, tmp_path):
    workdir = shutil.copytree(world.second, tmp_path / "run")
    without = [argument for argument in world.arguments if "init_from" not in argument]
    assert train.main([*without, "--config.steps=2", f"--workdir={workdir}"]) == 0
    config = json.loads((workdir / "config.json").read_text())
    assert config["init_from"].endswith("first@1")
    assert (workdir / "checkpoints" / "2").is_dir()


@pytest.mark.slow
def test_another_tokenizer_in_the_old_ones_place_is_told_and_not_used(world, tmp_path, capsys):
    other = byte_level_tokenizer()
    other.add_tokens(["more"])
    other.save_pretrained(tmp_path / "other")
    assert tokenizer_folder(str(tmp_path / "other"), world.second) == str(world.second / "tokenizer")
    assert "is not the tokenizer that this run has learnt with" in capsys.readouterr().err
    assert tokenizer_folder(str(world.gone / "tokenizer"), world.second) == str(world.second / "tokenizer")
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_run_without_a_copy_uses_the_folder_or_says_that_it_is_gone(world, tmp_path):
    workdir = tmp_path / "old"
    (workdir / "checkpoints" / "1").mkdir(parents=True)
    there = str(world.gone / "tokenizer")
    assert tokenizer_folder(there, workdir) == there
    with pytest.raises(UserError, match="has no copy of it") as caught:
        tokenizer_folder(str(tmp_path / "nowhere"), workdir)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_tokenizer_that_is_more_than_its_files_is_not_kept_by_halves(world, tmp_path, monkeypatch, capsys):
    from jaxmm.workdir import kept_folders

    monkeypatch.setattr(kept_folders, "TOKENIZER_FILES", ("tokenizer.json",))
    tokenizer = byte_level_tokenizer("internvl")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "run").mkdir()
    keep_tokenizer(str(tmp_path / "tokenizer"), tmp_path / "run")
    assert "goes on needing the folder" in capsys.readouterr().err
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.slow
def test_the_best_checkpoint_is_named_and_can_be_asked_for(world, tmp_path, capsys):
    workdir = f"--workdir={world.first}"
    with Checkpoints(world.first / "checkpoints") as checkpoints:
        best = checkpoints.best()
    assert evaluate.main([workdir, "--step=1"]) == 0
    assert (
        f"the checkpoint of step 1; the best by its evaluation loss is that of step {best}" in capsys.readouterr().out
    )
    assert generate.main([workdir, "--step=best", "--prompt=Colour?", "--max_tokens=1"]) == 0
    names = dict.fromkeys(("best", str(best), "0", "2", "1"))
    for step in names:
        assert export.main([workdir, f"--step={step}", f"--output={tmp_path / step}"]) == 0
    written = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in names}
    assert written["best"] == written[str(best)]
    assert written["0"] == written["2"] != written["1"]


def test_best_is_the_lowest_metric(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        for step, metric in ((1, 0.7), (2, 0.5), (3, 0.9)):
            checkpoints.save(step, {"params": {"x": jnp.ones(2)}}, {}, metric)
    assert chosen_step(tmp_path, "best") == 2
    assert [chosen_step(tmp_path, asked) for asked in ("", "0", "newest", "3")] == [None, None, None, 3]


@pytest.mark.slow
@pytest.mark.parametrize("step", ["worst", "-1", "1.5"])
def test_a_step_that_is_none_is_one_line(world, step):
    with pytest.raises(UserError, match=f"step '{step}' is no checkpoint: give its number, best or newest"):
        generate.main([f"--workdir={world.second}", f"--step={step}", "--prompt=a"])


def test_where_nothing_was_evaluated_nothing_is_the_best(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, {"params": {"x": jnp.ones(2)}}, {})
    with pytest.raises(UserError, match=r"none is the best: give the number of one \(complete: 1\)"):
        chosen_step(tmp_path, "best")
