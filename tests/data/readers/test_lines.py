"""JSON lines and plain text: units are whole lines, and numbers of records stay global."""

import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmm.data import files
from jaxmm.data.documents import Unit
from jaxmm.data.readers import containers, lines
from jaxmm.data.sources import read_sources
from readers.reading import said, skipped

LINES = st.lists(
    st.sampled_from([b"{}", b'{"a": 1}', b"", b"  ", b"\r", b"\t\x0b", b"no json", b"x" * 30, b"\xff"]), max_size=20
)


@settings(max_examples=200, deadline=None)
@given(LINES, st.booleans(), st.integers(1, 50), st.sampled_from([b"", b"\xef\xbb\xbf"]), st.integers(1, 40))
def test_units_one_after_the_other_are_the_whole(parts, ends, unit_bytes, before, block):
    data = before + b"\n".join(parts) + b"\n" * ends
    expected = [part.rstrip(b"\r") for part in parts if part.strip()]
    with tempfile.NamedTemporaryFile(suffix=".txt") as file:
        Path(file.name).write_bytes(data)
        old, lines.BLOCK = lines.BLOCK, block
        try:
            units = lines.units(file.name, unit_bytes)
            assert [unit.start for unit in units] == [0, *(unit.stop for unit in units[:-1])]
            assert units[-1].stop == len(data)
            got = [record for unit in units for record in lines.texts(unit)]
            assert sum(map(lines.count, units)) == len(expected)
        finally:
            lines.BLOCK = old
    assert got == [(i, {"text": part.decode("utf-8", "surrogateescape")}) for i, part in enumerate(expected)]


def test_a_small_file_is_one_unit_and_not_read_for_it(folder, monkeypatch):
    path = folder.write("a.jsonl", [{"text": "One."}])
    monkeypatch.setattr(files, "open_binary", None)
    assert lines.units(path, containers.UNIT_BYTES) == [Unit(path, 0, 17, 0)]


def test_origins_count_from_the_files_start_in_every_unit(folder):
    path = folder.write("a.jsonl", "\n".join(json.dumps({"text": str(i)}) + "\n" * (i % 3) for i in range(50)))
    units = containers.list_units([path], 64)
    (source,) = read_sources(path, [])
    got = [document for unit in units for document in source.read(unit)]
    assert len(units) > 5
    assert got == list(source.documents())
    assert [d.origin for d in got] == [f"a.jsonl, record {i}" for i in range(50)]


def test_nul_bytes_and_broken_text_cost_their_line(folder):
    source = folder.source(b"One.\n\0\0\0\nTwo\xe9.\nFour.\n", "a.txt")
    assert skipped(source) == [("a.txt, record 1", "broken text"), ("a.txt, record 2", "broken text")]
    assert [said(d)[0][1] for d in source.documents() if hasattr(d, "turns")] == ["One.", "Four."]


def test_a_store_behind_a_url_is_read_as_a_folder_is():
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/shop/a.jsonl", b'{"text": "One <image>", "images": ["p/x.png"]}\n' * 30)
    memory.pipe(
        "/shop/dataset_info.json", b'{"t": {"file_name": "a.jsonl", "columns": {"prompt": "text", "images": ""}}}'
    )
    try:
        (source,) = read_sources("memory://shop/a.jsonl", [])
        units = containers.list_units(source.files, 100)
        got = [document for unit in units for document in source.read(unit)]
        assert [d.origin for d in got] == [f"a.jsonl, record {i}" for i in range(30)]
        assert got[0].turns[0].parts[1].path == "memory://shop/p/x.png"
        (entry,) = read_sources("memory://shop", ["t"])
        assert said(next(iter(entry.documents()))) == [("document", "One <image>")]
        (pattern,) = read_sources("memory://shop/*.jsonl", [])
        assert pattern.files == ("memory://shop/a.jsonl",)
        assert pattern.name == "shop"
        assert next(iter(pattern.documents())).origin == "a.jsonl, record 0"
    finally:
        memory.rm("/shop", recursive=True)
