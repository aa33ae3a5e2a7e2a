"""The bytes of text files as the readers see them: what is compressed unpacked, UTF-16 as UTF-8, both as streams."""

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

TO_ITS_END = 1 << 62  # where a file stops whose size only reading it tells
LONGEST = 1 << 28  # bytes of a line or a value that is held at once; a longer one is no record
PACKED = (".gz", ".tgz")
LOST = "what follows it in the file is lost"
CUT = (EOFError, zlib.error, gzip.BadGzipFile)  # what reading raises where a packed file ends early or is broken
_WIDE = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def is_packed(file: str) -> bool:
    return file.lower().endswith(PACKED)


def stop(unit: Unit) -> int:
    """Returns where a unit stops in what ``opened`` gives; a file that is not plain is one unit."""
    return unit.stop if is_plain(unit.file) else TO_ITS_END


@functools.lru_cache(maxsize=1 << 10)
def _begins_wide(file: str, version: files.Version) -> str:
    with files.open_binary(file) as raw:
        return _WIDE.get(raw.read(2), "")


def is_plain(file: str) -> bool:
    """Whether a file may be read from any place: its bytes are those that lie there."""
    return not is_packed(file) and not _begins_wide(file, files.version(file))


@contextlib.contextmanager
def opened(file: str) -> Iterator[BinaryIO]:
    """Opens a file; where it ``is_plain``, it is seekable, else it is read from its start.

    Raises:
      OSError: as files.open_binary. Reading a packed file raises what is in CUT where it is not whole.
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
    """A buffer that takes nothing for the end of the file until it is told so twice: see _Raw."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size) or super().read(size)

    def read1(self, size: int = -1, /) -> bytes:
        return super().read1(size) or super().read1(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        is_whole = line.endswith(b"\n") or len(line) == size
        return line if is_whole else line + super().readline(size)


class _Raw(io.RawIOBase):
    """A stream under a buffer of our own, whatever it is.

    Trouble is the end at first, as a buffer would lose what it holds when it is raised, and raised when asked again.
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
    """UTF-16 as UTF-8. Half of a surrogate pair stays what it is, and is found where text is looked at."""

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
