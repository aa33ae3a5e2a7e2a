"""The vectors of a source as files, and its documents as records that name them."""

from __future__ import annotations

import collections
import dataclasses
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from jaxmm.atomic import published
from jaxmm.data import files
from jaxmm.data.documents import (
    READY_MADE,
    Audio,
    AudioFeatures,
    Document,
    Part,
    Skip,
    Source,
    Text,
    Tokens,
    Turn,
    Video,
    VideoFeatures,
    split_origin,
)
from jaxmm.data.media.medium import BadMedia, Item
from jaxmm.data.media.opening import opened_file
from jaxmm.data.media.table import medium_of
from jaxmm.data.prepare.progress import Progress

CHUNK_DOCUMENTS = 256  # whose media are encoded together
FILES_A_FOLDER = 10_000

Encode = Callable[[Iterable[Item]], Iterator[np.ndarray | BadMedia]]  # as an Encoder's call
Take = Callable[[Sequence[Document]], list[list[Item] | str]]  # as a Taker's
Rate = Callable[[Item], float]  # frames of a video's vectors a second


@dataclasses.dataclass
class Counts:
    """What became of a source's documents and, by the plural of its kind, of its media."""

    documents: int = 0
    skipped: int = 0
    encoded: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    kept: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # of an earlier run

    def add(self, other: Counts) -> None:
        self.documents += other.documents
        self.skipped += other.skipped
        self.encoded.update(other.encoded)
        self.kept.update(other.kept)


class Medium(NamedTuple):
    """A medium of a document, the file of its vectors, and how a run takes it, where that was asked.

    Attributes:
      is_kept: whether the file is there already, and need not be written.
    """

    part: Any
    path: Path
    is_kept: bool
    item: Item | None = None


