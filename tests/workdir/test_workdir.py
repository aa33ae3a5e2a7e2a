"""A workdir: one train at a time, whoever died; whether a run has saved; no URLs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxmm.errors import UserError
from jaxmm.workdir import folder as workdir
from jaxmm.workdir import holder
from jaxmm.workdir.folder import Claim, has_saved, local, note_first_save

HOLDER = """
import sys, time
from pathlib import Path
from jaxmm.workdir.folder import Claim
with Claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def elsewhere(folder: Path, age: float = 0.0) -> Path:
    """The lock as a train on another machine left it, or keeps it."""
    lock = folder / workdir.LOCK
    lock.write_text(json.dumps({"host": "node7", "pid": 4, "machine": "m", "token": "t", "since": "2026-01-01"}))
    os.utime(lock, (time.time() - age,) * 2)
    return lock


def test_a_second_train_says_who_holds_the_workdir_and_a_killed_one_blocks_nobody(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"is being trained in by process {first.pid} on .* \(since 20.*--workdir"):
        Claim(tmp_path).__enter__()
    first.kill()
    first.communicate()
    assert (tmp_path / workdir.LOCK).exists()
    with Claim(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_claims_of_one_process_exclude_each_other(tmp_path):
    with Claim(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()}"):
        Claim(tmp_path).__enter__()


def test_a_holder_elsewhere_that_is_long_silent_is_passed_over_with_a_line(tmp_path, monkeypatch):
    lines: list[str] = []
    elsewhere(tmp_path, age=100)
    slept: list[float] = []
    monkeypatch.setattr(workdir.time, "sleep", slept.append)
    with Claim(tmp_path, lines.append, silence=5):
        assert json.loads((tmp_path / workdir.LOCK).read_text())["pid"] == os.getpid()
    assert sum(slept) < 4
    assert len(lines) == 1
    assert "process 4 on node7" in lines[0]


def test_a_holder_elsewhere_that_died_just_now_is_waited_for_and_then_passed_over(tmp_path):
    lines: list[str] = []
    elsewhere(tmp_path)
    with Claim(tmp_path, lines.append, silence=0.5):
        pass
    assert "waiting up to" in lines[0]
    assert "no sign of life" in lines[1]


def test_a_holder_elsewhere_that_gives_a_sign_of_life_is_respected(tmp_path, monkeypatch):
    lock = elsewhere(tmp_path)

    def sleep(seconds):
        os.utime(lock, (time.time() + 1,) * 2)

    monkeypatch.setattr(workdir.time, "sleep", sleep)
    with pytest.raises(UserError, match="process 4 on node7"):
        Claim(tmp_path, lambda line: None).__enter__()


def test_a_holder_on_this_machine_by_another_mount_whose_locks_are_its_own_is_respected(tmp_path, monkeypatch):
    lock = tmp_path / workdir.LOCK
    lock.write_text(json.dumps(holder.note() | {"device": -1}))
    monkeypatch.setattr(workdir.time, "sleep", lambda seconds: os.utime(lock, (time.time() + 1,) * 2))
    with pytest.raises(UserError, match=f"process {os.getpid()} on"):
        Claim(tmp_path, lambda line: None).__enter__()


@pytest.mark.parametrize("error", [BlockingIOError, OSError])
def test_a_lock_that_outlives_its_machine_and_a_file_system_without_locks_block_nobody(tmp_path, monkeypatch, error):
    elsewhere(tmp_path, age=100)

    def flock(file, how):
        if error is OSError or os.pread(file, 1, 0):  # a new lock is empty
            raise error(37, "No locks available")

    monkeypatch.setattr(workdir.fcntl, "flock", flock)
    with Claim(tmp_path, lambda line: None, silence=1):
        assert json.loads((tmp_path / workdir.LOCK).read_text())["pid"] == os.getpid()


def test_the_holder_gives_signs_of_life(tmp_path):
    with Claim(tmp_path, beat=0.01):
        before = os.stat(tmp_path / workdir.LOCK).st_mtime_ns
        end = time.monotonic() + 60
        while os.stat(tmp_path / workdir.LOCK).st_mtime_ns == before:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_no_sign_of_life_is_given_once_the_file_is_closed(tmp_path, monkeypatch):
    failed, begun = [], threading.Event()

    def late(file):
        begun.set()
        time.sleep(0.1)  # the end of the run comes meanwhile
        try:
            os.fstat(file)
        except OSError as error:
            failed.append(error)

    monkeypatch.setattr(workdir.os, "utime", late)
    with Claim(tmp_path, beat=0.01) as claim:
        assert begun.wait(60)
    claim._signs.join()
    assert failed == []


def test_a_claim_leaves_no_folder_behind_in_which_nothing_was_written(tmp_path):
    with Claim(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / workdir.LOCK).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_that_is_a_file_or_cannot_be_written_to_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"is a file|nothing can be written here \(Not a directory\)"):
            Claim(path).__enter__()
    assert (tmp_path / "file").read_text() == "mine"

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(workdir.os, "pwrite", lambda *args: refuse())
    with pytest.raises(UserError, match=r"nothing can be written here"):
        Claim(tmp_path / "full").__enter__()
    assert not (tmp_path / "full").exists()
    monkeypatch.setattr(workdir.os, "open", refuse)
    with pytest.raises(UserError, match=r"nothing can be written here \(Permission denied\)"):
        Claim(tmp_path / "denied").__enter__()
    assert not (tmp_path / "denied").exists()


