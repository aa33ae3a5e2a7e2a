"""The vectors of a source as files, and its documents as records that name them."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from jaxmm.atomic import published
from jaxmm.data import files
from jaxmm.data.documents import (
    Audio,
    Document,
    Features,
    Image,
    Part,
    Skip,
    Source,
    Text,
    Tokens,
    Turn,
    Video,
    split_origin,
)
from jaxmm.data.media.medium import BadMedia
from jaxmm.data.media.opening import opened_file
from jaxmm.data.prepare.progress import Progress
from jaxmm.errors import UserError

CHUNK_DOCUMENTS = 256  # whose images are encoded together
FILES_A_FOLDER = 10_000

Encode = Callable[[Iterable[Image]], Iterator[np.ndarray | BadMedia]]  # as an Encoder's call


class Counts(NamedTuple):
    """What became of a source's documents and images."""

    documents: int = 0
    skipped: int = 0
    encoded: int = 0
    kept: int = 0  # images that an earlier run had encoded

    def plus(self, **more: int) -> Counts:
        return self._replace(**{name: getattr(self, name) + count for name, count in more.items()})


class Writer:
    """Writes the vectors and records of one source into the output folder."""

    def __init__(self, name: str, output: Path, encode: Encode, dtype: str):
        self.name, self.output, self.encode, self.dtype = name, output, encode, dtype
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
                counts = counts.plus(**more._asdict())
                progress.tick(more.documents + more.skipped, 0, more.skipped)
        return counts

    def _write_chunk(
        self, chunk: Sequence[tuple[int, Document | Skip]], record_file: IO[str], skipped_file: IO[str]
    ) -> Counts:
        places: dict[Path, Image | Features] = {}
        for number, document in chunk:
            for k, part in media_of(document):
                places[self._path(number, k)] = part
        bad, encoded = self._encode({path: one for path, one in places.items() if not path.exists()})
        counts = Counts(encoded=encoded, kept=len(places) - encoded - len(bad))
        for number, document in chunk:
            reason = document.reason if isinstance(document, Skip) else ""
            reason = reason or next((bad[p] for k, _ in media_of(document) if (p := self._path(number, k)) in bad), "")
            if reason or isinstance(document, Skip):
                file, record = split_origin(document.origin)
                line = {"file": file, "record": record, "reason": reason}
                skipped_file.write(json.dumps(line) + "\n")
                counts = counts.plus(skipped=1)
                continue
            record_file.write(json.dumps(self._record(number, document), ensure_ascii=False) + "\n")
            counts = counts.plus(documents=1)
        return counts

    def _encode(self, missing: Mapping[Path, Image | Features]) -> tuple[dict[Path, str], int]:
        """Writes files that are not there yet; returns why some cannot be, and how many were."""
        bad: dict[Path, str] = {}
        pictures = {path: one for path, one in missing.items() if isinstance(one, Image)}
        for path, vectors in zip(pictures, self.encode(pictures.values()), strict=True):
            if isinstance(vectors, BadMedia):
                bad[path] = vectors.reason
                continue
            file = io.BytesIO()
            np.save(file, vectors.astype(self.dtype))
            self._save(path, file.getvalue())
        for path, one in missing.items():
            if isinstance(one, Features):  # somebody encoded it before; it goes along
                try:
                    with opened_file(one) as opened:
                        data = opened.read()
                except (BadMedia, OSError) as error:
                    bad[path] = error.reason if isinstance(error, BadMedia) else "missing"
                    continue
                self._save(path, data)
        return bad, len(missing) - len(bad)

    def _save(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with published(path) as temporary:
            temporary.write_bytes(data)

    def _path(self, number: int, k: int) -> Path:
        """Of medium ``k`` of a document."""
        return self.output / self.file_name / f"{number // FILES_A_FOLDER:04d}" / f"{number:08d}-{k}.npy"

    def _record(self, number: int, document: Document) -> dict[str, Any]:
        """A document as messages of typed parts."""
        count = itertools.count()

        def typed(part: Part) -> dict[str, Any]:
            if isinstance(part, Text):
                return {"type": "text", "text": part.text}
            if isinstance(part, Tokens):
                return {"type": "image_tokens", "ids": list(part.ids)}
            path = self._path(number, next(count)).relative_to(self.output)
            return {"type": "features", "path": path.as_posix()}

        record = {"messages": [_message(turn, [typed(part) for part in turn.parts]) for turn in document.turns]}
        return record | ({"tools": json.loads(document.tools)} if document.tools else {})


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


def media_of(document: Document | Skip) -> Iterator[tuple[int, Image | Features]]:
    """The media of a document that files are written for, numbered."""
    turns = () if isinstance(document, Skip) else document.turns
    for turn in turns:
        if clip := next((part for part in turn.parts if isinstance(part, Video | Audio)), None):
            what = "a video" if isinstance(clip, Video) else "a recording"
            raise UserError(
                f"{document.origin} has {what}: ready-made features are of pictures alone; leave such sources out by "
                f"config.data.mixture"
            )
    media = [part for turn in turns for part in turn.parts if isinstance(part, Image | Features)]
    yield from enumerate(media)
