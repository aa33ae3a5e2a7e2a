"""Checksums of a checkpoint's files: whether it is whole, and what is missing or differs.

A fault is proven by bytes that are missing or that differ from their checksum. What merely cannot be read (a
permission, a disk that is away, an index that a newer library writes) proves nothing: nobody may take it for broken.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import tensorstore

from jaxmm.json_text import parse_json

STATE, META, METRICS = "state", "meta", "metrics"  # what a checkpoint holds: folders in the folder of its step
RECORD = "checksums.json"
PROMISE = {"checksums": RECORD}  # what a checkpoint with a record says of itself, so that a lost one is missed
_STEP = "_CHECKPOINT_METADATA"  # of Orbax; the time of the commit goes into it just before the rename
_COMMIT = "commit_timestamp_nsecs"
_BLOCK = 1 << 24  # bytes
_PATIENCE = 300.0  # seconds for Orbax to write what a checkpoint says of itself
_THREADS = min(8, os.cpu_count() or 1)  # CRC-32 of large blocks holds no lock: some 2 GB/s each


class Fault(NamedTuple):
    """What is wrong with a checkpoint. ``is_proven``: bytes are missing or differ; ``differs``: none is missing."""

    text: str
    is_proven: bool
    differs: bool = False

    @property
    def kind(self) -> str:
        """In a word."""
        return "unreadable" if not self.is_proven else "damaged" if self.differs else "incomplete"


class Entry(NamedTuple):
    """A file in the record."""

    bytes: int
    crc32: int


RECORD_DIFFERS = Fault(f"the bytes of {RECORD} are not those that were written", True, True)


def wait_for_promise(folder: Path) -> None:
    """Waits until a checkpoint in the making says PROMISE of itself.

    Orbax writes that in a thread of its own, and does not wait for it before it asks for the record: on a busy machine
    the record would have the checksum of what the file was before.

    Raises:
      TimeoutError: if it does not within minutes.
    """
    end = time.monotonic() + _PATIENCE
    while not _promises(folder):
        if time.monotonic() > end:
            raise TimeoutError(f"{folder / _STEP} is not written")
        time.sleep(0.01)


def _promises(folder: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # not there yet, or half written
        return parse_json((folder / _STEP).read_bytes()).get("custom_metadata") == PROMISE
    return False


def write_record(folder: Path) -> None:
    """Adds the record to a folder of files that are all there. Reads them back, so that it says what the disk holds."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(_THREADS) as threads:
        entries = dict(zip(names, threads.map(lambda name: entry(folder / name), names), strict=True))
    with (folder / RECORD).open("w") as out:
        out.write(record_text(entries))
        out.flush()
        os.fsync(out.fileno())


def has_record(folder: Path) -> bool:
    """Whether it was saved with checksums, as all are since version 0.2."""
    return (folder / RECORD).exists()


def look(folder: Path, part: str = "") -> Fault | None:
    """What is missing from the checkpoint, or from one part of it, from the sizes of its files alone."""
    try:
        if not has_record(folder):
            return _look_by_index(folder)
        entries = of_part(_read_record(folder), part)
        return next((fault for name, entry in entries.items() if (fault := _missing(folder, name, entry.bytes))), None)
    except _Found as found:
        return found.fault
    except OSError as error:
        return Fault(f"{error.filename or folder}: {error.strerror}", False)


def verify(folder: Path, part: str = "", share: tuple[int, int] = (0, 1)) -> Fault | None:
    """Reads the files of the checkpoint, and compares them with their checksums where it has some.

    Args:
      part: "state", "meta" or "metrics": no file of another part is read.
      share: number and count: of several processes that verify together, each takes every count-th file.
    """
    if fault := look(folder, part):
        return fault
    if not has_record(folder):
        return None
    entries = of_part(_read_record(folder), part)
    names = list(entries)

    def judged(name: str) -> Fault | None:
        try:
            is_same = entry(folder / name) == entries[name]
        except OSError as error:
            return Fault(f"{name}: {error.strerror}", False)
        return None if is_same else Fault(f"the bytes of {name} are not those that were written", True, True)

    with ThreadPoolExecutor(_THREADS) as threads:
        faults = [fault for fault in threads.map(judged, names[share[0] :: share[1]]) if fault]
    return min(faults, key=lambda fault: not fault.is_proven, default=None)


def of_part(entries: Mapping[str, Entry], part: str) -> dict[str, Entry]:
    """The entries of one part, "state", "meta" or "metrics", and those of none; all for ""."""
    others = tuple(f"{name}/" for name in (STATE, META, METRICS) if part and name != part)
    return {name: entry for name, entry in entries.items() if not name.startswith(others)}


