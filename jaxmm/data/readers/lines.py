"""JSON lines and plain text, cut into units at line ends. It also parses a piece of JSON text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jaxmm.data import files
from jaxmm.data.documents import Unit
from jaxmm.data.readers import streams
from jaxmm.data.readers.parts import SkipRecord
from jaxmm.errors import UserError

FORMAT = 2

BLOCK = 1 << 20  # bytes in memory at a time, plus one line
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Signs of a blank line in a block: only if there are some, its lines are checked one by one.
_MAYBE_BLANK = (b"\n\n", b"\n\r", b"\n ", b"\n\t", b"\n\v", b"\n\f")


def units(file: str, unit_bytes: int) -> list[Unit]:
    """Cuts a file at line ends into units of about ``unit_bytes`` to twice that; a small one is not even opened."""
    size = files.version(file).size
    cut_units: list[Unit] = []
    start = first = 0
    if size > 2 * unit_bytes and streams.is_plain(file):
        with files.open_binary(file) as opened:
            while size - start > 2 * unit_bytes:
                block = opened.read(unit_bytes) + opened.readline()
                cut_units.append(Unit(file, start, start + len(block), first))
                start += len(block)
                first += _count(block)
    if start < size or not cut_units:
        cut_units.append(Unit(file, start, size, first))
    return cut_units


def count(unit: Unit) -> int:
    """Returns how many records a unit has."""
    return sum(1 if isinstance(block, SkipRecord) else _count(block) for block in _blocks(unit))


def texts(unit: Unit) -> Iterator[tuple[int, Any]]:
    """Yields (number, record) of plain text, one record per line; blank lines are no records."""
    for number, line in _lines(unit):
        if isinstance(line, SkipRecord):
            yield number, line
        else:
            yield number, {"text": line.decode("utf-8", "surrogateescape").rstrip("\r")}


def objects(unit: Unit) -> Iterator[tuple[int, Any]]:
    """Yields (number, record or SkipRecord) of JSON lines; blank lines are no records."""
    for number, line in _lines(unit):
        yield number, line if isinstance(line, SkipRecord) else parsed(line)


def parsed(data: bytes) -> dict[str, Any] | SkipRecord:
    """Parses a piece of JSON text; returns its object, or why it is none.

    Bytes that are not UTF-8 become lone surrogates, which the formats detect: they cost only the record that has them.
    """
    value = decoded(data)
    return value if isinstance(value, dict | SkipRecord) else SkipRecord("not an object")


def decoded(data: bytes) -> Any:
    """As ``parsed``, but returns JSON values of any type."""
    try:
        return _DECODER.decode(data.decode("utf-8", "surrogateescape"))
    except _DuplicateKeys:
        return SkipRecord("duplicate keys")
    except (ValueError, RecursionError):  # RecursionError: nested a thousand deep
        return SkipRecord("broken JSON")


def _constant(name: str) -> float | None:
    """NaN becomes null: pandas writes it for a missing value."""
    return None if name == "NaN" else float(name)


class _DuplicateKeys(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _DuplicateKeys
    return members


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _blocks(unit: Unit) -> Iterator[bytes | SkipRecord]:
    """Yields the unit's bytes in blocks of whole lines; a compressed file that is not whole ends in a SkipRecord.

    Raises:
      UserError: for a line that is longer than ``streams.LONGEST``.
    """
    at, stop = unit.start, streams.stop(unit)
    try:
        with streams.opened(unit.file) as opened:
            if at:
                opened.seek(at)
            while at < stop:
                block = opened.read(min(BLOCK, stop - at))
                if not block:
                    return
                if at + len(block) < stop and not block.endswith(b"\n"):
                    try:
                        block += opened.readline(streams.LONGEST)
                    except streams.CUT:
                        yield block[: block.rfind(b"\n") + 1]
                        raise
                    if len(block) >= streams.LONGEST:
                        raise UserError(
                            f"{unit.file}, byte {at}: a line has no end within {streams.LONGEST >> 20} MiB: is it text?"
                        )
                yield block.removeprefix(BYTE_ORDER_MARK) if at == 0 else block
                at += len(block)
    except streams.CUT:
        yield SkipRecord("cut short", streams.LOST)


def _lines(unit: Unit) -> Iterator[tuple[int, bytes | SkipRecord]]:
    number = unit.first
    for block in _blocks(unit):
        if isinstance(block, SkipRecord):
            yield number, block
            return
        for line in block.split(b"\n"):
            if line.strip():
                yield number, line
                number += 1


def _count(block: bytes) -> int:
    block = block.removeprefix(BYTE_ORDER_MARK)  # only at the start of a file, where a line may be blank
    if any(blank in block for blank in _MAYBE_BLANK) or not block[:1].strip():
        return sum(bool(line.strip()) for line in block.split(b"\n"))
    return block.count(b"\n") + (not block.endswith(b"\n"))
