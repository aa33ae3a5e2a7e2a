"""Recognises the format of records that nothing describes, or whose columns ``config.data.columns`` names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxmm.data.documents import Document
from jaxmm.data.readers import alpaca, conversations, interleaved
from jaxmm.data.readers.columns import FEATURES, KNOWN, NAMES, NONE, TOKENS, looks, plain
from jaxmm.data.readers.containers import Format
from jaxmm.data.readers.parts import SkipRecord, listed
from jaxmm.data.readers.pictures import Pictures
from jaxmm.errors import UserError, nearest

HEAD = 100  # records that are searched for one that tells the format
# Names that questions and answers often have, used only for advice.
QUESTIONS = ("question", "query", "prompt", "problem", "user", "instruction", "input", "q")
ANSWERS = ("answer", "response", "completion", "output", "solution", "target", "assistant", "answers", "label", "a")
TEXTS = ("text", "caption", "captions", "content", "prompt", "description", "body")

# The formats, each asked in turn whether a record is its own. A new one is a file beside this one, and an entry here.
FORMATS = (conversations, interleaved, alpaca)


@dataclass(frozen=True)
class Recognised:
    """The format of the first record that told it; a record without its main column may have another format.

    Attributes:
      first: that format.
      columns: those of ``Reading.named``, as pairs.
    """

    first: Format
    columns: tuple[tuple[str, str], ...] = ()

    @property
    def version(self) -> int:
        return self.first.version

    @property
    def main(self) -> str:
        return self.first.main

    @property
    def images(self) -> tuple[str, ...]:
        return self.first.images

    def reads(self, keys: tuple[str, ...]) -> frozenset[str]:
        return self.first.reads(keys)

    def of(self, record: Mapping[str, Any]) -> Format:
        if self.first.main in record:
            return self.first
        return _recognised(record, dict(self.columns)) or self.first

    def __call__(self, origin: str, record: Mapping[str, Any], pictures: Pictures) -> Document:
        return self.of(record)(origin, record, pictures)


def recognise(head: Iterator[tuple[str, Any]], columns: Mapping[str, str], file: str) -> Format | None:
    """Returns the format of records: that of the first record with a known one. None if there are no records.

    Raises:
      UserError: if no record has a known format, or none has a column that is named.
    """
    origin, unknown, seen = "", {}, dict[str, None]()
    for (where, record), _ in zip(head, range(HEAD), strict=False):
        if isinstance(record, SkipRecord):
            continue
        if not origin:
            origin, unknown = where, record
        seen |= dict.fromkeys(record)
        if all(name in seen for name in columns.values() if name):
            form = _recognised(record, columns)
            if form is not None:
                return Recognised(form, tuple(sorted(columns.items())))
    missing = [name for name in columns.values() if name and name not in seen]
    if missing and seen:
        raise UserError(
            f"config.data.columns: no record at the start of {file} has '{missing[0]}'{nearest(missing[0], seen)}; "
            f"they have {listed(seen)}"
        )
    if not origin:
        return None
    raise UserError(f"{origin}: no format known has the keys {listed(unknown)}: {_advice(unknown)}")


def _recognised(record: Mapping[str, Any], columns: Mapping[str, str]) -> Format | None:
    form = _of_columns(record, columns) if {"messages", "text", "prompt"} & columns.keys() else _of_names(record)
    if form is None:
        return None
    given: dict[str, Any] = {"images": _images(columns)} if "image" in columns else {}
    given.update({name: columns[name] for name in ("system", "tools", "history") if name in columns})
    known = {field.name for field in dataclasses.fields(form)}  # type: ignore[arg-type]
    return dataclasses.replace(form, **{k: v for k, v in given.items() if k in known})  # type: ignore[type-var,no-any-return]


def _of_names(record: Mapping[str, Any]) -> Format | None:
    return next(filter(None, (file.recognise(record) for file in FORMATS)), None)


def _of_columns(record: Mapping[str, Any], columns: Mapping[str, str]) -> Format | None:
    images = (KNOWN, FEATURES, TOKENS)
    if "messages" in columns:
        return conversations.of_messages(record, columns["messages"])
    if "text" in columns:
        return alpaca.Plain((columns["text"],), images)
    prompt, response = columns["prompt"], columns.get("response", "")
    if isinstance(record.get(prompt), list) and response:
        return conversations.Exchange(prompt, response, images=images)
    if not response:
        return alpaca.Plain(tuple(filter(None, (prompt, columns.get("query")))), images)
    return alpaca.Alpaca(prompt, columns.get("query", ""), response, images=images)


def _images(columns: Mapping[str, str]) -> tuple[str, ...]:
    # A user who says where pictures are also says that they are nowhere else.
    return (NONE, *filter(None, (columns["image"],)), FEATURES, TOKENS)


def _advice(record: Mapping[str, Any]) -> str:
    """What to do about a record without a format: the columns to name, where they can be guessed."""
    by_name = {plain(key): key for key in record}
    question = next((by_name[name] for name in QUESTIONS if name in by_name), "")
    answer = next((by_name[name] for name in ANSWERS if name in by_name and by_name[name] != question), "")
    text = next((by_name[name] for name in TEXTS if name in by_name), "")
    named = ""
    if question and answer:
        named = f"prompt={question},response={answer}"
    elif text:
        named = f"text={text}"
    if len(record) < 4 or all(isinstance(value, Mapping) for value in record.values()):
        inside = [key for key, value in record.items() if isinstance(value, list | Mapping) and value]
        if inside and len(inside) == len(record):
            return "it is one object that holds others: give its list of records, as an array or a record a line"
    named = named or "prompt=QUESTION,response=ANSWER"
    picture = next((key for key, value in record.items() if looks(value) and plain(key) not in NAMES), "")
    named = f"image={picture},{named}" if picture else named
    return (
        f"give messages, conversations, or text, or name the columns, as config.data.columns={named}, "
        f"or describe the file in a dataset_info.json"
    )
