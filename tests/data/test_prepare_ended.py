"""Preparing that ends early: killed anywhere, alone or beside another, on a full disk."""

import dataclasses
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from made import (
    ALL,
    contents,
    document,
    numbered,
    write_many,
)  # fmt: skip

from jaxmm.data.documents import Source, Text, Unit
from jaxmm.data.prepare import prepare as prepare_module
from jaxmm.data.prepare.disk import DiskFull
from jaxmm.data.prepare.prepare import prepare
from jaxmm.data.prepare.prepared import Prepared
from jaxmm.data.prepare.progress import Progress
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer

TEMPLATE = Template(load_tokenizer(""), "sft")
HERE = Path(__file__).parent


class Killed(BaseException):
    """Stands for a signal: nothing expects it."""


class Ending:
    """A function that works so many times, and from then on never again."""

    def __init__(self, real, times: int):
        self.real, self.left = real, times

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return self.real(*args, **kwargs)


@pytest.fixture
def reference(tmp_path, monkeypatch):
    """A source of five shards, and what preparing it without a break writes."""
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 0)
    return numbered(25, 5), contents(prepare(numbered(25, 5), TEMPLATE, tmp_path / "reference"))


@pytest.mark.parametrize("operation", ["replace", "rename", "fsync", "unlink"])
def test_an_end_before_any_step_leaves_what_goes_on_to_the_same_bytes(reference, tmp_path, monkeypatch, operation):
    source, expected = reference
    real = getattr(os, operation)
    for last in range(1000):
        cache = tmp_path / f"{operation}-{last}"
        with monkeypatch.context() as patch:
            patch.setattr(os, operation, Ending(real, last))
            try:
                prepare(source, TEMPLATE, cache)
                break
            except Killed:
                pass
        for folder in cache.glob("made-*"):
            assert contents(folder) == expected  # what has its name is whole
        folder = prepare(source, TEMPLATE, cache)
        assert contents(folder) == expected
        assert [f.name for f in cache.iterdir()] == [folder.name]
    assert last >= {"replace": 10, "rename": 1, "fsync": 20, "unlink": 0}[operation]


def test_finished_shards_are_not_made_again(reference, tmp_path):
    source, expected = reference
    read: list[int] = []

    def until(stop: int):
        def reading(unit: Unit):
            if unit.start >= stop:
                raise KeyboardInterrupt
            read.append(unit.start)
            return source.read(unit)

        return dataclasses.replace(source, read=reading)

    with pytest.raises(KeyboardInterrupt):
        prepare(until(15), TEMPLATE, tmp_path)
    assert read == [0, 5, 10]
    assert contents(prepare(until(99), TEMPLATE, tmp_path)) == expected
    assert read == [0, 5, 10, 15, 20]


def test_shards_cut_by_another_version_are_made_anew(reference, tmp_path, monkeypatch):
    source, expected = reference
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "SHARD_BYTES", 10_000)
        patch.setattr(prepare_module, "finish", Ending(None, 0))
        with pytest.raises(Killed):
            prepare(source, TEMPLATE, tmp_path)
    assert contents(prepare(source, TEMPLATE, tmp_path)) == expected


PROGRAM = """
import sys
from jaxmm.data.prepare import prepare as prepare_module
from jaxmm.data.sources import read_sources
from jaxmm.data.sources import read_sources
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
prepare_module.SHARD_BYTES = 0
source, = read_sources(sys.argv[1], ["many"])
template = Template(load_tokenizer(""), "sft")
print("begins", flush=True)
print(prepare_module.prepare(source, template, sys.argv[2], workers=int(sys.argv[3])))
"""


def started(info: Path, cache: Path, workers: int) -> subprocess.Popen[str]:
    """A program that prepares, at the point where it begins to."""
    command = [sys.executable, "-c", PROGRAM, str(info), str(cache), str(workers)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "begins\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills"), [pytest.param(1, 14, marks=pytest.mark.full), (2, 6)])
