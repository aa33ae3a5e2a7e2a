"""Preparing: once; the same bytes for any number of workers; what is left out is told."""

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import time
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

from jaxmm.data.documents import Document, Image, Skip, Source, Text, Unit
from jaxmm.data.files import Version
from jaxmm.data.media import picture as media
from jaxmm.data.prepare import finish, local_engine, ray_engine
from jaxmm.data.prepare import prepare as prepare_module
from jaxmm.data.prepare.prepare import joined_units, prepare
from jaxmm.data.prepare.prepared import Prepared
from jaxmm.data.prepare.progress import Progress
from jaxmm.data.prepare.shard import read_part
from jaxmm.data.sources import read_sources
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
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
        {"file": "cats.json", "record": 7, "reason": "missing", "detail": "image 7.png"},
        {"file": "cats.json", "record": 9, "reason": "unreadable", "detail": "image 9.png"},
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


def test_a_file_of_which_a_rest_is_lost_is_told_each_time(tmp_path):
    some: list[Document | Skip] = [document(Text("Text."), i=i) for i in range(30)]
    some += [Skip("made, record 30", "cut short", "what follows is lost"), Skip("made, record 31", "empty")]
    source = dataclasses.replace(source_of(some), max_skipped=0.5)
    for _ in range(2):
        out = io.StringIO()
        prepare(source, TEMPLATE, tmp_path, progress=Progress(out))
        assert out.getvalue() == (
            "warning: made is broken or ends early at record 30: what follows is lost; the file ends in the middle of "
            "a record: download or write it again\n"
        )


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
    ("what", "says"), [(die, "killed by SIGKILL.*memory ran out; it read "), (leave, "ended with exit status 3")]
)
def test_a_dead_worker_raises_with_its_cause_and_its_work_can_go_on(tmp_path, monkeypatch, what, says):
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 0)
    with pytest.raises(local_engine.WorkerDied, match=says):
        prepare(numbered(4, 2, what), TEMPLATE, tmp_path, workers=2)
    assert [f.suffix for f in tmp_path.iterdir()] == [".part"]
    assert len(Prepared(prepare(numbered(4, 2), TEMPLATE, tmp_path))) == 4
    assert [f.name[0] for f in tmp_path.iterdir()] == ["m"]


def test_more_workers_than_there_is_room_for_cost_no_finished_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 0)
    with pytest.raises(local_engine.WorkerDied):
        prepare(numbered(4, 2, die), TEMPLATE, tmp_path, workers=2)
    (unfinished,) = tmp_path.iterdir()
    finished = sorted(path.name for path in unfinished.rglob("*"))
    monkeypatch.setattr("jaxmm.data.processes._ANYWHERE", 0)
    monkeypatch.setattr("jaxmm.data.processes._PER_CORE", 0)
    with pytest.raises(UserError, match="--workers is 2: at most 0 processes"):
        prepare(numbered(6, 2), TEMPLATE, tmp_path, workers=2)
    assert sorted(path.name for path in unfinished.rglob("*")) == finished


def test_damage_to_what_an_interrupted_preparation_left_is_one_line(tmp_path, monkeypatch):
    source, kept = numbered(4, 2), tmp_path / "kept.npz"

    def keep(path):
        kept.write_bytes(path.read_bytes())
        return read_part(path)

    monkeypatch.setattr(finish, "read_part", keep)
    prepare(source, TEMPLATE, tmp_path / "cache")
    assert read_part(kept)[0].records == 4
    whole = kept.read_bytes()
    for place in range(0, len(whole), 97):
        kept.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with contextlib.suppress(UserError):
            read_part(kept)
        kept.write_bytes(whole[:place])
        with pytest.raises(UserError, match=r"kept\.npz has been damaged: run the same command again"):
            read_part(kept)


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
    monkeypatch.setattr(prepare_module, "cores", lambda: 7)
    asked = []

    def run(task, items, workers, tick, done):
        asked.append(workers)
        real(task, items, 1, tick, done)

    real = local_engine.run
    monkeypatch.setattr(local_engine, "run", run)
    prepare(numbered(4, 2), TEMPLATE, tmp_path / "a", engine=run)
    monkeypatch.setattr(prepare_module, "MANY_BYTES", 1000)
    prepare(numbered(4, 2), TEMPLATE, tmp_path / "b", engine=run)
    prepare(numbered(4, 2), TEMPLATE, tmp_path / "c", engine=run, workers=3)
    assert asked == [1, 7, 3]


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    program = """
import made, sys
from jaxmm.data.prepare import prepare as prepare_module
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
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
        until = time.monotonic() + 60
        while Path(f"/proc/{file.name.removeprefix('waiting-')}/cmdline").exists():
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_cache_that_cannot_be_written_to_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no folder can be made here"):
        prepare(numbered(4, 2), TEMPLATE, tmp_path / "file" / "cache")


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
        many = prepare(source, TEMPLATE, tmp_path / "many", engine=ray_engine.run)
        assert contents(many) == contents(one)
        record = {"conversations": [{"from": "human", "value": "<image>"}], "images": []}
        (tmp_path / "data" / "many" / "002.jsonl").write_text(json.dumps(record))
        (source,) = read_sources(str(tmp_path / "data" / "dataset_info.json"), ["many"])
        with pytest.raises(UserError, match=r"002\.jsonl, record 0 has 1"):
            prepare(source, TEMPLATE, tmp_path / "many", engine=ray_engine.run)
    finally:
        ray.shutdown()
