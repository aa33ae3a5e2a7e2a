"""Reports a full disk in one line."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from jaxmm.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "File too large")  # errors from C++ have no errno


@contextlib.contextmanager
def space_wanted(folder: Path) -> Iterator[None]:
    """Turns any error that a full disk causes in the block into one line.

    Raises:
      DiskFull: if there was no space, or no quota, left.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_full(error):
            raise DiskFull(folder) from error
        raise


def is_full(error: BaseException) -> bool:
    """Whether an exception means a full disk, an exhausted quota, or a limit on the size of files."""
    return getattr(error, "errno", None) in _FULL or any(text in str(error) for text in _FULL_TEXTS)


class DiskFull(UserError):
    """There is no space left where prepared data is written."""

    def __init__(self, folder: Path):
        super().__init__(
            f"no space left on the disk of {folder}: free some and run the same command again, which goes on from what "
            f"is finished, or choose another disk (config.data.cache, or another --output)"
        )
        self.folder = folder

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return DiskFull, (self.folder,)