def test_killing_at_random_moments_leads_to_the_same_bytes(tmp_path, workers, kills):
    info = write_many(tmp_path / "data", 40, 60)
    process = started(info, tmp_path / "reference", workers)
    began = time.monotonic()
    assert process.wait() == 0
    seconds = time.monotonic() - began
    (reference,) = (tmp_path / "reference").glob("many-*")
    expected = contents(reference)
    moments = random.Random(workers)
    killed = attempt = 0
    while killed < kills:  # each cache is killed until a run of it gets to its end
        attempt += 1
        cache = tmp_path / f"cache-{attempt}"
        while True:
            process = started(info, cache, workers)
            time.sleep(moments.uniform(0, seconds))
            process.send_signal(signal.SIGKILL)
            if process.wait() == 0 or killed >= kills:
                break
            killed += 1
            for folder in cache.glob("many-*"):
                assert contents(folder) == expected
        process = started(info, cache, workers)
        assert process.wait() == 0
        (folder,) = cache.iterdir()
        assert contents(folder) == expected


# Two at once


def test_one_prepares_and_the_other_waits_and_says_so(tmp_path):
    inside, said = threading.Event(), threading.Event()

    class Saying(Progress):
        def say(self, text: str) -> None:
            assert text == f"another process is preparing made in {tmp_path}: waiting for it"
            said.set()

    def read(_):
        inside.set()
        assert said.wait(60)
        yield document(Text("Text."))

    def not_read(_):
        raise AssertionError

    first, second = (Source("made", (), "{}", lambda: [ALL], how) for how in (read, not_read))
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(prepare, first, TEMPLATE, tmp_path)
        assert inside.wait(60)
        two = pool.submit(prepare, second, TEMPLATE, tmp_path, progress=Saying())
        assert one.result(60) == two.result(60)
    assert [f.name for f in tmp_path.iterdir()] == [one.result().name]


def test_who_waited_for_one_that_died_goes_on_with_its_shards(tmp_path):
    info = write_many(tmp_path / "data", 30, 60)
    first = started(info, tmp_path / "cache", 1)
    while not list((tmp_path / "cache").glob(".*/index/*.npz")):
        assert first.poll() is None
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)  # it holds its lock and does not move
    second = started(info, tmp_path / "cache", 1)
    time.sleep(0.3)
    assert second.poll() is None
    first.kill()
    assert second.wait(60) == 0
    (folder,) = (tmp_path / "cache").iterdir()
    assert len(Prepared(folder)) == 1800


# A full disk


def test_a_full_disk_is_one_line_and_what_is_finished_stays(reference, tmp_path, monkeypatch):
    source, expected = reference
    real, calls, cache = os.fsync, 0, tmp_path / "cache"

    def full(file):
        nonlocal calls
        calls += 1
        if calls == 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match=r"no space left on the disk of .*: free some and run the same command again"):
        prepare(source, TEMPLATE, cache)
    (unfinished,) = cache.iterdir()
    assert unfinished.suffix == ".part"
    kept = sorted(unfinished.glob("index/*"))
    assert len(kept) == 3
    assert not list(unfinished.glob("*/.*"))  # nothing half-written takes the space that is missing
    assert contents(prepare(source, TEMPLATE, cache)) == expected


FULL = """
set -e
mount -t tmpfs -o size=1m none {disk}
cd {here}
"$@"
"""


# Elsewhere, where nobody may mount, this test is not there.
MOUNTS = ["unshare", "--map-root-user", "--mount"]
MAY_MOUNT = shutil.which("unshare") and not subprocess.run([*MOUNTS, "true"], capture_output=True).returncode


if MAY_MOUNT:

    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_disk_that_is_really_full_is_one_line(tmp_path, workers):
        (tmp_path / "disk").mkdir()
        program = f"""
from jaxmm.data.prepare import prepare as prepare_module
from jaxmm.data.sources import read_sources
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.errors import UserError
import made, sys
prepare_module.SHARD_BYTES = 0
try:
    prepare_module.prepare(
        made.numbered(30000, 3000), Template(load_tokenizer(""), "sft"), "{tmp_path}/disk/cache", workers={workers})
except UserError as error:
    sys.exit(str(error))
"""
        script = FULL.format(disk=tmp_path / "disk", here=HERE)
        done = subprocess.run([*MOUNTS, "bash", "-c", script, "-", sys.executable, "-c", program],
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert done.stderr.splitlines()[-1].startswith("no space left on the disk of ")
