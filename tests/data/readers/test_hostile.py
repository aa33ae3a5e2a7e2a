"""Damaged files and records of any types are read, skipped or one line: never a traceback."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from jaxmm.data.reading import Reading
from jaxmm.data.sources import read_sources
from jaxmm.errors import UserError
from readers.reading import Folder
from readers.test_formats_fixed import CONTAINERS, FORMATS

TRIED = 150  # of each seed
VALUES = (
    None, 3, 2.5, True, "", "a.png", "http://127.0.0.1/a.png", [], {}, [None], [3], ["a.png"], {"bytes": None},
    [{"a": 1}], float("nan"), '["a.png"]', "[1", "\0", "\ud800", [[1]], {"url": 3}, "<image>", "<img>a.png</img>",
    "file:///etc/passwd", "data:image/png;base64,xx",
)  # fmt: skip
COLUMNS = ("", "image=image", "image=", "prompt=instruction,response=output", "messages=messages", "text=text")


def damaged(content: bytes, draw: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(draw.choice([1, 1, 3, 20])):
        at = draw.randrange(len(found) + 1)
        kind = draw.random()
        if kind < 0.4 and at < len(found):
            found[at] ^= 1 << draw.randrange(8)
        elif kind < 0.6:
            del found[at : at + draw.randrange(1, 50)]
        elif kind < 0.8:
            found[at:at] = bytes(draw.choices(b'{}[],"\\\n\0\xff', k=draw.randrange(1, 6)))
        else:
            del found[at:]
    return bytes(found)


def mutated(value: Any, draw: random.Random) -> Any:
    if draw.random() < 0.15:
        return copy.deepcopy(draw.choice(VALUES))
    if isinstance(value, dict):
        kept = {k: mutated(v, draw) for k, v in value.items() if draw.random() > 0.05}
        return {draw.choice(("image", "type", "role", "x")) if draw.random() < 0.05 else k: v for k, v in kept.items()}
    return [mutated(v, draw) for v in value if draw.random() > 0.05] if isinstance(value, list) else value


def read(path: str, **reading: Any) -> None:
    line = ""
    try:
        for source in read_sources(path, [], Reading(**reading)):
            for _ in source.documents():
                pass
    except UserError as error:
        line = str(error)
    assert "\n" not in line


@pytest.mark.parametrize("seed", range(2))
def test_a_damaged_file_is_one_line(folder: Folder, seed):
    draw = random.Random(seed)
    whole = [item for files in CONTAINERS.values() for item in files.items()]
    for _ in range(TRIED):
        name, content = draw.choice(whole)
        read(folder.write(name, damaged(content, draw)), on_error=draw.choice(["stop", "skip"]))


@pytest.mark.parametrize("seed", range(2))
def test_a_record_of_other_types_is_one_line(folder: Folder, seed):
    draw = random.Random(seed)
    for _ in range(TRIED):
        records = [
            mutated(copy.deepcopy(record), draw) for record in draw.choices(FORMATS[draw.choice([*FORMATS])], k=3)
        ]
        read(
            folder.write("a.json", records), on_error=draw.choice(["stop", "skip"]), columns=draw.choice(COLUMNS),
            bare_placeholder=draw.choice(["stop", "text"]), allow_urls=draw.random() < 0.3,
        )  # fmt: skip
