"""docs/tutorials and docs/extend_training.md do what they say: their commands and programs run, at tiny sizes."""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import small_run

import jaxmm
from jaxmm.config.keys import KEYS, flat
from jaxmm.data import demo

DOCS = small_run.ROOT / "docs"
BLOCK = re.compile(r"^```(bash|python|diff|json)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r'^PYTHONPATH=\S+ python -c "\n(.*?)"$', re.DOTALL | re.MULTILINE)  # run here: it imports tests
# What makes a command tiny: given last, it counts.
TINY = (*small_run.TINY, "--config.seq_len=256", "--config.steps=2", "--config.eval.examples=4")
OF_COMMAND = {
    "train": TINY, "inspect": (*TINY, "--rows=4"), "estimate": TINY, "generate": ("--max_tokens=4",), "export": (),
    "prepare": (),
}  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("whole_transformers")]


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of the blocks of a page."""
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


def commands(script: str) -> Iterator[tuple[str, str]]:
    """A bash block in pieces: ("jaxmm", a command line), ("python", a program), ("bash", lines)."""
    if inline := INLINE.search(script):
        yield from commands(script[: inline.start()])
        yield "python", inline[1]
        yield from commands(script[inline.end() :])
        return
    plain, ends = "", ""
    for line in script.replace("\\\n", " ").splitlines():
        if here := re.search(r"<<'(\w+)'$", line):
            ends = here[1]
        elif line == ends:
            ends = ""
        if not ends and line.startswith("python -m jaxmm."):
            if plain.strip():
                yield "bash", plain
            plain = ""
            yield "jaxmm", line
        else:
            plain += f"{line}\n"
    if plain.strip():
        yield "bash", plain


def run_command(line: str) -> None:
    """Runs a command of the package in this process."""
    words = shlex.split(line, comments=True)
    name = words[2].removeprefix("jaxmm.")
    assert f"jaxmm.{name}" == words[2]
    argv = words[3:]
    if any(word.startswith("--help") for word in argv):
        with pytest.raises(SystemExit, match="0"):
            importlib.import_module(words[2]).main(argv)
        return
    assert importlib.import_module(words[2]).main([*argv, *OF_COMMAND[name]]) in (0, None), line


def follow(page: str) -> dict:
    """Does what a tutorial says, in the working folder; returns the names its programs left."""
    space: dict = {}
    for language, text in blocks(page):
        pieces = commands(text) if language == "bash" else [(language, text)]
        for kind, piece in pieces:
            if kind == "jaxmm":
                run_command(piece)
            elif kind == "python":
                exec(compile(piece, page, "exec"), space)
            elif kind == "bash":  # nothing is downloaded
                subprocess.run(["bash", "-euc", f"hf() {{ :; }}\n{piece}"], check=True, timeout=60)
    return space


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A folder with the clone's configs, in which the tutorial runs; nothing is kept elsewhere."""
    (tmp_path / "configs").symlink_to(small_run.ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def summary(workdir: Path) -> dict:
    return json.loads((workdir / "summary.json").read_text())


def test_fine_tune(clone):
    follow("tutorials/fine_tune.md")
    assert summary(clone / "runs/tuned")["steps"] == 2
    assert json.loads((clone / "my_model/config.json").read_text())["model_type"] == "qwen2_5_vl"
    assert "Which colour is it?" in (clone / "report.html").read_text()


def test_from_parts(clone):
    follow("tutorials/from_parts.md")
    first, second = (json.loads((clone / f"runs/{run}/config.json").read_text())
                     for run in ("siglip2_qwen3_connector", "siglip2_qwen3"))  # fmt: skip
    assert first["optimizer"]["freeze"] == "vision,decoder"
    assert second["init_from"] == "runs/siglip2_qwen3_connector"
    assert summary(clone / "runs/siglip2_qwen3")["steps"] == 2
    assert (clone / "my_model/model.safetensors").is_file()


def test_interleaved(clone):
    follow("tutorials/interleaved.md")
    (report,) = (clone / "prepared").glob("pages*/report.json")
    found = json.loads(report.read_text())
    assert (found["modalities"]["image"]["documents"], found["modalities"]["image"]["images"]) == (40, 80)
    assert summary(clone / "runs/pages")["examples_seen"] > 0


def test_config(clone, monkeypatch, capsys):
    monkeypatch.setattr(demo, "training_source", functools.partial(demo.training_source, examples=120))
    monkeypatch.setattr(demo, "test_source", functools.partial(demo.test_source, examples=120))
    follow("tutorials/config.md")
    mine = json.loads((clone / "runs/mine/config.json").read_text())
    assert mine["optimizer"]["name"] == "adamw"
    assert json.loads((clone / "runs/short/config.json").read_text())["optimizer"]["name"] == "muon"
    told = capsys.readouterr().out
    assert "--config.optimizer.rate" in told
    assert "--config.decoder.layers" not in told  # --help of one group
    page = (DOCS / "tutorials/config.md").read_text()
    assert {name.partition(".")[0] for name in KEYS if "." in name} <= set(re.findall(r"`(\w+)`", page))


def test_own_loop(clone, monkeypatch, capsys):
    data = small_run.make_data(clone)
    sizes = {name: flag for name, _, flag in (f.removeprefix("--config.").partition("=") for f in small_run.TINY)}
    base = flat(jaxmm.load_config("base"))
    own = {name: type(base[name])(float(sizes[name])) for name in sizes
           if type(base[name]) in (int, float) and not name.startswith("mesh")}  # fmt: skip
    own |= {"data.path": str(data / "colours.json"), "data.cache": str(clone / "cache")}
    loaded = jaxmm.load_config
    monkeypatch.setattr(jaxmm, "load_config", lambda name, **changes: loaded(name, **changes | own))
    space = follow("tutorials/own_loop.md")
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 3
    assert all(map(math.isfinite, losses))
    assert isinstance(space["answer"], str)


MLFLOW = """
from types import SimpleNamespace

def __getattr__(name):
    def call(*given, **named):
        with open("mlflow.txt", "a") as file:
            print(name, *(f"{key}={value!r}" for key, value in named.items()), file=file)
        return SimpleNamespace(info=SimpleNamespace(run_id="7"))
    if name.startswith("_"):
        raise AttributeError(name)
    return call
"""


def change(root: Path, diff: str) -> None:
    """Applies a block: a file's name, and lines that stand in it once."""
    name, *lines = diff.removeprefix("--- ").splitlines()
    old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] in marks) for marks in (" -", " +"))
    text = (root / name).read_text()
    assert text.count(old) == 1, f"{name} has not once:\n{old}"
    (root / name).write_text(text.replace(old, new))


