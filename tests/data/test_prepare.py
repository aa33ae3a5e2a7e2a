"""Preparing: once, whatever kills it; the same bytes for any number of workers; nothing half-done looks finished."""

import dataclasses
import errno
import io
import json
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

import numpy as np
import PIL.Image
import pytest
from made import (
    ALL,
    contents,
    die,
    document,
    fail,
    leave,
    look_for_jax,
    numbered,
    source_of,
    write_data,
    write_many,
)  # fmt: skip

from jaxmm.data import media, on_ray, processes
from jaxmm.data import prepare as prepare_module
from jaxmm.data.disk import DiskFull
from jaxmm.data.documents import Document, Image, Skip, Source, Text, Unit
from jaxmm.data.files import Version
from jaxmm.data.prepare import joined_units, prepare
from jaxmm.data.prepared import Prepared
from jaxmm.data.progress import Progress
from jaxmm.data.sources import read_sources
from jaxmm.data.text import Template
from jaxmm.data.tokenizer import load_tokenizer
from jaxmm.errors import UserError

TEMPLATE = Template(load_tokenizer(""), "sft")
HERE = Path(__file__).parent


def png(height: int, width: int, tmp_path: Path) -> bytes:
    path = tmp_path / "scratch.png"
    PIL.Image.new("RGB", (width, height)).save(path)
    return path.read_bytes()


@pytest.fixture
def documents(tmp_path: Path) -> list[Document]:
    return [
        document(Text("Only text."), i=0, labels=("plain",)),
        document(Image(data=png(20, 30, tmp_path)), i=1),
        document(Text("Two: "), Image(data=png(7, 9, tmp_path)), i=2, labels=("two", "plain")),
    ]


# The cache


def test_what_is_prepared_is_not_prepared_again(tmp_path):
    data = write_data(tmp_path / "data")
    read = []

    def counted(source: Source) -> Source:
        def counting(unit: Unit):
            read.append(source.name)
            return source.read(unit)

        return dataclasses.replace(source, read=counting)

    def folder(template: Template = TEMPLATE) -> Path:
        return prepare(counted(read_sources(str(data), [])[0]), template, tmp_path / "cache")

    first = folder()
    assert folder() == first
    assert len(read) == 1
    assert folder(Template(load_tokenizer(""), "pretrain")) != first
    os.utime(data, ns=(1, 1))
    assert folder() != first
    assert len(read) == 3
    assert first.name.startswith("cats-")
    assert sorted(f.name for f in (tmp_path / "cache").iterdir() if f.name.startswith(".")) == []


def test_the_fingerprint_is_of_the_content_wherever_it_is(tmp_path):
    fingerprints = []
    for place in ("here", "there/deep"):
        data = write_data(tmp_path / place)
        os.utime(data, ns=(len(place), 10**9 * len(place)))
        folder = prepare(read_sources(str(data), [])[0], TEMPLATE, tmp_path / place / "cache")
        fingerprints.append(Prepared(folder).meta["fingerprint"])
    assert fingerprints[0] == fingerprints[1]


def test_the_fingerprint_tells_contents_apart(documents, tmp_path):
    variants = [
        documents,
        documents[:-1],
        [documents[0]._replace(labels=()), *documents[1:]],
        [document(Text("Only texts."), labels=("plain",)), *documents[1:]],
        [documents[0], document(Image(data=png(20, 30, tmp_path) + b" "), i=1), *documents[2:]],
    ]
    found = [
        Prepared(prepare(source_of(v), TEMPLATE, tmp_path / str(i))).meta["fingerprint"] for i, v in enumerate(variants)
    ]
    assert len(set(found)) == len(variants)


# What cannot be used


def test_what_fails_leaves_nothing(tmp_path):
    def documents(_):
        yield document(Text("Text."))
        raise UserError("broken")

    with pytest.raises(UserError, match="broken"):
        prepare(Source("made", (), "{}", lambda: [ALL], documents), TEMPLATE, tmp_path)
    assert list(tmp_path.iterdir()) == []


# What cannot be used


def test_a_bad_image_skips_its_document_and_is_recorded(tmp_path):
    data = write_data(tmp_path / "data", 60)
    os.remove(tmp_path / "data" / "pictures" / "7.png")
    (tmp_path / "data" / "pictures" / "9.png").write_bytes(b"no picture")
    folder = prepare(read_sources(str(data), [])[0], TEMPLATE, tmp_path / "cache")
    prepared = Prepared(folder)
    assert len(prepared) == 58
    assert prepared.meta["skipped"] == 2
    assert [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()] == [
        {"file": "cats.json", "record": 7, "reason": "missing"},
        {"file": "cats.json", "record": 9, "reason": "unreadable"},
    ]
    assert prepared.read(7).origin == "cats.json, record 8"


