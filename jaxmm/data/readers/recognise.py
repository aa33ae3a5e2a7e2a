"""Recognises the format of records that nothing describes, or whose columns ``config.data.columns`` names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from jaxmm.data.documents import Document
from jaxmm.data.readers import alpaca, conversations, interleaved, preferences, weights
from jaxmm.data.readers.columns import FEATURES, NONE, TOKENS, appears, is_named, plain, resolved
from jaxmm.data.readers.containers import Format
from jaxmm.data.readers.finding import BY_NAME, columns_of, may_hold
from jaxmm.data.readers.judged import Judged
from jaxmm.data.readers.kinds import AUDIO, CLIPS, IMAGE, KINDS, VIDEO, Kind
from jaxmm.data.readers.parts import SkipRecord, listed
from jaxmm.data.readers.pictures import Pictures
from jaxmm.data.readers.preferences import Compared
from jaxmm.data.readers.typed import kind_of
from jaxmm.data.reading import OBJECTIVES
from jaxmm.errors import UserError, nearest

F = TypeVar("F", bound=Format)
CLIPS_FORMAT = 1  # of reading videos and recordings; raised when the same clips make other documents
HEAD = 100  # records that are searched for one that tells the format
# Names that questions and answers often have, used only for advice.
QUESTIONS = ("question", "query", "prompt", "problem", "user", "instruction", "input", "q")
ANSWERS = ("answer", "response", "completion", "output", "solution", "target", "assistant", "answers", "label", "a")
TEXTS = (
    "text", "caption", "captions", "content", "prompt", "description", "body",
    "transcription", "transcript", "sentence",
)  # fmt: skip

# The formats, each asked in turn whether a record is its own. A new one is a file beside this one, and an entry here.
FORMATS = (conversations, interleaved, alpaca)


@dataclass(frozen=True)
class Recognised:
    """The format of the first record that told it; a record without its main column may have another format.

    Attributes:
      first: that format.
      columns: those of ``Reading.named``, as pairs.
      has_clips: whether the columns or the records up to the first with a format have videos or recordings.
      kind: which preferences its records have, as ``Reading.preferences``.
    """

    first: Format
    columns: tuple[tuple[str, str], ...] = ()
    has_clips: bool = False
    kind: str = ""

    @property
    def version(self) -> int:
        return self.first.version

    @property
    def main(self) -> str:
        return self.first.main

    @property
    def images(self) -> tuple[str, ...]:
        return columns_of(self.first, IMAGE)

    @property
    def videos(self) -> tuple[str, ...]:
        return self._clips(VIDEO)

    @property
    def audios(self) -> tuple[str, ...]:
        return self._clips(AUDIO)

    def _clips(self, kind: Kind) -> tuple[str, ...]:
        """A format that reads no clips may still be told that there are none."""
        return columns_of(self.first, kind) or (NONE,) * _is_given(dict(self.columns), kind)

    def reads(self, keys: tuple[str, ...]) -> frozenset[str]:
        return self.first.reads(keys)

    def of(self, record: Mapping[str, Any]) -> Format:
        if self.first.main in record:
            return self.first
        return _recognised(record, dict(self.columns), self.kind) or self.first

    def __call__(self, origin: str, record: Mapping[str, Any], pictures: Pictures) -> Document:
        return self.of(record)(origin, record, pictures)


def recognise(head: Iterator[tuple[str, Any]], columns: Mapping[str, str], file: str, kind: str = "") -> Format | None:
    """Returns the format of records: that of the first record with a known one. None if there are no records.

    Args:
      kind: which preferences they must have, as ``Reading.preferences``.

    Raises:
      UserError: if no record has a known format, or none has a column that is named.
    """
    origin, unknown, seen = "", {}, dict[str, None]()
    has_clips = any(medium.name in columns for medium in CLIPS)
    for (where, record), _ in zip(head, range(HEAD), strict=False):
        if isinstance(record, SkipRecord):
            continue
        if not origin:
            origin, unknown = where, record
        seen |= dict.fromkeys(record)
        has_clips = has_clips or any(may_hold(record, BY_NAME[medium.many], medium) for medium in CLIPS)
        if all(name in seen for name in columns.values() if name):
            form = _recognised(record, columns, kind)
            if form is not None:
                has_clips = has_clips or _says_clips(record, form.main)
                return Recognised(form, tuple(sorted(columns.items())), has_clips, kind)
    missing = [name for name in columns.values() if name and name not in seen]
    if missing and seen:
        raise UserError(
            f"config.data.columns: no record at the start of {file} has '{missing[0]}'{nearest(missing[0], seen)}; "
            f"they have {listed(seen)}"
        )
    if not origin:
        return None
    if kind:
        raise UserError(preferences.without(origin, unknown, kind))
    raise UserError(f"{origin}: no format known has the keys {listed(unknown)}: {_advice(unknown)}")


def _recognised(record: Mapping[str, Any], columns: Mapping[str, str], kind: str) -> Format | None:
    """Returns the format of a record with preferences of a kind, or None; with '' any format will do."""
    if kind == "pairs":
        pair = preferences.recognise(record, columns)
        return pair and Compared(_with_given(pair.form, columns), pair.chosen, pair.rejected, pair.inside)
    label = columns.get("label") or next((name for name in weights.LABELS if name in record), "")
    if kind and label not in record:
        return None
    form = _of_columns(record, columns) if {"messages", "text", "prompt"} & columns.keys() else _of_names(record)
    if form is None and kind and {"prompt", "completion"} <= record.keys():
        form = conversations.Exchange("prompt", "completion", "system", "tools", **BY_NAME)
    if form is None or (kind and isinstance(form, alpaca.Plain)):  # a page is no answer
        return None
    form = _with_given(form, columns)
    return Judged(form, label) if kind else form


def _with_given(form: F, columns: Mapping[str, str]) -> F:
    """Returns a format with the columns that the user has named beside the texts."""
    given: dict[str, Any] = {kind.many: _given(columns, kind) for kind in KINDS if _is_given(columns, kind)}
    given.update({name: columns[name] for name in ("system", "tools", "history") if name in columns})
    known = {field.name for field in dataclasses.fields(form)}  # type: ignore[arg-type]
    if lost := next((kind for kind in CLIPS if columns.get(kind.name) and kind.many not in known), None):
        raise UserError(
            f"config.data.columns={lost.name}={columns[lost.name]}: records with '{form.main}' hold no {lost.many}: "
            f"write them as messages, or leave them out by {lost.name}="
        )
    return dataclasses.replace(form, **{k: v for k, v in given.items() if k in known})  # type: ignore[type-var]


def settings(form: Format) -> dict[str, Any]:
    """Returns a format's settings for the key of what is prepared.

    Where there are no clips they are those of before clips were read, so that what was prepared then stays valid.
    """
    values = dataclasses.asdict(form)  # type: ignore[call-overload]  # each format is a dataclass
    values.pop("kind", "")  # the source says it, where there are preferences
    own, inner = values.get("first", values), getattr(form, "first", form)
    columns = [own.pop(kind.many, ()) for kind in CLIPS]
    if values.pop("has_clips", any(name != NONE for names in columns for name in names)):
        return {**values, "clips": [CLIPS_FORMAT, *columns]}
    if isinstance(inner, conversations.Conversation | alpaca.Alpaca | alpaca.Plain):
        was_refused = isinstance(inner, conversations.Conversation) and inner is not form
        own["later"] = ["videos", "video", "audios", "audio"] if was_refused else []
    return values


def _of_names(record: Mapping[str, Any]) -> Format | None:
    return next(filter(None, (file.recognise(record) for file in FORMATS)), None)


def _of_columns(record: Mapping[str, Any], columns: Mapping[str, str]) -> Format | None:
    if "messages" in columns:
        return conversations.of_messages(record, columns["messages"])
    if "text" in columns:
        return alpaca.Plain((columns["text"],), **BY_NAME)
    prompt, response = columns["prompt"], columns.get("response", "")
    if isinstance(record.get(prompt), list) and response:
        return conversations.Exchange(prompt, response, **BY_NAME)
    if not response:
        return alpaca.Plain(tuple(filter(None, (prompt, columns.get("query")))), **BY_NAME)
    return alpaca.Alpaca(prompt, columns.get("query", ""), response, **BY_NAME)


def _is_given(columns: Mapping[str, str], kind: Kind) -> bool:
    """Whether the user has said where media of a kind are, or that a column that is called like them is another's."""
    return kind.name in columns or any(
        is_named(columns[other.name], kind) for other in KINDS if columns.get(other.name) and other is not kind
    )


