"""A folder that a command writes once and whole, here or in a store."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jaxmm.errors import UserError
from jaxmm.workdir.objects import Objects
from jaxmm.workdir.place import Place, is_url
from jaxmm.workdir.spool import spool_root

_PREFIX = "outgoing-"  # of a folder among the spools
LAST = "config.json"  # without which no library takes a folder for a model


@contextlib.contextmanager
def outgoing(flag: str, text: str) -> Iterator[Path]:
    """Gives the folder to write; that of a URL is one of this machine, which is sent and removed when it is whole.

    Args:
      flag: whose value the text is, for errors.
      text: a path or a URL.

    Raises:
      UserError: if the URL is none of a store, something is there, or the store refuses.
    """
    if not is_url(text):
        yield Path(os.path.expanduser(text))
        return
    place = Place.read(flag, text)
    objects = Objects(place)
    if objects.names():
        raise UserError(f"{flag} {place.url} exists: give another folder, or delete it")
    root = spool_root()
    root.mkdir(parents=True, exist_ok=True)
    with _held(root), tempfile.TemporaryDirectory(dir=root, prefix=_PREFIX) as folder:
        output = Path(folder) / place.path.rpartition("/")[2]
        yield output
        names = [path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()]
        for name in sorted(names, key=lambda name: (name == LAST, name)):
            objects.upload(output / name, name)  # one by one, as shards are large
        print(f"sent it to {place.url}")


@contextlib.contextmanager
def _held(root: Path) -> Iterator[None]:
    """Keeps what is written from other processes, each of which first removes what those that were killed have left."""
    with (root / ".outgoing.lock").open("w") as file:
        with contextlib.suppress(OSError):  # somebody writes, or the file system has no locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in root.glob(f"{_PREFIX}*"):
                shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
        yield
