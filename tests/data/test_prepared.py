"""Prepared folders: what is read back is what was written, from a disk or a URL, and only if it is whole."""

import json
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import PIL.Image
import pytest
from made import document, numbered, source_of, write_many

from jaxmm.data.documents import Document, Image, Text, Turn
from jaxmm.data.prepare import prepare as prepare_module
from jaxmm.data.prepare import prepared as prepared_module
from jaxmm.data.prepare import remote
from jaxmm.data.prepare.index import CLIPS, COLUMNS, PREFERENCES, InMemory
from jaxmm.data.prepare.meta import sealed
from jaxmm.data.prepare.prepare import prepare
from jaxmm.data.prepare.prepared import Prepared
from jaxmm.data.reading import Reading
from jaxmm.data.sources import read_sources
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.errors import UserError

TEMPLATE = Template(load_tokenizer(""), "sft")


def png(height: int, width: int, tmp_path: Path) -> bytes:
    path = tmp_path / "scratch.png"
    PIL.Image.new("RGB", (width, height)).save(path)
    return path.read_bytes()


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
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 0)
    monkeypatch.setattr(prepared_module, "OPEN_SHARDS", 2)
    prepared = Prepared(prepare(numbered(50, 7), TEMPLATE, tmp_path))
    assert [shard["records"] for shard in prepared.meta["shards"]] == [7] * 7 + [1]
    order = np.random.default_rng(0).integers(0, 50, 1000).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert [r.origin for r in pool.map(prepared.read, order)] == [f"made, record {i}" for i in order]


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
    with pytest.raises(UserError, match=r"^the image /no\.png cannot be used: missing; an image's file"):
        InMemory("prompts", [TEMPLATE.encode(documents[1])], [[Image(path="/no.png")]], "")


# What is not whole


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
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 0)
    folder = prepare(numbered(9, 4), TEMPLATE, tmp_path)
    assert len(Prepared(folder)) == 9
    damage(folder, what)
    with pytest.raises(UserError, match="prepare it again") as caught:
        Prepared(folder)
    assert str(folder) in str(caught.value)


def rewritten(folder: Path, change) -> None:
    """Changes what meta.json says, as someone could who knows how it is sealed."""
    meta = json.loads((folder / "meta.json").read_text())
    del meta["checksum"]
    change(meta)
    (folder / "meta.json").write_text(json.dumps(sealed(meta)))


def test_each_flip_in_a_column_is_one_line(tmp_path, monkeypatch):
    folder = prepare(numbered(9, 4), TEMPLATE, tmp_path)
    rng = np.random.default_rng(0)
    for in_memory in (prepared_module.IN_MEMORY, 0):
        monkeypatch.setattr(prepared_module, "IN_MEMORY", in_memory)
        for column in (name for name in COLUMNS if name not in (*CLIPS, *PREFERENCES)):
            path = folder / f"{column}.npy"
            whole = path.read_bytes()
            for place in (*range(0, 130, 9), *rng.integers(0, len(whole), 5).tolist()):
                path.write_bytes(flipped(whole, min(place, len(whole) - 1)))
                with pytest.raises(UserError, match=rf"{column}\.npy is missing, or not as it was written"):
                    Prepared(folder)
            path.write_bytes(whole[:-1])
            with pytest.raises(UserError, match=rf"{column}\.npy"):
                Prepared(folder)
            path.write_bytes(whole)
    assert len(Prepared(folder)) == 9


def refusal(folder: Path) -> str:
    """Why a folder cannot be opened and read to its end, or ''."""
    try:
        prepared = Prepared(folder)
        for example in range(len(prepared)):
            prepared.read(example)
    except UserError as error:
        return str(error)
    return ""


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]


