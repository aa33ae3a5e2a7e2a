"""Prepared sources on disk: token ids and encoded images in shards, and a columnar index that plans are made from.

A prepared source is a folder, local or at a URL, which ``prepare`` writes:

    meta.json                   name, content fingerprint, counts, names of labels, shards with their record counts,
                                checksums of the columns and of itself
    tokens_E.npy, ...           the columns of ``Prepared``
    shard-00000.array_record    one msgpack record per example: tokens, images (bytes or path), origin
    skipped.jsonl               {"file", "record", "reason"} of each document left out
    report.json                 counts and histograms, for people
"""

from __future__ import annotations

import io
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from jaxmm.data import files, urls
from jaxmm.data.media.table import MEDIA, medium_of
from jaxmm.data.prepare import meta as metadata
from jaxmm.data.prepare import remote
from jaxmm.data.prepare.index import COLUMNS, IMPLIED, Columns, implied
from jaxmm.data.prepare.records import Record, unpack_record
from jaxmm.data.reading import Reading
from jaxmm.errors import UserError, nearest

META = metadata.NAME
OPEN_SHARDS = 128  # at a time, of one source in one process
IN_MEMORY = 4 << 20  # bytes; smaller columns are read, not mapped, so that cutting the file later does no harm
_CHUNK = 1 << 22


