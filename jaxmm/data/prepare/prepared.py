"""Prepared sources on disk: token ids and encoded images in shards, and a columnar index that plans are made from.

A prepared source is a folder, local or at a URL, which ``prepare`` writes:

    meta.json                   name, content fingerprint, counts, names of labels, shards with their record counts,
                                checksums of the columns and of itself
    tokens_E.npy, ...           the columns of ``Prepared``
    shard-00000.array_record    one msgpack record an example: tokens, images (bytes or path), origin
    skipped.jsonl               {"file", "record", "reason"} of each document left out
    report.json                 counts and histograms, for people
"""

from __future__ import annotations

import abc
import array
import io
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
from array_record.python import array_record_module

from jaxmm.data import files, urls
from jaxmm.data.documents import Features, Image, Media, Tokens
from jaxmm.data.media import image as media
from jaxmm.data.media.features import Extent, extent, feature_widths
from jaxmm.data.prepare import meta as metadata
from jaxmm.data.prepare import remote
from jaxmm.data.reading import Reading
from jaxmm.data.text.encoded import Encoded
from jaxmm.errors import UserError, nearest

META, FORMAT = metadata.NAME, metadata.FORMAT
OPEN_SHARDS = 128  # at a time, of one source in one process
IN_MEMORY = 4 << 20  # bytes of a column that is read rather than mapped: what is cut short later does no harm
_CHUNK = 1 << 22

# Columns over examples (E), runs of flags (R) and media, called images (I); E1 are offsets, one more than examples.
COLUMNS = {
    "tokens_E": np.int32,
    "labels_E": np.uint64,
    "runs_E1": np.int64,
    "run_start_R": np.int32,
    "run_flags_R": np.uint8,
    "run_weight_R": np.float32,
    "images_E1": np.int64,
    "image_at_I": np.int32,
    "image_height_I": np.int32,
    "image_width_I": np.int32,
    "image_kind_I": np.int32,
}
WEIGHT = "run_weight_R"  # which older folders lack, where all of it would be 1


class Record(NamedTuple):
    """One example's content.

    Attributes:
      tokens: int32 (tokens_E[example],).
      images: its media in order; None for discrete image tokens, which are in ``tokens``.
    """

    tokens: np.ndarray
    images: list[Image | Features | None]
    origin: str


def pack_record(record: Record) -> bytes:
    """Returns what a shard holds of an example."""
    images = [_packed(image) for image in record.images]
    tokens = record.tokens.astype("<i4", copy=False).tobytes()
    return msgpack.packb({"tokens": tokens, "images": images, "origin": record.origin})


def unpack_record(packed: bytes) -> Record:
    content = msgpack.unpackb(packed)
    images = [_unpacked(**image) for image in content["images"]]
    return Record(np.frombuffer(content["tokens"], "<i4"), images, content["origin"])


def _packed(image: Image | Features | None) -> dict[str, Any]:
    if image is None:
        return {}
    packed: dict[str, Any] = {"path": image.path} if image.path else {"data": image.data}
    return packed | {"features": True} if isinstance(image, Features) else packed


def _unpacked(data: bytes = b"", path: str = "", features: bool = False) -> Image | Features | None:
    if not (data or path):
        return None
    return Features(data, path) if features else Image(data, path)


class Columns(abc.ABC):
    """The index of a prepared source, of E examples with R runs of flags and I images, or other media.

    Attributes:
      meta: what meta.json holds.
      tokens_E: int32, text tokens of each example, without soft tokens.
      labels_E: uint64, bit k for the k-th of meta["labels"].
      runs_E1: int64 (E + 1,): example e has the runs runs_E1[e] to runs_E1[e + 1] of run_start_R and run_flags_R.
      run_start_R: int32, where in its example a run of tokens with equal flags starts; run_flags_R: uint8, batch.TARGET
        and batch.ANSWER; run_weight_R: float32, what a target of the run weighs in the loss.
      images_E1: int64 (E + 1,): offsets, in the same way, into the columns that end in _I.
      image_at_I: int32, before which token of its example the image's soft tokens stand; of discrete image tokens, the
        first of them.
      image_height_I, image_width_I: int32, in pixels, EXIF orientation applied; of feature vectors rows and columns, or
        their number and 1; of discrete tokens 1 and their number.
      image_kind_I: int32, features.IMAGE, features.TOKENS, or of feature vectors their width.
    """

    meta: dict[str, Any]
    tokens_E: np.ndarray
    labels_E: np.ndarray
    runs_E1: np.ndarray
    run_start_R: np.ndarray
    run_flags_R: np.ndarray
    run_weight_R: np.ndarray
    images_E1: np.ndarray
    image_at_I: np.ndarray
    image_height_I: np.ndarray
    image_width_I: np.ndarray
    image_kind_I: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens_E)

    @abc.abstractmethod
    def read(self, example: int) -> Record:
        """Returns the content of an example; any thread may call it."""


