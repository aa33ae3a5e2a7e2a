"""The flags of the command, and what it names its models."""

from __future__ import annotations

import sys

import pytest

from jaxmm.chat import __main__ as chat
from jaxmm.errors import UserError


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "give --workdir: the folder of a run, or 2 of them; not 0"),
        (["--workdir=a", "--workdir=b", "--workdir=c"], "not 3"),
        (["--workdir=/nowhere/at/all"], "does not exist"),
        (["--workdir={}", "--port=99999"], "--port is 99999: it must be 0 to 65535"),
        (["--workdir={}", "--host=no.such.host.invalid"], "--host 'no.such.host.invalid'"),
        (["--workdir={}", "--temperature=-1"], "--temperature is -1.0"),
        (["--workdir={}", "--step=7"], "7"),
    ],
)
def test_wrong_flags_are_one_line(chat_speaker, monkeypatch, flags, told):
    monkeypatch.setattr(chat.startup, "keep_compiled", lambda folder: None)
    with pytest.raises(UserError) as error:
        chat.main([flag.format(chat_speaker.folder) for flag in flags])
    assert told in str(error.value)


def test_two_runs_of_one_name_are_numbered(tmp_path):
    assert chat._names([tmp_path / "a/base", tmp_path / "b/base"]) == ["base-1", "base-2"]
    assert chat._names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]


def test_a_missing_extra_is_one_line_and_the_terminal_needs_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(UserError, match=r"pip install 'jaxmm\[chat\]'"):
        chat.main(["--workdir=x"])
