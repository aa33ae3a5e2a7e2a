"""docs/scale.md can be followed: each of its commands has flags, keys and files that there are."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys

import pytest
import small_run

from jaxmm.config.keys import KEYS

ROOT = small_run.ROOT
PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
COMMANDS = [
    line.strip()
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
PROGRAM = re.compile(r"python (?:-m (jaxmm\.\w+)|tools/(\w+)\.py)(.*)")
OURS = [match for match in map(PROGRAM.fullmatch, COMMANDS) if match]


def test_the_page_has_commands():
    assert len(OURS) >= 7
    assert {match[1] or match[2] for match in OURS} >= {"jaxmm.estimate", "jaxmm.prepare", "jaxmm.check", "jaxmm.train"}


@pytest.mark.parametrize("match", OURS, ids=lambda match: match[0][:60])
def test_a_command_has_flags_and_values_that_there_are(match):
    module = importlib.import_module(match[1] or match[2])
    for word in shlex.split(match[3], comments=True):
        name, _, value = word.removeprefix("--").partition("=")
        if name == "config":
            assert (ROOT / value).is_file(), word
        elif name.startswith("config."):
            key = KEYS[name.removeprefix("config.")]
            assert key.wrong(name.removeprefix("config."), type(key.default)(value)) == "", word
        else:
            default, *_ = module.FLAGS[name]
            type(default)(value)


def test_what_else_the_page_starts_is_there():
    started = {word for line in COMMANDS for word in shlex.split(line, comments=True) if word.startswith("tools/")}
    assert {"tools/launch/Dockerfile", "tools/launch/jobset.yaml", "tools/launch/slurm.sbatch"} <= started
    assert [word for word in started if not (ROOT / word).is_file()] == []


def test_xla_knows_the_flags_that_the_page_names():
    """XLA ends a process with a flag that it does not know; those of TPUs are libtpu's."""
    flags = sorted(set(re.findall(r"--xla_gpu_\w+", PAGE)))
    assert len(flags) >= 2
    known = " ".join(f"{flag}={'true' if 'enable' in flag else '1000'}" for flag in flags)
    program = [sys.executable, "-c", "import jax; jax.devices()"]
    for given, status in ((known, True), (f"{known} --xla_gpu_no_such_flag=1", False)):
        done = subprocess.run(program, env=small_run.environment(XLA_FLAGS=given), capture_output=True)
        assert (done.returncode == 0) == status, done.stderr
