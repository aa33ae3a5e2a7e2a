"""Which columns of a record hold its pictures: by a table of names, and by values that look like pictures."""

from __future__ import annotations

import ast
import collections
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

FEATURES, TOKENS = "features", "image_tokens"  # types of parts, and columns of ready-made media

# Suffixes of picture files, including those that cannot be decoded: these are reported, not passed over.
SUFFIXES = (
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif", "ppm", "pgm", "pbm", "pnm",
    "heic", "heif", "jxl", "jp2", "svg", "tga",
)  # fmt: skip
# How base64 of JPEG, PNG, GIF, WebP, BMP and TIFF begins. A path may begin so too, but it has a dot or is short.
MAGIC = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0A")
SHORTEST_BASE64 = 80
BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_MAGIC_BYTES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")
LONGEST_PATH = 1024

NONE = "\0"  # among the columns of a format: no other column has pictures, whatever it looks like
KNOWN = "*"  # among the columns of a format: all columns of the record that the table names, in the table's order
# Names without case and punctuation: Image, image_path and imagePath are image and imagepath. All hold pictures.
NAMES = (
    "images", "image", "imgs", "img", "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif",
    "imagepaths", "imagepath", "imgpaths", "imgpath", "imagefiles", "imagefile", "imgfiles", "imgfile",
    "imageurls", "imageurl", "imgurls", "imgurl", "imagelist", "imglist", "imagebytes", "imgbytes",
    "imagebase64", "imgbase64", "imagedata", "imagefilenames", "imagefilename", "imagenames", "imagename",
)  # fmt: skip
# These hold a picture only if the value looks like one: other data uses the same names for other things.
GENERAL = (
    "pictures", "picture", "photos", "photo", "pics", "pic", "filenames", "filename", "filepaths", "filepath",
    "files", "file", "paths", "path", "localpath", "mediapaths", "mediapath", "media",
)  # fmt: skip
_PLACES = {name: place for place, name in enumerate((*NAMES, *GENERAL))}
_MARKS = re.compile(r"[^a-z0-9]")
_INNER = ("bytes", "path", "url", "image", "image_url", "base64", "data")  # keys of an object that stands for a picture


def plain(name: str) -> str:
    """Returns a column's name without case and punctuation."""
    return _MARKS.sub("", name.lower())


@functools.lru_cache(maxsize=1 << 10)
def resolved(keys: tuple[str, ...], images: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the columns of a record with these keys that may hold pictures, in the order of preference."""
    candidates: list[str] = []
    for name in images:
        if name == KNOWN:
            known = [key for key in keys if plain(key) in _PLACES]
            candidates += sorted(known, key=lambda key: _PLACES[plain(key)])
        elif name in keys:
            candidates.append(name)
    return tuple(dict.fromkeys(candidates))


def counts(name: str, value: Any, images: Sequence[str]) -> bool:
    """Whether a column holds what its name says; other data has columns of the same name with other content."""
    if is_nothing(value):
        return False
    if name == FEATURES:
        values = value if isinstance(value, list) else [value]
        return all(isinstance(v, bytes) or (isinstance(v, str) and v.endswith(".npy")) for v in values)
    if name == TOKENS:
        return isinstance(value, list) and all(isinstance(v, list) for v in value)
    return name in images or plain(name) not in GENERAL or looks(value) in ("file", "bytes")


def is_named(name: str) -> bool:
    """Whether a column of that name holds pictures, whatever its value looks like."""
    return plain(name) in NAMES


def is_nothing(value: Any) -> bool:
    """Whether a value stands for no picture: null, '', NaN as pandas writes it, an object or a list of these alone."""
    if isinstance(value, Mapping):
        return all(is_nothing(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return all(map(is_nothing, value))
    return value is None or value == "" or value == b"" or value != value


def listed(value: Any) -> list[Any]:
    """Returns a column's pictures one by one; a list may be written as text, as in a CSV file."""
    if isinstance(value, str) and value[:1] == "[" and value.rstrip()[-1:] == "]":
        value = _from_text(value)
    return value if isinstance(value, list) else [value]


def _from_text(value: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            parsed = parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(parsed, list) and all(isinstance(one, str) for one in parsed):
            return parsed
    return value


def looks(value: Any) -> str:
    """Says what a value looks like: "file" for a picture's path, "link" for its URL, "bytes" for its content, or ''."""
    if isinstance(value, str):
        if len(value) <= LONGEST_PATH:
            if value[:1] == "[":
                return next(filter(None, map(looks, entries)), "") if (entries := listed(value)) != [value] else ""
            if ("." in value[-6:] or "://" in value) and "\n" not in value and ends_as_picture(value):
                return "link" if "://" in value and not value.startswith(("file://", "local://")) else "file"
        is_base64 = len(value) >= SHORTEST_BASE64 and value.startswith(MAGIC) and BASE64.fullmatch(value[:LONGEST_PATH])
        return "bytes" if is_base64 or value.startswith("data:image/") else ""
    if isinstance(value, bytes):
        is_webp = value[:4] == b"RIFF" and value[8:12] == b"WEBP"
        return "bytes" if value.startswith(_MAGIC_BYTES) or is_webp or value[4:12] == b"ftypavif" else ""
    if isinstance(value, Mapping):
        return next(filter(None, (looks(value[key]) for key in _INNER if key in value)), "")
    if isinstance(value, list | tuple):
        return next(filter(None, map(looks, value[:16])), "")
    return ""


def ends_as_picture(name: str) -> bool:
    """Whether a path or URL ends like that of a picture."""
    if "://" in name:
        name = name.partition("?")[0].partition("#")[0]
    stem, dot, ending = name.rstrip().rpartition(".")
    return bool(dot and stem) and ending.lower() in SUFFIXES


class Seen(NamedTuple):
    """How many records had each column.

    Attributes:
      read, unread: number of records by column, for columns that are read and those that are not.
      pictures: by column, in how many records it looked like a picture that was not read.
    """

    read: collections.Counter[str]
    unread: collections.Counter[str]
    pictures: collections.Counter[str]

    @classmethod
    def nothing(cls) -> Seen:
        return cls(collections.Counter(), collections.Counter(), collections.Counter())

    def add(self, other: Mapping[str, Mapping[str, int]]) -> None:
        for mine, name in zip(self, self._fields, strict=True):
            mine.update(other.get(name, {}))

    def as_json(self) -> dict[str, dict[str, int]]:
        return {name: dict(sorted(counter.items())) for name, counter in zip(self._fields, self, strict=True)}
