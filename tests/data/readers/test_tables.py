"""Parquet and Arrow files as pyarrow and datasets write them."""

import builtins
import io
import sys

import datasets
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxmm.data.documents import Document, Image
from jaxmm.data.readers import containers, tables
from jaxmm.data.sources import read_sources
from jaxmm.errors import UserError
from readers.reading import Folder, only, openai, refused, said, skipped


@pytest.fixture(autouse=True)
def _quiet():
    datasets.disable_progress_bars()


def table(folder: Folder, columns: dict, name: str = "a.parquet", **options) -> str:
    path = folder.write(name, b"")
    pq.write_table(pa.table(columns), path, **options)
    return path


def picture(colour: str) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (4, 4), colour)


def encoded(colour: str) -> bytes:
    buffer = io.BytesIO()
    picture(colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_text_alone_is_plain_documents(folder):
    path = table(folder, {"text": ["One.", "Two <image>."], "id": [1, 2]})
    (source,) = read_sources(path, [])
    assert [said(d) for d in source.documents()] == [[("document", "One.")], [("document", "Two <image>.")]]


def test_images_are_bytes_structs_or_paths(folder):
    for image, expected in (
        (b"pixels", "[pixels]"),
        ({"bytes": b"pixels", "path": "x.png"}, "[pixels]"),
        ({"bytes": None, "path": "x.png"}, "[x.png]"),
        ("x.png", "[x.png]"),
    ):
        path = table(folder, {"image": [image], "caption": ["A cat."]})
        assert said(only(read_sources(path, [])[0])) == [("document", f"{expected}A cat.")]


def test_row_groups_are_units(folder):
    path = table(folder, {"text": [str(i) for i in range(20)]}, row_group_size=3)
    (source,) = read_sources(path, [])
    whole = list(source.documents())
    assert [d.origin for d in whole] == [f"a.parquet, record {i}" for i in range(20)]
    units = tables.parquet_units(path, 1)
    assert [(unit.start, unit.stop, unit.first) for unit in units] == [(i, i + 1, 3 * i) for i in range(7)]
    assert [d for unit in units for d in source.read(unit)] == whole
    assert sum(map(tables.parquet_count, units)) == 20
    assert len(tables.parquet_units(path, 1 << 20)) == 1


def test_a_table_without_rows_has_no_records(folder):
    path = table(folder, {"text": pa.array([], pa.string())})
    with pytest.raises(UserError, match="holds no records"):
        read_sources(path, [])


def test_half_a_table_is_named(folder):
    path = table(folder, {"text": ["One."] * 100})
    with open(path, "rb") as file:
        half = file.read()[:-10]
    with pytest.raises(UserError, match=r"half\.parquet is no whole Parquet file"):
        read_sources(folder.write("half.parquet", half), [])
    with pytest.raises(UserError, match=r"half\.arrow is no whole Arrow file"):
        read_sources(folder.write("half.arrow", half), [])


def test_text_that_is_not_utf8_costs_its_row_only(folder):
    column = pa.array([b"One.", b"Tw\xe9.", b"Three."]).view(pa.string())
    (source,) = read_sources(table(folder, {"text": column}), [])
    assert skipped(source) == [("a.parquet, record 1", "broken text")]
    assert [said(d)[0][1] for d in source.documents() if isinstance(d, Document)] == ["One.", "Three."]


def hugging_face() -> datasets.Dataset:
    talk = [
        [{"role": "user", "content": f"<image>Which {i}?"}, {"role": "assistant", "content": str(i)}] for i in range(5)
    ]
    columns = {"messages": talk, "images": [[picture("red")]] * 4 + [[picture("blue")]]}
    features = datasets.Features(
        {
            "messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
            "images": [datasets.Image()],
        }
    )
    return datasets.Dataset.from_dict(columns, features)


def check_talk(source) -> None:
    got = list(source.documents())
    assert [[role for role, _ in ((t.role, 0) for t in d.turns)] for d in got] == [["user", "assistant"]] * 5
    images = [d.turns[0].parts[0] for d in got]
    assert all(isinstance(image, Image) and image.data and not image.path for image in images)
    assert PIL.Image.open(io.BytesIO(images[0].data)).getpixel((0, 0)) == (255, 0, 0)
    assert PIL.Image.open(io.BytesIO(images[4].data)).getpixel((0, 0)) == (0, 0, 255)
    assert got[3].turns[1].parts[0].text == "3"


def test_what_datasets_saves_as_parquet_reads_alone_and_by_an_entry(folder):
    path = folder.write("talk.parquet", b"")
    hugging_face().to_parquet(path)
    check_talk(read_sources(path, [])[0])
    columns = {"messages": "messages", "images": "images"}
    check_talk(folder.dataset("t", None, file_name="talk.parquet", formatting="openai", columns=columns))
    chosen = folder.dataset("t", None, file_name="talk.parquet", formatting="openai", columns=columns, num_samples=2)
    assert len(list(chosen.documents())) == 2


def test_what_datasets_saves_as_json_reads(folder):
    path = folder.write("talk.json", b"")
    datasets.Dataset.from_list([openai(("user", "Who?"), ("assistant", "Me."))] * 3).to_json(path)
    assert [said(d) for d in read_sources(path, [])[0].documents()] == [[("user", "Who?"), ("assistant", "Me.")]] * 3


def test_what_datasets_saves_to_disk_reads_with_its_splits(folder):
    both = datasets.DatasetDict({"train": hugging_face(), "test": datasets.Dataset.from_dict({"text": ["One."]})})
    both.save_to_disk(str(folder.path / "saved"))
    train, test = read_sources(str(folder.path / "saved"), ["train", "test"])
    check_talk(train)
    assert test.name == "test"
    assert said(only(test)) == [("document", "One.")]
    (alone,) = read_sources(str(folder.path / "saved" / "train"), [])
    check_talk(alone)
    (chosen,) = read_sources(str(folder.path / "saved"), [])
    assert (chosen.name, chosen.files) == ("train", train.files)
    assert "its split train is read (1 of 2 splits), not test" in chosen.told[0]
    with pytest.raises(UserError, match=r"has no split 'tset'; did you mean 'test'\?"):
        read_sources(str(folder.path / "saved"), ["tset"])
    columns = {"messages": "messages", "images": "images"}
    check_talk(folder.dataset("t", None, file_name="saved", split="train", formatting="openai", columns=columns))


def test_record_batches_are_units(folder):
    batches = [pa.record_batch({"text": [f"{part}.{i}" for i in range(3)]}) for part in range(4)]
    for name, new in (("a.arrow", pa.ipc.new_stream), ("b.arrow", pa.ipc.new_file)):
        path = folder.write(name, b"")
        with new(path, batches[0].schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        (source,) = read_sources(path, [])
        whole = list(source.documents())
        assert [d.origin for d in whole] == [f"{name}, record {i}" for i in range(12)]
        units = containers.list_units([path], 1)
        assert [(unit.start, unit.first) for unit in units] == [(i, 3 * i) for i in range(4)]
        assert [d for unit in units for d in source.read(unit)] == whole


def test_messages_of_typed_parts_in_a_table_have_every_key_and_null_in_most(folder):
    parts = [{"type": "image", "text": None, "index": 0}, {"type": "text", "text": "Who?", "index": None}]
    path = table(
        folder, {"messages": [[{"role": "user", "content": parts}]], "images": [[{"bytes": b"cat", "path": None}]]}
    )
    assert said(only(read_sources(path, [])[0])) == [("user", "[cat]Who?")]
    short = table(folder, {"messages": [[{"role": "user", "content": parts}]], "images": [[]]})
    assert "1 <image> placeholders but 0 images" in refused(read_sources(short, [])[0])


def test_without_pyarrow_the_error_names_the_extra(folder, monkeypatch):
    path = table(folder, {"text": ["One."]})
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for module in [name for name in sys.modules if name.startswith("pyarrow")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(UserError, match=r"needs pyarrow: pip install 'jaxmm\[parquet\]'"):
        read_sources(path, [])
