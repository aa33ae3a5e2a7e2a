"""Files by path or URL: the one place that knows whether bytes lie on this machine or in a bucket.

A name is a local path, or a URL that fsspec opens (``s3://``, ``gs://``, ``memory://``), where its extra is installed.
"""

from __future__ import annotations

import glob
import hashlib
import os
import posixpath
import re
import stat
from typing import Any, BinaryIO, NamedTuple, cast

from jaxmm.errors import UserError, extra

EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs"}  # that bring what opens URLs of a kind
_DIGITS = re.compile(r"([0-9]+)")


class Version(NamedTuple):
    """Identifies a file's content without reading it: its size in bytes, and a time or the store's tag."""

    size: int
    tag: str


class NoFile(OSError):
    """The path exists, but is not a regular file."""

    def __init__(self, path: str, mode: int):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        self.kind = kinds.get(stat.S_IFMT(mode), "a device")
        super().__init__(f"{path} is {self.kind}, not a file")


def is_remote(name: str) -> bool:
    """Whether a name is a URL; anything else is a local path."""
    return "://" in name


def absolute(name: str) -> str:
    """Returns a path made absolute, ``~`` expanded; a URL as it is."""
    return name if is_remote(name) else os.path.abspath(os.path.expanduser(name))


def bare(name: str) -> str:
    """Returns a name that is safe for a file or folder: the same name where it is safe already.

    A changed name ends in a hash, so that two different names stay different.
    """
    safe = re.sub(r"[^\w.-]", "_", name.lstrip("."))[:100]
    return name if safe == name != "" else f"{safe}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def join(folder: str, name: str) -> str:
    """Returns ``name`` resolved against ``folder``; a URL or an absolute path is returned as it is."""
    if is_remote(name) or os.path.isabs(name):
        return name
    if is_remote(folder):
        scheme, _, place = folder.partition("://")
        return f"{scheme}://{posixpath.normpath(posixpath.join(place, name))}"
    return os.path.abspath(os.path.join(folder, name))


def natural(name: str) -> tuple[tuple[tuple[str | int, ...], ...], str]:
    """Sort key for natural order: ``a2`` before ``a10``, folder by folder."""
    parts = map(_DIGITS.split, name.split("/"))
    return tuple(tuple(int(part) if k % 2 else part for k, part in enumerate(one)) for one in parts), name


def open_binary(name: str) -> BinaryIO:
    """Opens a file for reading in binary mode; it is seekable.

    Raises:
      NoFile: if it is not a regular file: opening a pipe without a writer would wait forever.
      OSError: if it is not there or cannot be read.
      UserError: if the URL's scheme needs a package that is not installed.
    """
    if not is_remote(name):
        return _open_regular(name)
    fs, path = _store(name)
    return cast(BinaryIO, fs.open(path, "rb"))


def _open_regular(path: str) -> BinaryIO:
    _check_regular(path, os.stat(path))  # before opening: a device may act on being opened
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_regular(path, os.fstat(handle))  # and after: another file may have taken its place
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _check_regular(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NoFile(path, status.st_mode)


def is_file(name: str) -> bool:
    if not is_remote(name):
        return os.path.isfile(name)
    fs, path = _store(name)
    return bool(fs.isfile(path))


def is_folder(name: str) -> bool:
    if not is_remote(name):
        return os.path.isdir(name)
    fs, path = _store(name)
    return bool(fs.isdir(path))


def listed(folder: str) -> list[str]:
    """Returns the absolute paths (or URLs) of a folder's entries, in natural order."""
    if not is_remote(folder):
        return [os.path.join(folder, name) for name in sorted(os.listdir(folder), key=natural)]
    fs, path = _store(folder)
    return sorted((_url(fs, folder, entry) for entry in fs.ls(path, detail=False)), key=natural)


def matched(pattern: str) -> list[str]:
    """Returns the files that match a pattern with ``*``, ``?``, ``[...]`` or ``**``, absolute and in natural order."""
    if not is_remote(pattern):
        return sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)), key=natural)
    fs, path = _store(pattern)
    return sorted((_url(fs, pattern, file) for file in fs.glob(path)), key=natural)


def version(name: str) -> Version:
    """Returns the version of a file.

    Raises:
      OSError: if there is no such file.
    """
    if not is_remote(name):
        status = os.stat(name)
        return Version(status.st_size, str(status.st_mtime_ns))
    fs, path = _store(name)
    info = fs.info(path)
    tag = next((info[k] for k in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created") if info.get(k)), "")
    return Version(int(info["size"]), str(tag))


def _url(fs: Any, like: str, path: str) -> str:
    """Returns the URL of a path found in a store, with as many slashes as the URL that was asked for."""
    return str(fs.unstrip_protocol(path if like.partition("://")[2].startswith("/") else path.lstrip("/")))


def _store(url: str) -> tuple[Any, str]:
    import fsspec  # only where a URL is given

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        hint = f": {extra(name)}" if (name := EXTRAS.get(url.partition("://")[0])) else ""
        raise UserError(f"{url}: {error}{hint}") from error
    except ValueError as error:
        raise UserError(f"{url}: no such kind of storage: {error}") from error
