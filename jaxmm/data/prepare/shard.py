"""Makes one shard of a prepared source from units of the raw one; any process, on any machine, may do it.

What is written depends only on the units and the template. The shard's part of the index lies beside the data until all
shards are there (``prepare``). A shard is finished when that part has its final name.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from array_record.python import array_record_module

from jaxmm.atomic import published
from jaxmm.data import files
from jaxmm.data.documents import SKIP_REASONS, Document, Media, Skip, Source, Text, Unit, split_origin
from jaxmm.data.media import table
from jaxmm.data.media.extents import Extent
from jaxmm.data.media.headers import DROPPED, Looked, looked_at
from jaxmm.data.prepare.disk import space_wanted
from jaxmm.data.prepare.index import COLUMNS, IMPLIED, Index, implied
from jaxmm.data.prepare.prepared import count_records
from jaxmm.data.prepare.records import Record, pack_record, stored
from jaxmm.data.readers.columns import Seen
from jaxmm.data.text import boxes, intros
from jaxmm.data.text.encoded import Encoded
from jaxmm.data.text.template import Template
from jaxmm.errors import UserError

DATA, INDEX = "data", "index"  # in an unfinished folder: what becomes the finished one, and an index file per shard
CHUNK_DOCUMENTS, CHUNK_BYTES = 1000, 8 << 20  # tokenized at once

T = TypeVar("T")
Tick = Callable[[int, int, int], None]  # documents, bytes of input read, documents skipped: since the last call


class Shard(NamedTuple):
    """The input of one shard: a unit, or several small ones that follow each other.

    Attributes:
      number: from 0; the order of shards is that of examples.
      bytes: of input, approximately.
    """

    number: int
    units: tuple[Unit, ...]
    bytes: int

    @property
    def where(self) -> str:
        """The file, or files, for messages."""
        names = list(dict.fromkeys(unit.file for unit in self.units))
        return f"{names[0] or 'the source'}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"


class Part(NamedTuple):
    """What is known of a finished shard, beside its columns.

    Attributes:
      file: of the records; '' if every document was skipped.
      digest: of its content.
      labels: names, by the bits of its own labels_E.
      skipped: (file, record, reason, detail) of each document left out, and of each image removed from its page.
      columns: as in ``columns.Seen``.
      special: how often its texts have the names of special tokens: those that stay "letters", and "tokens".
    """

    number: int
    file: str
    records: int
    bytes: int
    digest: str
    labels: tuple[str, ...]
    skipped: tuple[tuple[str, int | str, str, str], ...]
    columns: Mapping[str, Mapping[str, int]] = {}
    special: Mapping[str, Mapping[str, int]] = {}


class PrepareUnit(NamedTuple):
    """The work on one shard, as a value that pickles: ``task(shard, tick)``."""

    source: Source
    template: Template
    folder: Path

    def __call__(self, shard: Shard, tick: Tick) -> None:
        prepare_unit(self.source, shard, self.template, self.folder, tick)

    def where(self, shard: Shard) -> str:
        return shard.where


def prepare_unit(source: Source, shard: Shard, template: Template, folder: Path, tick: Tick) -> None:
    """Writes a shard and its part of the index into an unfinished folder.

    Raises:
      UserError: if a record makes no sense, or the disk is full.
    """
    index, skipped, content, seen = Index(), [], hashlib.sha256(), Seen.nothing()
    letters, symbols = collections.Counter[str](), collections.Counter[str]()
    # Paths are relative to the data's folder, so that the same data elsewhere has the same fingerprint.
    named = functools.partial(_relative, root=_root(source))
    name = f"shard-{shard.number:05d}.array_record"
    with space_wanted(folder):
        with published(folder / DATA / name) as temporary:
            # One record per group, so that any record takes one read. Images and ids hardly compress.
            writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
            try:
                for example in _examples(source, shard, template, tick, seen):
                    if isinstance(example, Skip):
                        skipped.append((*split_origin(example.origin), example.reason, example.detail))
                        continue
                    index.add(example.encoded, example.sizes, example.labels)
                    letters.update(example.encoded.letters)
                    symbols.update(example.encoded.symbols)
                    tokens = example.encoded.tokens
                    images = stored(example.images)
                    writer.write(pack_record(Record(tokens, images, example.origin)))
                    content.update(tokens.astype("<i4", copy=False).tobytes())
                    for image in images:
                        if image is not None:
                            content.update(table.medium_of(image).content(image, named))
            finally:
                writer.close()
            count, size = count_records(temporary), temporary.stat().st_size
            if count != len(index):
                raise OSError(f"{folder / DATA / name}: {count} of {len(index)} records arrived on the disk")
        columns = index.columns()
        for name_of, column in columns.items():
            if name_of in IMPLIED and (column == IMPLIED[name_of]).all():
                continue
            content.update(column.astype(column.dtype.newbyteorder("<"), copy=False).tobytes())
        content.update(json.dumps(index.labels).encode())
        if not len(index):
            (folder / DATA / name).unlink()
            name, size = "", 0
        labels = tuple(index.labels)
        special = {"letters": letters, "tokens": symbols}
        part = Part(
            shard.number, name, len(index), size, content.hexdigest(), labels, tuple(skipped), seen.as_json(), special
        )  # fmt: skip
        with published(part_path(folder, shard.number)) as temporary, open(temporary, "wb") as file:
            described = np.frombuffer(json.dumps(part._asdict()).encode(), np.uint8)
            np.savez(file, **{"part": described, **columns})  # type: ignore[arg-type]


def part_path(folder: Path, number: int) -> Path:
    return folder / INDEX / f"{number:05d}.npz"


def read_part(path: Path) -> tuple[Part, dict[str, np.ndarray]]:
    """Returns a finished shard's part of the index.

    Raises:
      UserError: if it has been damaged.
    """
    try:
        with np.load(path) as stored:
            part = Part(**json.loads(stored["part"].tobytes()))
            columns = {name: stored[name] for name in COLUMNS if name in stored}
        for name in IMPLIED:
            if name not in columns:  # a part of an older version
                columns[name] = implied(name, columns)
    except Exception as error:  # zipfile raises anything on a damaged archive
        raise UserError(f"{path} has been damaged: run the same command again, which prepares it anew") from error
    # A part from a version before details has three fields.
    skipped = tuple((*entry, "")[:4] for entry in part.skipped)
    return part._replace(labels=tuple(part.labels), skipped=skipped), columns


class _Example(NamedTuple):
    """An encoded document, with its media and what their headers tell."""

    origin: str
    labels: tuple[str, ...]
    encoded: Any
    images: list[Media]
    sizes: list[Extent]


def _examples(source: Source, shard: Shard, template: Template, tick: Tick, seen: Seen) -> Iterator[_Example | Skip]:
    """Yields a shard's documents, encoded chunk by chunk, and a Skip for each bad one; ``seen`` counts columns."""
    # While one chunk is written, the next is tokenized, which needs no interpreter, and the one after that is read.
    for whole, results, size in _ahead(_encoded(_ahead(_read(source, shard, seen)), template, source.skip_errors)):
        encoded = iter(results)
        bad = 0
        for entry in whole:
            if isinstance(entry, Skip):
                assert entry.reason in SKIP_REASONS + table.reasons(), entry
                bad += entry.detail != DROPPED
                yield entry
                continue
            document, images, sizes = entry
            tokens = next(encoded)
            if len(tokens.tokens):
                yield _Example(document.origin, document.labels, tokens, images, sizes)
            else:
                bad += 1
                yield Skip(document.origin, "empty")
        tick(len(whole), size, bad)


