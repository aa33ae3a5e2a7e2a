"""Every mistake on the command line is one line that names the nearest right thing, and status 1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from jaxmm import command
from jaxmm.config import file as config_file
from jaxmm.corpus import cache_folder
from jaxmm.errors import UserError
from jaxmm.workdir.spool import Spool

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    config.steps = 100
    config.data = ConfigDict({"path": "", "fast_decode": True})
    config.optimizer = ConfigDict({"rate": 1e-3, "freeze": ""})
    return config
"""
FLAGS: command.Flags = {
    "workdir": ("", "folder of the run"),
    "count": (3, "how many"),
    "verbose": (False, "say more"),
    "names": ((), "some"),
    "shares": ((0.5,), "of them"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder: a config, and a run of it."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.py").write_text(CONFIG)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    config = command.parse(["--config", str(tmp_path / "configs" / "base.py")], {}).config
    (tmp_path / "runs" / "base" / "config.json").write_text(json.dumps(command.to_json(config)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse(*argv: str, **kwargs):
    return command.parse(["--config=configs/base.py", *argv], FLAGS, **kwargs)


def test_values_take_the_type_of_their_key(folder):
    args = parse(
        "--config.steps=2e4",
        "--config.data.path=a:0.5,b=c.json",
        "--config.data.fast_decode=false",
        "--config.optimizer.rate=1",
        "--config.optimizer.freeze",
        "vision,connector",
        "--names=a, b",
        "--shares=1,0.25",
    )
    assert (args.config_name, args.names, args.shares) == ("base", ("a", "b"), (1.0, 0.25))
    config = args.config
    assert (config.steps, config.data.path, config.data.fast_decode) == (20000, "a:0.5,b=c.json", False)
    assert (config.optimizer.rate, config.optimizer.freeze) == (1.0, "vision,connector")
    assert isinstance(config.steps, int)
    assert isinstance(config.optimizer.rate, float)
    assert parse("--names=").names == ()
    assert parse("--config.seed=9007199254740993").config.seed == 9007199254740993  # no float holds it


def test_flags_take_both_forms_and_the_last_one_counts_which_is_told(folder, capsys):
    args = parse("--workdir", "runs/x", "--count=-4", "--verbose", "--config.steps=1", "--config.steps=2")
    assert (args.workdir, args.count, args.verbose, args.config.steps) == ("runs/x", -4, True, 2)
    assert capsys.readouterr().err == "--config.steps is given 2 times: the last one, 2, counts\n"
    assert parse("--verbose=false").verbose is False
    assert parse().count == 3
    assert capsys.readouterr().err == ""


def test_the_config_is_locked(folder):
    with pytest.raises(AttributeError):
        parse().config.stepz = 3


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.data.pth=x", "unknown config key 'data.pth'; did you mean 'data.path'?"),
        ("--config.rate=1", "unknown config key 'rate'; did you mean 'optimizer.rate'?"),
        ("--config.steps.x=1", "unknown config key 'steps.x'; did you mean 'steps'?"),
        (
            "--config.data.qqq=1",
            "unknown config key 'data.qqq'; config.data has allow_change, allow_urls, ",
        ),
        ("--config.dta.path=1", "unknown config key 'dta.path'; did you mean 'data.path'?"),
        ("--config.data.b2=1", "unknown config key 'data.b2'; did you mean 'optimizer.b2'?"),
        ("--config.qqq=1", "unknown config key 'qqq'; config has accumulation, adapter, audio, batch_size, checkpoint"),
        (
            "--config.data=x",
            "config.data is a group of keys; set one of --config.data.allow_change",
        ),
        ("--config.steps=abc", "config.steps: 'abc' is not an integer (default: 100)"),
        ("--config.steps=1.5", "config.steps: '1.5' is not an integer (default: 100)"),
        ("--config.steps=", "config.steps: '' is not an integer (default: 100)"),
        ("--config.steps", "config.steps needs a value: config.steps=VALUE"),
        ("--config.data.fast_decode=maybe", "config.data.fast_decode: 'maybe' is not true or false (default: True)"),
        ("--config.optimizer.rate=nan", "config.optimizer.rate: 'nan' is not a finite number"),
        ("--shares=0.9,x", "--shares: 'x' is not a finite number"),
        ("--wrkdir=x", "unknown flag --wrkdir; did you mean '--workdir'?"),
        ("--data.path=x", "unknown flag --data.path; did you mean '--config.data.path'?"),
        ("--stps=3", "unknown flag --stps; did you mean '--config.steps'?"),
        ("--output=x", "unknown flag --output; --help lists the flags"),
        ("--qqqqqq", "unknown flag --qqqqqq; --help lists the flags"),
        ("--count=many", "--count: 'many' is not an integer (default: 3)"),
        ("workdir=x", "unexpected argument 'workdir=x': arguments look like --name=value"),
    ],
)
def test_a_mistaken_argument_names_the_right_one(folder, argument, message):
    with pytest.raises(UserError) as error:
        parse(argument)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CONFIG.replace("get_config", "get_confg"), "config file 'x.py' defines no function get_config()"),
        ("def get_config(:\n", "config file 'x.py', line 1: SyntaxError"),
        (CONFIG.replace("= 100", "= undefined"), "config file 'x.py', line 6: NameError: name 'undefined'"),
        ("import qqq", "config file 'x.py', line 1: ModuleNotFoundError: No module named 'qqq'"),
        (CONFIG.replace("return config", "return"), "config file 'x.py': get_config() returned NoneType"),
        (CONFIG.replace('"path": ""', '"path": None'), "config file 'x.py': data.path is None; each key needs"),
        (CONFIG.replace("1e-3", "float('inf')"), "config file 'x.py': optimizer.rate is inf; each key needs"),
        (CONFIG.replace('"path": ""', '"path": {1}'), "config file 'x.py': data.path is a set; each key needs"),
    ],
)
def test_a_broken_config_file_names_the_place(folder, text, message):
    Path("x.py").write_text(text)
    with pytest.raises(UserError) as error:
        command.parse(["--config=x.py"], FLAGS)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("configs/bse.py", "does not exist; did you mean 'base.py'?"),
        ("configs/zzz.py", "those that come with jaxmm need no path: audio, base, dpo, early_fusion, "),
        ("/nowhere/x.py", "config file '/nowhere/x.py' does not exist"),
        ("", "--config is missing: give a config file, or one that comes with jaxmm, such as --config=base"),
    ],
)
def test_a_missing_config_file_says_what_to_do(folder, name, message):
    with pytest.raises(UserError) as error:
        command.parse([f"--config={name}"], FLAGS)
    assert message in str(error.value)


