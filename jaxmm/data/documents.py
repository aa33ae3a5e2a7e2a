"""Documents, the one form in which every data format reaches the rest, and the reader of LLaMA-Factory's files.

A reader turns a record into turns of typed parts. What a placeholder in a string meant is settled here; later there is
text, which is only text, and images.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxmm.errors import UserError, nearest

PLACEHOLDER = "<image>"
SKIP_REASONS = ("empty", "broken text")  # broken text: bytes that are not UTF-8, or half of a surrogate pair

# LLaMA-Factory's names for what a dataset_info.json maps, with its defaults; '' is "none".
COLUMNS = {
    "sharegpt": {"messages": "conversations", "system": "", "images": ""},
    "alpaca": {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "history": "",
        "system": "",
        "images": "",
    },
}
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
OPENAI_TAGS = {**TAGS, "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
LATER_COLUMNS = ("tools", "videos", "audios", "chosen", "rejected", "kto_tag")
HUBS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
SUFFIXES = (".json", ".jsonl", ".txt")


class Text(NamedTuple):
    """What a user wrote, special-looking strings included."""

    text: str


class Image(NamedTuple):
    """A picture as an encoded file's bytes, or as the absolute path of one: exactly one of them is set."""

    data: bytes = b""
    path: str = ""


Part = Text | Image


class Turn(NamedTuple):
    """A speaker's parts, in order.

    Attributes:
      role: "document" (plain or interleaved text), "system", "user" or "assistant".
      parts: of the turn; none is an empty turn.
      target: whether the model learns to write it: documents and assistants.
    """

    role: str
    parts: tuple[Part, ...]
    target: bool


class Document(NamedTuple):
    """What is trained on as a unit: attention never leaves it.

    Attributes:
      turns: a single "document" turn for a web page or a caption.
      origin: "file.json, record 17", counted from 0: for messages and skipped.jsonl.
      labels: what an evaluation groups by, as ("colour", "unseen").
    """

    turns: tuple[Turn, ...]
    origin: str
    labels: tuple[str, ...] = ()


class Skip(NamedTuple):
    """A record that gives no document but does not stop the run. ``reason`` is one of SKIP_REASONS."""

    origin: str
    reason: str


class Unit(NamedTuple):
    """A part of a source that is read by itself, and prepared to one shard.

    Attributes:
      file: path or URL; one of ``Source.files``, or '' for a source that reads none.
      start, stop: [start, stop) of it in the format's own measure: bytes, row groups, or documents.
      first: number of its first record in the file, for origins.
    """

    file: str
    start: int
    stop: int
    first: int


@dataclass(frozen=True)
class Source:
    """One named data source that can be read again and again, as a whole or by units.

    Attributes:
      name: as in a mixture.
      files: what it reads, absolute: their versions decide whether prepared data is still valid.
      entry: canonical JSON of how it is read.
      units: lists the units, in order: the same ones on every machine, however many workers read them.
      read: starts a fresh pass over a unit. It pickles, as ``units`` does, so that a worker process may call it.
    """

    name: str
    files: tuple[str, ...]
    entry: str
    units: Callable[[], Sequence[Unit]]
    read: Callable[[Unit], Iterator[Document | Skip]]

    def documents(self) -> Iterator[Document | Skip]:
        """Starts a fresh pass over all of it."""
        return itertools.chain.from_iterable(map(self.read, self.units()))


def split_origin(origin: str) -> tuple[str, int | str]:
    """Returns the file and the record number of an origin: ("file.json", 17); a number it lacks is ''."""
    file, _, last = origin.rpartition(", ")
    number = last.rpartition(" ")[2]
    return (file, int(number)) if file and number.isdecimal() else (origin, "")


