"""Prepared sources on disk: token ids and encoded images in shards, and a columnar index that plans are made from.

Preparing reads a source once, tokenizes it, and looks at each image's header; no pixel is decoded, and nothing depends
on a vision tower. A prepared source is a folder:

    meta.json                   name, content fingerprint, counts, names of labels, shards with their record counts
    tokens_E.npy, ...           the columns of ``Prepared``
    shard-00000.array_record    one msgpack record an example: tokens, images (bytes or path), origin
    skipped.jsonl               {"file", "record", "reason"} of each document left out
"""

from __future__ import annotations

import abc
import array
import collections
import hashlib
import json
import os
import re
import secrets
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
from array_record.python import array_record_module

from jaxmm.data import media
from jaxmm.data.documents import Document, Image, Skip, Source, split_origin
from jaxmm.data.text import Encoded, Template
from jaxmm.errors import UserError

FORMAT = 1  # raise it with any change to what is written
MAX_SKIPPED = 0.05  # of a source's documents
SHARD_BYTES, SHARD_RECORDS = 64 << 20, 10_000
OPEN_SHARDS = 128  # at a time, of one source in one process

# Columns over examples (E), runs of flags (R) and images (I); E1 are offsets, one more than examples.
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
}


class Record(NamedTuple):
    """One example's content. ``tokens`` is int32 (tokens_E[example],)."""

    tokens: np.ndarray
    images: list[Image]
    origin: str