def parse_record(data: bytes) -> dict[str, Entry] | None:
    """The files that a record names, with the sizes and checksums of their bytes; None where it is not as written."""
    try:
        text = data.decode()
        entries = {str(name): Entry(*entry) for name, entry in parse_json(text)["files"].items()}
        return entries if record_text(entries) == text else None
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


class _Found(Exception):
    """Ends a look at the first fault."""

    def __init__(self, fault: Fault):
        super().__init__(fault.text)
        self.fault = fault


def entry(path: Path) -> Entry:
    """What the record says of a file."""
    size, crc32 = 0, 0
    if path.name == _STEP:  # as it is without the time: 0 bytes or more
        with contextlib.suppress(ValueError, AttributeError):
            rest = {key: value for key, value in parse_json(path.read_bytes()).items() if key != _COMMIT}
            crc32 = zlib.crc32(json.dumps(rest).encode())
        return Entry(0, crc32)
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            size, crc32 = size + len(block), zlib.crc32(block, crc32)
    return Entry(size, crc32)


def record_text(entries: Mapping[str, Entry]) -> str:
    """The record, with a checksum of its own: one text for each content, so that a changed byte shows."""
    files = {name: [entry.bytes, entry.crc32] for name, entry in entries.items()}
    return json.dumps({"crc32": zlib.crc32(json.dumps(files).encode()), "files": files}, indent=1) + "\n"


def _read_record(folder: Path) -> dict[str, Entry]:
    entries = parse_record((folder / RECORD).read_bytes())
    if entries is None:
        raise _Found(RECORD_DIFFERS)
    return entries


def _missing(folder: Path, name: str, size: int) -> Fault | None:
    try:
        is_there = (folder / name).stat().st_size >= size
    except (FileNotFoundError, NotADirectoryError):
        is_there = False
    return None if is_there else Fault(f"{name} is missing or cut short", True)


# Version 0.1 wrote no checksums: the array store's own index says which bytes of which files it needs.


def _look_by_index(folder: Path) -> Fault | None:
    needed = [_STEP, f"{META}/metadata", f"{STATE}/_METADATA"]
    optional = [f"{METRICS}/{METRICS}", f"{STATE}/_sharding", f"{STATE}/array_metadatas/*"]
    names = [str(file.relative_to(folder)) for pattern in optional for file in folder.glob(pattern)]
    for name in (*needed, *names):
        if fault := _missing(folder, name, 1) or _cut_json(folder, name):
            return fault
    if _promises(folder):
        return Fault(f"{RECORD} is missing or cut short", True)
    manifest = f"{STATE}/manifest.ocdbt"
    if fault := _missing(folder, manifest, _manifest_bytes(folder / manifest)):
        return fault
    try:
        store = tensorstore.KvStore.open({"driver": "file", "path": f"{folder.resolve() / STATE}/"}).result()
        nodes = [tensorstore.ocdbt.dump(store).result()["versions"][-1]["root"]["location"]]
        while nodes:
            node = nodes.pop()
            if fault := _missing(folder, *_end(node)):
                return fault
            for place in _values(tensorstore.ocdbt.dump(store, node).result(), nodes):
                if fault := _missing(folder, *_end(place)):
                    return fault
    except (OSError, ValueError, LookupError) as error:
        return Fault(f"the index of {STATE} cannot be read: {str(error).strip().partition(chr(10))[0][:120]}", False)
    return None


def _cut_json(folder: Path, name: str) -> Fault | None:
    try:
        parse_json((folder / name).read_bytes())
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string")
        return Fault(f"{name} is missing or cut short", True) if is_cut else Fault(f"{name} is no JSON", False)
    except ValueError:
        return Fault(f"{name} is no text", False)
    return None


def _manifest_bytes(path: Path) -> int:
    """How long it says that it is, in its bytes 4 to 11."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except FileNotFoundError:
        return 1
    return int.from_bytes(head[4:12], "little") if len(head) == 12 else 12


def _end(place: str) -> tuple[str, int]:
    """The file of a place in the store, and the bytes that it must have."""
    _, base, file, offset, length = place.split(":")
    return f"{STATE}/{unquote(base)}{unquote(file)}", int(offset) + int(length)


def _values(node: Mapping[str, Any], nodes: list[str]) -> list[str]:
    """Where a node of the index keeps its values; appends its child nodes to ``nodes``."""
    nodes += [entry["location"] for entry in node["entries"] if "location" in entry]
    return [entry["indirect_value"] for entry in node["entries"] if "indirect_value" in entry]
