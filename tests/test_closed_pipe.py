"""A command whose output nobody reads any more ends quietly, with the status that shells know; see ``| head``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxmm
from jaxmm import closed_pipe
from jaxmm.__main__ import COMMANDS

PACKAGE = Path(jaxmm.__file__).parent
RUN = "import os, sys; from jaxmm import command; command.run(lambda argv: {})"


@pytest.mark.parametrize(
    "words",
    [["jaxmm", "--help"], ["jaxmm", "report", "--help"], ["jaxmm.report", "--help"], ["jaxmm", "no_such"]],
    ids=" ".join,
)
def test_what_is_short_is_dropped_without_a_word(words):
    for is_error_too in (False, True):
        read, write = os.pipe()
        os.close(read)
        errors = write if is_error_too or "no_such" in words else subprocess.PIPE
        done = subprocess.run([sys.executable, "-m", *words], stdout=write, stderr=errors, text=True, timeout=120)
        os.close(write)
        assert (done.returncode, done.stderr or "") == (closed_pipe.STATUS, "")


def test_what_is_long_ends_where_its_reader_does():
    program = [sys.executable, "-c", RUN.format("[print(n) for n in range(10**7)]")]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == "0\n"
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == closed_pipe.STATUS


def test_a_broken_pipe_to_anything_else_is_an_error_as_ever():
    broken = "[(os.close(read), os.write(write, b'x')) for read, write in [os.pipe()]]"
    done = subprocess.run([sys.executable, "-c", RUN.format(broken)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "BrokenPipeError" in done.stderr


def test_every_command_is_run_by_the_one_place_that_knows_of_it():
    for name in COMMANDS:
        (source,) = [path for path in (PACKAGE / f"{name}.py", PACKAGE / name / "__main__.py") if path.is_file()]
        assert "\n    command.run(" in source.read_text(), name
