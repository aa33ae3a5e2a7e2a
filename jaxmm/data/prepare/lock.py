"""A lock between processes that ends with its holder: however a process dies, the kernel releases its locks."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxmm.data.prepare.disk import is_full
from jaxmm.errors import UserError


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the lock of a file in an existing folder. The file exists only while someone holds the lock.

    Threads of one process exclude each other too. On NFS the lock works between all machines that mount it. On a file
    system whose locks are local to each machine, two machines may hold it at once.

    Args:
      on_wait: called once if another process or thread holds the lock.

    Raises:
      UserError: if the file system has no locks, or cannot be written to.
    """
    file = _acquire(path, on_wait)
    try:
        yield
    finally:
        try:
            path.unlink(missing_ok=True)  # while it is held: a waiting process then finds that its file is gone
        finally:
            os.close(file)


def _acquire(path: Path, on_wait: Callable[[], None]) -> int:
    has_waited = False
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if is_full(error):
                raise
            raise UserError(f"{path.parent}: nothing can be written here ({error.strerror})") from error
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not has_waited:
                    on_wait()
                has_waited = True
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(path, file):
                return file
        except OSError as error:
            os.close(file)
            raise UserError(
                f"{path.parent}: its file system gives no locks ({error.strerror}): put the cache on another disk"
            ) from error
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _is_at(path: Path, file: int) -> bool:
    """Whether the file just locked is still the one at its path; its last holder may have removed it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False
