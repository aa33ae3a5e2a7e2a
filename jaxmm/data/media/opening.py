"""The bytes of an encoded medium: from memory, from a file, or by URL, whole and within bounds."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator
from types import ModuleType
from typing import IO, Any

from jaxmm.data import files, urls
from jaxmm.data.media.medium import BadMedia
from jaxmm.errors import UserError, extra

NEEDS = f"needs the extra media: {extra('media')}"
AV = 18  # the release of PyAV that is known: with another one every clip might look broken
MAX_BYTES = 1 << 30  # of a file
RETRY_SECONDS = (0.5, 2.0)  # waits between the tries to read a medium by URL


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
