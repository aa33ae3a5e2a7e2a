"""Media with a file of the same name beside them: ``0.png`` and its text ``0.txt``, or its record ``0.json``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jaxmm.data import files
from jaxmm.data.documents import Unit
from jaxmm.data.readers import arrays
from jaxmm.data.readers.columns import is_named, is_nothing
from jaxmm.data.readers.kinds import KINDS, Kind, of_name
from jaxmm.data.readers.lines import BYTE_ORDER_MARK, parsed
from jaxmm.data.readers.parts import SkipRecord
from jaxmm.errors import UserError

FORMAT = 1
TEXTS = (".txt", ".caption", ".json")
LARGEST = 1 << 24  # bytes of a text beside a picture or a clip


def stem(file: str) -> str:
    folder, slash, base = file.rpartition("/")
    return folder + slash + base.rpartition(".")[0]


def is_text(file: str) -> bool:
    """Whether a file may be the text of the picture or clip of the same name."""
    return file.lower().endswith(TEXTS)


def found(inside: Sequence[str]) -> list[str]:
    """Returns those of a folder's files that its pairs are read from: texts, and media without a text; [] for none.

    Raises:
      UserError: if only some of the texts have a picture or clip of the same name.
    """
    pictures = {stem(file): file for file in inside if of_name(file)}
    texts = [file for file in inside if is_text(file)]
    paired = [file for file in texts if stem(file) in pictures]
    if not paired or (paired[0].lower().endswith(".json") and arrays.is_array(paired[0])):
        return []
    alone = [file for file in texts if stem(file) not in pictures]
    if alone:
        raise UserError(
            f"{pictures[stem(paired[0])]} lies beside {paired[0]} as if that were its text, but {alone[0]} has no "
            f"picture of the same name, nor a clip: keep them and their texts in a separate folder"
        )
    told = {stem(file) for file in paired}
    # If there are two texts of one name, the .json is read together with the other one.
    others = {stem(file) for file in paired if not file.lower().endswith(".json")}
    read = [file for file in paired if not (file.lower().endswith(".json") and stem(file) in others)]
    return sorted([*read, *(file for name, file in pictures.items() if name not in told)], key=files.natural)


def units(file: str, unit_bytes: int) -> list[Unit]:
    """A file is one unit: small units are joined later, in preparing."""
    return [Unit(file, 0, files.version(file).size, 0)]


def records(unit: Unit) -> Iterator[tuple[int, Any]]:
    """Yields the one record of a text and the media of the same name."""
    yield 0, _record(unit.file)


def beside(file: str) -> list[str]:
    """Returns the pictures and clips that have a file's name."""
    return [medium for kind in KINDS for medium in _beside(file, kind)]


def _beside(file: str, kind: Kind) -> list[str]:
    begins = stem(file)
    names = [name for end in kind.suffixes for name in (f"{begins}.{end}", f"{begins}.{end.upper()}")]
    return [name for name in names if files.is_file(name)]


def _record(file: str) -> dict[str, Any] | SkipRecord:
    if of_name(file):
        return SkipRecord("no caption")
    media = {kind: list({name.lower(): name for name in _beside(file, kind)}.values()) for kind in KINDS}
    if any(len(names) > 1 for names in media.values()) or not any(media.values()):
        return SkipRecord("duplicate keys" if any(media.values()) else "missing")
    record: dict[str, Any] = {}
    told = file if file.lower().endswith(".json") else f"{stem(file)}.json"
    if told == file or files.is_file(told):
        value = parsed(_content(told))
        if isinstance(value, SkipRecord):
            return value
        record = value
    if told != file:
        record["text"] = _content(file).decode("utf-8", "surrogateescape").strip()
    for kind, names in media.items():
        if names and all(is_nothing(value) for name, value in record.items() if is_named(name, kind)):
            record = {name: value for name, value in record.items() if not is_named(name, kind)}
            record[kind.name] = names[0]
    return record


def _content(file: str) -> bytes:
    with files.open_binary(file) as opened:
        content = opened.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise UserError(f"{file}, record 0: a text beside a picture or clip has no more than {LARGEST >> 20} MiB")
    return content.removeprefix(BYTE_ORDER_MARK)
