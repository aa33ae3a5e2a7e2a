"""The bytes of text files as readers see them: decompressed, and UTF-16 as UTF-8, both as streams."""

from __future__ import annotations

import codecs
import contextlib
import functools
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

from jaxmm.data import files
from jaxmm.data.documents import Unit

TO_ITS_END = 1 << 62  # the stop of a file whose size is only known after reading it
LONGEST = 1 << 28  # bytes of a line or a value in memory; a longer one is no record
PACKED = (".gz", ".tgz")
LOST = "what follows it in the file is lost"
CUT = (EOFError, zlib.error, gzip.BadGzipFile)  # raised by reading a compressed file that ends early or is broken
_WIDE = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def is_packed(file: str) -> bool:
    return file.lower().endswith(PACKED)


def stop(unit: Unit) -> int:
    """Returns where a unit stops in the stream of ``opened``; a file that is not plain is one unit."""
    return unit.stop if is_plain(unit.file) else TO_ITS_END


@functools.lru_cache(maxsize=1 << 10)
def _begins_wide(file: str, version: files.Version) -> str:
    with files.open_binary(file) as raw:
        return _WIDE.get(raw.read(2), "")


def is_plain(file: str) -> bool:
    """Whether a file can be read from any place: it is neither compressed nor UTF-16."""
    return not is_packed(file) and not _begins_wide(file, files.version(file))


@contextlib.contextmanager
def opened(file: str) -> Iterator[BinaryIO]:
    """Opens a file. It is seekable if the file ``is_plain``; if not, it can only be read from its start.

    Raises:
      OSError: as files.open_binary. Reading a compressed file that is not whole raises one of CUT.
    """
    with files.open_binary(file) as raw:
        if is_packed(file):
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield _as_utf8(cast(BinaryIO, unpacked))
        elif is_plain(file):
            yield raw
        else:
            yield _as_utf8(raw)


def _as_utf8(stream: BinaryIO) -> BinaryIO:
    buffered = _Buffered(_Raw(stream), 1 << 16)
    wide = _WIDE.get(buffered.peek(2)[:2])
    if not wide:
        return cast(BinaryIO, buffered)
    buffered.read(2)
    return cast(BinaryIO, _Buffered(_Recoded(buffered, wide), 1 << 16))


class _Buffered(io.BufferedReader):
    """A buffer for which an empty read is the end of the file only if it comes twice: see _Raw."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size) or super().read(size)

    def read1(self, size: int = -1, /) -> bytes:
        return super().read1(size) or super().read1(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        is_whole = line.endswith(b"\n") or len(line) == size
        return line if is_whole else line + super().readline(size)


class _Raw(io.RawIOBase):
    """A raw stream, of whatever kind, under our buffer.

    An error first looks like the end of the file: raised at once, it would make the buffer lose what it holds. The next
    read raises it.
    """

    def __init__(self, stream: BinaryIO):
        self._read = getattr(stream, "read1", stream.read)
        self._trouble: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, into: bytearray | memoryview) -> int:  # type: ignore[override]
        if self._trouble is not None:
            raise self._trouble
        try:
            block = self._read(len(into))
        except CUT as trouble:
            self._trouble = trouble  # raised by the next read: this one gives what precedes it
            return 0
        into[: len(block)] = block
        return len(block)


class _Recoded(io.RawIOBase):
    """UTF-16 as UTF-8. A lone surrogate stays one, and is detected where text is checked."""

    def __init__(self, stream: io.BufferedReader, encoding: str):
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        self._held = b""

    def readable(self) -> bool:
        return True

    def readinto(self, into: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._held:
            block = io.BufferedReader.read(self._stream, 1 << 15)  # once: the buffer above asks again
            text = self._decoder.decode(block) if block else ""
            if not block:
                return 0
            self._held = text.encode("utf-8", "surrogatepass")
        count = min(len(into), len(self._held))
        into[:count] = self._held[:count]
        self._held = self._held[count:]
        return count
