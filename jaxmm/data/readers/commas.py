"""CSV files: a header, then a record a row, of text alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from jaxmm.data import files
from jaxmm.data.documents import Unit
from jaxmm.data.readers.parts import LeftOut

MAX_FIELD = 1 << 28  # the csv module's own limit is 128 KiB, less than a long document


def units(file: str, unit_bytes: int) -> list[Unit]:
    """A file is one unit: only reading from its start tells which line ends are inside a field."""
    return [Unit(file, 0, files.version(file).size, 0)]


def records(unit: Unit) -> Iterator[tuple[int, Any]]:
    """Yields (number, record or LeftOut) of each row; one with more or fewer fields than the header is "cut short"."""
    csv.field_size_limit(MAX_FIELD)
    with (
        files.open_binary(unit.file) as opened,
        io.TextIOWrapper(opened, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines,
    ):
        rows = csv.reader(lines)
        header = next(rows, [])
        is_whole = len(set(header)) == len(header)
        for number, row in enumerate(row for row in rows if row):
            if not is_whole:
                yield number, LeftOut("duplicate keys")
            elif len(row) != len(header):
                yield number, LeftOut("cut short")
            else:
                yield number, dict(zip(header, row, strict=True))