def read_sources(path: str, names: Sequence[str]) -> list[Source]:
    """Opens data sources, reading no more of them than their format needs.

    Args:
      path: a LLaMA-Factory ``dataset_info.json``, whose entries the names are, or one data file (.json, .jsonl, .txt):
        a single source, named as the file without its suffix, in a format that its first record tells.
      names: of the sources wanted, in order.

    Raises:
      UserError: for a file, an entry or a column that is not there or not supported. A record that makes no sense
        raises it later, from ``Source.read``: images that differ in number from their placeholders, most of all.
    """
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.isfile(path):
        raise UserError(f"no file {path}: give a dataset_info.json or a data file ({', '.join(SUFFIXES)})")
    entries = _read_info(path)
    if entries is None:
        name = os.path.splitext(os.path.basename(path))[0]
        for other in names:
            if other != name:
                raise UserError(f"{path} is one data file, named '{name}' in a mixture: it has no '{other}'")
        return [_file_source(path, name)]
    if not names:
        raise UserError(f"{path}: say which datasets, as config.data.mixture=NAME:SHARE,...; it has {_listed(entries)}")
    return [_entry_source(path, name, entries) for name in names]


def _listed(entries: Mapping[str, Any]) -> str:
    """Names the entries, those with a file first, and not more than a line of them."""
    names = sorted(entries, key=lambda name: "file_name" not in entries[name])
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more


def _read_info(path: str) -> dict[str, dict[str, Any]] | None:
    """Reads a dataset_info.json, under whatever name; None if the file holds records."""
    is_named = os.path.basename(path) == "dataset_info.json"
    # Records may be large, a list of datasets is not.
    if not is_named and (not path.endswith(".json") or os.path.getsize(path) > 1 << 24):
        return None
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        try:
            found = json.load(file)
        except ValueError as error:
            if is_named:
                raise UserError(f"{path} is not JSON: {error}") from error
            return None
    places = {"file_name", *HUBS}
    is_info = isinstance(found, dict) and all(isinstance(e, dict) and places & e.keys() for e in found.values())
    if is_named and not is_info:
        raise UserError(f"{path}: every entry must be an object with a file_name or a hub's url")
    return found if is_info else None


@dataclass(frozen=True)
class _Layout:
    """How the records of a source are read: what of an entry decides the documents."""

    formatting: str
    columns: Mapping[str, str]
    tags: Mapping[str, str]

    def canonical(self) -> str:
        entry = {"columns": self.columns, "formatting": self.formatting, "tags": self.tags}
        return json.dumps(entry, sort_keys=True, separators=(",", ":"))


def _entry_source(info: str, name: str, entries: Mapping[str, dict[str, Any]]) -> Source:
    if name not in entries:
        raise UserError(f"{info} has no dataset '{name}'{nearest(name, entries)}; it has {_listed(entries)}")
    entry = entries[name]
    if "file_name" not in entry:
        (place, *_) = [hub for hub in HUBS if hub in entry]
        raise UserError(
            f"{info}: dataset '{name}' has a {place}, not supported yet: download it and give its file_name"
        )
    layout = _read_layout(f"{info}: dataset '{name}'", entry)
    root = os.path.dirname(info)
    path = os.path.join(root, entry["file_name"])
    files = [os.path.join(path, f) for f in sorted(os.listdir(path))] if os.path.isdir(path) else [path]
    for file in files:
        if not os.path.isfile(file):
            raise UserError(f"{info}: dataset '{name}' names the file {file}, which does not exist")
    return _source(name, files, root, layout)


def _read_layout(where: str, entry: Mapping[str, Any]) -> _Layout:
    formatting = entry.get("formatting", "alpaca")
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    if formatting not in COLUMNS:
        known = f"{', '.join(COLUMNS)}{nearest(str(formatting), COLUMNS)}"
        raise UserError(f"{where}: formatting '{formatting}' is not supported yet: those that are: {known}")
    wanted = [c for c in LATER_COLUMNS if columns.get(c)] + [k for k in ("ranking", "num_samples") if entry.get(k)]
    if wanted:
        raise UserError(f"{where} asks for {', '.join(wanted)}, not supported yet: choose another dataset")
    for given, known_keys in ((columns, (*COLUMNS[formatting], *LATER_COLUMNS)), (tags, TAGS)):
        for key in given:
            if key not in known_keys:
                raise UserError(f"{where}: '{key}' is none of {', '.join(known_keys)}{nearest(key, known_keys)}")
    defaults = COLUMNS[formatting]
    if formatting == "alpaca" and columns:  # as LLaMA-Factory: a column that is not mapped is then not there
        defaults = dict.fromkeys(defaults, "")
    layout = _Layout(
        formatting,
        {key: columns.get(key) or default for key, default in defaults.items()},
        {key: tags.get(key) or default for key, default in TAGS.items()},
    )
    if formatting == "alpaca" and not layout.columns["prompt"]:
        raise UserError(f"{where}: columns must say which one is the prompt")
    if not layout.columns.get("response", "-") and (layout.columns["history"] or layout.columns["system"]):
        raise UserError(f"{where}: a history or a system column needs a response column")
    return layout


