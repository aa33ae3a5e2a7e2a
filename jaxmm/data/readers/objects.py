"""JSON that is neither lines nor an array: objects over many lines or one after another, an object around a list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jaxmm.data import files
from jaxmm.data.documents import Unit
from jaxmm.data.readers import streams
from jaxmm.data.readers.arrays import BLOCK, Scanner
from jaxmm.data.readers.lines import BYTE_ORDER_MARK, parsed
from jaxmm.data.readers.parts import SkipRecord
from jaxmm.errors import UserError

FORMAT = 1
MESSAGES = ("messages", "conversations", "conversation", "prompt", "texts")
LOOKED_AT = 1 << 16  # bytes at the start of a file that tell whether its lines are objects
LONGEST_LINE = 1 << 24  # a first line of up to so many bytes is parsed to see whether it is the whole file
MAX_RECORDS_IN_ONE = 1 << 28  # bytes of an object around a list, which is parsed at once


def are_no_lines(file: str) -> bool:
    """Whether a file that begins with an object has objects over many lines, or one object around a list of records."""
    try:
        with streams.opened(file) as opened:
            head = opened.read(LOOKED_AT).removeprefix(BYTE_ORDER_MARK)
            if not head.lstrip().startswith(b"{"):
                return False
            if b"\n" not in head:
                head += opened.readline(LONGEST_LINE)
            is_whole = not opened.read(1)
    except streams.CUT:
        return False
    lines = head.split(b"\n")
    lines = [line.strip() for line in (lines if is_whole or len(lines) == 1 else lines[:-1]) if line.strip()]
    if len(lines) == 1 and _lists(parsed(lines[0])):
        return is_whole
    if lines[0].endswith(b"},") and isinstance(parsed(lines[0][:-1]), dict):
        return True
    if any(line.startswith(b"{") and isinstance(parsed(line), dict) for line in lines):
        return False
    ends = _closings(head)
    return isinstance(parsed(head[: ends[0] + 1]), dict) if ends else lines[0].endswith((b"{", b"[", b","))


def _lists(value: Any) -> list[str]:
    """Names of an object's members that are lists of objects, if its other members hold nothing: {"data": [...]}.

    An object that is itself a record has none.
    """
    if not isinstance(value, dict) or any(name in value for name in MESSAGES):
        return []
    names = [k for k, v in value.items() if isinstance(v, list) and v and all(isinstance(one, dict) for one in v)]
    others = [v for k, v in value.items() if k not in names]
    return [] if any(isinstance(v, list | dict) and v for v in others) else names


def units(file: str, unit_bytes: int) -> list[Unit]:
    """A file is one unit: only reading from its start tells which brackets are open."""
    return [Unit(file, 0, files.version(file).size, 0)]


def records(unit: Unit) -> Iterator[tuple[int, Any]]:
    """Yields (number, record or SkipRecord) of each object; for an object around a list, of each element of the list.

    Raises:
      UserError: if an object has several lists of records, or is too large, as it is where brackets do not match.
    """
    number = unit.first
    values = _values(unit.file)
    first = next(values, b"")
    if not isinstance(first, SkipRecord) and (second := next(values, None)) is None:
        whole = parsed(first)
        if isinstance(whole, dict) and (names := _lists(whole)):
            if len(names) > 1:
                raise UserError(f"{unit.file} is one object with the lists {', '.join(names)}: give the one of records")
            for number, record in enumerate(whole[names[0]]):
                yield number, record
        elif first:
            yield number, whole
        return
    for value in (first,) if isinstance(first, SkipRecord) else (first, second):
        if value is not None:
            yield number, value if isinstance(value, SkipRecord) else parsed(value)
            number += 1
    for value in values:
        yield number, value if isinstance(value, SkipRecord) else parsed(value)
        number += 1


def _values(file: str) -> Iterator[bytes | SkipRecord]:
    """Yields the text of each object, without a comma between two objects."""
    scanner, held = Scanner(0), b""
    try:
        with streams.opened(file) as opened:
            is_first = True
            while block := opened.read(BLOCK):
                block = block.removeprefix(BYTE_ORDER_MARK) if is_first else block
                is_first = False
                scanned = len(held)
                block = held + block
                begin = 0
                for end in (scanner.ends(block[scanned:]) + scanned).tolist():
                    if block[end : end + 1] == b"}":
                        yield block[begin : end + 1].lstrip(b" \t\r\n,")
                        begin = end + 1
                held = block[begin:]
                if len(held) > MAX_RECORDS_IN_ONE:
                    raise UserError(
                        f"{file} is one object of more than {MAX_RECORDS_IN_ONE >> 20} MiB: give its list of records, "
                        f"as an array or a record a line"
                    )
    except streams.CUT:
        held = b"{"
    if held.strip(b" \t\r\n,"):
        yield SkipRecord("cut short", streams.LOST)


def _closings(line: bytes) -> list[int]:
    return [end for end in Scanner(0).ends(line).tolist() if line[end : end + 1] == b"}"]