def prepare(source: Source, template: Template, cache: Path) -> Path:
    """Returns the folder of the prepared source, which is written unless the cache has it.

    The cache knows a source by its files (path, size, time), how they are read, and the template. Images named by path
    are not looked at again: after mending some, touch the data file to have their documents in. Several processes may
    prepare one source at once; the first to finish wins, and a killed one leaves only a folder with a leading dot.

    Raises:
      UserError: if a record makes no sense, nothing is left, or more than MAX_SKIPPED of the documents are skipped.
    """
    cache = Path(cache)
    name = re.sub(r"[^\w.-]", "_", source.name)
    folder = cache / f"{name}-{_key(source, template)[:16]}"
    if (folder / "meta.json").is_file():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = cache / f".{folder.name}-{secrets.token_hex(4)}"
    unfinished.mkdir()
    try:
        _write(source, template, unfinished)
        try:
            unfinished.rename(folder)
        except OSError as error:
            if not (folder / "meta.json").is_file():
                raise UserError(f"{folder} is in the way and not whole: delete it ({error})") from error
            # else another process was faster
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _key(source: Source, template: Template) -> str:
    files = []
    for path in source.files:
        status = os.stat(path)
        files.append((os.path.abspath(path), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(
        json.dumps([FORMAT, source.name, files, source.entry, template.fingerprint]).encode()
    ).hexdigest()


def _write(source: Source, template: Template, folder: Path) -> None:
    index, shards = _Index(), _Shards(folder)
    root = os.path.dirname(source.files[0]) if source.files else ""
    content = hashlib.sha256()
    reasons: collections.Counter[str] = collections.Counter()
    first_skipped = ""
    with open(folder / "skipped.jsonl", "w", encoding="utf-8") as skipped:
        for document in source.documents():
            found = document if isinstance(document, Skip) else _example(document, template)
            if isinstance(found, Skip):
                reasons[found.reason] += 1
                first_skipped = first_skipped or f"{found.origin} ({found.reason})"
                file, record = split_origin(found.origin)
                skipped.write(json.dumps({"file": file, "record": record, "reason": found.reason}) + "\n")
                continue
            index.add(found.encoded, found.sizes, found.labels)
            tokens = found.encoded.tokens.astype("<i4").tobytes()
            shards.write(msgpack.packb({"tokens": tokens, "images": _packed(found.images), "origin": found.origin}))
            content.update(tokens)
            for image in found.images:
                # A path counts from the data's folder on: the same data elsewhere has the same fingerprint.
                content.update(os.path.relpath(image.path, root).encode() if image.path else image.data)
    shards.close()

    examples, total = len(index), len(index) + reasons.total()
    if reasons.total() > MAX_SKIPPED * total:
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise UserError(
            f"data source '{source.name}': {reasons.total()} of {total} documents cannot be used ({counts}), more than "
            f"{MAX_SKIPPED:.0%}; the first is {first_skipped}: mend the files"
        )
    if not examples:
        raise UserError(f"data source '{source.name}' has no documents")
    columns = index.columns()
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column)
        content.update(column.astype(column.dtype.newbyteorder("<")).tobytes())
    content.update(json.dumps(index.labels).encode())
    meta = {
        "format": FORMAT,
        "name": source.name,
        "fingerprint": content.hexdigest(),
        "template": template.fingerprint,
        "examples": examples,
        "tokens": int(columns["tokens_E"].sum(dtype=np.int64)),
        "images": len(columns["image_at_I"]),
        "labels": index.labels,
        "shards": shards.written,
        "skipped": reasons.total(),
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


class _Example(NamedTuple):
    """A document, encoded, with the (height, width) of its images."""

    origin: str
    labels: tuple[str, ...]
    encoded: Encoded
    images: list[Image]
    sizes: list[tuple[int, int]]


def _example(document: Document, template: Template) -> _Example | Skip:
    images = [part for turn in document.turns for part in turn.parts if isinstance(part, Image)]
    try:
        sizes = [media.image_size(image) for image in images]
    except media.BadMedia as error:
        return Skip(document.origin, error.reason)
    encoded = template.encode(document)
    if not len(encoded.tokens):
        return Skip(document.origin, "empty")
    return _Example(document.origin, document.labels, encoded, images, sizes)


def _packed(images: Sequence[Image]) -> list[dict[str, Any]]:
    return [{"path": image.path} if image.path else {"data": image.data} for image in images]


class _Index:
    """The columns, growing."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self._parts: dict[str, array.array] = {n: array.array(np.dtype(t).char) for n, t in COLUMNS.items()}
        self._parts["runs_E1"].append(0)
        self._parts["images_E1"].append(0)

    def __len__(self) -> int:
        return len(self._parts["tokens_E"])

    def add(self, encoded: Encoded, sizes: Sequence[tuple[int, int]], labels: Sequence[str]) -> None:
        parts = self._parts
        parts["tokens_E"].append(len(encoded.tokens))
        parts["labels_E"].append(self._mask(labels))
        parts["run_start_R"].extend(encoded.run_starts.tolist())
        parts["run_flags_R"].extend(encoded.run_flags.tolist())
        parts["runs_E1"].append(len(parts["run_start_R"]))
        parts["image_at_I"].extend(encoded.image_at.tolist())
        parts["image_height_I"].extend(height for height, _ in sizes)
        parts["image_width_I"].extend(width for _, width in sizes)
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


class _Shards:
    """Writes records to numbered files, each closed at a number of bytes or records."""

    def __init__(self, folder: Path):
        self.written: list[dict[str, Any]] = []
        self._folder = folder
        self._writer: Any = None
        self._bytes = 0

    def write(self, record: bytes) -> None:
        if self._writer is None:
            file = f"shard-{len(self.written):05d}.array_record"
            # One record a group: any record is one read. Images and ids hardly compress.
            self._writer = array_record_module.ArrayRecordWriter(str(self._folder / file), "group_size:1,uncompressed")
            self.written.append({"file": file, "records": 0})
            self._bytes = 0
        self._writer.write(record)
        self.written[-1]["records"] += 1
        self._bytes += len(record)
        if self._bytes >= SHARD_BYTES or self.written[-1]["records"] >= SHARD_RECORDS:
            self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Columns(abc.ABC):
    """The index of a prepared source, of E examples with R runs of flags and I images.

    Attributes:
      meta: what meta.json holds.
      tokens_E: int32, text tokens of each example, without soft tokens.
      labels_E: uint64, bit k for the k-th of meta["labels"].
      runs_E1: int64 (E + 1,): example e has the runs runs_E1[e] to runs_E1[e + 1] of run_start_R and run_flags_R.
      run_start_R: int32, where in its example a run of tokens with equal flags starts; run_flags_R: uint8, batch.TARGET
        and batch.ANSWER.
      images_E1: int64 (E + 1,): offsets, in the same way, into image_at_I, image_height_I and image_width_I.
      image_at_I: int32, before which token of its example the image's soft tokens stand.
      image_height_I, image_width_I: int32, in pixels, EXIF orientation applied.
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

    def __len__(self) -> int:
        return len(self.tokens_E)

    @abc.abstractmethod
    def read(self, example: int) -> Record:
        """Returns the content of an example; any thread may call it."""


class Prepared(Columns):
    """A prepared folder: its columns mapped from disk, its records read at random.

    It pickles small: a loader's worker processes open the files anew.
    """

    def __init__(self, folder: str | Path):
        """Opens a folder.

        Raises:
          UserError: if it is not whole: a file is missing, or a shard's count of records is not what meta.json says.
        """
        self.folder = Path(folder)
        try:
            self.meta = json.loads((self.folder / "meta.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.folder} holds no prepared data (no readable meta.json): prepare it again"
            ) from error
        if self.meta.get("format") != FORMAT:
            raise UserError(
                f"{self.folder} has format {self.meta.get('format')}, this version reads {FORMAT}: prepare it again"
            )
        self._open()
        self._check()

    def read(self, example: int) -> Record:
        shard = int(np.searchsorted(self._ends, example, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        (packed,) = self._reader(shard).read([int(example) - first])
        content = msgpack.unpackb(packed)
        images = [Image(image.get("data", b""), image.get("path", "")) for image in content["images"]]
        return Record(np.frombuffer(content["tokens"], "<i4"), images, content["origin"])

    def _open(self) -> None:
        for name in COLUMNS:
            if name not in self.__dict__:
                path = self.folder / f"{name}.npy"
                try:
                    setattr(self, name, np.load(path, mmap_mode="r"))
                except (OSError, ValueError) as error:
                    raise UserError(
                        f"{path} is missing or broken: delete {self.folder} and prepare it again"
                    ) from error
        self._ends = np.cumsum([shard["records"] for shard in self.meta["shards"]])
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def _check(self) -> None:
        for shard in self.meta["shards"]:
            path = self.folder / shard["file"]
            # A reader on a missing file reads 0 records and says nothing; on a cut one it raises what it likes.
            try:
                count = _open_shard(path).num_records() if path.is_file() else 0
            except Exception:
                count = 0
            if count != shard["records"]:
                raise UserError(
                    f"{path} holds {count} of its {shard['records']} records: delete {self.folder} and prepare it again"
                )
        sizes = (len(self), len(self.image_at_I), len(self.run_flags_R))
        expected = (self.meta["examples"], int(self.images_E1[-1]), int(self.runs_E1[-1]))
        if sizes != expected or sizes[0] != int(self._ends[-1]):
            raise UserError(f"{self.folder}: columns and shards disagree: delete it and prepare it again")

    def _reader(self, shard: int) -> Any:
        # Reading at given indices is thread-safe in ArrayRecord, so that one reader serves all threads.
        with self._lock:
            if shard not in self._readers:
                if len(self._readers) >= OPEN_SHARDS:
                    del self._readers[next(iter(self._readers))]  # closes when the last thread is done with it
                self._readers[shard] = _open_shard(self.folder / self.meta["shards"][shard]["file"])
            return self._readers[shard]

    def __getstate__(self) -> dict[str, Any]:
        closed = ("_readers", "_lock", "_ends")
        return {k: v for k, v in self.__dict__.items() if k not in closed and not isinstance(v, np.memmap)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def _open_shard(path: Path) -> Any:
    return array_record_module.ArrayRecordReader(
        str(path), options="readahead_buffer_size:0,max_parallelism:0", file_reader_buffer_size=32768
    )


class InMemory(Columns):
    """Encoded documents that were never written: prompts, mostly."""

    def __init__(self, name: str, encoded: Sequence[Encoded], images: Sequence[Sequence[Image]], template: str):
        """
        Args:
          images: of each document, in order.
          template: the fingerprint of the template that encoded them.

        Raises:
          UserError: if the header of an image cannot be read.
        """
        index = _Index()
        for i, (one, pictures) in enumerate(zip(encoded, images, strict=True)):
            if len(one.image_at) != len(pictures):
                raise ValueError(f"{name}, record {i}: {len(pictures)} images for {len(one.image_at)} places")
            index.add(one, [_size_or_error(f"{name}, record {i}", picture) for picture in pictures], ())
        self.__dict__.update(index.columns())
        self.meta = {"format": FORMAT, "name": name, "template": template, "examples": len(index), "labels": []}
        self._records = [
            Record(one.tokens, list(pictures), f"{name}, record {i}")
            for i, (one, pictures) in enumerate(zip(encoded, images, strict=True))
        ]

    def read(self, example: int) -> Record:
        return self._records[example]


def _size_or_error(where: str, image: Image) -> tuple[int, int]:
    try:
        return media.image_size(image)
    except media.BadMedia as error:
        raise UserError(f"{where}: the image {image.path} cannot be used: {error.reason}") from error