def _file_source(path: str, name: str) -> Source:
    """Returns the source of a data file, whose first record tells the format."""
    file = os.path.basename(path)
    first = next(_records(path, file), None)
    if first is None:
        raise UserError(f"{path} holds no records")
    origin, record = first
    for column in ("messages", "conversations"):
        messages = record.get(column)
        if isinstance(messages, list):
            is_openai = not messages or (isinstance(messages[0], dict) and "role" in messages[0])
            columns = {"messages": column, "system": "system", "images": "images"}
            layout = _Layout("sharegpt", columns, OPENAI_TAGS if is_openai else TAGS)
            return _source(name, [path], os.path.dirname(path), layout)
    columns = dict.fromkeys(COLUMNS["alpaca"], "") | {"images": "images"}
    if "instruction" in record and "output" in record:
        columns |= {key: default or key for key, default in COLUMNS["alpaca"].items()}
    elif "text" in record:
        columns["prompt"] = "text"
    else:
        raise UserError(
            f"{origin}: no format known has the keys {', '.join(record)}: give messages, conversations, or text, "
            f"or describe the file in a dataset_info.json"
        )
    return _source(name, [path], os.path.dirname(path), _Layout("alpaca", columns, TAGS))


def _source(name: str, files: Sequence[str], root: str, layout: _Layout) -> Source:
    for path in files:
        if os.path.splitext(path)[1] not in SUFFIXES:
            raise UserError(f"dataset '{name}': {path} is not supported yet: the file types are {', '.join(SUFFIXES)}")
    units = functools.partial(_units, tuple(files))
    return Source(name, tuple(files), layout.canonical(), units, functools.partial(_read, root=root, layout=layout))


def _units(files: Sequence[str]) -> list[Unit]:
    return [Unit(path, 0, os.path.getsize(path), 0) for path in files]


def _read(unit: Unit, root: str, layout: _Layout) -> Iterator[Document | Skip]:
    for origin, record in _records(unit.file, os.path.relpath(unit.file, root)):
        try:
            yield _document(origin, record, root, layout)
        except UnicodeEncodeError:
            yield Skip(origin, "broken text")