def test_a_url_is_refused_and_a_home_spelled_out(monkeypatch):
    for url in ("gs://bucket/run", "s3://b", "file:///tmp/run", "S3+x://b"):
        with pytest.raises(UserError, match=r"--workdir=.* is not supported"):
            local("--workdir", url)
    monkeypatch.setenv("HOME", "/home/me")
    told = {"~/run": "/home/me/run", "a:b/c": "a:b/c", "~nobody-here/x": "~nobody-here/x", "": "", "./~": "./~"}
    assert {text: local("--workdir", text) for text in told} == told


def test_whether_a_run_has_saved_is_noted_once(tmp_path):
    assert not has_saved(tmp_path, every=10)
    note_first_save(tmp_path, 0)
    assert not has_saved(tmp_path, every=10)
    (tmp_path / "metrics.jsonl").write_text('{"step": 30}\n')  # killed before a save was complete
    assert not has_saved(tmp_path, every=10)
    note_first_save(tmp_path, 10)
    note_first_save(tmp_path, 0)
    note_first_save(tmp_path, 20)
    assert has_saved(tmp_path, every=10)
    assert json.loads((tmp_path / workdir.FIRST_SAVE).read_text()) == {"step": 10}
    (tmp_path / workdir.FIRST_SAVE).write_text("")
    assert has_saved(tmp_path, every=10)


@pytest.mark.parametrize("noted", ['{"step": 0}', None])
def test_a_checkpoint_is_a_save_whatever_has_become_of_it(tmp_path, noted):
    if noted:
        (tmp_path / workdir.FIRST_SAVE).write_text(noted)  # killed between the save and the note of it
    (tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not has_saved(tmp_path)
    (tmp_path / "checkpoints" / "8").mkdir()
    assert has_saved(tmp_path)
    assert not has_saved(None)


@pytest.mark.parametrize(("text", "saved"), [("[]", True), ('{"checkpoint": 3}', True), ("", True),
                                             ('{"checkpoint": {"every": 50}}', False)])  # fmt: skip
def test_a_damaged_config_does_not_hide_that_version_0_1_had_saved(tmp_path, text, saved):
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "metrics.jsonl").write_text('{"step": 30}\n')
    assert has_saved(tmp_path, every=10) is saved


@pytest.mark.parametrize(
    ("file", "text", "saved"),
    [
        ("metrics.jsonl", '{"step": 10}\n{"eval": 3}\n{"step": "a"}\n', False),  # its save may have been under way
        ("metrics.jsonl", '{"step": 11}\n', True),
        ("summary.json", "{}", True),
    ],
)
def test_what_version_0_1_left_tells_whether_it_had_saved(tmp_path, file, text, saved):
    (tmp_path / file).write_text(text)
    assert has_saved(tmp_path, every=10) is saved
