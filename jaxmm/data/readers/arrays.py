"""JSON arrays, element by element: a scanner finds where each ends, and only one block is in memory at a time.

The scanner looks only at quotes, backslashes, commas and brackets, a block at a time in NumPy. The text between two
ends is parsed on its own. So a broken element costs only itself, not the file, and a file is cut into units without
parsing it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from jaxmm.data import files
from jaxmm.data.documents import Unit
from jaxmm.data.readers import streams
from jaxmm.data.readers.lines import BYTE_ORDER_MARK, parsed
from jaxmm.data.readers.parts import SkipRecord
from jaxmm.errors import UserError

FORMAT = 3
BLOCK = 1 << 20
MAX_ELEMENT = 1 << 28  # bytes; in a longer one a quote or a bracket is missing

OPEN, CLOSE, COMMA, QUOTE, BACKSLASH = 1, -1, 2, 3, 4
_KINDS = np.zeros(256, np.int8)
for _characters, _kind in ((b"[{", OPEN), (b"]}", CLOSE), (b",", COMMA), (b'"', QUOTE), (b"\\", BACKSLASH)):
    _KINDS[list(_characters)] = _kind


class Scanner:
    """Finds where the elements of an array end, given its bytes in blocks of any sizes.

    Args:
      depth: 0 before the array's opening bracket, 1 between two elements.
    """

    def __init__(self, depth: int = 0):
        self.depth = depth
        self._in_string = 0
        self._escapes = False  # the last byte escapes the next block's first

    def ends(self, block: bytes) -> np.ndarray:
        """Returns int64: where in the block a comma or the closing bracket ends an element, in order."""
        bytes_ = np.frombuffer(block, np.uint8)
        kinds = _KINDS.take(bytes_)
        at = np.flatnonzero(kinds)
        kinds = kinds[at]
        at, kinds = self._without_escaped(at, kinds, len(bytes_))
        quotes = kinds == QUOTE
        inside = np.cumsum(quotes) + self._in_string & 1
        self._in_string = int(self._in_string + quotes.sum()) & 1
        structure = (inside == 0) & (kinds <= COMMA)
        at, kinds = at[structure], kinds[structure]
        depth = np.cumsum(np.where(kinds == COMMA, 0, kinds), dtype=np.int64) + self.depth
        if len(depth):
            self.depth = int(depth[-1])
        return at[((kinds == COMMA) & (depth == 1)) | ((kinds == CLOSE) & (depth == 0))]

    def _without_escaped(self, at: np.ndarray, kinds: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Drops the characters that a backslash escapes: those after a run of an odd number of backslashes."""
        if size and self._escapes:
            kept = at != 0
            at, kinds = at[kept], kinds[kept]
        self._escapes = self._escapes and not size
        slashes = at[kinds == BACKSLASH]
        if len(slashes):
            starts = np.flatnonzero(np.diff(slashes, prepend=-2) != 1)
            lengths = np.diff(starts, append=len(slashes))
            escaped = (slashes[starts] + lengths)[lengths % 2 == 1]
            self._escapes = bool(len(escaped)) and int(escaped[-1]) == size
            is_escaped = np.zeros(size + 1, bool)
            is_escaped[escaped] = True
            kept = ~is_escaped[at]
            at, kinds = at[kept], kinds[kept]
        return at, kinds


def is_array(file: str) -> bool:
    """Whether the first non-blank character of a file is an array's bracket."""
    try:
        with streams.opened(file) as opened:
            return _start(opened) is not None
    except streams.CUT:
        return False


def units(file: str, unit_bytes: int) -> list[Unit]:
    """Cuts a file after separators into units of at least ``unit_bytes``; a file of up to twice that is not scanned."""
    size = files.version(file).size
    if size <= 2 * unit_bytes or not streams.is_plain(file):
        return [Unit(file, 0, size, 0)]
    cut_units: list[Unit] = []
    start = first = number = 0
    with files.open_binary(file) as opened:
        for end in _ends(opened, 0, size, BLOCK):
            number += 1
            if end + 1 - start >= unit_bytes and size - end > unit_bytes:
                cut_units.append(Unit(file, start, end + 1, first))
                start, first = end + 1, number
    return [*cut_units, Unit(file, start, size, first)]


def records(unit: Unit, block_bytes: int = BLOCK) -> Iterator[tuple[int, Any]]:
    """Yields (number, record or SkipRecord) of an array's elements, or of a unit of them.

    An array that is not closed ends in a SkipRecord "cut short".

    Raises:
      UserError: if brackets or quotes do not match, so that the ends of elements cannot be found.
    """
    number = unit.first
    for raw in elements(unit, block_bytes):
        yield number, raw if isinstance(raw, SkipRecord) else parsed(raw)
        number += 1


def elements(unit: Unit, block_bytes: int = BLOCK) -> Iterator[bytes | SkipRecord]:
    """Yields the JSON text of each element."""
    try:
        with streams.opened(unit.file) as opened:
            at = unit.start
            if at:
                opened.seek(at)
            elif (start := _start(opened)) is not None:
                at = start + 1
            yield from _elements(opened, unit, at, block_bytes)
    except streams.CUT:
        yield SkipRecord("cut short", streams.LOST)


def _elements(opened: BinaryIO, unit: Unit, at: int, block_bytes: int) -> Iterator[bytes | SkipRecord]:
    """Yields the elements from the position of the opened file on, which is its byte ``at``."""
    scanner, held, is_first, stop = Scanner(1), b"", unit.start == 0, streams.stop(unit)
    while scanner.depth > 0 and at < stop:
        block = opened.read(min(max(block_bytes, len(held)), stop - at))
        if not block:
            break
        at += len(block)
        block, scanned = held + block, len(held)
        begin = 0
        for end in (scanner.ends(block[scanned:]) + scanned).tolist():
            raw = block[begin:end]
            is_last = block[end : end + 1] != b","
            if not (is_first and is_last and not raw.strip()):  # [] has no element, [1,] a broken one
                yield raw
            is_first, begin = False, end + 1
            if is_last:
                if block[end : end + 1] != b"]" or (block[begin:] + opened.read(block_bytes)).strip():
                    raise UserError(
                        f"{unit.file}, byte {at - len(block) + end}: the array ends here, but more follows: "
                        f"a bracket or a quote before it is missing or one too many"
                    )
                return
        held = block[begin:]
        if len(held) > MAX_ELEMENT:
            raise UserError(
                f"{unit.file}, byte {at - len(held)}: an element has no end within {MAX_ELEMENT >> 20} MiB: "
                f"a quote or a bracket is missing"
            )
    if held.strip() or not opened.read(1):
        yield SkipRecord("cut short", streams.LOST)


def _ends(opened: BinaryIO, start: int, stop: int, block_bytes: int) -> Iterator[int]:
    """Yields where each element ends, up to the array's own end."""
    scanner, at = Scanner(0), start
    opened.seek(start)
    while at < stop:
        block = opened.read(min(block_bytes, stop - at))
        if not block:
            return
        for end in scanner.ends(block).tolist():
            yield at + end
            if block[end : end + 1] != b",":
                return
        at += len(block)


def _start(opened: BinaryIO) -> int | None:
    """Reads past the opening bracket and returns its position; None if the file begins with anything else."""
    at = 0
    while byte := opened.read(1):
        if at == 0 and byte == BYTE_ORDER_MARK[:1]:
            if opened.read(2) != BYTE_ORDER_MARK[1:]:
                return None
            at = len(BYTE_ORDER_MARK)
        elif byte.strip():
            return at if byte == b"[" else None
        else:
            at += 1
    return None
