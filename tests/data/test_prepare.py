"""Prepared sources: what is read back is what was written, whole or not at all, the same on every machine."""

import dataclasses
import json
import os
import pickle
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from jaxmm.data import media
from jaxmm.data import prepare as prepare_module
from jaxmm.data.documents import Document, Image, Part, Skip, Source, Text, Turn, Unit
from jaxmm.data.prepare import COLUMNS, InMemory, Prepared, prepare
from jaxmm.data.sources import read_sources
from jaxmm.data.text import Template, load_tokenizer
from jaxmm.errors import UserError

TEMPLATE = Template(load_tokenizer(""), "sft")
ALL = Unit("", 0, 1, 0)


def png(height: int, width: int, tmp_path: Path) -> bytes:
    path = tmp_path / "scratch.png"
    PIL.Image.new("RGB", (width, height)).save(path)
    return path.read_bytes()


def source_of(documents: Sequence[Document | Skip]) -> Source:
    return Source("made", (), json.dumps(len(documents)), lambda: [ALL], lambda _: iter(documents))


def document(*parts: Part, i: int = 0, labels: tuple[str, ...] = ()) -> Document:
    return Document((Turn("document", parts, True),), f"made, record {i}", labels)


@pytest.fixture
def documents(tmp_path: Path) -> list[Document]:
    return [
        document(Text("Only text."), i=0, labels=("plain",)),
        document(Image(data=png(20, 30, tmp_path)), i=1),
        document(
            Text("Two: "),
            Image(data=png(7, 9, tmp_path)),
            Image(data=png(40, 8, tmp_path)),
            i=2,
            labels=("two", "plain"),
        ),
        document(i=3),
        Document(
            (Turn("user", (Text("Who?"),), False), Turn("assistant", (Text("Me."),), True)), "made, record 4", ("two",)
        ),
    ]


def write_data(folder: Path, images: int = 3) -> Path:
    """A data file with conversations about images named by path, and a dataset_info.json."""
    (folder / "pictures").mkdir(parents=True)
    records = []
    for i in range(images):
        PIL.Image.new("RGB", (10 + i, 20)).save(folder / "pictures" / f"{i}.png")
        turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": f"Number {i}."}]
        records.append({"conversations": turns, "images": [f"pictures/{i}.png"]})
    (folder / "cats.json").write_text(json.dumps(records))
    return folder / "cats.json"


# What is read back


def test_records_and_columns_are_those_of_the_documents(documents, tmp_path):
    prepared = Prepared(prepare(source_of(documents), TEMPLATE, tmp_path / "cache"))
    assert len(prepared) == len(documents)
    for e, one in enumerate(documents):
        encoded = TEMPLATE.encode(one)
        record = prepared.read(e)
        np.testing.assert_array_equal(record.tokens, encoded.tokens)
        assert record.tokens.dtype == np.int32
        assert record.images == [part for turn in one.turns for part in turn.parts if isinstance(part, Image)]
        assert record.origin == one.origin
        runs, images = (slice(*offsets[e : e + 2]) for offsets in (prepared.runs_E1, prepared.images_E1))
        assert prepared.tokens_E[e] == len(encoded.tokens)
        np.testing.assert_array_equal(prepared.run_start_R[runs], encoded.run_starts)
        np.testing.assert_array_equal(prepared.run_flags_R[runs], encoded.run_flags)
        np.testing.assert_array_equal(prepared.image_at_I[images], encoded.image_at)
    assert prepared.image_height_I.tolist() == [20, 7, 40]
    assert prepared.image_width_I.tolist() == [30, 9, 8]
    names = prepared.meta["labels"]
    for one, mask in zip(documents, prepared.labels_E.tolist(), strict=True):
        assert {name for k, name in enumerate(names) if mask >> k & 1} == set(one.labels)
    assert {name: getattr(prepared, name).dtype for name in COLUMNS} == COLUMNS
    assert prepared.meta["examples"] == 5
    assert prepared.meta["tokens"] == int(prepared.tokens_E.sum())
    assert prepared.meta["images"] == 3
    assert prepared.meta["skipped"] == 0


def test_text_alone_prepares(tmp_path):
    prepared = Prepared(prepare(source_of([document(Text("Text."))]), TEMPLATE, tmp_path))
    assert len(prepared.image_at_I) == len(prepared.image_width_I) == 0
    assert prepared.images_E1.tolist() == [0, 0]


def test_records_are_found_in_any_of_many_shards_from_any_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "SHARD_RECORDS", 7)
    monkeypatch.setattr(prepare_module, "OPEN_SHARDS", 2)
    many = [document(Text(str(i) * (i % 5)), i=i) for i in range(50)]
    prepared = Prepared(prepare(source_of(many), TEMPLATE, tmp_path))
    assert [shard["records"] for shard in prepared.meta["shards"]] == [7] * 7 + [1]
    order = np.random.default_rng(0).integers(0, 50, 1000).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert [r.origin for r in pool.map(prepared.read, order)] == [f"made, record {i}" for i in order]


