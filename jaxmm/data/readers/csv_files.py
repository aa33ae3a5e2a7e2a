"""CSV and TSV files: a header, then one record per row; all values are text."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from typing import Any

from jaxmm.data import files
from jaxmm.data.documents import Unit
from jaxmm.data.readers import streams
from jaxmm.data.readers.parts import SkipRecord
from jaxmm.errors import UserError

FORMAT = 2
MAX_FIELD = 1 << 28  # the csv module's own limit, 128 KiB, is less than a long document
OTHERS = ";\t|"  # other separators of fields, tried if the header has no comma


def units(file: str, unit_bytes: int) -> list[Unit]:
    """A file is one unit: only reading it from its start tells which line ends are inside a field."""
    return [Unit(file, 0, files.version(file).size, 0)]


def records(unit: Unit) -> Iterator[tuple[int, Any]]:
    """Yields (number, record or SkipRecord) of each row; one with more or fewer fields than the header is "cut short".

    Raises:
      UserError: for a field longer than MAX_FIELD, or a file that is not valid CSV.
    """
    csv.field_size_limit(MAX_FIELD)
    number = -1
    try:
        with (
            streams.opened(unit.file) as opened,
            io.TextIOWrapper(opened, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines,
        ):
            first = lines.readline(MAX_FIELD)
            between = _between(unit.file, first)
            rows = csv.reader(itertools.chain([first], lines), delimiter=between)
            header = next(rows, [])
            is_whole = len(set(header)) == len(header)
            for number, row in enumerate(row for row in rows if row):
                if not is_whole:
                    yield number, SkipRecord("duplicate keys")
                elif len(row) != len(header):
                    yield number, SkipRecord("cut short")
                else:
                    yield number, dict(zip(header, row, strict=True))
    except streams.CUT:
        yield number + 1, SkipRecord("cut short", streams.LOST)
    except csv.Error as error:
        raise UserError(f"{unit.file}, record {number + 1}: {error}: is a quote missing?") from error


def _between(file: str, header: str) -> str:
    """The separator of a file's fields: its suffix tells it, or else its header."""
    if ".tsv" in file.lower()[-7:]:
        return "\t"
    if "," in header:
        return ","
    return next((between for between in OTHERS if between in header), ",")