class Prepared(Columns):
    """A prepared folder: its columns mapped from disk, its records read at random.

    It pickles small: a loader's worker processes open the files anew. Of a folder at a URL the columns are copied into
    the cache at once, and a shard when a record of it is first read.

    The columns are compared with their checksums on opening. ArrayRecord has one of each record, and compares it on
    reading.

    Attributes:
      is_checked: whether there are checksums of the columns; version 0.1 wrote none.
    """

    def __init__(self, folder: str | Path, cache: Path | None = None, reading: Reading | None = None):
        """Opens a folder.

        Args:
          folder: a local path, or a URL.
          cache: where copies of what lies at a URL are kept.
          reading: of a folder from elsewhere: which URLs of pictures its records may name. None is of one's own cache,
            where that was decided when it was prepared.

        Raises:
          UserError: if it is not whole or not as it was written: a file is missing, a column's checksum or a shard's
            size or count of records is not what meta.json says. Of a folder at a URL a shard is counted when it has
            been copied.
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
            self.read(int(np.searchsorted(self.images_E1, 1)) - 1)  # what its first picture tells is told at once

    def read(self, example: int) -> Record:
        shard = int(np.searchsorted(self._ends, example, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        reader = self._reader(shard)
        try:
            (packed,) = reader.read([int(example) - first])
            record = unpack_record(packed)
        except Exception as error:  # a flipped bit is a RuntimeError, a file cut short since no record at all
            raise self._damaged(shard, int(example) - first, f"it cannot be read, {type(error).__name__}") from error
        media_count = int(self.images_E1[example + 1]) - int(self.images_E1[example])
        if len(record.tokens) != int(self.tokens_E[example]) or len(record.images) != media_count:
            what = f"it has {len(record.tokens)} tokens and {len(record.images)} images"
            said = f"{int(self.tokens_E[example])} and {media_count}"
            raise self._damaged(shard, int(example) - first, f"{what}, the index says {said}")
        for image in record.images:
            if self.reading and image and files.is_remote(image.path):
                self._check_url(image.path, record.origin, self.reading)
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
        """Opens the columns; those that are mapped are compared with their checksums by the first one to open them."""
        for name in self._written():
            if name not in self.__dict__:
                path = self.folder / f"{name}.npy"
                column = _read_column(path, self.meta.get("columns", {}).get(name), is_first)
                if column is None or column.dtype != COLUMNS[name] or column.ndim != 1:
                    raise UserError(f"{path} is missing, or not as it was written: {self._remedy()}")
                setattr(self, name, column)
        if WEIGHT not in self._written():
            self.run_weight_R = np.broadcast_to(np.float32(1), len(self.run_flags_R))
        self._ends = np.cumsum([shard["records"] for shard in self.meta["shards"]])
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def _written(self) -> list[str]:
        """The columns that the folder has: version 0.1 wrote no weights."""
        return [name for name in COLUMNS if name != WEIGHT or name in self.meta.get("columns", ())]

    def _check(self) -> None:
        if not self.url:
            for shard in self.meta["shards"]:
                self._check_shard(shard)
        sizes = (len(self), len(self.image_at_I), len(self.run_flags_R))
        expected = (self.meta["examples"], int(self.images_E1[-1]), int(self.runs_E1[-1]))
        if sizes != expected or not len(self._ends) or sizes[0] != int(self._ends[-1]) or not self._is_in_order():
            raise UserError(f"{self.folder}: columns and shards disagree: {self._remedy()}")

    def _is_in_order(self) -> bool:
        """Whether the columns fit each other: what a damaged one without a checksum would be noticed by."""
        if self.is_checked:
            return True
        sizes = (len(self.image_at_I), len(self.image_height_I), len(self.image_width_I), len(self.image_kind_I))
        offsets = (self.runs_E1, self.images_E1)
        return (
            len(set(sizes)) == 1
            and len(self.run_start_R) == len(self.run_flags_R)
            and len(self.labels_E) == len(self)
            and all(len(found) == len(self) + 1 and not found[0] and (np.diff(found) >= 0).all() for found in offsets)
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
        again = f", and if that is of no help prepare {self.url} again" if self.url else " and prepare it again"
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
    """Reads what meta.json of a prepared folder says, local or at a URL. Raises UserError as ``read_meta``."""
    try:
        with files.open_binary(files.join(folder, META)) as file:
            text = file.read()
    except OSError as error:
        raise UserError(f"{folder} holds no prepared data (no readable {META}): prepare it again") from error
    return metadata.read_meta(text, folder)


def _read_column(path: Path, known: dict[str, int] | None, is_first: bool) -> np.ndarray | None:
    """Reads a small column, maps a large one; None if it is not there or not as it was written."""
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
    except Exception:  # of a damaged header NumPy raises what it likes
        return None
    column.setflags(write=False)
    return column


def file_checksum(path: Path, size: int = 1 << 62) -> int:
    """CRC-32 of a file, or of its first bytes, a part of it in memory at a time."""
    found = 0
    with open(path, "rb") as file:
        while chunk := file.read(min(_CHUNK, size)):
            found, size = zlib.crc32(chunk, found), size - len(chunk)
    return found


def open_shard(path: Path) -> Any:
    return array_record_module.ArrayRecordReader(
        str(path), options="readahead_buffer_size:0,max_parallelism:0", file_reader_buffer_size=32768
    )


def count_records(path: Path) -> int:
    """Returns how many records a shard holds: 0 for a file that is not there, or broken."""
    # A reader on a missing file reads 0 records and says nothing; on a cut one it raises what it likes.
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
      UserError: if one is not there or not whole, or two have one name.
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


class InMemory(Columns):
    """Encoded documents that were never written: prompts, mostly."""

    def __init__(self, name: str, encoded: Sequence[Encoded], images: Sequence[Sequence[Media]], template: str):
        """
        Args:
          images: the media of each document, in order.
          template: the fingerprint of the template that encoded them.

        Raises:
          UserError: if the header of an image cannot be read.
        """
        index = Index()
        for i, (one, pictures) in enumerate(zip(encoded, images, strict=True)):
            if len(one.image_at) != len(pictures):
                raise ValueError(f"{name}, record {i}: {len(pictures)} images for {len(one.image_at)} places")
            index.add(one, [_size_or_error(f"{name}, record {i}", picture) for picture in pictures], ())
        self.__dict__.update(index.columns())
        self.meta = {
            "format": FORMAT, "name": name, "template": template, "examples": len(index), "labels": [],
            "feature_widths": feature_widths(self.image_kind_I),
        }  # fmt: skip
        self._records = [
            Record(one.tokens, stored(pictures), f"{name}, record {i}")
            for i, (one, pictures) in enumerate(zip(encoded, images, strict=True))
        ]

    def read(self, example: int) -> Record:
        return self._records[example]


def stored(found: Sequence[Media]) -> list[Image | Features | None]:
    """A document's media, as a record holds them."""
    return [None if isinstance(medium, Tokens) else medium for medium in found]


