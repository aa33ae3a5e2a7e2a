"""Prepared sources on disk: token ids and encoded images in shards, and a columnar index that plans are made from.

A prepared source is a folder, local or at a URL, which ``prepare`` writes:

    meta.json                   name, content fingerprint, counts, names of labels, shards with their record counts
    tokens_E.npy, ...           the columns of ``Prepared``
    shard-00000.array_record    one msgpack record an example: tokens, images (bytes or path), origin
    skipped.jsonl               {"file", "record", "reason"} of each document left out
    report.json                 counts and histograms, for people
"""

from __future__ import annotations

import abc
import array
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
from array_record.python import array_record_module

from jaxmm.data import files, media, remote
from jaxmm.data.documents import Features, Image, Media, Tokens
from jaxmm.data.features import Extent, extent, feature_widths
from jaxmm.data.text import Encoded
from jaxmm.errors import UserError, nearest

META = "meta.json"  # a folder that has it is whole
FORMAT = 3  # raise it with any change to what is written
OPEN_SHARDS = 128  # at a time, of one source in one process

# Columns over examples (E), runs of flags (R) and media, called images (I); E1 are offsets, one more than examples.
COLUMNS = {
    "tokens_E": np.int32,
    "labels_E": np.uint64,
    "runs_E1": np.int64,
    "run_start_R": np.int32,
    "run_flags_R": np.uint8,
    "images_E1": np.int64,
    "image_at_I": np.int32,
    "image_height_I": np.int32,
    "image_width_I": np.int32,
    "image_kind_I": np.int32,
}


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
        and batch.ANSWER.
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
    """

    def __init__(self, folder: str | Path, cache: Path | None = None):
        """Opens a folder.

        Args:
          folder: a local path, or a URL.
          cache: where copies of what lies at a URL are kept.

        Raises:
          UserError: if it is not whole: a file is missing, or a shard's count of records is not what meta.json says. Of
            a folder at a URL a shard is counted when it has been copied.
        """
        self.url = str(folder) if files.is_remote(str(folder)) else ""
        try:
            if self.url:
                self.meta = remote.read_json(files.join(self.url, META))
            else:
                self.meta = json.loads((Path(folder) / META).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} holds no prepared data (no readable meta.json): prepare it again") from error
        if self.meta.get("format") != FORMAT:
            raise UserError(
                f"{folder} has format {self.meta.get('format')}, this version reads {FORMAT}: prepare it again"
            )
        self.folder = Path(folder)
        if self.url:
            self.folder = remote.mirror_folder(self.url, self.meta, cache or remote.default_cache())
            for name in [f"{column}.npy" for column in COLUMNS] + ["skipped.jsonl", "report.json"]:
                remote.fetch(files.join(self.url, name), self.folder / name)
        self._open()
        self._check()

    def read(self, example: int) -> Record:
        shard = int(np.searchsorted(self._ends, example, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        (packed,) = self._reader(shard).read([int(example) - first])
        return unpack_record(packed)

    def _open(self) -> None:
        for name in COLUMNS:
            if name not in self.__dict__:
                path = self.folder / f"{name}.npy"
                try:
                    setattr(self, name, np.load(path, mmap_mode="r"))
                except (OSError, ValueError) as error:
                    raise UserError(f"{path} is missing or broken: {self._remedy()}") from error
        self._ends = np.cumsum([shard["records"] for shard in self.meta["shards"]])
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def _check(self) -> None:
        if not self.url:
            for shard in self.meta["shards"]:
                self._check_shard(shard)
        sizes = (len(self), len(self.image_at_I), len(self.run_flags_R))
        expected = (self.meta["examples"], int(self.images_E1[-1]), int(self.runs_E1[-1]))
        if sizes != expected or sizes[0] != int(self._ends[-1]):
            raise UserError(f"{self.folder}: columns and shards disagree: {self._remedy()}")

    def _check_shard(self, shard: dict[str, Any]) -> None:
        path = self.folder / shard["file"]
        count = count_records(path)
        if count != shard["records"]:
            raise UserError(f"{path} holds {count} of its {shard['records']} records: {self._remedy()}")

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
        closed = ("_readers", "_lock", "_ends")
        return {k: v for k, v in self.__dict__.items() if k not in closed and not isinstance(v, np.memmap)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


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


def open_prepared(path: str, names: Sequence[str], cache: Path) -> list[Prepared]:
    """Opens the sources in a folder that ``holds_prepared``: all of them, or those named, in that order.

    Raises:
      UserError: if one is not there or not whole, or two have one name.
    """
    if files.is_file(files.join(path, META)):
        return [Prepared(path, cache)]
    folders: dict[str, str] = {}
    for meta in files.matched(files.join(path, f"*/{META}")):
        with files.open_binary(meta) as file:
            name = str(json.load(file)["name"])
        folder = meta.removesuffix(f"/{META}")
        if name in folders and (not names or name in names):
            raise UserError(f"{path} holds '{name}' twice, as {folders[name]} and {folder}: delete one of them")
        folders[name] = folder
    for name in names:
        if name not in folders:
            raise UserError(f"{path} has no source '{name}': it has {', '.join(folders)}{nearest(name, folders)}")
    return [Prepared(folders[name], cache) for name in names or folders]


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
        raise UserError(f"{where}: the image {path} cannot be used: {error.reason}") from error


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