def _read(source: Source, shard: Shard, seen: Seen) -> Iterator[tuple[list[Looked | Skip], int]]:
    """Yields chunks of documents with the sizes of their images, and how many bytes each chunk holds."""
    for unit in shard.units:
        for chunk, size in _chunks(_counted(source.read(unit), seen)):
            looked = looked_at(chunk, source.drop_image)
            depends = source.boxes or source.image
            yield [_of_sizes(entry, source) for entry in looked] if depends else looked, size


def _of_sizes(entry: Looked | Skip, source: Source) -> Looked | Skip:
    """Returns the document with what depends on the sizes of its pictures: boxes in its texts, and text before them.

    Raises:
      UserError: for a box that makes no sense, unless such documents are skipped.
    """
    if isinstance(entry, Skip):
        return entry
    document, pictures, extents = entry
    in_pixels = source.boxes == boxes.PIXELS
    sizes = [table.medium_of_kind(one.kind).pixels(one, in_pixels) for one in extents]
    try:
        document = boxes.written(document, sizes, source.boxes, source.image)
        return intros.written(document, extents, source.image), pictures, extents
    except UserError as error:
        if not source.skip_errors:
            raise
        return Skip(document.origin, "no sense", str(error).removeprefix(document.origin).lstrip(": "))


def _counted(documents: Iterator[Document | Skip], seen: Seen) -> Iterator[Document | Skip]:
    """Yields what a pass yields, then adds the columns that the pass returns to ``seen``."""
    while True:
        try:
            yield next(documents)
        except StopIteration as end:
            if end.value is not None:
                seen.add(end.value.as_json())
            return