def _records(path: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (origin, record) of a file: each line of text, each line of JSON, or each element of a JSON array.

    As LLaMA-Factory does, .json files may hold an array or lines. Blank lines are no records.
    """
    # What is not UTF-8 becomes lone surrogates, which _text finds: it costs its record only.
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = ((number, line) for number, line in enumerate(file, 1) if not line.isspace())
        if path.endswith(".txt"):
            for index, (_, line) in enumerate(lines):
                yield f"{name}, record {index}", {"text": line.rstrip("\n")}
            return
        first = next(lines, None)
        if first is None:
            return
        if first[1].lstrip().startswith("["):
            file.seek(0)
            records = enumerate(_parsed(file.read(), name, 1))
        else:
            records = enumerate(_parsed(line, name, number) for number, line in itertools.chain([first], lines))
        for index, record in records:
            if not isinstance(record, dict):
                raise UserError(f"{name}, record {index} is not an object but {type(record).__name__}: {record!r:.40}")
            yield f"{name}, record {index}", record


def _parsed(text: str, name: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{name}, line {line + error.lineno - 1} is not JSON: {error.msg} (column {error.colno})"
        ) from error
    except RecursionError as error:
        raise UserError(f"{name}, line {line} is JSON nested too deep") from error


def _document(origin: str, record: Mapping[str, Any], root: str, layout: _Layout) -> Document | Skip:
    column = layout.columns["images"]
    images = _images(origin, record.get(column), root) if column else []
    said = _conversation(origin, record, layout) if layout.formatting == "sharegpt" else _alpaca(origin, record, layout)
    if not said:
        return Skip(origin, "empty")
    # Plain text has no placeholders, unless its record says what stands there.
    has_placeholders = said[0][0] != "document" or (column != "" and column in record)
    count = sum(text.count(PLACEHOLDER) for _, text in said) if has_placeholders else 0
    if count != len(images):
        raise UserError(
            f"{origin} has {count} {PLACEHOLDER} placeholders but {len(images)} images: "
            f"give each image one placeholder, and each placeholder an image"
        )
    left = iter(images)
    return Document(
        tuple(
            Turn(role, _parts(text, left if has_placeholders else None), role in ("document", "assistant"))
            for role, text in said
        ),
        origin,
    )


def _parts(text: str, images: Iterator[Image] | None) -> tuple[Part, ...]:
    """Splits at placeholders, and puts the next image in each; without ``images`` they are text."""
    parts: list[Part] = []
    for i, piece in enumerate(text.split(PLACEHOLDER) if images is not None else [text]):
        if i and images is not None:
            parts.append(next(images))
        if piece:
            parts.append(Text(piece))
    return tuple(parts)


def _images(origin: str, value: Any, root: str) -> list[Image]:
    """Returns the images of a list of paths, or of a single one; relative ones are relative to ``root``."""
    values = [value] if isinstance(value, str) else value or []
    if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
        raise UserError(f"{origin}: images must be a list of paths, not {value!r:.40}")
    return [Image(path=os.path.abspath(os.path.join(root, v))) for v in values]


def _column(origin: str, record: Mapping[str, Any], column: str) -> Any:
    if column not in record:
        raise UserError(f"{origin} has no '{column}'{nearest(column, record)}; it has {', '.join(record) or 'nothing'}")
    return record[column]


def _text(origin: str, what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{origin}: {what} must be text, not {value!r:.40}")
    if not value.isascii():
        value.encode()  # raises UnicodeEncodeError for broken text
    return value


def _conversation(origin: str, record: Mapping[str, Any], layout: _Layout) -> list[tuple[str, str]]:
    """Returns the (role, text) turns of a sharegpt record, in whatever order the speakers are."""
    tags = layout.tags
    roles = {
        tags["function_tag"]: "assistant",  # what it calls is written by the model,
        tags["observation_tag"]: "user",  # and what comes back is read
        tags["system_tag"]: "system",
        tags["assistant_tag"]: "assistant",
        tags["user_tag"]: "user",
    }
    messages = _column(origin, record, layout.columns["messages"])
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise UserError(f"{origin}: '{layout.columns['messages']}' must be a list of objects, not {messages!r:.40}")
    said: list[tuple[str, str]] = []
    for message in messages:
        role = _column(origin, message, tags["role_tag"])
        if not isinstance(role, str) or role not in roles:
            raise UserError(f"{origin}: role {role!r:.40} is none of {', '.join(roles)}{nearest(str(role), roles)}")
        text = _text(origin, f"what '{role}' says", _column(origin, message, tags["content_tag"]))
        said.append((roles[role], text))
    system = record.get(layout.columns["system"]) if layout.columns["system"] else None
    if system and said and said[0][0] != "system":
        said.insert(0, ("system", _text(origin, layout.columns["system"], system)))
    return said


def _alpaca(origin: str, record: Mapping[str, Any], layout: _Layout) -> list[tuple[str, str]]:
    """Returns the (role, text) turns of an alpaca record; without a response column it is a document."""
    columns = layout.columns

    def text(key: str) -> str:
        value = record.get(columns[key]) if columns[key] else None
        return "" if value is None else _text(origin, f"'{columns[key]}'", value)

    _column(origin, record, columns["prompt"])
    prompt = "\n".join(filter(None, (text("prompt"), text("query"))))
    if not columns["response"]:
        return [("document", prompt)]
    said = [("system", text("system"))] if text("system") else []
    for pair in (record.get(columns["history"]) if columns["history"] else None) or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(f"{origin}: '{columns['history']}' must be a list of [question, answer]")
        said += [("user", _text(origin, "history", pair[0])), ("assistant", _text(origin, "history", pair[1]))]
    said.append(("user", prompt))
    if _column(origin, record, columns["response"]) is not None:
        said.append(("assistant", text("response")))
    return said
