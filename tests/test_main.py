"""``jaxmm COMMAND`` is ``python -m jaxmm.COMMAND``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import ROOT

import jaxmm
from jaxmm import __main__ as door


def ran(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | env
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )  # fmt: skip


def called(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["jaxmm", *arguments])
    return door.main(), *capsys.readouterr()


def test_the_commands_are_those_of_the_table():
    (row,) = re.findall(r"\| the commands \|.*\| (.*) \|", (ROOT / "docs/architecture.md").read_text())
    names = {name.removesuffix("/__main__") for name in re.findall(r"`([\w/]+)`", row)}
    assert names - {"__main__"} - {"api"} == set(door.COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands_a_line_each(arguments, monkeypatch, capsys):
    status, out, _ = called(monkeypatch, capsys, *arguments)
    assert status == 0
    for name, text in door.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", out, re.MULTILINE)


def test_the_version(monkeypatch, capsys):
    assert called(monkeypatch, capsys, "--version") == (0, f"jaxmm {jaxmm.__version__}\n", "")


def test_an_unknown_command_names_the_nearest(monkeypatch, capsys):
    assert called(monkeypatch, capsys, "trian") == (1, "", "error: no command 'trian'; did you mean 'train'?\n")
    assert "the commands are train, evaluate," in called(monkeypatch, capsys, "qqqq")[2]


def test_nothing_large_is_imported_for_help_and_version():
    code = (
        "import sys; sys.argv = ['jaxmm', sys.argv[1]]; import jaxmm.__main__ as m; m.main();"
        "print({'jax', 'numpy', 'ml_collections', 'transformers'} & set(sys.modules))"
    )
    for flag in ("--version", "--help"):
        assert ran("-c", code, flag).stdout.endswith("set()\n")


@pytest.mark.parametrize("name", [*door.COMMANDS, "encode-features"])
def test_a_command_runs_its_module_as_python_would(name, monkeypatch):
    ran_modules = []
    monkeypatch.setattr(sys, "argv", ["jaxmm", name, "--x=1"])
    monkeypatch.setattr(door.runpy, "run_module", lambda *words, **options: ran_modules.append((words, options)))
    assert door.main() == 0
    assert sys.argv == ["jaxmm", "--x=1"]
    module = f"jaxmm.{name.replace('-', '_')}"
    assert ran_modules == [((module,), {"run_name": "__main__", "alter_sys": True})]


def test_a_command_is_what_the_module_is(tmp_path):
    own = ran("-m", "jaxmm.check", "--help", cwd=tmp_path)  # it imports little
    assert own.returncode == 0
    for words in (["-m", "jaxmm"], ["-c", "from jaxmm.__main__ import main; main()"]):
        done = ran(*words, "check", "--help", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (own.returncode, own.stdout, own.stderr)
    wrong = ran("-m", "jaxmm", "check", "--outptu=x", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr) == (1, "error: unknown flag --outptu; did you mean '--output'?\n")


def test_train_starts_again_with_all_it_was_given(tmp_path):
    """On huge pages: by the very words of the process, the command's name among them."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nos.execv = lambda program, words: (print(*words[1:], flush=True), os._exit(7))\n"
    )
    code = "import jaxmm.runtime.startup as s; s._offered = lambda: True; import jaxmm.__main__ as m; m.main()"
    done = ran(
        "-c", code, "train", "--config=base", PYTHONPATH=f"{tmp_path}:{ROOT}", JAXMM_HUGE_PAGES="1", GLIBC_TUNABLES=""
    )
    assert (done.returncode, done.stdout) == (7, f"-c {code} train --config=base\n")
