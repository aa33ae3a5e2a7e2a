"""Answers that are judged one by one (KTO's data): a conversation of any format, with a label beside it.

KTO compares how likely an answer is with how likely answers to other prompts are (Ethayarajh et al., 2024, section 4.1:
its estimate of a KL divergence). So each document carries the answer of the record before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from jaxmm.data.documents import Document, Skip
from jaxmm.data.readers import marks, weights
from jaxmm.data.readers.columns import is_nothing
from jaxmm.data.readers.containers import Format
from jaxmm.data.readers.finding import columns_of
from jaxmm.data.readers.kinds import AUDIO, IMAGE, VIDEO
from jaxmm.data.readers.parts import SkipRecord
from jaxmm.data.readers.pictures import Pictures
from jaxmm.data.readers.preferences import is_empty, parted, without
from jaxmm.errors import UserError

YES, NO = ("true", "1", "1.0"), ("false", "0", "0.0")
ALONE = "no other answer is in its part of the file to compare it with"


@dataclass(frozen=True)
class Judged:
    """Records that end with an answer, and a label that says whether people want it.

    Attributes:
      form: reads prompt and answer.
      label: the column of the label: true or false, as such, as text or as 1 or 0.
    """

    form: Format
    label: str

    @property
    def version(self) -> int:
        return self.form.version

    @property
    def main(self) -> str:
        return self.form.main

    @property
    def images(self) -> tuple[str, ...]:
        return columns_of(self.form, IMAGE)

    @property
    def videos(self) -> tuple[str, ...]:
        return columns_of(self.form, VIDEO)

    @property
    def audios(self) -> tuple[str, ...]:
        return columns_of(self.form, AUDIO)

    def of(self, record: Mapping[str, Any]) -> Self:
        return self

    def reads(self, keys: tuple[str, ...]) -> frozenset[str]:
        return self.form.reads(keys) | {self.label, *weights.OF_EXAMPLE}

    def __call__(self, origin: str, record: Mapping[str, Any], pictures: Pictures) -> Document:
        """Returns the document without ``other``, which ``in_cycle`` adds."""
        if self.label not in record:
            raise UserError(without(origin, record, "judged", f"'{self.label}'"))
        if pair := next((name for name in weights.PAIRS if _is_answer(record.get(name))), ""):
            raise UserError(without(origin, record, "judged", f"single answer, but '{pair}'"))
        verdict = self._verdict(origin, record[self.label])
        name = getattr(self.form, "response", "") or self.main  # of the answer
        if is_nothing(record.get(name, "")):
            raise SkipRecord("empty", f"its '{name}' is empty")
        document = self.form(origin, record, pictures)
        prompt, (answer,) = parted(origin, document, name)
        if is_empty(answer):
            raise SkipRecord("empty", "its answer is empty")
        weights.check_unweighed(origin, record, answer)
        marks.check_none(origin, record, (*prompt, answer), pictures.has_boxes)
        return document._replace(turns=(*prompt, answer), verdict=verdict)

    def _verdict(self, origin: str, label: Any) -> str:
        said = str(label).strip().lower() if isinstance(label, bool | int | float | str) else ""
        if said not in (*YES, *NO):
            raise UserError(f"{origin}: '{self.label}' must be true or false, not {label!r:.40}")
        return "wanted" if said in YES else "unwanted"


def _is_answer(value: Any) -> bool:
    return isinstance(value, str | list | Mapping) and not is_nothing(value)


def in_cycle(stream: Iterable[tuple[Document | Skip, int]]) -> Iterator[tuple[Document | Skip, int]]:
    """Gives each judged document of a unit the answer of the one before it, and the first one the answer of the last.

    The first one is held back, and comes last. If it is alone, it is skipped.

    Args:
      stream: each document with how often it comes, which counts as one here.
    """
    first: tuple[Document, int] | None = None
    before: Document | None = None
    for document, times in stream:
        if isinstance(document, Skip):
            yield document, times
            continue
        if before is None:
            first = document, times
        else:
            yield _against(document, before), times
        before = document
    if first is None or before is None:
        return
    document, times = first
    if before is document:
        yield Skip(document.origin, "no pair", ALONE), times
    else:
        yield _against(document, before), times


def _against(document: Document, before: Document) -> Document:
    return document._replace(other=(*document.turns[:-1], before.turns[-1]))