def test_a_shard_is_closed_at_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 1000)
    many = [document(Text("x" * 120), i=i) for i in range(10)]
    prepared = Prepared(prepare(source_of(many), TEMPLATE, tmp_path))
    assert [shard["records"] for shard in prepared.meta["shards"]] == [2] * 5


def test_a_prepared_source_pickles_small_and_opens_anew(documents, tmp_path):
    many = [document(Text("x"), i=i) for i in range(5000)]
    prepared = Prepared(prepare(source_of(many), TEMPLATE, tmp_path))
    prepared.read(3)
    packed = pickle.dumps(prepared)
    assert len(packed) < 2000
    again = pickle.loads(packed)
    assert again.read(4321).origin == "made, record 4321"
    np.testing.assert_array_equal(again.tokens_E, prepared.tokens_E)


def test_documents_in_memory_read_as_prepared_ones(documents, tmp_path):
    prepared = Prepared(prepare(source_of(documents), TEMPLATE, tmp_path / "cache"))
    encoded = [TEMPLATE.encode(one) for one in documents]
    images = [[part for turn in one.turns for part in turn.parts if isinstance(part, Image)] for one in documents]
    memory = InMemory("prompts", encoded, images, TEMPLATE.fingerprint)
    assert len(memory) == len(prepared)
    for name in COLUMNS:
        if name != "labels_E":
            np.testing.assert_array_equal(getattr(memory, name), getattr(prepared, name))
    for e in range(len(memory)):
        assert memory.read(e).images == prepared.read(e).images
        np.testing.assert_array_equal(memory.read(e).tokens, prepared.read(e).tokens)
    with pytest.raises(UserError, match=r"record 0: the image /no\.png cannot be used: missing"):
        InMemory("prompts", [TEMPLATE.encode(documents[1])], [[Image(path="/no.png")]], "")


# Caching


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


def test_two_that_prepare_at_once_share_what_the_first_finishes(tmp_path):
    together = threading.Barrier(2)

    def documents(_):
        together.wait(10)
        yield document(Text("Text."))

    source = Source("made", (), "{}", lambda: [ALL], documents)
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: prepare(source, TEMPLATE, tmp_path), range(2)))
    assert folders[0] == folders[1]
    assert [f.name for f in tmp_path.iterdir()] == [folders[0].name]
    assert len(Prepared(folders[0])) == 1


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


def test_a_source_without_documents_says_so(tmp_path):
    with pytest.raises(UserError, match="'made' has no documents"):
        prepare(source_of([]), TEMPLATE, tmp_path)


def test_images_that_do_not_match_their_placeholders_stop_the_preparation(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([{"messages": [{"role": "user", "content": "<image>"}], "images": []}]))
    with pytest.raises(UserError, match=r"bad\.json, record 0 has 1 <image> placeholders but 0 images"):
        prepare(read_sources(str(path), [])[0], TEMPLATE, tmp_path / "cache")


def damage(folder: Path, what: str) -> None:
    shard = folder / "shard-00001.array_record"
    if what == "a missing shard":
        shard.unlink()
    elif what == "a shard of another count":
        shutil.copy(folder / "shard-00002.array_record", shard)
    elif what == "a cut shard":
        shard.write_bytes(shard.read_bytes()[:100])
    elif what == "a missing column":
        (folder / "tokens_E.npy").unlink()
    elif what == "a column of another length":
        np.save(folder / "tokens_E.npy", np.ones(3, np.int32))
    elif what == "another format":
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({**meta, "format": 99}))
    else:
        (folder / "meta.json").unlink()


@pytest.mark.parametrize(
    "what",
    [
        "a missing shard",
        "a shard of another count",
        "a cut shard",
        "a missing column",
        "a column of another length",
        "another format",
        "no meta.json",
    ],
)
def test_a_folder_that_is_not_whole_does_not_open(tmp_path, monkeypatch, what):
    monkeypatch.setattr(prepare_module, "SHARD_RECORDS", 4)
    folder = prepare(source_of([document(Text("Text."), i=i) for i in range(9)]), TEMPLATE, tmp_path)
    assert len(Prepared(folder)) == 9
    damage(folder, what)
    with pytest.raises(UserError, match="prepare it again") as caught:
        Prepared(folder)
    assert str(folder) in str(caught.value)


def test_more_labels_than_bits_are_refused(tmp_path):
    many = [document(Text("Text."), i=i, labels=(f"label {i}",)) for i in range(65)]
    assert len(Prepared(prepare(source_of(many[:64]), TEMPLATE, tmp_path)).meta["labels"]) == 64
    with pytest.raises(UserError, match="more than 64 different labels"):
        prepare(source_of(many), TEMPLATE, tmp_path)