def test_each_flip_in_meta_json_is_one_line(tmp_path):
    folder = prepare(numbered(9, 4), TEMPLATE, tmp_path)
    path = folder / "meta.json"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(flipped(whole, place))
        if told := refusal(folder):
            assert str(folder) in told
            assert "prepare it again" in told
        else:
            assert json.loads(path.read_bytes()) == json.loads(whole), "a blank that became another"


@pytest.mark.parametrize("content", ["[]", "3", "{", '{"format": 3}', '{"format": [3]}', "[" * 100_000, "\x00", '"a"'])
def test_a_meta_json_of_something_else_is_one_line(tmp_path, content):
    folder = prepare(numbered(9, 4), TEMPLATE, tmp_path)
    (folder / "meta.json").write_text(content)
    for path in (folder, tmp_path):
        with pytest.raises(UserError, match="prepare it again"):
            prepared_module.open_prepared(str(path), [], tmp_path / "cache", Reading())


def test_a_value_of_another_kind_in_meta_json_is_one_line(tmp_path):
    folder = prepare(numbered(9, 4), TEMPLATE, tmp_path)
    whole = (folder / "meta.json").read_bytes()
    for key in ("name", "fingerprint", "template", "examples", "labels", "shards", "feature_widths", "columns"):
        for value in (None, [None], {"a": 1}, -1, 1.5, True, "zz", ["a", 3], [{"file": "a"}]):
            rewritten(folder, lambda meta, key=key, value=value: meta.update({key: value}))
            if (key, value) not in (("name", "zz"), ("template", "zz")):
                with pytest.raises(UserError, match=r"meta\.json is damaged|columns and shards disagree"):
                    Prepared(folder)
            (folder / "meta.json").write_bytes(whole)


def test_a_damaged_shard_is_one_line_with_file_and_record(tmp_path):
    folder = prepare(source_of([document(Text("word " * 400), i=i) for i in range(30)]), TEMPLATE, tmp_path)
    path = folder / "shard-00000.array_record"
    whole = path.read_bytes()
    origins = [prepared_module.Prepared(folder).read(e).origin for e in range(30)]
    harmless = 0
    for place in np.random.default_rng(0).integers(0, len(whole), 60).tolist():
        path.write_bytes(flipped(whole, place))
        if told := refusal(folder):
            assert re.search(r"shard-00000\.array_record(, record \d+: it cannot be read| holds)", told)
        else:
            assert [Prepared(folder).read(e).origin for e in range(30)] == origins, "a flip in what nothing reads"
            harmless += 1
    assert harmless < 60
    path.write_bytes(whole)
    opened = Prepared(folder)
    opened.read(0)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"record 29: it cannot be read"):
        opened.read(29)


def test_another_shard_of_as_many_records_is_noticed(tmp_path):
    ours, theirs = (
        prepare(source_of([document(Text(text * (i + 1)), i=i) for i in range(3)]), TEMPLATE, tmp_path / text)
        for text in ("a", "bb")
    )
    shutil.copy(theirs / "shard-00000.array_record", ours / "shard-00000.array_record")
    with pytest.raises(UserError, match=r"record 2: it has 7 tokens and 0 images, the index says 4 and 0"):
        Prepared(ours).read(2)


def test_a_small_index_that_is_cut_short_while_it_is_open_harms_nobody(tmp_path):
    folder = prepare(numbered(9, 4), TEMPLATE, tmp_path)
    prepared = Prepared(folder)
    for column in COLUMNS:
        (folder / f"{column}.npy").write_bytes(b"")
    assert prepared.tokens_E.sum() > 0
    with pytest.raises(UserError, match="not as it was written"):
        pickle.loads(pickle.dumps(prepared))


def test_what_version_0_1_prepared_opens_without_checksums_and_damage_that_shows_is_one_line(tmp_path):
    folder = prepare(numbered(9, 4), TEMPLATE, tmp_path)
    assert Prepared(folder).is_checked
    meta = json.loads((folder / "meta.json").read_text())
    old = {key: value for key, value in meta.items() if key not in ("columns", "checksum")}
    (folder / "meta.json").write_text(json.dumps(old))
    assert not Prepared(folder).is_checked
    offsets = np.load(folder / "runs_E1.npy")
    offsets[4] += 100
    np.save(folder / "runs_E1.npy", offsets)
    with pytest.raises(UserError, match="columns and shards disagree"):
        Prepared(folder)


