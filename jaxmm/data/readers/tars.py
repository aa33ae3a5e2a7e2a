"""WebDataset tars: members with the same key are one sample, read one after another in the order of the file.

``a.jpg``, ``a.txt`` and ``a.json`` are a sample with the key ``a``; so are ``a.0.jpg`` and ``a.1.jpg``, two images, and
``a.mp4``, a video.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, Self

from jaxmm.data import files
from jaxmm.data.documents import Unit
from jaxmm.data.readers.columns import FEATURES, TOKENS, is_named, listed
from jaxmm.data.readers.conversations import NAMES as MESSAGES
from jaxmm.data.readers.kinds import IMAGE, KINDS, VIDEO, Kind, of_name
from jaxmm.data.readers.lines import BYTE_ORDER_MARK, decoded
from jaxmm.data.readers.parts import SkipRecord
from jaxmm.data.readers.typed import OWN_KEYS, kind_of
from jaxmm.errors import UserError

FORMAT = 2
TEXTS = ("txt", "text", "caption")
MAX_MEMBER = 1 << 28  # bytes of a member in memory; a compressed one may unpack to anything
SEEN_OF_OTHERS = 64  # bytes read of a member that is not used, enough to recognise a picture or a clip


def units(file: str, unit_bytes: int) -> list[Unit]:
    """A tar is one unit: it has no index, and is written small for this reason."""
    return [Unit(file, 0, files.version(file).size, 0)]


def records(unit: Unit) -> Iterator[tuple[int, Any]]:
    """Yields (number, record or SkipRecord) of each sample.

    A record is the content of the sample's .json, with the text as ``text``. Images are in ``image``, clips in
    ``video`` and ``audio``, or, if the JSON names them, in place of their names. Every other member is a column named
    by its extension, as ``.cls``, with its first bytes. A tar that is cut yields its whole samples, then a SkipRecord
    "cut short".
    """
    number = unit.first
    for key, sample in _samples(unit.file):
        yield number, sample if isinstance(sample, SkipRecord) else _record(key, sample)
        number += 1


class _Header(tarfile.TarInfo):
    """A member's header. It raises an error where tarfile would take a cut or broken header for the tar's end.

    A whole tar ends in a block of zeros (EOFHeaderError).
    """

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _samples(file: str) -> Iterator[tuple[str, dict[str, bytes] | SkipRecord]]:
    """Yields (key, {extension: content}) of each sample."""
    key: str | None = None
    sample: dict[str, bytes] = {}
    is_broken = False
    with files.open_binary(file) as opened:
        try:
            # "|": forward only, so that nothing is kept in memory
            with tarfile.open(fileobj=opened, mode="r|*", tarinfo=_Header) as tar:
                for member in tar:
                    if not member.isreg():
                        continue
                    folder, slash, base = member.name.rpartition("/")
                    stem, dot, extension = base.partition(".")
                    if not dot or not stem:  # belongs to no sample, as README or .DS_Store
                        continue
                    if folder + slash + stem != key:
                        if sample and key is not None:
                            yield key, SkipRecord("duplicate keys") if is_broken else sample
                        key, sample, is_broken = folder + slash + stem, {}, False
                    extension = extension.lower()
                    is_broken |= extension in sample
                    if member.size > MAX_MEMBER and _is_read(extension):
                        raise UserError(
                            f"{file}: the member {member.name[:80]} has {member.size:,} bytes, more than "
                            f"{MAX_MEMBER >> 20} MiB: no picture and no text is so large, and a clip of that size "
                            f"should be a file of its own"
                        )
                    content = tar.extractfile(member)
                    wanted = -1 if _is_read(extension) else SEEN_OF_OTHERS
                    sample[extension] = content.read(wanted) if content else b""
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all headers
        except (tarfile.TarError, EOFError, zlib.error) as error:
            if key is None:
                raise UserError(f"{file} is no tar that can be read: {error}") from error
            yield key, SkipRecord("cut short", _how_much(opened, file))
            return
    if sample and key is not None:
        yield key, SkipRecord("duplicate keys") if is_broken else sample


def _how_much(opened: Any, file: str) -> str:
    """How much of a broken tar was read, and how large the tar is."""
    at, size = opened.tell(), files.version(file).size
    return f"after byte {at:,} of {size:,}: what follows is lost" if at < size else f"it ends after {size:,} bytes"


def _kind(extension: str) -> Kind | None:
    return of_name(f"a.{extension}")


def _is_read(extension: str) -> bool:
    return _kind(extension) is not None or extension.rpartition(".")[2] == "json" or extension in TEXTS


def _record(key: str, sample: dict[str, bytes]) -> dict[str, Any] | SkipRecord:
    media = {kind: {ext: content for ext, content in sample.items() if _kind(ext) is kind} for kind in KINDS}
    base = key.rpartition("/")[2].lower()
    record: dict[str, Any] = {}
    if "json" in sample:
        parsed = decoded(sample["json"].removeprefix(BYTE_ORDER_MARK))
        if isinstance(parsed, list) and any(_named(one, base, media[IMAGE]) for one in parsed):
            parsed = _page(parsed, base, media[IMAGE])
        if isinstance(parsed, SkipRecord):
            return parsed
        if not isinstance(parsed, dict):
            return SkipRecord("not an object")
        record = parsed
    for extension in TEXTS:
        if extension in sample:
            record["text"] = sample[extension].removeprefix(BYTE_ORDER_MARK).decode("utf-8", "surrogateescape").strip()
            break
    else:
        if isinstance(record.get("caption"), str):
            record.setdefault("text", record["caption"])
    if any(media.values()):
        record.setdefault("text", "")
    media[IMAGE] = _without_frames(record, base, media[IMAGE])
    for kind, members in media.items():
        if members:
            _place(record, base, members, kind)
    others = {f".{ext}": content for ext, content in sample.items() if not _is_read(ext)}
    return {**record, **others} if record else SkipRecord("empty")


def _page(items: list[Any], base: str, images: dict[str, bytes]) -> dict[str, Any]:
    """Turns a list of alternating texts and names of members into the two lists of a page."""
    contents = [_named(item, base, images) for item in items]
    texts = [item if content is None else None for item, content in zip(items, contents, strict=True)]
    return {"texts": texts, "images": contents}


def _without_frames(record: dict[str, Any], base: str, images: dict[str, bytes]) -> dict[str, bytes]:
    """Puts the frames where the record names them as lists, and returns the images that are left."""
    lists = [one for name in record if is_named(name, VIDEO) for one in listed(record[name]) if isinstance(one, list)]
    for part in _typed(record, VIDEO):
        lists += [part[name] for name in OWN_KEYS[VIDEO.name] if isinstance(part.get(name), list)]
    left = images
    for frames in lists:
        contents = [_named(name, base, images) for name in frames]
        if contents and all(content is not None for content in contents):
            frames[:] = contents
            left = {ext: content for ext, content in left.items() if not any(content is one for one in contents)}
    return left


def _place(record: dict[str, Any], base: str, members: dict[str, bytes], kind: Kind) -> None:
    """Puts the media where the record names them, or else into ``image``, ordered by the numbers in their names.

    Clips are put into ``video`` and ``audio``.
    """
    if any(isinstance(one, bytes) for one in listed(record.get(kind.many))):
        return  # a page that names them
    parts = [part for part in _typed(record, kind) if _name_of(part, kind) is not None]
    own = [_named(_name_of(part, kind), base, members) for part in parts]
    if parts and (all(own) or len(parts) == len(members)):
        in_order = (members[extension] for extension in sorted(members, key=_order))
        for part, content in zip(parts, own if all(own) else in_order, strict=True):
            for name in OWN_KEYS[kind.name]:
                part.pop(name, None)
            part[kind.name] = content
        _without_others(record, kind)
        return
    names = record.get(kind.many)
    if isinstance(names, list) and any(names):
        contents = [name if name is None else _named(name, base, members) for name in names]
        if all(content is not None for name, content in zip(names, contents, strict=True) if name is not None):
            record[kind.many] = contents
            return
    for name, value in record.items():  # for users who name the column
        contents = [_named(one, base, members) for one in listed(value)]
        if all(contents) and len(set(map(id, contents))) == len(members):
            record[name] = contents
    _without_others(record, kind)
    record[kind.name] = [members[extension] for extension in sorted(members, key=_order)]


def _without_others(record: dict[str, Any], kind: Kind) -> None:
    """Removes other columns about media of a kind: the members replace the places that they were packed from."""
    for name in [name for name in record if is_named(name, kind) and name not in (FEATURES, TOKENS)]:
        del record[name]


def _typed(record: dict[str, Any], kind: Kind) -> Iterator[dict[str, Any]]:
    """Yields the parts of a record's messages that are of a kind."""
    for name in (*MESSAGES, "prompt", "completion"):
        for message in record[name] if isinstance(record.get(name), list) else []:
            for value in message.values() if isinstance(message, dict) else []:
                yield from (part for part in value if kind_of(part) == kind.name) if isinstance(value, list) else ()


def _name_of(part: dict[str, Any], kind: Kind) -> Any:
    value = next((part[name] for name in OWN_KEYS[kind.name] if part.get(name)), None)
    return value.get("url", value.get("path")) if isinstance(value, dict) else value


def _named(name: Any, base: str, members: dict[str, bytes]) -> bytes | None:
    """Returns the member whose extension (``0.jpg``), or file name (``key.0.jpg``), this is."""
    if not isinstance(name, str) or "://" in name:
        return None
    last = name.rpartition("/")[2].lower()
    return members.get(last, members.get(last.removeprefix(f"{base}.")))


def _order(extension: str) -> tuple[Any, ...]:
    return files.natural(extension.rpartition(".")[0]), extension
