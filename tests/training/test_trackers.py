"""Figures and pictures reach each tracker that is asked for; one that fails is told once and ends no run."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import os
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from ml_collections import ConfigDict

from jaxmm.config.keys import WRITERS
from jaxmm.errors import UserError
from jaxmm.training import trackers, wandb_writer
from jaxmm.training.logger import Logger
from jaxmm.training.run import writers_of
from jaxmm.training.trackers import TRACKERS, Trackers


def drawing(folder: Path, name: str = "curves") -> dict[str, Path]:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(folder / "drawing.png")
    return {name: folder / "drawing.png"}


class UsageError(Exception):
    pass


class FakeWandB(types.ModuleType):
    """As much of ``wandb`` as a writer asks of it, without a network."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[tuple[Any, ...]] = []
        self.fails = ""  # the call that does
        self.errors = types.SimpleNamespace(UsageError=UsageError)
        self.Settings = dict
        self.Image = lambda picture: ("picture", picture.size)

    def _call(self, name: str, *given: Any) -> None:
        if self.fails == name:
            raise ConnectionError(f"no\nway to {name}")
        self.calls.append((name, *given))

    def login(self) -> None:
        self._call("login")

    def init(self, **given: Any) -> FakeWandB:
        self._call("init", given["id"], given["config"])
        return self

    def define_metric(self, name: str, step_metric: str = "") -> None:
        self._call("define_metric", name, step_metric)

    def log(self, figures: dict[str, Any]) -> None:
        self._call("log", figures)

    def finish(self) -> None:
        self._call("finish")


@pytest.fixture
def wandb(monkeypatch) -> FakeWandB:
    fake = FakeWandB()
    monkeypatch.setitem(__import__("sys").modules, "wandb", fake)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    return fake


def test_a_workdir_is_one_run_of_wandb_whose_steps_may_go_back(tmp_path, wandb):
    for steps in ((1, 2, 3), (2, 3)):  # the second start goes on from a checkpoint of step 1
        with Logger(tmp_path, 9, steps[0] - 1, ("wandb",), {"seed": 3}, io.StringIO()) as log:
            for step in steps:
                log.log(step, {"loss": 1.0 / step, "eval": {"demo": {"loss": 0.5, "answers": None}}, "bad": math.nan})
            log.pictures(3, drawing(tmp_path))
    first, second = [call for call in wandb.calls if call[0] == "init"]
    assert first == second == ("init", json.loads((tmp_path / "wandb_run.json").read_text())["id"], {"seed": 3})
    assert wandb.calls[1:3] == [("define_metric", "step", ""), ("define_metric", "*", "step")]
    logged = [call[1] for call in wandb.calls if call[0] == "log"]
    assert logged[0] == {"step": 1, "loss": 1.0, "eval/demo/loss": 0.5}
    assert [figures["step"] for figures in logged] == [1, 2, 3, 3, 2, 3, 3]
    assert logged[3]["curves"] == ("picture", (20, 12))
    assert [call[0] for call in wandb.calls].count("finish") == 2


@pytest.mark.parametrize("call", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_told_once_and_the_others_go_on(tmp_path, wandb, call):
    wandb.fails, out = call, io.StringIO()
    with Logger(tmp_path, 9, 0, ("wandb", "tensorboard"), out=out) as log:
        for step in (1, 2, 3):
            log.log(step, {"loss": 1.0 / step})
        log.pictures(3, drawing(tmp_path))
    assert out.getvalue().count("warning: no more W&B figures are written: no way to " + call) == 1
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert (tmp_path / "drawing.png").read_bytes() in events.read_bytes()


def test_tensorboard_gets_pictures_as_files_of_their_size(tmp_path):
    said: list[str] = []
    of_run = Trackers(["tensorboard"], tmp_path, 1, {}, said.append)
    of_run.add_pictures(3, drawing(tmp_path, "samples/demo"))
    of_run.add_pictures(3, {"gone": tmp_path / "gone.png"})
    of_run.add(4, {"loss": 1.0})
    of_run.close()
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"samples/demo" in events.read_bytes()
    assert said == ["warning: no more TensorBoard events are written: No such file or directory"]


def test_a_missing_package_and_a_missing_key_are_told_before_anything_is_trained(monkeypatch, wandb):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"config\.log\.writers has wandb.*in a clone: pip install -e '\.\[wandb\]'"):
        trackers.check(["tensorboard", "wandb"])
    trackers.check(["tensorboard"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    trackers.check(["wandb"])
    wandb.fails = "login"
    trackers.check(["wandb"])  # no network: that is told when there is something to send
    monkeypatch.setattr(wandb, "login", lambda: (_ for _ in ()).throw(UsageError("No API key configured.")))
    with pytest.raises(UserError, match=r"No API key configured\. Or set WANDB_MODE=offline"):
        wandb_writer.check_login()


def test_the_trackers_of_a_config_are_those_of_the_table(monkeypatch):
    assert tuple(TRACKERS) == WRITERS

    def asked(writers: str, tensorboard: bool = True) -> tuple[str, ...]:
        return writers_of(ConfigDict({"log": {"writers": writers, "tensorboard": tensorboard}}))

    assert asked("tensorboard") == ("tensorboard",), "as runs of before had it"
    assert asked("tensorboard", False) == ()
    assert asked("wandb, tensorboard,wandb") == ("wandb", "tensorboard")
    assert asked("tensorboard,wandb", False) == ("wandb",)
    assert asked("") == ()
    with pytest.raises(UserError, match="no writer 'wandv': the writers are tensorboard, wandb"):
        asked("wandv")


@pytest.mark.wandb
def test_the_real_wandb_keeps_one_run_offline_over_two_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trackers.check(["wandb"])
    out = io.StringIO()
    for steps in ((1, 2), (1, 2, 3)):
        with Logger(tmp_path, 9, 0, ("wandb",), {"seed": 3, "data": {"path": ""}}, out) as log:
            for step in steps:
                log.log(step, {"loss": 1.0 / step, "goodput": {"stepping": 2.0}})
            log.pictures(steps[-1], drawing(tmp_path))
    assert "warning" not in out.getvalue()
    known = json.loads((tmp_path / "wandb_run.json").read_text())["id"]
    folders = sorted(path for path in (tmp_path / "wandb").glob("offline-run-*") if path.is_dir())
    assert len(folders) == 2
    for folder in folders:
        end = time.monotonic() + 120
        while b"goodput" not in (folder / f"run-{known}.wandb").read_bytes():  # by a process of W&B's own
            assert time.monotonic() < end
            time.sleep(0.05)
        (picture,) = folder.glob("files/media/images/curves*.png")
        assert PIL.Image.open(picture).size == (20, 12)