def test_a_config_of_the_clone_is_found_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jaxmm").mkdir()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "own.py").write_text(CONFIG)
    monkeypatch.setattr("jaxmm.__file__", str(tmp_path / "jaxmm" / "__init__.py"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="the one that comes with jaxmm is --config=own"):
        command.parse(["--config=configs/own.py"], FLAGS)


def test_a_config_may_build_on_the_one_beside_it(folder):
    text = "import base\n\ndef get_config():\n    config = base.get_config()\n    config.steps = 5\n    return config\n"
    (folder / "configs" / "longer.py").write_text(text)
    before = list(sys.path)
    args = command.parse(["--config=configs/longer.py"], FLAGS)
    assert (args.config.steps, args.config_name) == (5, "longer")
    assert sys.path == before


def test_a_run_keeps_its_config_and_takes_changes(folder):
    args = command.parse(["--workdir=runs/base", "--config.steps=7"], FLAGS, config="workdir")
    assert args.config.steps == 7
    assert args.config.optimizer.rate == 1e-3
    assert command.differences(parse().config, args.config) == ["steps: 100 -> 7"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--workdir is missing"),
        (["--wrkdir=runs/base"], "unknown flag --wrkdir; did you mean '--workdir'?"),
        (["--workdir=runs/bas"], "workdir 'runs/bas' does not exist; did you mean 'runs/base'?"),
        (["--workdir=runs"], "workdir 'runs' holds no run: there is no config.json in it"),
        (["--workdir=runs/base", "--config=configs/base.py"], "this command takes no --config (it reads the run's own"),
        (["--workdir=runs/base", "--config.data.pth=x"], "unknown config key 'data.pth'; did you mean 'data.path'?"),
    ],
)
def test_a_mistaken_workdir_says_what_to_do(folder, argv, message):
    with pytest.raises(UserError) as error:
        command.parse(argv, FLAGS, config="workdir")
    assert str(error.value).startswith(message)