def _given(columns: Mapping[str, str], kind: Kind) -> tuple[str, ...]:
    # A user who says where media are also says that they are nowhere else.
    given = (NONE, *filter(None, (columns.get(kind.name),)))
    return (*given, FEATURES, TOKENS) if kind is IMAGE else given


def _says_clips(record: Mapping[str, Any], main: str) -> bool:
    """Whether a record's messages have typed parts that are clips."""
    messages = record.get(main)
    contents = [c for m in messages if isinstance(m, dict) for c in m.values()] if isinstance(messages, list) else []
    return any(kind_of(part) in ("video", "audio") for c in contents if isinstance(c, list) for part in c)


def _advice(record: Mapping[str, Any]) -> str:
    """What to do about a record without a format: the columns to name, where they can be guessed."""
    if preferences.found(record) == "pairs":
        return f"set {OBJECTIVES['pairs']} to learn from pairs of answers"
    if {"prompt", "completion"} <= record.keys() and preferences.found(record) == "judged":
        return (
            f"set {OBJECTIVES['judged']} to learn from its label, or name the columns, as "
            f"config.data.columns=prompt=prompt,response=completion"
        )
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
    by_kind = {appears(key, value)[0]: key for key, value in record.items() if appears(key, value)[1]}
    for kind in reversed(KINDS):
        if kind in by_kind and not resolved((by_kind[kind],), BY_NAME[kind.many], kind):
            named = f"{kind.name}={by_kind[kind]},{named}"
    return (
        f"give messages, conversations, or text, or name the columns, as config.data.columns={named}, "
        f"or describe the file in a dataset_info.json"
    )