# At a URL


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda meta: meta["shards"][0].update(file="../../x"), "a shard's file '../../x' is no bare name"),
        (lambda meta: meta["shards"][0].update(file="/tmp/x"), "is no bare name"),
        (lambda meta: meta["shards"][0].update(file=".."), "is no bare name"),
        (lambda meta: meta["shards"][0].update(file="a\\b"), "is no bare name"),
        (lambda meta: meta.update(fingerprint="../../../../x"), "fingerprint is no hexadecimal number"),
        (lambda meta: meta.update(fingerprint="/tmp/aaaaaaaaaaaaaaaa"), "fingerprint is no hexadecimal number"),
    ],
)
def test_a_folder_at_a_url_writes_nowhere_but_in_its_copy(store, tmp_path, change, told):
    folder = prepare(numbered(9, 4), TEMPLATE, tmp_path / "local")
    rewritten(folder, change)
    remote.put(folder, "memory://bucket/made")
    store.pipe("/bucket/x", b"harm")
    with pytest.raises(UserError, match=re.escape(told)):
        Prepared("memory://bucket/made", tmp_path / "a/b/cache")
    assert not (tmp_path / "a").exists()


def test_a_column_at_a_url_of_another_size_is_refused_and_a_stale_copy_replaced(store, tmp_path):
    remote.put(prepare(numbered(9, 4), TEMPLATE, tmp_path / "local"), "memory://bucket/made")
    prepared = Prepared("memory://bucket/made", tmp_path / "cache")
    (prepared.folder / "tokens_E.npy").write_bytes(b"short")
    assert len(Prepared("memory://bucket/made", tmp_path / "cache")) == 9
    store.pipe("/bucket/made/tokens_E.npy", b"short")
    with pytest.raises(UserError, match=r"tokens_E\.npy has 5 bytes of its 164"):
        Prepared("memory://bucket/made", tmp_path / "other")