def test_a_command_without_a_config_takes_none(folder):
    assert command.parse(["--count=4"], FLAGS, config="none").count == 4
    with pytest.raises(UserError, match="takes no --config"):
        command.parse(["--config=configs/base.py"], FLAGS, config="none")


@pytest.mark.parametrize("argv", [["--help"], ["--config=configs/base.py", "-h", "--unknown"]])
def test_help_lists_flags_and_keys(folder, argv, capsys):
    with pytest.raises(SystemExit) as status:
        command.parse(argv, FLAGS, about="Trains.")
    assert status.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("Trains.\n")
    assert "--count=3  how many" in out
    assert ("--config.optimizer.rate=0.001" in out) == ("-h" in argv)


def test_a_config_survives_json(folder):
    config = parse().config
    again = config_file.from_json(json.loads(json.dumps(command.to_json(config))))
    assert command.differences(config, again) == []
    assert command.differences(config, command.to_json(config)) == []
    assert again.is_locked


def test_differences_name_both_sides_and_leave_out_what_is_free():
    old = ConfigDict({"steps": 1, "data": {"path": "x", "rate": 1}, "eval": {"every": 5}})
    new = ConfigDict({"steps": 2, "data": {"path": "y", "rate": 1.0}, "eval": {"every": 6}, "mesh": 3})
    assert command.differences(old, new, free=("steps", "eval")) == [
        "data.path: 'x' -> 'y'",
        "data.rate: 1 -> 1.0",
        "mesh: (absent) -> 3",
    ]


SCRIPT = """
from jaxmm import command
from jaxmm.errors import UserError

def main(argv):
    args = command.parse(argv, {"fail": (False, "raise")})
    if args.fail:
        raise UserError("two\\nlines")
    return args.config.steps

command.run(main)
"""


@pytest.mark.parametrize(
    ("argument", "status", "message"),
    [
        ("--config.steps=3", 3, ""),
        ("--config.data.pth=x", 1, "error: unknown config key 'data.pth'; did you mean 'data.path'?\n"),
        ("--fail", 1, "error: two lines\n"),
    ],
)
def test_a_process_exits_with_the_status_and_one_line(folder, argument, status, message):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "--config=configs/base.py", argument],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", message)


def test_an_interrupt_is_no_traceback(capsys, monkeypatch):
    def main(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as status:
        command.run(main)
    assert status.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_configs_of_two_folders_import_each_their_own_neighbour(tmp_path):
    for name, value in (("one", 1), ("two", 2)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "neighbour.py").write_text(f"VALUE = {value}")
        (folder / "mine.py").write_text(
            "from ml_collections import ConfigDict\nimport neighbour\n"
            "def get_config():\n    return ConfigDict({'seed': neighbour.VALUE})\n"
        )
    found = [command.parse([f"--config={tmp_path / name / 'mine.py'}"], {}).config.seed for name in ("one", "two")]
    assert found == [1, 2]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    command.check_folder("--workdir", tmp_path / "a/b/c")
    command.check_folder("--workdir", tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    for folder, message in (
        (
            tmp_path / "file",
            f"--workdir {tmp_path / 'file'}: {tmp_path / 'file'} is a file or a broken link, not a folder",
        ),
        (tmp_path / "file/run", f"{tmp_path / 'file'} is a file or a broken link, not a folder"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(UserError) as error:
            command.check_folder("--workdir", folder)
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "run/metrics.jsonl"), "run/metrics.jsonl: No space left on device"),
        (OSError(30, "Read-only file system"), "Read-only file system"),
        (UserError("no source '\x1b]0;mine\x07\nb'"), r"no source '\x1b]0;mine\x07 b'"),
    ],
)
def test_what_the_system_refuses_is_one_line_and_nothing_steers_the_terminal(capsys, error, line):
    def main(argv):
        raise error

    with pytest.raises(SystemExit, match="1"):
        command.run(main)
    told = capsys.readouterr().err
    assert told.startswith(f"error: {line}")
    assert told.count("\n") == 1


