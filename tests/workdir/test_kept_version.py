"""What an older version wrote is read by today's: a run goes on, is asked and exported, a folder is started from."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import small_run
from small_run import ROOT

from jaxmm import command, evaluate, export, generate, train
from jaxmm.checkpoints.resume import FREE, as_it_was
from jaxmm.data import files

KEPT = sorted((ROOT / "tests/kept").glob("*.zip"))


PICTURES = "/tmp/old/data/"  # where they lay when the prepared data was made, which names them so


@pytest.fixture(scope="module", params=KEPT, ids=lambda path: path.stem)
def kept(request, tmp_path_factory) -> Iterator[Path]:
    folder, pictures = tmp_path_factory.mktemp("kept"), small_run.make_data(tmp_path_factory.mktemp("pictures"))
    with zipfile.ZipFile(request.param) as archive:
        archive.extractall(folder)
    opened = files.open_binary

    def moved(path: str, *args):
        return opened(str(pictures / path.removeprefix(PICTURES)) if path.startswith(PICTURES) else path, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "open_binary", moved)
        yield folder


def places(kept: Path, tmp_path: Path) -> list[str]:
    """The keys that say where things lie on this machine."""
    data = kept / "prepared"
    return [f"--config.data.path={data}", f"--config.eval.path={data}", f"--config.data.cache={tmp_path / 'cache'}"]


def settings(config: dict, prefix: str = "--config.") -> list[str]:
    """A run's config as a user would write it for today's ``base.py``."""
    found = []
    for key, value in config.items():
        found += settings(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}={value}"]
    return found


def test_a_run_goes_on_as_it_would_have(kept, tmp_path):
    workdir = shutil.copytree(kept / "run", tmp_path / "run")
    config = settings(json.loads((workdir / "config.json").read_text()))
    again = [*config, *places(kept, tmp_path), "--config.steps=8", f"--workdir={workdir}"]
    assert train.main([f"--config={ROOT / 'configs/base.py'}", *again]) == 0
    ours, theirs = (
        {line["step"]: line["loss"] for line in map(json.loads, path.read_text().splitlines()) if "loss" in line}
        for path in (workdir / "metrics.jsonl", kept / "whole.jsonl")
    )
    assert list(ours) == list(theirs) == list(range(1, 9))
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)


def test_what_todays_base_leaves_open_is_as_the_run_has_it(kept):
    """An old config has numbers where today's says automatic: the same command goes on."""
    old = json.loads((kept / "run/config.json").read_text())
    open_keys = ("image.min_pixels", "image.max_pixels", "data.jitter", "init_from")
    said = [flag for flag in settings(old) if not flag.startswith(tuple(f"--config.{key}=" for key in open_keys))]
    config = command.parse([f"--config={ROOT / 'configs/base.py'}", *said], {}).config

    def differences(config) -> list[str]:
        lines = command.differences(old, command.to_json(as_it_was(config, kept / "run")), FREE)
        return [line for line in lines if "(absent)" not in line]  # what later versions have besides

    assert differences(config) == []
    explicit = command.parse([f"--config={ROOT / 'configs/base.py'}", *said, "--config.data.jitter=0"], {}).config
    assert differences(explicit) == ["data.jitter: 0.15 -> 0.0"]


def test_a_run_is_evaluated_asked_and_exported(kept, tmp_path, capsys):
    workdir = shutil.copytree(kept / "run", tmp_path / "run")
    at, config = f"--workdir={workdir}", places(kept, tmp_path)
    assert evaluate.main([at, *config]) == 0
    told = json.loads((workdir / "summary.json").read_text())["eval"]["colours"]["loss"]
    assert json.loads((workdir / "eval.json").read_text())["colours"]["loss"] == pytest.approx(told, rel=1e-5)
    assert generate.main([at, *config, "--prompt=Colour?", "--max_tokens=2"]) == 0
    assert export.main([at, *config, f"--output={tmp_path / 'out'}"]) == 0
    ours, theirs = (folder / "model.safetensors" for folder in (tmp_path / "out", kept / "exported"))
    assert ours.read_bytes() == theirs.read_bytes()
    capsys.readouterr()


def test_a_run_starts_from_an_exported_folder(kept, tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "some words"}\n' * 8)
    config = settings(json.loads((kept / "run/config.json").read_text()))
    own = [f"--config.data.path={tmp_path / 'text.jsonl'}", f"--config.data.cache={tmp_path / 'cache'}"]
    own += ["--config.data.mixture=", "--config.eval.path=", "--config.eval.mixture="]
    start = [f"--config.init_from={kept / 'exported'}", "--config.steps=1", "--config.optimizer.rate=0.0"]
    workdir = tmp_path / "next"
    assert train.main([f"--config={ROOT / 'configs/base.py'}", *config, *own, *start, f"--workdir={workdir}"]) == 0
    assert export.main([f"--workdir={workdir}", f"--output={tmp_path / 'out'}"]) == 0
    ours, theirs = (folder / "model.safetensors" for folder in (tmp_path / "out", kept / "exported"))
    assert ours.read_bytes() == theirs.read_bytes()