def test_a_truncated_image_is_found_later_as_no_pixel_is_decoded(tmp_path):
    path = tmp_path / "cut.jpg"
    PIL.Image.effect_noise((64, 64), 90).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    prepared = Prepared(prepare(source_of([document(Image(path=str(path)))]), TEMPLATE, tmp_path / "cache"))
    assert prepared.image_height_I.tolist() == [64]
    with pytest.raises(media.BadMedia, match="truncated"):
        media.decode(prepared.read(0).images[0])


@pytest.mark.parametrize(("bad", "stops"), [(5, False), (6, True)])
def test_more_than_five_in_a_hundred_skipped_stop(tmp_path, bad, stops):
    many: list[Document | Skip] = [Skip(f"made, record {i}", "broken text") for i in range(bad)]
    many += [document(Text("Text."), i=i) for i in range(bad, 100)]
    if not stops:
        assert Prepared(prepare(source_of(many), TEMPLATE, tmp_path)).meta["skipped"] == bad
        return
    with pytest.raises(UserError) as caught:
        prepare(source_of(many), TEMPLATE, tmp_path)
    assert "'made': 6 of 100 documents cannot be used (6 broken text), more than 5%" in str(caught.value)
    assert "made, record 0 (broken text)" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("bad", "good", "stops"), [(1, 2, False), (2, 2, True), (1, 0, True)])
def test_a_single_bad_document_never_stops_a_small_source(tmp_path, bad, good, stops):
    some: list[Document | Skip] = [Skip(f"made, record {i}", "empty") for i in range(bad)]
    some += [document(Text("Text."), i=i) for i in range(good)]
    if stops:
        with pytest.raises(UserError, match=f"{bad} of {bad + good} documents cannot be used"):
            prepare(source_of(some), TEMPLATE, tmp_path)
    else:
        assert len(Prepared(prepare(source_of(some), TEMPLATE, tmp_path))) == good


def test_a_reason_that_is_not_on_the_list_is_an_error_of_ours(tmp_path):
    with pytest.raises(AssertionError, match="bad luck"):
        prepare(source_of([document(Text("Text.")), Skip("made, record 1", "bad luck")]), TEMPLATE, tmp_path)


def test_a_source_without_documents_says_so(tmp_path):
    with pytest.raises(UserError, match="'made' has no documents"):
        prepare(source_of([]), TEMPLATE, tmp_path)


def test_images_that_do_not_match_their_placeholders_stop_the_preparation(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([{"messages": [{"role": "user", "content": "<image>"}], "images": []}]))
    with pytest.raises(UserError, match=r"bad\.json, record 0 has 1 <image> placeholders but 0 images"):
        prepare(read_sources(str(path), [])[0], TEMPLATE, tmp_path / "cache")


def test_more_labels_than_bits_are_refused(tmp_path):
    many = [document(Text("Text."), i=i, labels=(f"label {i}",)) for i in range(65)]
    assert len(Prepared(prepare(source_of(many[:64]), TEMPLATE, tmp_path)).meta["labels"]) == 64
    with pytest.raises(UserError, match="more than 64 different labels"):
        prepare(source_of(many), TEMPLATE, tmp_path)


# Shards


def units(*sizes: int, file: str = "f") -> list[Unit]:
    ends = np.cumsum(sizes).tolist()
    return [Unit(file, end - size, end, 0) for end, size in zip(ends, sizes, strict=True)]


def test_small_units_are_joined_and_large_ones_stay(monkeypatch):
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 100)
    shards = joined_units([*units(1, 1, 1), *units(50, file="g"), *units(1, 4, file="h")], {
        "f": Version(90, ""), "g": Version(20, ""), "h": Version(1000, ""),
    })  # fmt: skip
    # f: 30 bytes a unit; g: 20; h: 200 and 800
    assert [[unit.file for unit in shard.units] for shard in shards] == [["f", "f", "f"], ["g"], ["h"], ["h"]]
    assert [shard.bytes for shard in shards] == [90, 20, 200, 800]
    assert [shard.number for shard in shards] == [0, 1, 2, 3]


def test_thousands_of_tiny_files_are_one_shard(tmp_path):
    info = write_many(tmp_path / "data", 2000, 1)
    folder = prepare(read_sources(str(info), ["many"])[0], TEMPLATE, tmp_path / "cache")
    assert [shard["records"] for shard in Prepared(folder).meta["shards"]] == [2000]


