"""Sources for the tests of preparing, which worker processes can import too."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image

from jaxmm.data.documents import Document, Part, Skip, Source, Text, Turn, Unit

ALL = Unit("", 0, 1, 0)


def document(*parts: Part, i: int = 0, labels: tuple[str, ...] = ()) -> Document:
    return Document((Turn("document", parts, True),), f"made, record {i}", labels)


def source_of(documents: Sequence[Document | Skip]) -> Source:
    """One unit; it does not pickle."""
    return Source("made", (), json.dumps(len(documents)), lambda: [ALL], lambda _: iter(documents))


def numbered(count: int, unit: int, then: Callable[[Unit], Any] | None = None, name: str = "made") -> Source:
    """``count`` short texts in units of ``unit``; ``then`` is called when a unit has been read. It pickles."""
    return Source(name, (), f"{count} by {unit}", partial(_units, count, unit), partial(_read, then=then))


def _units(count: int, unit: int) -> list[Unit]:
    return [Unit("", start, min(start + unit, count), start) for start in range(0, count, unit)]


def _read(unit: Unit, then: Callable[[Unit], Any] | None) -> Iterator[Document]:
    for i in range(unit.start, unit.stop):
        yield document(Text(str(i) * (i % 5 + 1)), i=i, labels=(f"label {i * 7 % 5}",) if i % 3 else ())
    if then is not None:
        then(unit)


# What may happen in a worker process


def die(unit: Unit) -> None:
    if unit.start:
        os.kill(os.getpid(), signal.SIGKILL)


def leave(unit: Unit) -> None:
    os._exit(3)


def fail(unit: Unit) -> None:
    raise ZeroDivisionError(f"in unit {unit.start}")


def wait(unit: Unit) -> None:
    Path(os.environ["WAITING"], f"waiting-{os.getpid()}").touch()
    time.sleep(600)


def look_for_jax(unit: Unit) -> None:
    assert not (xla := sys.modules.get("jax._src.xla_bridge")) or not xla.backends_are_initialized()
    Path(os.environ["LOOKED"]).touch()


def write_data(folder: Path, images: int = 3) -> Path:
    """A data file with conversations about images named by path."""
    (folder / "pictures").mkdir(parents=True)
    records = []
    for i in range(images):
        PIL.Image.new("RGB", (10 + i, 20)).save(folder / "pictures" / f"{i}.png")
        turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": f"Number {i}."}]
        records.append({"conversations": turns, "images": [f"pictures/{i}.png"]})
    (folder / "cats.json").write_text(json.dumps(records))
    return folder / "cats.json"


def write_many(folder: Path, files: int, records: int, images: bool = True) -> Path:
    """A dataset_info.json whose dataset "many" is a folder of files; a tenth of the records may have an image."""
    (folder / "many").mkdir(parents=True)
    PIL.Image.new("RGB", (31, 17)).save(folder / "one.png")
    for f in range(files):
        lines = []
        for i in range(records):
            image = images and (f + i) % 10 == 0
            turns = [{"from": "human", "value": f"{'<image>' * image}What is {f}?"}, {"from": "gpt", "value": "x" * i}]
            lines.append(json.dumps({"conversations": turns, "images": ["one.png"] * image}))
        (folder / "many" / f"{f:03d}.jsonl").write_text("\n".join(lines) + "\n")
    info = {"many": {"file_name": "many", "formatting": "sharegpt", "columns": {"images": "images"}}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder / "dataset_info.json"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, by its name."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