@pytest.fixture
def store(monkeypatch):
    """The root of an empty store in memory; what is read of it is counted by name."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield memory
    memory.store.clear()


@pytest.fixture
def at_url(store, tmp_path, monkeypatch):
    """(local, url): a folder of three shards, and the same in the store."""
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 0)
    local = prepare(numbered(9, 4), TEMPLATE, tmp_path / "local")
    remote.put(local, "memory://bucket/made")
    return local, "memory://bucket/made"


def test_a_folder_at_a_url_reads_as_the_local_one_and_copies_a_shard_on_first_use(at_url, tmp_path):
    local, url = Prepared(at_url[0]), Prepared(at_url[1], tmp_path / "cache")
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(url, name), getattr(local, name))
    assert url.meta == local.meta
    assert url.folder.parent == tmp_path / "cache" / "remote"

    def shards():
        return sorted(f.name for f in url.folder.glob("shard-*"))

    assert shards() == []
    assert url.read(5).origin == "made, record 5"
    assert shards() == ["shard-00001.array_record"]
    again = pickle.loads(pickle.dumps(url))
    assert [again.read(e).origin for e in range(9)] == [local.read(e).origin for e in range(9)]
    assert len(shards()) == 3
    assert not list(url.folder.glob(".*"))  # no lock or temporary file stays


def test_what_was_copied_is_not_copied_again(at_url, tmp_path, store):
    prepared = Prepared(at_url[1], tmp_path / "cache")
    prepared.read(0)
    for name in store.find("/bucket/made"):
        if not name.endswith("meta.json"):
            store.rm(name)
    again = Prepared(at_url[1], tmp_path / "cache")
    assert again.read(0).origin == "made, record 0"
    with pytest.raises(UserError, match=r"shard-00001\.array_record is not there"):
        again.read(4)


@pytest.mark.parametrize("kept", [100, 0])
def test_a_cut_shard_at_a_url_raises_when_it_is_read(at_url, tmp_path, store, kept):
    whole = store.cat("/bucket/made/shard-00001.array_record")
    store.pipe("/bucket/made/shard-00001.array_record", whole[:kept])
    prepared = Prepared(at_url[1], tmp_path / "cache")
    assert prepared.read(0).origin == "made, record 0"
    with pytest.raises(UserError, match=rf"shard-00001\.array_record has {kept} bytes of its {len(whole)}"):
        prepared.read(4)


def test_another_shard_in_its_place_raises_when_it_is_read(at_url, tmp_path, store):
    store.pipe("/bucket/made/shard-00001.array_record", store.cat("/bucket/made/shard-00002.array_record"))
    prepared = Prepared(at_url[1], tmp_path / "cache")
    with pytest.raises(UserError, match=r"shard-00001\.array_record holds 1 of its 4 records"):
        prepared.read(4)


def test_a_url_without_prepared_data_says_so(store, tmp_path):
    with pytest.raises(UserError, match=r"memory://bucket/none holds no prepared data"):
        Prepared("memory://bucket/none", tmp_path)


@pytest.mark.slow
@pytest.mark.s3
def test_an_s3_server_gives_raw_data_and_keeps_what_is_prepared(tmp_path, monkeypatch):
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        s3 = s3fs.S3FileSystem()
        s3.mkdir("raw")
        s3.mkdir("ready")
        info = write_many(tmp_path / "data", 3, 20, images=False)
        s3.put(str(info.parent), "raw", recursive=True)
        monkeypatch.setattr(prepare_module, "SHARD_BYTES", 0)
        local = prepare(read_sources(str(info), ["many"])[0], TEMPLATE, tmp_path / "local")
        (source,) = read_sources("s3://raw/data/dataset_info.json", ["many"])
        folder = prepare(source, TEMPLATE, tmp_path / "cache", workers=2)
        remote.put(folder, "s3://ready/many")
        ours, theirs = Prepared("s3://ready/many", tmp_path / "copies"), Prepared(local)
        assert ours.meta["fingerprint"] == theirs.meta["fingerprint"]
        for e in range(60):
            np.testing.assert_array_equal(ours.read(e).tokens, theirs.read(e).tokens)
    finally:
        server.stop()


# Size


@pytest.mark.slow
def test_a_million_examples_open_and_read_in_little_memory(tmp_path):
    cache = str(tmp_path)
    _in_a_program(f"""
        import made
        from jaxmm.data.prepare import prepare as prepare_module
        prepare_module.SHARD_BYTES = 0
        prepare_module.prepare(made.numbered(1_000_000, 50_000), TEMPLATE, {cache!r})
        assert grown() < 300, grown()
    """)
    (folder,) = tmp_path.glob("made-*")
    assert len(Prepared(folder)) == 1_000_000
    _in_a_program(f"""
        from jaxmm.data.prepare.prepared import Prepared
        prepared = Prepared({str(folder)!r})
        for e in range(0, 1_000_000, 5000):
            assert prepared.read(e).origin == f"made, record {{e}}"
        assert grown() < 60, grown()
    """)


def _in_a_program(text: str) -> None:
    """Runs lines that may ask for ``grown()``: MB by which this process's peak is above what its imports took."""
    program = """
        import resource, jaxmm.data.prepare.prepare
        from jaxmm.data.text.template import Template
        from jaxmm.data.text.tokenizer import load_tokenizer
        TEMPLATE = Template(load_tokenizer(""), "sft")
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        start = peak()
        def grown():
            return peak() - start
    """
    program = textwrap.dedent(program) + textwrap.dedent(text)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600, cwd=Path(__file__).parent)
