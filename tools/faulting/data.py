"""Data files of every format, damaged: each record is there, told to be left out, or the file is refused."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from faulting.bench import COLOURS, DOCUMENTS, Bench, make_data, record
from faulting.damage import damaged, damaged_json
from faulting.trial import Trial, judged
from jaxmm.atomic import read_json

COLUMNS = ("--columns=image=image,prompt=prompt,response=response",)


class Format(NamedTuple):
    """A kind of data file.

    Attributes:
      write: from the records of ``make_data``, beside their pictures.
      is_closed: whether the file itself tells that something is missing at its end.
      has_images: in each of its documents.
      arguments: of prepare_data.
    """

    suffix: str
    write: Callable[[Path, list[dict[str, Any]]], bytes]
    is_closed: bool = False
    has_images: bool = True
    arguments: tuple[str, ...] = ()


def _lines(folder: Path, records: list[dict[str, Any]]) -> bytes:
    del folder
    return "".join(json.dumps(each) + "\n" for each in records).encode()


def _array(folder: Path, records: list[dict[str, Any]]) -> bytes:
    del folder
    return json.dumps(records, indent=1).encode()


def _typed(folder: Path, records: list[dict[str, Any]]) -> bytes:
    """With the parts of a message as objects."""
    found = []
    for each in records:
        user, assistant = each["messages"]
        parts = [{"type": "image", "image": each["images"][0]}, {"type": "text", "text": user["content"][7:]}]
        found.append({"messages": [{"role": "user", "content": parts}, assistant]})
    return _lines(folder, found)


def _text(folder: Path, records: list[dict[str, Any]]) -> bytes:
    del folder
    return "".join(f"Colour {number} is {_answer(each)}.\n" for number, each in enumerate(records)).encode()


def _separated(between: str) -> Callable[[Path, list[dict[str, Any]]], bytes]:
    def write(folder: Path, records: list[dict[str, Any]]) -> bytes:
        del folder
        rows = [between.join((each["images"][0], f"Colour {n}?", _answer(each))) for n, each in enumerate(records)]
        return "\n".join([between.join(("image", "prompt", "response")), *rows, ""]).encode()

    return write


def _table(folder: Path, records: list[dict[str, Any]], kind: str) -> bytes:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"image": {"bytes": (folder / each["images"][0]).read_bytes(), "path": None}, "text": _answer(each)}
        for each in records
    ]
    table, file = pyarrow.Table.from_pylist(rows), io.BytesIO()
    if kind == "parquet":
        pyarrow.parquet.write_table(table, file, row_group_size=7)
    else:
        with pyarrow.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    return file.getvalue()


def _tar(folder: Path, records: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number, each in enumerate(records):
            members = {"png": (folder / each["images"][0]).read_bytes(), "txt": _answer(each).encode()}
            for ending, data in members.items():
                member = tarfile.TarInfo(f"{number:03}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def _packed(write: Callable[[Path, list[dict[str, Any]]], bytes]) -> Callable[[Path, list[dict[str, Any]]], bytes]:
    return lambda folder, records: gzip.compress(write(folder, records), mtime=0)


def _answer(each: dict[str, Any]) -> str:
    return each["messages"][1]["content"]


FORMATS = (
    Format("jsonl", _lines), Format("ndjson", _typed), Format("json", _array, True),
    Format("jsonl.gz", _packed(_lines), True), Format("json.gz", _packed(_array), True),
    Format("csv", _separated(","), arguments=COLUMNS), Format("tsv", _separated("\t"), arguments=COLUMNS),
    Format("csv.gz", _packed(_separated(",")), True, arguments=COLUMNS), Format("txt", _text, False, False),
    Format("txt.gz", _packed(_text), True, False),
    Format("tar", _tar, True), Format("tar.gz", _packed(_tar), True),
    Format("parquet", lambda folder, records: _table(folder, records, "parquet"), True),
    Format("arrow", lambda folder, records: _table(folder, records, "arrow"), True),
)  # fmt: skip


def trials(bench: Bench, rng: random.Random) -> Iterator[Trial]:
    folder = bench.place()
    make_data(folder).unlink()
    records = [record(f"{n}.png", n, list(COLOURS)[n % len(COLOURS)]) for n in range(DOCUMENTS)]
    if rng.random() < 0.15:
        file, what, form = _description(folder, rng, records)
    else:
        form = rng.choice(FORMATS)
        file = folder / f"made.{form.suffix}"
        if form.suffix in ("jsonl", "ndjson") and rng.random() < 0.5:  # one value of one record
            number = rng.randrange(DOCUMENTS)
            lines = form.write(folder, records).decode().splitlines()
            what, lines[number] = damaged_json(rng, lines[number])
            data = "\n".join(lines).encode()
        else:
            what, data = damaged(rng, form.write(folder, records))
        file.write_bytes(data)
    argv = [f"--input={file}", f"--output={folder / 'prepared'}", *form.arguments]
    ended = bench.run("jaxmm.prepare", argv)

    def wrong() -> str:
        if not (reports := [read_json(path) for path in (folder / "prepared").glob("*/report.json")]):
            return "nothing was prepared"
        (report,) = reports
        by_kind = report["modalities"]
        documents = sum(each["documents"] for each in by_kind.values())
        told = sum(report["skipped"].values())
        if form.is_closed and documents < DOCUMENTS and not told:
            return f"{documents} of {DOCUMENTS} documents without a word"
        bare = by_kind["text"]["documents"]
        is_gone = form.suffix == "ndjson" and what.endswith(" lost")  # a part that is not there leaves no trace
        if form.has_images and not is_gone and bare > sum(report["dropped_images"].values()):
            return f"{bare} documents without their pictures"
        return ""

    verdict, told = judged(ended, wrong)
    yield Trial("", f"{form.suffix}: {what}", verdict, told)


def _description(folder: Path, rng: random.Random, records: list[dict[str, Any]]) -> tuple[Path, str, Format]:
    """A LLaMA-Factory folder with one value of its description replaced."""
    (folder / "made.json").write_bytes(_array(folder, records))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    columns = {"messages": "messages", "images": "images"}
    entry = {"file_name": "made.json", "formatting": "sharegpt", "columns": columns, "tags": tags}
    what, text = damaged_json(rng, json.dumps({"made": entry}))
    file = folder / "dataset_info.json"
    file.write_text(text)
    return file, what, Format("info", _array, arguments=("--mixture=made",))