class Writer:
    """Writes the vectors and records of one source into the output folder."""

    def __init__(self, name: str, output: Path, take: Take, encode: Encode, rate: Rate, dtype: str):
        self.name, self.output, self.take, self.encode, self.rate, self.dtype = name, output, take, encode, rate, dtype
        self.file_name = files.bare(name)

    def write(self, source: Source, progress: Progress) -> Counts:
        """Writes all of a source; the files of records appear when they are whole."""
        counts = Counts()
        records = self.output / f"{self.file_name}.jsonl"
        skipped = self.output / f"{self.file_name}.skipped.jsonl"
        with (
            published(records) as unfinished,
            published(skipped) as unfinished_skipped,
            open(unfinished, "w", encoding="utf-8") as record_file,
            open(unfinished_skipped, "w", encoding="utf-8") as skipped_file,
        ):
            documents = enumerate(source.documents())
            while chunk := list(itertools.islice(documents, CHUNK_DOCUMENTS)):
                more = self._write_chunk(chunk, record_file, skipped_file)
                counts.add(more)
                progress.tick(more.documents + more.skipped, 0, more.skipped)
        return counts

    def _write_chunk(
        self, chunk: Sequence[tuple[int, Document | Skip]], record_file: IO[str], skipped_file: IO[str]
    ) -> Counts:
        counts = Counts()
        looked = self._looked(chunk)
        media = [one for of_one in looked if not isinstance(of_one, str) for one in of_one]
        missing = [one for one in media if not one.is_kept]
        counts.kept.update(_plural(one) for one in media)
        counts.kept.subtract(_plural(one) for one in missing)
        bad = self._encode(missing)
        counts.encoded.update(_plural(one) for one in missing if one.path not in bad)
        for (_, document), of_one in zip(chunk, looked, strict=True):
            if isinstance(of_one, str):
                reason = of_one
            else:
                reason = next((bad[one.path] for one in of_one if one.path in bad), "")
            if reason or isinstance(document, Skip):
                file, record = split_origin(document.origin)
                line = {"file": file, "record": record, "reason": reason}
                skipped_file.write(json.dumps(line) + "\n")
                counts.skipped += 1
                continue
            assert not isinstance(of_one, str)
            record_file.write(json.dumps(self._record(document, of_one), ensure_ascii=False) + "\n")
            counts.documents += 1
        return counts

    def _looked(self, chunk: Sequence[tuple[int, Document | Skip]]) -> list[list[Medium] | str]:
        """The media of each document that files are written for, or why it is left out.

        A document is asked about unless all its files are there and its record says no more than their names.
        """
        of_each: list[list[Medium] | str] = []
        asked: list[int] = []
        for k, (number, document) in enumerate(chunk):
            if isinstance(document, Skip):
                of_each.append(document.reason)
                continue
            parts = [(part, self._path(number, n)) for n, part in enumerate(media_of(document))]
            media = [Medium(part, path, path.exists()) for part, path in parts]
            of_each.append(media)
            if any(isinstance(one.part, Video) or not one.is_kept for one in media):
                asked.append(k)
        documents = [document for _, document in (chunk[k] for k in asked) if not isinstance(document, Skip)]
        for k, taken in zip(asked, self.take(documents) if documents else (), strict=True):
            before = of_each[k]
            if isinstance(taken, str) or isinstance(before, str):
                of_each[k] = taken if isinstance(taken, str) else before
                continue
            items = (item for item in taken if not isinstance(item.part, Tokens))
            of_each[k] = [_taken(one, item) for one, item in zip(before, items, strict=True)]
        return of_each

    def _encode(self, missing: Sequence[Medium]) -> dict[Path, str]:
        """Writes files that are not there yet, or do not fit; returns why some cannot be."""
        bad: dict[Path, str] = {}
        by_stream: dict[str, dict[Path, Item]] = collections.defaultdict(dict)
        for one in missing:
            if type(one.part) not in READY_MADE:
                assert one.item is not None, "what has no file yet has been asked about"
                by_stream[medium_of(one.part).stream][one.path] = one.item
                continue
            try:  # somebody encoded it before; it goes along
                with opened_file(one.part) as opened:
                    data = opened.read()
            except (BadMedia, OSError) as error:
                bad[one.path] = error.reason if isinstance(error, BadMedia) else "missing"
                continue
            self._save(one.path, data)
        for items in by_stream.values():
            for path, vectors in zip(items, self.encode(items.values()), strict=True):
                if isinstance(vectors, BadMedia):
                    bad[path] = vectors.reason
                    continue
                file = io.BytesIO()
                np.save(file, vectors.astype(self.dtype))
                self._save(path, file.getvalue())
        return bad

    def _save(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with published(path) as temporary:
            temporary.write_bytes(data)

    def _path(self, number: int, k: int) -> Path:
        """Of medium ``k`` of a document."""
        return self.output / self.file_name / f"{number // FILES_A_FOLDER:04d}" / f"{number:08d}-{k}.npy"

    def _record(self, document: Document, media: Sequence[Medium]) -> dict[str, Any]:
        """A document as messages of typed parts."""
        left = iter(media)

        def typed(part: Part) -> dict[str, Any]:
            if isinstance(part, Text):
                return {"type": "text", "text": part.text}
            if isinstance(part, Tokens):
                return {"type": "image_tokens", "ids": list(part.ids)}
            return self._typed(next(left))

        record = {"messages": [_message(turn, [typed(part) for part in turn.parts]) for turn in document.turns]}
        return record | ({"tools": json.loads(document.tools)} if document.tools else {})

    def _typed(self, one: Medium) -> dict[str, Any]:
        """A medium as a part that names its file."""
        path = one.path.relative_to(self.output).as_posix()
        if isinstance(one.part, Audio | AudioFeatures):
            return {"type": "audio", "path": path}
        if isinstance(one.part, Video):
            assert one.item is not None, "videos have been asked about"
            return {"type": "video", "path": path, "fps": self.rate(one.item)}
        if isinstance(one.part, VideoFeatures):
            return {"type": "video", "path": path} | ({"fps": one.part.fps} if one.part.fps else {})
        return {"type": "features", "path": path}


def _message(turn: Turn, content: list[dict[str, Any]]) -> dict[str, Any]:
    """A turn as it is read again, with what it weighs and what it thinks and calls."""
    message: dict[str, Any] = {"role": turn.role, "content": content}
    is_learnt = turn.role in ("document", "assistant")
    if turn.weight != 1 or (is_learnt and not turn.target):
        message["weight"] = turn.weight if turn.target else 0.0
    if turn.target and not is_learnt:
        message["train"] = True
    if turn.thinking:
        message["reasoning_content"] = turn.thinking
    if turn.calls:
        message["tool_calls"] = json.loads(turn.calls)
    return message


def media_of(document: Document) -> Iterator[Any]:
    """The media of a document that files are written for."""
    for turn in document.turns:
        yield from (part for part in turn.parts if not isinstance(part, Text | Tokens))


def _taken(one: Medium, item: Item) -> Medium:
    """A medium as a run takes it. A video's file with other frames is not kept: the text beside it may have changed."""
    is_kept = one.is_kept and not (isinstance(one.part, Video) and _frames(one.path) != item.needs["items"])
    return one._replace(item=item, is_kept=is_kept)


def _frames(path: Path) -> int:
    """How many frames the header of a file of a video's vectors tells; 0 if it cannot be read."""
    vectors = VideoFeatures(path=str(path))
    try:
        return medium_of(vectors).extent(vectors).length
    except BadMedia:
        return 0


def _plural(one: Medium) -> str:
    return medium_of(one.part).plural
