"""Parquet and Arrow files, by row groups and record batches. pyarrow is imported only to read one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jaxmm.data import files
from jaxmm.data.documents import Unit
from jaxmm.data.readers.parts import SkipRecord
from jaxmm.errors import UserError, extra

PARQUET_FORMAT = ARROW_FORMAT = 1
ROWS = 64  # converted to Python objects at a time


def parquet_units(file: str, unit_bytes: int) -> list[Unit]:
    """Returns units of whole row groups, of at least ``unit_bytes`` uncompressed; only the footer is read."""
    with files.open_binary(file) as opened:
        footer = _parquet(file, opened).metadata
    units: list[Unit] = []
    start = first = rows = size = 0
    for group in range(footer.num_row_groups):
        rows += footer.row_group(group).num_rows
        size += footer.row_group(group).total_byte_size
        if size >= unit_bytes or group == footer.num_row_groups - 1:
            units.append(Unit(file, start, group + 1, first))
            start, first, size = group + 1, rows, 0
    return units


def parquet_count(unit: Unit) -> int:
    """Returns how many rows a unit has."""
    with files.open_binary(unit.file) as opened:
        footer = _parquet(unit.file, opened).metadata
    return sum(footer.row_group(group).num_rows for group in range(unit.start, unit.stop))


def parquet_records(unit: Unit) -> Iterator[tuple[int, Any]]:
    """Yields (number, record) of each row; a table that is cut short has no footer and does not open."""
    with files.open_binary(unit.file) as opened:
        table = _parquet(unit.file, opened)
        groups = range(unit.start, min(unit.stop, table.metadata.num_row_groups))
        try:
            yield from _rows(table.iter_batches(ROWS, row_groups=groups), unit.first)
        except (_pyarrow(unit.file).lib.ArrowException, OSError) as error:
            raise UserError(f"{unit.file} is no whole Parquet file: {_line(error)}") from error


def arrow_units(file: str, unit_bytes: int) -> list[Unit]:
    """Returns units of whole record batches, of at least ``unit_bytes``; of a local file only the headers are read."""
    units: list[Unit] = []
    start = first = rows = size = count = 0
    for count, batch in enumerate(_batches(file, 0), 1):
        rows += batch.num_rows
        size += batch.nbytes
        if size >= unit_bytes:
            units.append(Unit(file, start, count, first))
            start, first, size = count, rows, 0
    if start < count:
        units.append(Unit(file, start, count, first))
    return units


def arrow_records(unit: Unit) -> Iterator[tuple[int, Any]]:
    """Yields (number, record) of each row."""
    batches = (batch for _, batch in zip(range(unit.start, unit.stop), _batches(unit.file, unit.start), strict=False))
    slices = (batch.slice(at, ROWS) for batch in batches for at in range(0, batch.num_rows, ROWS))
    yield from _rows(slices, unit.first)


def _rows(batches: Iterator[Any], first: int) -> Iterator[tuple[int, Any]]:
    number = first
    for batch in batches:
        try:
            records: list[Any] = batch.to_pylist()
        except UnicodeDecodeError:
            records = _one_by_one(batch)
        for record in records:
            yield number, record
            number += 1


def _one_by_one(batch: Any) -> list[Any]:
    records: list[Any] = []
    for row in range(batch.num_rows):
        try:
            records += batch.slice(row, 1).to_pylist()
        except UnicodeDecodeError:
            records.append(SkipRecord("broken text"))
    return records


def _batches(file: str, start: int) -> Iterator[Any]:
    """Yields record batches from number ``start`` on, of an Arrow file or, as ``datasets`` writes them, a stream."""
    arrow = _pyarrow(file)
    import pyarrow.ipc

    try:
        with arrow.PythonFile(files.open_binary(file)) if files.is_remote(file) else arrow.memory_map(file) as opened:
            is_file = opened.read(6) == b"ARROW1"
            opened.seek(0)
            if is_file:
                table = pyarrow.ipc.open_file(opened)
                yield from (_sound(arrow, table.get_batch(n)) for n in range(start, table.num_record_batches))
                return
            for number, batch in enumerate(pyarrow.ipc.open_stream(opened)):
                if number >= start:
                    yield _sound(arrow, batch)
    except (arrow.lib.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no whole Arrow file: {_line(error)}") from error


def _sound(arrow: Any, batch: Any) -> Any:
    """Returns a batch after checking that its offsets lie in its buffers: pyarrow would read outside and crash.

    Raises:
      ArrowInvalid: if an offset lies outside.
    """
    for column in batch.columns:
        try:
            column.validate(full=True)
        except arrow.ArrowInvalid as error:
            if "UTF8" not in str(error):  # invalid UTF-8 costs only the record that has it
                raise
    return batch


def _parquet(file: str, opened: Any) -> Any:
    arrow = _pyarrow(file)
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(opened)
    except (arrow.lib.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no whole Parquet file: {_line(error)}") from error


def _pyarrow(file: str) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(f"{file} needs pyarrow: {extra('parquet')}") from error
    return pyarrow


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
