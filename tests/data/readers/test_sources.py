"""What a path may be: a description, a file, a folder, a pattern."""

import pickle

import pytest

from jaxmm.data.documents import Document
from jaxmm.data.readers import containers
from jaxmm.data.sources import read_sources
from jaxmm.errors import UserError
from readers.reading import Folder, openai, said, skipped


def texts(source) -> list[str]:
    return [said(d)[0][1] for d in source.documents() if isinstance(d, Document)]


def test_a_folder_of_files_of_one_kind_is_a_source(folder: Folder):
    folder.write("web/b.jsonl", [{"text": "Two."}])
    folder.write("web/a.json", [{"text": "One."}])
    folder.write("web/README.md", "Nothing.")
    folder.write("web/pictures/c.json", [{"text": "Not at the top."}])
    (source,) = read_sources(str(folder.path / "web"), ["web"])
    assert source.name == "web"
    assert [d.origin for d in source.documents()] == ["a.json, record 0", "b.jsonl, record 0"]
    assert texts(pickle.loads(pickle.dumps(source))) == ["One.", "Two."]
    folder.write("web/c.parquet", "")
    with pytest.raises(UserError, match=r"web holds \.json, \.jsonl, \.parquet files: say which, as .*web/\*\.json"):
        read_sources(str(folder.path / "web"), [])


def test_a_folder_without_data_says_what_it_might_hold(folder: Folder):
    folder.write("web/README.md", "Nothing.")
    with pytest.raises(UserError, match=r"web holds no data: neither a dataset_info\.json nor a \.json"):
        read_sources(str(folder.path / "web"), [])


def test_a_folder_with_a_description_is_the_description(folder: Folder):
    folder.dataset("cats", [{"text": "One."}], columns={"prompt": "text"})
    (source,) = read_sources(str(folder.path), ["cats"])
    assert texts(source) == ["One."]
    with pytest.raises(UserError, match="say which datasets"):
        read_sources(str(folder.path), [])


def test_a_pattern_is_a_source(folder: Folder):
    for part in range(3):
        folder.write(f"web/en-{part}.jsonl", [{"text": f"Part {part}."}])
    folder.write("web/de-0.jsonl", [{"text": "Teil."}])
    (source,) = read_sources(str(folder.path / "web" / "en-*.jsonl"), [])
    assert source.name == "en"
    assert texts(source) == [f"Part {part}." for part in range(3)]
    (everything,) = read_sources(str(folder.path / "web" / "*.jsonl"), ["web"])
    assert len(texts(everything)) == 4
    with pytest.raises(UserError, match=r"no file matches .*fr-\*\.jsonl"):
        read_sources(str(folder.path / "web" / "fr-*.jsonl"), [])
    with pytest.raises(UserError, match="one data source, named 'en' in a mixture: it has no 'de'"):
        read_sources(str(folder.path / "web" / "en-*.jsonl"), ["de"])


def test_the_first_record_that_can_be_read_tells_the_format(folder: Folder):
    lines = '{"text": \n[]\n{"text": "One."}\n'
    source = folder.source(lines, "a.jsonl")
    assert texts(source) == ["One."]
    assert skipped(source) == [("a.jsonl, record 0", "broken JSON"), ("a.jsonl, record 1", "not an object")]
    with pytest.raises(UserError, match="holds no records that can be read"):
        folder.source("3\n[]\n", "b.jsonl")
    with pytest.raises(UserError, match=r"c\.jsonl holds no records$"):
        folder.source("", "c.jsonl")


def test_a_source_of_many_units_reads_as_one_of_few(folder: Folder, monkeypatch):
    records = [openai(("user", f"<image>Which {i}?"), ("assistant", str(i)), images=[f"{i}.png"]) for i in range(40)]
    for name in ("a.json", "b.jsonl"):
        source = folder.source(records, name)
        whole = list(source.documents())
        units = containers.list_units(source.files, 300)
        assert len(source.units()) == 1
        assert len(units) > 10
        assert [d for unit in reversed(units) for d in list(source.read(unit))[::-1]][::-1] == whole
        assert [d.origin for d in whole] == [f"{name}, record {i}" for i in range(40)]


def test_csv_rows_are_records(folder: Folder):
    text = 'instruction,input,output\r\nAdd.,"1,\n1",2\r\n\r\nHi.,,Hello.\r\nHalf\r\n'
    source = folder.dataset("t", text, file_name="t.csv")
    got = list(source.documents())
    assert said(got[0]) == [("user", "Add.\n1,\n1"), ("assistant", "2")]
    assert said(got[1]) == [("user", "Hi."), ("assistant", "Hello.")]
    assert skipped(source) == [("t.csv, record 2", "cut short")]
    assert skipped(folder.dataset("u", "instruction,instruction\na,b\n", file_name="u.csv")) == [
        ("u.csv, record 0", "duplicate keys")
    ]