def test_labels_of_all_shards_have_one_bit_each(tmp_path, monkeypatch):
    whole = Prepared(prepare(numbered(40, 40), TEMPLATE, tmp_path / "a"))
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 0)
    parts = Prepared(prepare(numbered(40, 7), TEMPLATE, tmp_path / "b"))
    assert parts.meta["labels"] == whole.meta["labels"]
    for name in ("labels_E", "runs_E1", "run_start_R", "images_E1"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_a_shard_of_which_all_was_skipped_has_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 0)
    source = numbered(99, 33)

    def read(unit: Unit):
        return iter([Skip("made, record 0", "empty")]) if unit.start == 33 else source.read(unit)

    folder = prepare(dataclasses.replace(source, read=read), TEMPLATE, tmp_path)
    prepared = Prepared(folder)
    assert [shard["file"][6:11] for shard in prepared.meta["shards"]] == ["00000", "00002"]
    assert [prepared.read(e).origin for e in (32, 33)] == ["made, record 32", "made, record 66"]
    assert sorted(f.name for f in folder.glob("shard-*")) == [shard["file"] for shard in prepared.meta["shards"]]


# Processes


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_writes_the_same_bytes(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 0)
    (source,) = read_sources(str(write_many(tmp_path / "data", 6, 20)), ["many"])
    one = prepare(source, TEMPLATE, tmp_path / "one", workers=1)
    many = prepare(source, TEMPLATE, tmp_path / "many", workers=workers)
    assert contents(many) == contents(one)
    assert len(Prepared(one)) == 120
    assert [f.name for f in (tmp_path / "many").iterdir()] == [one.name]


def test_a_worker_initialises_no_jax(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 0)
    monkeypatch.setenv("LOOKED", str(tmp_path / "looked"))
    prepare(numbered(4, 2, look_for_jax), TEMPLATE, tmp_path / "cache", workers=2)
    assert (tmp_path / "looked").exists()


@pytest.mark.parametrize(
    ("what", "says"), [(die, "killed by SIGKILL .*out of memory.* while it read"), (leave, "ended with status 3")]
)
def test_a_dead_worker_raises_with_its_cause_and_its_work_can_go_on(tmp_path, monkeypatch, what, says):
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 0)
    with pytest.raises(processes.WorkerDied, match=says):
        prepare(numbered(4, 2, what), TEMPLATE, tmp_path, workers=2)
    assert [f.suffix for f in tmp_path.iterdir()] == [".part"]
    assert len(Prepared(prepare(numbered(4, 2), TEMPLATE, tmp_path))) == 4
    assert [f.name[0] for f in tmp_path.iterdir()] == ["m"]


def test_what_a_worker_raises_is_raised_with_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 0)
    with pytest.raises(ZeroDivisionError, match="in unit") as caught:
        prepare(numbered(4, 2, fail), TEMPLATE, tmp_path, workers=2)
    assert "made.py" in str(caught.value.__cause__)


def test_a_users_mistake_in_a_worker_is_the_users_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 0)
    info = write_many(tmp_path / "data", 2, 3)
    record = {"conversations": [{"from": "human", "value": "<image>"}], "images": []}
    (info.parent / "many" / "001.jsonl").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"001\.jsonl, record 0 has 1 <image> placeholders but 0 images"):
        prepare(read_sources(str(info), ["many"])[0], TEMPLATE, tmp_path / "cache", workers=2)
    assert list((tmp_path / "cache").iterdir()) == []


def test_only_large_inputs_start_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 0)
    monkeypatch.setattr(processes, "cores", lambda: 7)
    asked = []

    def run(task, items, workers, tick, done):
        asked.append(workers)
        real(task, items, 1, tick, done)

    real = processes.run
    monkeypatch.setattr(processes, "run", run)
    prepare(numbered(4, 2), TEMPLATE, tmp_path / "a", engine=run)
    monkeypatch.setattr(prepare_module, "MANY_BYTES", 1000)
    prepare(numbered(4, 2), TEMPLATE, tmp_path / "b", engine=run)
    prepare(numbered(4, 2), TEMPLATE, tmp_path / "c", engine=run, workers=3)
    assert asked == [1, 7, 3]


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    program = """
import made, sys
from jaxmm.data import prepare as prepare_module
from jaxmm.data.text import Template
from jaxmm.data.tokenizer import load_tokenizer
prepare_module.SHARD_BYTES = 0
prepare_module.prepare(made.numbered(4, 2, made.wait), Template(load_tokenizer(""), "sft"), sys.argv[1], workers=2)
"""
    environment = {**os.environ, "WAITING": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "cache")], cwd=HERE, env=environment)
    try:
        while len(waiting := list(tmp_path.glob("waiting-*"))) < 2:
            assert parent.poll() is None
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    for file in waiting:
        until = time.monotonic() + 20
        while Path(f"/proc/{file.name.removeprefix('waiting-')}/cmdline").exists():
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_cache_that_cannot_be_written_to_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no folder can be made here"):
        prepare(numbered(4, 2), TEMPLATE, tmp_path / "file" / "cache")


