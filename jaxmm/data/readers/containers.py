"""Which container a file is, how it is read (units, raw records), and what turns its records into documents."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jaxmm.data import files
from jaxmm.data.documents import Document, Unit
from jaxmm.data.readers import arrays, csv_files, lines, objects, pairs, tables, tars
from jaxmm.data.readers.pictures import Pictures
from jaxmm.errors import UserError

UNIT_BYTES = 8 << 20  # units have this size to twice it, if the container can be cut


class Format(Protocol):
    """Turns a raw record into its document.

    Attributes:
      version: the FORMAT of its reader, which is raised when it makes other documents of the same records.
      main: the column that a record of this format has.
      images: columns that may hold pictures, as in ``columns.resolved``; ``videos`` and ``audios``, where it has these
        attributes, are the same of clips.
    """

    @property
    def version(self) -> int: ...

    @property
    def main(self) -> str: ...

    @property
    def images(self) -> tuple[str, ...]: ...

    def reads(self, keys: tuple[str, ...]) -> frozenset[str]:
        """Returns the columns that are read from a record with these keys; it may name other columns too."""

    def of(self, record: Mapping[str, Any]) -> Format:
        """Returns the format of a record: this one, or perhaps another in a source without a description."""

    def __call__(self, origin: str, record: Mapping[str, Any], pictures: Pictures) -> Document:
        """Returns the document of a record. Raises SkipRecord or UserError."""


@dataclass(frozen=True)
class Container:
    """A kind of file.

    Attributes:
      units: cuts a file into units of about the given number of bytes.
      records: yields (number in the file, record or SkipRecord) for each record of a unit, streaming.
      count: how many records ``records`` would yield.
      version: its name and FORMAT, which is raised when it reads the same bytes differently.
    """

    units: Callable[[str, int], Sequence[Unit]]
    records: Callable[[Unit], Iterator[tuple[int, Any]]]
    count: Callable[[Unit], int]
    version: tuple[str, int]


def _count_all(each: Callable[[Unit], Iterator[Any]], unit: Unit) -> int:
    return sum(1 for _ in each(unit))


TEXT = Container(lines.units, lines.texts, lines.count, ("lines", lines.FORMAT))
LINES = Container(lines.units, lines.objects, lines.count, ("lines", lines.FORMAT))
ARRAY = Container(
    arrays.units, arrays.records, functools.partial(_count_all, arrays.elements), ("arrays", arrays.FORMAT)
)
OBJECTS = Container(
    objects.units, objects.records, functools.partial(_count_all, objects.records), ("objects", objects.FORMAT)
)
CSV = Container(
    csv_files.units, csv_files.records, functools.partial(_count_all, csv_files.records), ("csv", csv_files.FORMAT)
)
TAR = Container(tars.units, tars.records, functools.partial(_count_all, tars.records), ("tars", tars.FORMAT))
PARQUET = Container(
    tables.parquet_units, tables.parquet_records, tables.parquet_count, ("parquet", tables.PARQUET_FORMAT)
)
ARROW = Container(
    tables.arrow_units,
    tables.arrow_records,
    functools.partial(_count_all, tables.arrow_records),
    ("arrow", tables.ARROW_FORMAT),
)
# It has no suffix of its own: media with a text of the same name beside them, which ``sources`` finds in a folder.
PAIRS = Container(pairs.units, pairs.records, functools.partial(_count_all, pairs.records), ("pairs", pairs.FORMAT))

CONTAINERS = {
    ".json": LINES,  # or ARRAY: as LLaMA-Factory does, both may hold an array or lines
    ".jsonl": LINES,
    ".ndjson": LINES,
    ".txt": TEXT,
    ".csv": CSV,
    ".tsv": CSV,
    ".json.gz": LINES,
    ".jsonl.gz": LINES,
    ".ndjson.gz": LINES,
    ".txt.gz": TEXT,
    ".csv.gz": CSV,
    ".tsv.gz": CSV,
    ".parquet": PARQUET,
    ".arrow": ARROW,
    ".tar": TAR,
    ".tar.gz": TAR,
    ".tgz": TAR,
}
SUFFIXES = tuple(CONTAINERS)
SETTINGS = (".yaml", ".yml", ".toml")  # files in which other programs describe their data


def suffix(file: str) -> str:
    """Returns which of SUFFIXES a file has, or ''."""
    lower = file.lower()
    return max((s for s in SUFFIXES if lower.endswith(s)), key=len, default="")


def container(file: str) -> Container:
    """Returns the container of a file; for JSON, the start of the file decides.

    Raises:
      UserError: if it has none of SUFFIXES.
    """
    kind = CONTAINERS.get(suffix(file))
    if kind is None:
        if file.lower().endswith(SETTINGS):
            raise UserError(
                f"{file} is a description of data for another program: give the data file that it names, or a "
                f"dataset_info.json"
            )
        raise UserError(f"{file} is not supported yet: the file types are {', '.join(SUFFIXES)}")
    if kind is not LINES:
        return kind
    if arrays.is_array(file):
        return ARRAY
    return OBJECTS if objects.are_no_lines(file) else LINES


@dataclass(frozen=True)
class Sample:
    """A choice of ``wanted`` of a source's records by number: the same ones on every machine, in the source's order.

    If more are wanted than there are, every record comes as many whole times as that takes; the rest are chosen.

    Attributes:
      total: records of the source.
      firsts: number in the source of each file's first record.
    """

    wanted: int
    total: int
    firsts: Mapping[str, int]

    def times(self, file: str, number: int) -> int:
        """Returns how often the record with this number in its file comes."""
        chosen = _chosen(self.wanted % self.total, self.total)
        return self.wanted // self.total + bool(chosen[self.firsts[file] + number])


@functools.lru_cache(maxsize=4)
def _chosen(wanted: int, total: int) -> np.ndarray:
    """Returns bool (total,), ``wanted`` of which are true: those whose hashes (splitmix64) are smallest."""
    key = np.arange(1, total + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    key ^= key >> np.uint64(31)  # a bijection: no two are equal
    chosen = np.zeros(total, bool)
    if wanted:
        chosen[np.argpartition(key, wanted - 1)[:wanted]] = True
    return chosen


def sample(found: Sequence[str], wanted: int, kind: Container | None = None) -> Sample:
    """Returns a choice of the records of these files; all of them are counted for it."""
    firsts, total = {}, 0
    for file in found:
        firsts[file] = total
        one = kind or container(file)
        total += sum(map(one.count, one.units(file, UNIT_BYTES)))
    return Sample(wanted, total, firsts)


def list_units(found: Sequence[str], unit_bytes: int = UNIT_BYTES, kind: Container | None = None) -> list[Unit]:
    """Returns the units of files, in order."""
    return [unit for file in found for unit in (kind or container(file)).units(file, unit_bytes)]


def head(file: str, kind: Container | None = None) -> Iterator[tuple[str, Any]]:
    """Yields (origin, record or SkipRecord) from the start of a file, reading only as far as the caller iterates."""
    is_table = suffix(file) in (".parquet", ".arrow")
    unit = Unit(file, 0, 1 if is_table else files.version(file).size, 0)
    for number, record in (kind or container(file)).records(unit):
        yield f"{os.path.basename(file)}, record {number}", record


def relative(file: str, folder: str) -> str:
    """Returns a file's path relative to a folder of the same store."""
    return file.removeprefix(folder.rstrip("/") + "/") if files.is_remote(file) else os.path.relpath(file, folder)
