"""The bytes of an encoded medium: from memory, from a file, or by URL, whole and within bounds."""

from __future__ import annotations

import contextlib
import io
import time
import zlib
from collections.abc import Iterator
from contextvars import ContextVar
from types import ModuleType
from typing import IO, Any

from jaxmm.data import files, urls
from jaxmm.data.media.medium import BadMedia
from jaxmm.errors import UserError, extra

NEEDS = f"needs the extra media: {extra('media')}"
AV = 18  # the release of PyAV that is known: with another one every clip might look broken
MAX_BYTES = 1 << 30  # of a file
RETRY_SECONDS = (0.5, 2.0)  # waits between the tries to read a medium by URL
SAMPLES, BLOCK = 32, 1 << 20  # of a file larger than both together, so many blocks of so many bytes are in its checksum

_opened: ContextVar[dict[str, int] | None] = ContextVar("opened", default=None)


def checked_av(what: str) -> ModuleType:
    """Returns PyAV, of the extra ``media``.

    Raises:
      UserError: if it is missing, or of another release; ``what`` needs it.
    """
    try:
        import av
    except (ImportError, OSError) as error:
        raise UserError(f"{what} {NEEDS}") from error
    if int(av.__version__.partition(".")[0]) != AV:
        raise UserError(f"{what} needs PyAV {AV}, not {av.__version__}: pip install 'av>={AV},<{AV + 1}'")
    return av


@contextlib.contextmanager
def checksums(are_asked: bool = True) -> Iterator[dict[str, int]]:
    """Yields the checksums of the files that this thread opens within, by their paths and URLs, in order.

    Args:
      are_asked: whether there are to be any.
    """
    by_path: dict[str, int] = {}
    token = _opened.set(by_path if are_asked else None)
    try:
        yield by_path
    finally:
        _opened.reset(token)


def checksum_of(file: IO[bytes], size: int) -> int:
    """CRC-32 of a file's size and its bytes; of a large file, of blocks from its first to its last."""
    whole = size <= SAMPLES * BLOCK
    checksum = zlib.crc32(size.to_bytes(8, "little"))
    for n in range(-(-size // BLOCK) if whole else SAMPLES):
        file.seek(n * BLOCK if whole else n * (size - BLOCK) // (SAMPLES - 1))
        checksum = zlib.crc32(file.read(BLOCK), checksum)
    return checksum


@contextlib.contextmanager
def opened_file(part: Any, most: int = 1 << 62) -> Iterator[IO[bytes]]:
    """Opens the ``data`` or the ``path`` of a part: at least 1 byte, and at most ``most`` bytes.

    Raises:
      BadMedia: if it is empty or too large, or there is nothing at its URL. Errors of opening a file pass unchanged.
    """
    with _encoded(part) as file:
        size = file.seek(0, io.SEEK_END)
        if not size:
            raise BadMedia("empty")
        if size > most:
            raise BadMedia("too large")
        if part.path and (by_path := _opened.get()) is not None:
            by_path[part.path] = checksum_of(file, size)
        file.seek(0)
        yield file


def _encoded(part: Any) -> IO[bytes]:
    if not part.path:
        return io.BytesIO(part.data)
    return io.BytesIO(_fetched(part.path)) if files.is_remote(part.path) else files.open_binary(part.path)


def _fetched(url: str) -> bytes:
    """Reads a medium by URL, whole and at once, so that a store's errors are not taken for Pillow's."""
    for wait in (*RETRY_SECONDS, None):
        try:
            if urls.is_web(url):
                return urls.fetch(url)
            with files.open_binary(url) as file:
                return file.read(MAX_BYTES + 1)  # one byte more than is allowed
        except UserError:
            raise
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            break
        except Exception:  # each store has errors of its own
            if wait is not None:
                time.sleep(wait)
    raise BadMedia("missing")