# Interruptions


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
        patch.setattr(prepare_module, "_finish", Ending(None, 0))
        with pytest.raises(Killed):
            prepare(source, TEMPLATE, tmp_path)
    assert contents(prepare(source, TEMPLATE, tmp_path)) == expected


PROGRAM = """
import sys
from jaxmm.data import prepare as prepare_module
from jaxmm.data.sources import read_sources
from jaxmm.data.sources import read_sources
from jaxmm.data.text import Template
from jaxmm.data.tokenizer import load_tokenizer
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
@pytest.mark.parametrize(("workers", "kills"), [(1, 14), (2, 6)])
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
        assert said.wait(20)
        yield document(Text("Text."))

    def not_read(_):
        raise AssertionError

    first, second = (Source("made", (), "{}", lambda: [ALL], how) for how in (read, not_read))
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(prepare, first, TEMPLATE, tmp_path)
        assert inside.wait(20)
        two = pool.submit(prepare, second, TEMPLATE, tmp_path, progress=Saying())
        assert one.result(20) == two.result(20)
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
from jaxmm.data import prepare as prepare_module
from jaxmm.data.sources import read_sources
from jaxmm.data.text import Template
from jaxmm.data.tokenizer import load_tokenizer
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


# What is told


def test_the_report_counts_documents_tokens_images_and_pixels(tmp_path, documents):
    skips = [Skip("made, record 3", "empty")]
    folder = prepare(source_of([*documents, *skips]), TEMPLATE, tmp_path / "cache")
    report = json.loads((folder / "report.json").read_text())
    tokens = Prepared(folder).tokens_E.tolist()
    assert report["modalities"] == {
        "text": {"documents": 1, "tokens": tokens[0], "images": 0, "pixels": 0},
        "image": {"documents": 2, "tokens": tokens[1] + tokens[2], "images": 2, "pixels": 663},
    }
    assert tokens == [11, 3, 8]
    assert report["token_lengths"] == [[4, 1], [8, 1], [16, 1]]
    assert report["image_pixels"] == [[64, 1], [1024, 1]]
    assert report["images_per_document"] == [[0, 1], [1, 2]]
    assert report["skipped"] == {"empty": 1}
    assert report["shards"] == 1
    assert report["bytes"] == (folder / "shard-00000.array_record").stat().st_size


def test_progress_is_quiet_at_first_and_then_tells_rates_and_what_is_left():
    out, now = io.StringIO(), [100.0]
    progress = Progress(out, clock=lambda: now[0])
    progress.start("cats", 4_000_000, 1_000_000)
    progress.tick(10, 100_000, 0)
    assert out.getvalue() == ""
    now[0] += 4
    progress.tick(990, 500_000, 3)
    assert out.getvalue() == "preparing cats: 1,000 documents (3 skipped)  250/s  0.1 MB/s  40%  ETA 16s\n"
    now[0] += 4
    progress.done(1_000_000)  # between two lines, ten seconds apart
    progress.tick(0, 0, 0)
    assert out.getvalue().count("\n") == 1
    progress.close()
    assert out.getvalue().splitlines()[1].endswith("0.1 MB/s  50%  ETA 16s")


@pytest.mark.slow
@pytest.mark.ray
def test_a_ray_cluster_writes_the_same_bytes(tmp_path, monkeypatch):
    import ray

    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 0)
    (source,) = read_sources(str(write_many(tmp_path / "data", 4, 20)), ["many"])
    one = prepare(source, TEMPLATE, tmp_path / "one", workers=1)
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        many = prepare(source, TEMPLATE, tmp_path / "many", engine=on_ray.run)
        assert contents(many) == contents(one)
        record = {"conversations": [{"from": "human", "value": "<image>"}], "images": []}
        (tmp_path / "data" / "many" / "002.jsonl").write_text(json.dumps(record))
        (source,) = read_sources(str(tmp_path / "data" / "dataset_info.json"), ["many"])
        with pytest.raises(UserError, match=r"002\.jsonl, record 0 has 1"):
            prepare(source, TEMPLATE, tmp_path / "many", engine=on_ray.run)
    finally:
        ray.shutdown()
