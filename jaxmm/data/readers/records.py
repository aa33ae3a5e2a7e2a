"""Reads a unit: each record becomes a document, is skipped, or stops the run; no medium is ignored in silence."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple

from jaxmm.data.documents import Document, Skip, Text, Unit
from jaxmm.data.media.table import medium_of
from jaxmm.data.readers import columns, marks, weights
from jaxmm.data.readers.columns import Seen
from jaxmm.data.readers.containers import Container, Format, Sample, container, relative
from jaxmm.data.readers.finding import columns_of
from jaxmm.data.readers.judged import Judged, in_cycle
from jaxmm.data.readers.kinds import KINDS, Kind, of_part
from jaxmm.data.readers.parts import SkipRecord
from jaxmm.data.readers.pictures import Pictures
from jaxmm.data.readers.preferences import Compared
from jaxmm.errors import UserError

MOST_TOLD = 5  # records named in one line
LOOKED_ON = 10_000  # records read after one that makes no sense, to count how many more there are


class HeldOut(NamedTuple):
    """The part of the examples that is kept from training, chosen by a hash of each; or the other part.

    Attributes:
      part: fraction of all examples, from 0 to 1; 0 is none.
      wanted: whether the held-out part is read, and not the other.
    """

    part: float = 0.0
    wanted: bool = False

    def takes(self, document: Document | Skip, folder: str) -> bool:
        """Whether a document is read. Equal documents are in the same part, wherever they and their pictures lie.

        So are documents of preferences with one prompt, whatever their answers.
        """
        if not self.part:
            return True
        if isinstance(document, Skip):
            return not self.wanted
        content = hashlib.blake2b(digest_size=8)

        def named(path: str) -> str:
            return path.removeprefix(folder.rstrip("/") + "/")

        turns = itertools.takewhile(lambda turn: not turn.target, document.turns)  # a preference's prompt
        for turn in turns if document.verdict else document.turns:
            content.update(f"\0{turn.role}".encode())
            for part in turn.parts:
                content.update(b"\1")
                if isinstance(part, Text):
                    content.update(part.text.encode("utf-8", "surrogatepass"))
                else:
                    content.update(medium_of(part).content(part, named))
        return (int.from_bytes(content.digest(), "big") < self.part * 2**64) == self.wanted


def read(
    unit: Unit,
    folder: str,
    form: Format,
    pictures: Pictures,
    choice: Sample | None = None,
    held_out: HeldOut = HeldOut(),  # noqa: B008
    skip_errors: bool = False,
    kind: Container | None = None,
) -> Generator[Document | Skip, None, Seen]:
    """Yields a unit's documents, and a Skip for each record that yields none. Origins are relative to ``folder``.

    Returns:
      the columns that its records had, counted.

    Raises:
      UserError: if records make no sense; the message names the first of them.
    """
    watch = _Watch(form, pictures.has_boxes)
    stream: Iterator[tuple[Document | Skip, int]] = _taken(
        unit, folder, form, pictures, choice, held_out, skip_errors, kind, watch
    )
    for document, times in in_cycle(stream) if isinstance(getattr(form, "first", form), Judged) else stream:
        for _ in range(times):
            yield document
    return watch.seen()


def _taken(
    unit: Unit,
    folder: str,
    form: Format,
    pictures: Pictures,
    choice: Sample | None,
    held_out: HeldOut,
    skip_errors: bool,
    kind: Container | None,
    watch: _Watch,
) -> Iterator[tuple[Document | Skip, int]]:
    """Yields the documents of ``read``, each with how often it comes."""
    name = relative(unit.file, folder)
    trouble: UserError | None = None
    others: list[int] = []
    first = 0
    for number, record in (kind or container(unit.file)).records(unit):
        if trouble and number > first + LOOKED_ON:
            break
        times = 1 if choice is None else choice.times(unit.file, number)
        if not times:
            continue
        origin = f"{name}, record {number}"
        document: Document | Skip
        try:
            if isinstance(record, SkipRecord):
                raise record
            document = marks.with_objects(origin, record, form(origin, record, pictures), pictures.has_boxes)
            if not document.verdict:  # what is compared or judged has no weight
                document = weights.weighed(document, weights.of_example(origin, record, document))
            watch.look(origin, record, document)
        except SkipRecord as left:
            document = Skip(origin, left.reason, left.detail)
        except UserError as error:
            if not skip_errors:
                trouble, first = trouble or error, first if trouble else number
                others += [number] * (number != first)
                continue
            document = Skip(origin, "no sense", str(error).removeprefix(origin).lstrip(": "))
        if trouble or not held_out.takes(document, pictures.folder):
            continue
        yield document, times
    if trouble:
        named = ", ".join(map(str, others[:MOST_TOLD]))
        more = f" and {len(others) - MOST_TOLD} more" if len(others) > MOST_TOLD else ""
        also = f"; of the {LOOKED_ON:,} records after it, these have errors too: {named}{more}" if others else ""
        such = "such records" if others else "such a record"
        raise UserError(f"{trouble}{also}; config.data.on_error=skip leaves {such} out") from trouble


class _Watch:
    """Counts columns, by the keys that records have, and checks whether those that are not read look like media."""

    def __init__(self, form: Format, has_boxes: bool):
        self._form, self._has_boxes = form, has_boxes
        self._records: dict[tuple[str, ...], int] = {}
        self._reads: dict[tuple[str, ...], tuple[list[str], dict[Kind, tuple[str, ...]], list[str]]] = {}
        self._seen = Seen.nothing()

    def look(self, origin: str, record: Mapping[str, Any], document: Document) -> None:
        """Raises UserError for a document without a medium of a kind whose record has a column that looks like one."""
        keys = tuple(record)
        self._records[keys] = self._records.get(keys, 0) + 1
        if keys not in self._reads:
            form = self._form.of(record)
            reads = form.reads(keys) | marks.read(keys, self._has_boxes)
            if not isinstance(form, Compared | Judged):  # these name all that they read
                reads |= weights.read(keys)
            self._reads[keys] = (
                [key for key in keys if key in reads],
                {kind: columns.resolved(keys, columns_of(form, kind), kind) for kind in KINDS},
                [key for key in keys if key not in reads],
            )
        _, named, unread = self._reads[keys]
        read = {names[0] for names in named.values() if names}
        for kind, names in named.items():
            if len(names) > 1:
                own = columns_of(self._form, kind)
                full = [name for name in names if columns.counts(name, record[name], own, kind)]
                self._seen.pictures.update(name for name in full[1:] if name not in read)
        for key in unread:
            kind, how = columns.appears(key, record[key])
            if not how:
                continue
            self._seen.pictures[key] += 1
            if how != "link" and columns.NONE not in columns_of(self._form, kind) and not _has(document, kind):
                raise UserError(
                    f"{origin} has no {kind.noun}, but its '{key}' looks like one ({record[key]!r:.40}): name it with "
                    f"config.data.columns={kind.name}={key}, or in a dataset_info.json as {kind.many} of its columns; "
                    f"if it is no {kind.noun}, give an empty name ({kind.name}=)"
                )

    def seen(self) -> Seen:
        for keys, count in self._records.items():
            read, _, unread = self._reads[keys]
            self._seen.read.update(dict.fromkeys(read, count))
            self._seen.unread.update(dict.fromkeys(unread, count))
        return self._seen


def _has(document: Document, kind: Kind) -> bool:
    return any(of_part(part) is kind for turn in document.turns for part in turn.parts)