def test_the_examples_of_extensions_train_together(clone):
    shutil.copytree(small_run.ROOT / "jaxmm", clone / "jaxmm", ignore=shutil.ignore_patterns("__pycache__"))
    record: dict = {}
    for language, text in blocks("extend_training.md"):
        if language == "diff":
            change(clone, text)
        elif language == "python":
            (clone / text.splitlines()[0].removeprefix("# ")).write_text(text)
        elif language == "json":
            record = json.loads(text)
    small_run.make_data(clone)  # the pictures
    quiz = "\n".join(json.dumps({**record, "images": [f"{i % 24}.png"]}) for i in range(40))
    (clone / "quizzes.jsonl").write_text(quiz)
    (clone / "mlflow.py").write_text(MLFLOW)
    flags = (
        *TINY, "--config=configs/base.py", "--workdir=run", "--config.data.path=quizzes.jsonl",
        "--config.log.writers=mlflow",
        "--config.data.val_size=0.2", "--config.optimizer.name=lion", "--config.optimizer.moments=bfloat16",
    )  # fmt: skip
    done = trained(clone, flags)
    found = summary(clone / "run")["eval"]["quizzes"]
    assert 0 <= found["token_accuracy"] <= 1
    assert json.loads((clone / "run/config.json").read_text())["optimizer"]["name"] == "lion"
    assert_easy_targets(clone / "run")
    assert "warning: no more MLflow" not in done.stderr
    told = (clone / "mlflow.txt").read_text().splitlines()
    assert told[:2] == ["start_run run_id=None run_name='run'", "log_dict"]
    assert any(line.startswith("log_metrics step=2") for line in told)
    assert (told[-2], told[-1]) == ("log_image", "end_run")
    pairs = [{"prompt": f"Which colour, {i}?", "chosen": "red", "rejected": "green or blue"} for i in range(40)]
    (clone / "pairs.json").write_text(json.dumps(pairs))
    trained(clone, [
        *TINY, "--config=configs/base.py", "--workdir=preferred", "--config.data.path=pairs.json",
        "--config.objective=simpo", "--config.optimizer.name=lion",
    ])  # fmt: skip
    assert_easy_targets(clone / "preferred")


def trained(clone: Path, flags: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A run by the package in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    done = subprocess.run(
        [sys.executable, "-m", "jaxmm.train", *flags], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done


def assert_easy_targets(workdir: Path) -> None:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = [line["easy_targets"] for line in lines if "loss" in line]
    assert found
    assert all(0 <= share <= 1 for share in found)