def _size_or_error(where: str, medium: Media) -> Extent:
    try:
        return extent(medium)
    except media.BadMedia as error:
        path = getattr(medium, "path", "")
        named = f"the image {path}" if path else "an image given as bytes"
        raise UserError(f"{where}: {named} cannot be used: {error.reason}") from error


class Index:
    """The columns, growing. ``labels`` are names by bit."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self._parts: dict[str, array.array] = {n: array.array(np.dtype(t).char) for n, t in COLUMNS.items()}
        self._parts["runs_E1"].append(0)
        self._parts["images_E1"].append(0)

    def __len__(self) -> int:
        return len(self._parts["tokens_E"])

    def add(self, encoded: Encoded, sizes: Sequence[Extent], labels: Sequence[str]) -> None:
        parts = self._parts
        parts["tokens_E"].append(len(encoded.tokens))
        parts["labels_E"].append(self._mask(labels))
        parts["run_start_R"].extend(encoded.run_starts.tolist())
        parts["run_flags_R"].extend(encoded.run_flags.tolist())
        parts[WEIGHT].extend(encoded.run_weights.tolist())
        parts["runs_E1"].append(len(parts["run_start_R"]))
        parts["image_at_I"].extend(encoded.image_at.tolist())
        parts["image_height_I"].extend(size.height for size in sizes)
        parts["image_width_I"].extend(size.width for size in sizes)
        parts["image_kind_I"].extend(size.kind for size in sizes)
        parts["images_E1"].append(len(parts["image_at_I"]))

    def _mask(self, labels: Sequence[str]) -> int:
        mask = 0
        for label in labels:
            if label not in self.labels:
                self.labels.append(label)
            mask |= 1 << self.labels.index(label)
        if mask >> 64:
            raise UserError(
                f"more than 64 different labels, the last '{self.labels[-1]}': group documents more coarsely"
            )
        return mask

    def columns(self) -> dict[str, np.ndarray]:
        return {name: np.array(part, COLUMNS[name]) for name, part in self._parts.items()}