class Prepared(Columns):
    """A prepared folder: its columns mapped from disk, its records read at random.

    It pickles small: a loader's worker processes open the files again. Of a folder at a URL, the columns are copied
    into the cache at once, and a shard when one of its records is first read.

    Columns are checked against their checksums on opening. ArrayRecord has a checksum for each record, and checks it on
    reading.

    Attributes:
      is_checked: whether the columns have checksums; version 0.1 wrote none.
    """

    def __init__(self, folder: str | Path, cache: Path | None = None, reading: Reading | None = None):
        """Opens a folder.

        Args:
          folder: a local path, or a URL.
          cache: where copies of files at a URL are kept.
          reading: for a folder from elsewhere: which picture URLs its records may name. None is for one's own cache,
            where that was decided when it was prepared.

        Raises:
          UserError: if it is not complete, or changed since it was written: a file is missing, or a column's checksum
            or a shard's size or number of records differs from meta.json. Shards of a folder at a URL are checked after
            they are copied.
        """
        self.url = str(folder) if files.is_remote(str(folder)) else ""
        self.reading = reading
        self.meta = meta_of(str(folder))
        self.is_checked = "columns" in self.meta
        self.folder = Path(folder)
        if self.url:
            self.folder = remote.mirror_folder(self.url, self.meta, cache or remote.default_cache())
            for name in [f"{column}.npy" for column in self._written()] + ["skipped.jsonl", "report.json"]:
                size = self.meta.get("columns", {}).get(name.removesuffix(".npy"), {}).get("bytes", -1)
                remote.fetch(files.join(self.url, name), self.folder / name, size)
        self._open(is_first=True)
        self._check()
        if reading and not self.url and len(self.image_at_I):
            self.read(int(np.searchsorted(self.images_E1, 1)) - 1)  # reports trouble with the first picture at once

    def read(self, example: int) -> Record:
        shard = int(np.searchsorted(self._ends, example, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        reader = self._reader(shard)
        try:
            (packed,) = reader.read([int(example) - first])
            record = unpack_record(packed)
        except Exception as error:  # a flipped bit gives a RuntimeError; a file that was cut gives no record at all
            raise self._damaged(shard, int(example) - first, f"it cannot be read, {type(error).__name__}") from error
        media_count = int(self.images_E1[example + 1]) - int(self.images_E1[example])
        if len(record.tokens) != int(self.tokens_E[example]) or len(record.images) != media_count:
            what = f"it has {len(record.tokens)} tokens and {len(record.images)} images"
            said = f"{int(self.tokens_E[example])} and {media_count}"
            raise self._damaged(shard, int(example) - first, f"{what}, the index says {said}")
        for image in record.images:
            for path in medium_of(image).paths(image) if image else ():
                if self.reading and files.is_remote(path):
                    self._check_url(path, record.origin, self.reading)
        return record

    def _check_url(self, url: str, origin: str, reading: Reading) -> None:
        try:
            urls.check(url, reading.allow_urls, reading.hosts())
        except urls.Refused as error:
            raise UserError(f"{self.folder}: {origin}: {error}") from error

    def _damaged(self, shard: int, record: int, what: str) -> UserError:
        path = self.folder / self.meta["shards"][shard]["file"]
        return UserError(f"{path}, record {record}: {what}: the file has been damaged: {self._remedy()}")

    def _open(self, is_first: bool = False) -> None:
        """Opens the columns; mapped ones are checked against their checksums only by the first process to open them."""
        for name in self._written():
            if name not in self.__dict__:
                path = self.folder / f"{name}.npy"
                column = _read_column(path, self.meta.get("columns", {}).get(name), is_first)
                if column is None or column.dtype != COLUMNS[name] or column.ndim != 1:
                    raise UserError(f"{path} is missing, or not as it was written: {self._remedy()}")
                setattr(self, name, column)
        for name in COLUMNS.keys() - self._written():
            setattr(self, name, implied(name, self.__dict__))
        self._ends = np.cumsum([shard["records"] for shard in self.meta["shards"]])
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def _written(self) -> list[str]:
        """The columns that the folder has."""
        return [name for name in COLUMNS if name not in IMPLIED or name in self.meta.get("columns", ())]

    def _check(self) -> None:
        if not self.url:
            for shard in self.meta["shards"]:
                self._check_shard(shard)
        sizes = (len(self), len(self.image_at_I), len(self.run_flags_R))
        expected = (self.meta["examples"], int(self.images_E1[-1]), int(self.runs_E1[-1]))
        if sizes != expected or not len(self._ends) or sizes[0] != int(self._ends[-1]) or not self._is_in_order():
            raise UserError(f"{self.folder}: columns and shards disagree: {self._remedy()}")

    def _is_in_order(self) -> bool:
        """Whether the columns fit each other; this finds a damaged one where there are no checksums."""
        if self.is_checked:
            return True
        sizes = (len(self.image_at_I), len(self.image_height_I), len(self.image_width_I), len(self.image_kind_I))
        offsets = (self.runs_E1, self.images_E1)
        return (
            len(set(sizes)) == 1
            and len(self.run_start_R) == len(self.run_flags_R)
            and len(self.labels_E) == len(self)
            and all(
                len(starts) == len(self) + 1 and not starts[0] and (np.diff(starts) >= 0).all() for starts in offsets
            )
            and all((column >= 0).all() for column in (self.tokens_E, self.run_start_R, self.image_at_I))
            and bool((self.image_height_I >= 0).all() and (self.image_width_I >= 0).all())
        )

    def _check_shard(self, shard: dict[str, Any]) -> None:
        path = self.folder / shard["file"]
        count = count_records(path)
        if count != shard["records"]:
            raise UserError(f"{path} holds {count} of its {shard['records']} records: {self._remedy()}")
        if path.stat().st_size != shard["bytes"]:
            raise UserError(f"{path} has {path.stat().st_size} of its {shard['bytes']} bytes: {self._remedy()}")

    def _remedy(self) -> str:
        again = f", and if that does not help prepare {self.url} again" if self.url else " and prepare it again"
        return f"delete {self.folder}{again}"

    def _reader(self, shard: int) -> Any:
        # Reading at given indices is thread-safe in ArrayRecord, so that one reader serves all threads.
        with self._lock:
            if shard in self._readers:
                return self._readers[shard]
        described = self.meta["shards"][shard]
        path = self.folder / described["file"]
        if self.url:
            remote.fetch(files.join(self.url, described["file"]), path, described["bytes"])
            self._check_shard(described)
        reader = open_shard(path)
        with self._lock:
            if len(self._readers) >= OPEN_SHARDS:
                del self._readers[next(iter(self._readers))]  # closes when the last thread is done with it
            return self._readers.setdefault(shard, reader)

    def __getstate__(self) -> dict[str, Any]:
        closed = ("_readers", "_lock", "_ends", *COLUMNS)
        return {k: v for k, v in self.__dict__.items() if k not in closed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def meta_of(folder: str) -> dict[str, Any]:
    """Reads meta.json of a prepared folder, local or at a URL. Raises UserError as ``read_meta``."""
    try:
        with files.open_binary(files.join(folder, META)) as file:
            text = file.read()
    except OSError as error:
        raise UserError(f"{folder} holds no prepared data (no readable {META}): prepare it again") from error
    meta = metadata.read_meta(text, folder)
    for name in meta.get("media", ()):
        if name not in MEDIA:
            raise UserError(f"{folder} has media that this version does not know, {name}: it knows {', '.join(MEDIA)}")
    return meta


def _read_column(path: Path, known: dict[str, int] | None, is_first: bool) -> np.ndarray | None:
    """Reads a small column, memory-maps a large one; None if it is missing, or changed since it was written."""
    try:
        size = path.stat().st_size
        if known and size != known["bytes"]:
            return None
        if size > IN_MEMORY:
            if known and is_first and file_checksum(path) != known["crc32"]:
                return None
            return np.load(path, mmap_mode="r")
        content = path.read_bytes()
        if known and zlib.crc32(content) != known["crc32"]:
            return None
        column = np.load(io.BytesIO(content))
    except Exception:  # NumPy raises anything on a damaged header
        return None
    column.setflags(write=False)
    return column


def file_checksum(path: Path, size: int = 1 << 62) -> int:
    """CRC-32 of a file, or of its first ``size`` bytes; only a part of it is in memory at a time."""
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(min(_CHUNK, size)):
            checksum, size = zlib.crc32(chunk, checksum), size - len(chunk)
    return checksum


def open_shard(path: Path) -> Any:
    return array_record_module.ArrayRecordReader(
        str(path), options="readahead_buffer_size:0,max_parallelism:0", file_reader_buffer_size=32768
    )


def count_records(path: Path) -> int:
    """Returns how many records a shard holds; 0 if the file is missing or broken."""
    # For a missing file a reader silently finds 0 records; for one that is cut it raises anything.
    try:
        return int(open_shard(path).num_records()) if path.is_file() else 0
    except Exception:
        return 0


def holds_prepared(path: str) -> bool:
    """Whether a path or URL is a folder of prepared sources, or one of them."""
    return files.is_file(files.join(path, META)) or bool(files.matched(files.join(path, f"*/{META}")))


def open_prepared(path: str, names: Sequence[str], cache: Path, reading: Reading) -> list[Prepared]:
    """Opens the sources in a folder that ``holds_prepared``: all of them, or those named, in that order.

    Args:
      reading: says whether pictures that the records name by URL are fetched, and from where.

    Raises:
      UserError: if one is missing or not complete, or two have the same name.
    """
    if files.is_file(files.join(path, META)):
        return [Prepared(path, cache, reading)]
    folders: dict[str, str] = {}
    for meta in files.matched(files.join(path, f"*/{META}")):
        folder = meta.removesuffix(f"/{META}")
        name = meta_of(folder)["name"]
        if name in folders and (not names or name in names):
            raise UserError(f"{path} holds '{name}' twice, as {folders[name]} and {folder}: delete one of them")
        folders[name] = folder
    for name in names:
        if name not in folders:
            raise UserError(f"{path} has no source '{name}': it has {', '.join(folders)}{nearest(name, folders)}")
    return [Prepared(folders[name], cache, reading) for name in names or folders]
