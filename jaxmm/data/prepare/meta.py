"""Checks meta.json of a prepared folder, which may come from anywhere, be damaged, or be made to do harm.

Names in it become names of files, so they must be bare. Its checksums are those of the index's columns, and its own.
Version 0.1 wrote no checksums.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

from jaxmm.data.reading import PREFERENCES
from jaxmm.errors import UserError
from jaxmm.json_text import parse_json

NAME = "meta.json"  # a folder that has it is complete
FORMAT = 3  # of a folder without clips
CLIPS_FORMAT = 4  # of one with video or audio, whose columns older code does not know
PREFERENCES_FORMAT = 5  # of one with preferences, in the same way

_KEYS = {"name": str, "fingerprint": str, "template": str, "examples": int, "tokens": int, "images": int,
         "feature_widths": list, "labels": list, "shards": list, "skipped": int}  # fmt: skip
_SHARD = {"file": str, "records": int, "bytes": int}
_COLUMN = {"bytes": int, "crc32": int}
_FINGERPRINT = re.compile(r"[0-9a-f]{16,128}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")


def sealed(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``meta`` with a checksum of all of it."""
    return {**meta, "checksum": _checksum(meta)}


def read_meta(text: bytes | str, folder: str) -> dict[str, Any]:
    """Reads meta.json of a folder; ``folder`` is named in errors.

    Raises:
      UserError: if it is not JSON, has another format or impossible values, or was changed after it was written.
    """
    try:
        meta = parse_json(text)
    except ValueError as error:
        raise UserError(f"{folder} holds no prepared data (no readable {NAME}): prepare it again") from error
    if not isinstance(meta, dict):
        raise UserError(f"{folder} holds no prepared data ({NAME} is no object): prepare it again")
    if meta.get("format") not in (FORMAT, CLIPS_FORMAT, PREFERENCES_FORMAT):
        raise UserError(
            f"{folder} has format {meta.get('format')}, this version reads {FORMAT} to {PREFERENCES_FORMAT}: "
            f"prepare it again"
        )
    fault = _fault(meta)
    if fault:
        raise UserError(f"{folder}/{NAME} is damaged ({fault}): delete the folder and prepare it again")
    return meta


def _fault(meta: dict[str, Any]) -> str:
    """Returns what is wrong with it, or ''."""
    if fault := _misses(meta, _KEYS):
        return fault
    if not _FINGERPRINT.fullmatch(meta["fingerprint"]):
        return "its fingerprint is no hexadecimal number"
    if not all(isinstance(label, str) for label in meta["labels"]) or len(meta["labels"]) > 64:
        return "its labels are no names"
    for key in ("feature_widths", "audio_feature_widths"):
        widths = meta.get(key, [])
        if not isinstance(widths, list) or not all(_is_number(width) and width for width in widths):
            return f"its {key} are no numbers"
    for shard in meta["shards"]:
        if fault := _misses(shard, _SHARD):
            return f"a shard: {fault}"
        if not _FILE.fullmatch(shard["file"]):
            return f"a shard's file {shard['file'][:80]!r} is no bare name"
    media = meta.get("media", [])
    if not isinstance(media, list) or not all(isinstance(name, str) for name in media):
        return "its media are no names"
    if meta.get("preferences", "") not in PREFERENCES:
        return "its preferences are none that are known"
    for key in ("boxes", "intros"):
        if not isinstance(meta.get(key, {}), dict):
            return f"{key} is no object"
    columns = meta.get("columns", {})
    if not isinstance(columns, dict):
        return "columns is no object"
    for name, column in columns.items():
        if fault := _misses(column, _COLUMN):
            return f"column {name[:80]!r}: {fault}"
    if "columns" in meta and "checksum" not in meta:
        return "no checksum"
    if "checksum" in meta and meta["checksum"] != _checksum(meta):
        return "it is not as it was written: its checksum differs"
    return ""


def _misses(value: Any, kinds: Mapping[str, type]) -> str:
    if not isinstance(value, dict):
        return "no object"
    for key, kind in kinds.items():
        if key not in value:
            return f"no {key}"
        if not (_is_number(value[key]) if kind is int else isinstance(value[key], kind)):
            return f"{key} is {str(value[key])[:80]!r}"
    return ""


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _checksum(meta: Mapping[str, Any]) -> int:
    rest = {key: value for key, value in meta.items() if key != "checksum"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())
