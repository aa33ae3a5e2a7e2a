"""WebDataset tars: members of one key are a sample, read one after the other in the order of the file.

``a.jpg``, ``a.txt`` and ``a.json`` are a sample with the key ``a``; so are ``a.0.jpg`` and ``a.1.jpg``, two images.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, Self

from jaxmm.data import files
from jaxmm.data.documents import Unit
from jaxmm.data.readers.lines import BYTE_ORDER_MARK, parsed
from jaxmm.data.readers.parts import LeftOut
from jaxmm.errors import UserError

IMAGES = ("jpg", "jpeg", "png", "webp", "gif")
TEXTS = ("txt", "text", "caption")


def units(file: str, unit_bytes: int) -> list[Unit]:
    """A tar is one unit: it has no index, and is written small for this reason."""
    return [Unit(file, 0, files.version(file).size, 0)]


def records(unit: Unit) -> Iterator[tuple[int, Any]]:
    """Yields (number, record or LeftOut) of each sample.

    A record is what the sample's .json holds, with the text as ``text`` and the images as ``image`` or, where the JSON
    has a list that names them, in that list. Of a tar that is cut, the whole samples come, then a LeftOut "cut short".
    """
    number = unit.first
    for sample in _samples(unit.file):
        yield number, sample if isinstance(sample, LeftOut) else _record(sample)
        number += 1


class _Header(tarfile.TarInfo):
    """A member's header, which raises where tarfile takes one that is cut or broken for the tar's end.

    The end of a whole tar is a block of zeros (EOFHeaderError).
    """

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _samples(file: str) -> Iterator[dict[str, bytes] | LeftOut]:
    """Yields {extension: content} of each sample."""
    key: str | None = None
    sample: dict[str, bytes] = {}
    is_broken = False
    with files.open_binary(file) as opened:
        try:
            # "|": only forward, so that nothing is held
            with tarfile.open(fileobj=opened, mode="r|*", tarinfo=_Header) as tar:
                for member in tar:
                    if not member.isreg():
                        continue
                    folder, slash, base = member.name.rpartition("/")
                    stem, dot, extension = base.partition(".")
                    if not dot or not stem:  # no sample's, as README or .DS_Store
                        continue
                    if folder + slash + stem != key:
                        if sample:
                            yield LeftOut("duplicate keys") if is_broken else sample
                        key, sample, is_broken = folder + slash + stem, {}, False
                    extension = extension.lower()
                    is_broken |= extension in sample
                    content = tar.extractfile(member)
                    sample[extension] = content.read() if content else b""
                    tar.members.clear()  # type: ignore[attr-defined]  # it keeps all headers, else
        except (tarfile.TarError, EOFError, zlib.error) as error:
            if key is None:
                raise UserError(f"{file} is no tar that can be read: {error}") from error
            yield LeftOut("cut short")
            return
    if sample:
        yield LeftOut("duplicate keys") if is_broken else sample


def _record(sample: dict[str, bytes]) -> dict[str, Any] | LeftOut:
    record: dict[str, Any] = {}
    if "json" in sample:
        found = parsed(sample["json"].removeprefix(BYTE_ORDER_MARK))
        if isinstance(found, LeftOut):
            return found
        record = found
    for extension in TEXTS:
        if extension in sample:
            record["text"] = sample[extension].removeprefix(BYTE_ORDER_MARK).decode("utf-8", "surrogateescape").strip()
            break
    else:
        if isinstance(record.get("caption"), str):
            record.setdefault("text", record["caption"])
    images = {ext: content for ext, content in sample.items() if ext.rpartition(".")[2] in IMAGES}
    if images:
        record.setdefault("text", "")
        _place(record, images)
    return record or LeftOut("empty")


def _place(record: dict[str, Any], images: dict[str, bytes]) -> None:
    """Puts the images where the record's own list names them all, or else beside it, in the order of their numbers."""
    names = record.get("images")
    if isinstance(names, list) and any(names):
        found = [name if name is None else _named(name, images) for name in names]
        if all(content is not None for name, content in zip(names, found, strict=True) if name is not None):
            record["images"] = found
            return
    record.pop("images", None)
    record["image"] = [images[extension] for extension in sorted(images, key=_order)]


def _named(name: Any, images: dict[str, bytes]) -> bytes | None:
    """Returns the image whose extension (``0.jpg``), or file name (``key.0.jpg``), this is."""
    if not isinstance(name, str):
        return None
    base = name.rpartition("/")[2].lower()
    return images.get(base, images.get(base.partition(".")[2]))


def _order(extension: str) -> tuple[int, str]:
    number = extension.partition(".")[0]
    return (int(number) if number.isdecimal() else -1), extension