def test_an_error_of_the_program_stays_a_traceback():
    def main(argv):
        raise FileNotFoundError(2, "No such file or directory", "x")

    with pytest.raises(FileNotFoundError):
        command.run(main)


@pytest.mark.parametrize("config", ["file", "workdir", "none"])
def test_a_workdir_at_a_url_is_a_folder_that_stands_for_it_and_a_home_is_spelled_out(folder, monkeypatch, config):
    file = ["--config=configs/base.py"] if config == "file" else []
    monkeypatch.setenv("JAXMM_SPOOL", f"{folder}/spools")
    url = f"file://{folder}/store/run"
    if config == "file":
        assert Spool.of(Path(command.parse([*file, f"--workdir={url}"], FLAGS).workdir)).url == url
    else:
        with pytest.raises(UserError, match=f"--workdir={url}: there is nothing in the store"):
            command.parse([f"--workdir={url}"], FLAGS, config=config)
    assert not (folder / "file:").exists()
    monkeypatch.setenv("HOME", str(folder))
    assert command.parse([*file, "--workdir=~/runs/base"], FLAGS, config=config).workdir == f"{folder}/runs/base"


def test_what_is_written_goes_to_no_url_and_paths_spell_the_home_out(folder, monkeypatch):
    flags: command.Flags = {"output": ("", ""), "cache": ("", ""), "image": ((), ""), "prompts": ("", "")}
    for name in ("output", "cache"):
        with pytest.raises(UserError, match=f"--{name}=gs://b/x: a URL is not supported here"):
            command.parse([f"--{name}=gs://b/x"], flags, config="none")
    kept = command.parse(["--output=gs://b/x", "--cache=~/c"], flags, config="none", urls=["output"])
    monkeypatch.setenv("HOME", str(folder))
    assert kept.output == "gs://b/x"
    given = command.parse(["--output=~/o", "--image=~/a.png,b.png", "--prompts=~/p"], flags, config="none")
    assert (given.output, given.image, given.prompts) == (f"{folder}/o", (f"{folder}/a.png", "b.png"), f"{folder}/p")
    assert command.parse(["--config=~/configs/base.py"], {}).config_name == "base"


def test_a_cache_at_a_url_is_refused(folder):
    with pytest.raises(UserError, match=r"config\.data\.cache=gs://b/x: a URL is not supported here"):
        cache_folder(command.parse(["--config=configs/base.py", "--config.data.cache=gs://b/x"], {}).config)


def test_a_flag_of_several_values_may_be_given_several_times_where_the_command_says_so(capsys):
    flags: command.Flags = {"workdir": ((), "a"), "step": ("", "b")}
    given = ["--workdir=runs/a,runs/b", "--step=1", "--workdir", "~/c"]
    args = command.parse(given, flags, config="none", repeated=("workdir",))
    assert args.workdir == ("runs/a", "runs/b", os.path.expanduser("~/c"))
    assert capsys.readouterr().err == ""


def test_a_command_that_failed_does_not_wait_for_what_it_compiles(tmp_path):
    code = (
        "import threading\nfrom jaxmm import command\n"
        "def main(argv):\n"
        "    threading.Thread(target=threading.Event().wait, name=f'{command.UNAWAITED}_0').start()\n"
        "    raise command.UserError('the disk is full')\n"
        "command.run(main)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (1, "error: the disk is full\n")
