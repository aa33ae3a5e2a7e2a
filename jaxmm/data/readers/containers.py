"""Which container a file is, and the way through it: units, raw records, documents."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxmm.data import files
from jaxmm.data.documents import Document, Skip, Unit
from jaxmm.data.readers import arrays, commas, lines, tables, tars
from jaxmm.data.readers.parts import LeftOut
from jaxmm.data.readers.pictures import Pictures

UNIT_BYTES = 8 << 20  # units are of this size to twice it, where the container can be cut

# From a raw record to its document: (origin, record, pictures). Raises LeftOut or UserError.
Format = Callable[[str, Mapping[str, Any], Pictures], Document]


@dataclass(frozen=True)
class Container:
    """A kind of file.

    Attributes:
      units: cuts a file into units of about so many bytes.
      records: yields (number in the file, record or LeftOut) of a unit, streaming.
      count: how many ``records`` would yield.
    """

    units: Callable[[str, int], Sequence[Unit]]
    records: Callable[[Unit], Iterator[tuple[int, Any]]]
    count: Callable[[Unit], int]


def _count_all(each: Callable[[Unit], Iterator[Any]], unit: Unit) -> int:
    return sum(1 for _ in each(unit))


TEXT = Container(lines.units, lines.texts, lines.count)
LINES = Container(lines.units, lines.objects, lines.count)
ARRAY = Container(arrays.units, arrays.records, functools.partial(_count_all, arrays.elements))
COMMAS = Container(commas.units, commas.records, functools.partial(_count_all, commas.records))
TAR = Container(tars.units, tars.records, functools.partial(_count_all, tars.records))
PARQUET = Container(tables.parquet_units, tables.parquet_records, tables.parquet_count)
ARROW = Container(tables.arrow_units, tables.arrow_records, functools.partial(_count_all, tables.arrow_records))

CONTAINERS = {
    ".json": LINES,  # or ARRAY: as LLaMA-Factory does, both may hold an array or lines
    ".jsonl": LINES,
    ".ndjson": LINES,
    ".txt": TEXT,
    ".csv": COMMAS,
    ".parquet": PARQUET,
    ".arrow": ARROW,
    ".tar": TAR,
    ".tar.gz": TAR,
    ".tgz": TAR,
}
SUFFIXES = tuple(CONTAINERS)


def suffix(file: str) -> str:
    """Returns which of SUFFIXES a file has, or ''."""
    lower = file.lower()
    return max((s for s in SUFFIXES if lower.endswith(s)), key=len, default="")


def container(file: str) -> Container:
    """Returns the container of a file with one of SUFFIXES; of JSON, its first character decides."""
    found = CONTAINERS[suffix(file)]
    return ARRAY if found is LINES and arrays.is_array(file) else found


@dataclass(frozen=True)
class Sample:
    """A choice of ``wanted`` of a source's records by number: the same ones on every machine, in the source's order.

    If more are wanted than there are, all come, as often as it takes, and the choice is of the rest.

    Attributes:
      total: records of the source.
      firsts: number in the source of each file's first record.
    """

    wanted: int
    total: int
    firsts: Mapping[str, int]

    def times(self, file: str, number: int) -> int:
        """Returns how often the record of this number in its file comes."""
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


def sample(found: Sequence[str], wanted: int) -> Sample:
    """Returns a choice of the records of these files, which are counted for it."""
    firsts, total = {}, 0
    for file in found:
        firsts[file] = total
        kind = container(file)
        total += sum(map(kind.count, kind.units(file, UNIT_BYTES)))
    return Sample(wanted, total, firsts)


def list_units(found: Sequence[str], unit_bytes: int = UNIT_BYTES) -> list[Unit]:
    """Returns the units of files, in order."""
    return [unit for file in found for unit in container(file).units(file, unit_bytes)]


def head(file: str) -> Iterator[tuple[str, Any]]:
    """Yields (origin, record or LeftOut) from the start of a file, reading no more of it than is taken."""
    is_table = suffix(file) in (".parquet", ".arrow")
    unit = Unit(file, 0, 1 if is_table else files.version(file).size, 0)
    for number, record in container(file).records(unit):
        yield f"{os.path.basename(file)}, record {number}", record


def read(
    unit: Unit, folder: str, form: Format, pictures: Pictures, choice: Sample | None = None
) -> Iterator[Document | Skip]:
    """Yields a unit's documents, and a Skip for each record that gives none. Origins are relative to ``folder``."""
    name = relative(unit.file, folder)
    for number, record in container(unit.file).records(unit):
        times = 1 if choice is None else choice.times(unit.file, number)
        if not times:
            continue
        origin = f"{name}, record {number}"
        found: Document | Skip
        if isinstance(record, LeftOut):
            found = Skip(origin, record.reason)
        else:
            try:
                found = form(origin, record, pictures)
            except LeftOut as left:
                found = Skip(origin, left.reason)
        for _ in range(times):
            yield found


def relative(file: str, folder: str) -> str:
    """Returns a file's path as seen from a folder, of the same store."""
    return file.removeprefix(folder.rstrip("/") + "/") if files.is_remote(file) else os.path.relpath(file, folder)