def _encoded(
    chunks: Generator[tuple[list[Looked | Skip], int], None, None], template: Template, skip_errors: bool
) -> Iterator[tuple[list[Looked | Skip], list[Encoded], int]]:
    """Yields chunks with the tokens of the documents in them."""
    with contextlib.closing(chunks):  # an error keeps this frame, and with it their thread, until garbage is collected
        for whole, size in chunks:
            try:
                encoded = template.encode_all([entry[0] for entry in whole if not isinstance(entry, Skip)])
            except UserError:
                whole, encoded = _one_by_one(whole, template, skip_errors)
            yield whole, encoded, size


def _one_by_one(
    whole: Sequence[Looked | Skip], template: Template, skip_errors: bool
) -> tuple[list[Looked | Skip], list[Encoded]]:
    """Encodes the documents of a chunk one by one, as one of them cannot be encoded; that one becomes a Skip.

    Raises:
      UserError: that names the document, unless ``skip_errors``.
    """
    kept: list[Looked | Skip] = []
    encoded: list[Encoded] = []
    for entry in whole:
        if not isinstance(entry, Skip):
            origin = entry[0].origin
            try:
                encoded.append(template.encode(entry[0]))
            except UserError as error:
                trouble = str(error).removeprefix(origin).lstrip(": ")
                if not skip_errors:
                    raise UserError(f"{origin}: {trouble}") from error
                entry = Skip(origin, "no sense", trouble)
        kept.append(entry)
    return kept, encoded


def _ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """Yields the items; a thread makes each while the one before it is in use."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        coming: Future[Any] = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item


def _chunks(documents: Iterable[Document | Skip]) -> Iterator[tuple[list[Document | Skip], int]]:
    """Yields chunks of documents, and how many bytes each holds."""
    chunk: list[Document | Skip] = []
    size = 0
    for document in documents:
        chunk.append(document)
        if isinstance(document, Document):
            for turn in document.turns:
                for part in turn.parts:
                    size += len(part.text) if isinstance(part, Text) else table.medium_of(part).size(part)
        if len(chunk) >= CHUNK_DOCUMENTS or size >= CHUNK_BYTES:
            yield chunk, size
            chunk, size = [], 0
    if chunk:
        yield chunk, size


def _root(source: Source) -> str:
    first = source.files[0] if source.files else ""
    return first.rpartition("/")[0] if files.is_remote(first) else os.path.dirname(first)


def _relative(path: str, root: str) -> str:
    """An image's path or URL relative to the data's folder; if only one of the two is a URL, it stays as it is."""
    if files.is_remote(path) or files.is_remote(root):
        return path.removeprefix(f"{root}/")
    return os.path.relpath(path, root)
