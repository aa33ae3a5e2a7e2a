"""Preparing: from a raw source to the folder that ``prepared`` opens, once, however often it is interrupted.

A source is read once, tokenized, and each image's header looked at; no pixel is decoded, and nothing depends on a
vision tower, unless boxes are written in its pixels. The work is cut into shards, which any process may make
(``shard``). They are collected in an unfinished folder, ``.NAME-KEY.part``, until all are there; then their columns are
joined and the folder takes its name, ``NAME-KEY``. The bytes in it are the same for any number of workers, for either
engine, and after any interruption.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmm.atomic import published, sync_folder
from jaxmm.data import files
from jaxmm.data.documents import SKIP_ADVICE, Source, Unit
from jaxmm.data.media import image
from jaxmm.data.media.features import feature_widths
from jaxmm.data.media.headers import DROPPED
from jaxmm.data.prepare import local_engine
from jaxmm.data.prepare.disk import DiskFull, space_wanted
from jaxmm.data.prepare.lock import locked
from jaxmm.data.prepare.meta import sealed
from jaxmm.data.prepare.prepared import COLUMNS, FORMAT, Columns, InMemory, Prepared, Record, file_checksum
from jaxmm.data.prepare.progress import Progress, Silent
from jaxmm.data.prepare.shard import DATA, INDEX, Part, PrepareUnit, Shard, part_path, read_part
from jaxmm.data.prepare.statistics import lost_rests, report
from jaxmm.data.readers.columns import Seen
from jaxmm.data.text import boxes
from jaxmm.data.text.template import Template
from jaxmm.errors import UserError
from jaxmm.machine import cores

__all__ = ["COLUMNS", "FORMAT", "Columns", "InMemory", "Prepared", "Record", "prepare"]

SHARD_BYTES = 8 << 20  # of input: smaller units are joined up to it,
SHARDS, LARGE_SHARD_BYTES = 1000, 256 << 20  # or up to so much that there are about so many shards
MANY_BYTES = 64 << 20  # of input that are worth the seconds in which worker processes start
DOCUMENT_BYTES = 1000  # taken for the size of a document where a unit counts documents

# What runs a task over items: (task, items, workers, tick, done), as processes.run.
Engine = Callable[[local_engine.Task, Sequence[Any], int, Callable[..., None], Callable[[Any], None]], None]


def prepare(
    source: Source,
    template: Template,
    cache: Path,
    *,
    workers: int = 0,
    engine: Engine = local_engine.run,
    progress: Progress | None = None,
) -> Path:
    """Returns the folder of the prepared source, which is made unless the cache has it.

    The cache knows a source by its files (name, size, time or tag), how they are read, and the template. Images named
    by path are not looked at again: after mending some, touch the data file to have their documents in. Of several
    processes that prepare one source at once, one does and the others wait; a killed one leaves its finished shards
    to the next.

    Args:
      cache: a local folder, or one on a disk that several machines share.
      workers: processes; 1 is this one, 0 picks: this one for little, else one a core.

    Raises:
      UserError: if a record makes no sense, nothing is left, more than its ``max_skipped`` of the documents are
        skipped, a worker dies, or the disk is full.
    """
    cache, progress = Path(cache), progress or Silent()
    for line in source.told:
        progress.say(line)
    versions = _versions(source)
    folder = cache / _folder_name(source, versions, template)
    unfinished = cache / f".{folder.name}.part"
    lock = cache / f".{folder.name}.lock"
    if _is_whole(folder) and not (unfinished.exists() or lock.exists()):
        _refuse_skipped(source, folder)
        _tell_lost(folder, progress)
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{cache}: no folder can be made here ({error.strerror}): choose another cache") from error

    def wait() -> None:
        progress.say(f"another process is preparing {source.name} in {cache}: waiting for it")

    with space_wanted(cache), locked(lock, wait):
        if not _is_whole(folder):
            if folder.exists():
                raise UserError(f"{folder} is in the way and not whole: delete it")
            try:
                _make(source, template, versions, unfinished, workers, engine, progress)
            except (DiskFull, local_engine.WorkerDied):
                raise
            except UserError:
                # Mended files have another key, and mended images must be looked at again.
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
            finally:
                progress.close()
            os.rename(unfinished / DATA, folder)
            sync_folder(cache)
        shutil.rmtree(unfinished, ignore_errors=True)
    _tell_lost(folder, progress)
    return folder


def _tell_lost(folder: Path, progress: Progress) -> None:
    """Says of which files a rest was not read: nobody knows how many documents that is."""
    with contextlib.suppress(OSError):
        for line in lost_rests((folder / "skipped.jsonl").read_text(encoding="utf-8", errors="replace")):
            progress.say(line)


def _is_whole(folder: Path) -> bool:
    return (folder / "meta.json").is_file()


def _versions(source: Source) -> dict[str, files.Version]:
    try:
        if not any(map(files.is_remote, source.files)):
            return {file: files.version(file) for file in source.files}
        with ThreadPoolExecutor(32) as pool:
            return dict(zip(source.files, pool.map(files.version, source.files), strict=True))
    except OSError as error:
        raise UserError(f"data source '{source.name}': a file cannot be read: {error}") from error


def folder_name(source: Source, template: Template) -> str:
    """Returns how ``prepare`` names the folder of a source: its name, and a key of all that decides what is in it."""
    return _folder_name(source, _versions(source), template)


def _folder_name(source: Source, versions: Mapping[str, files.Version], template: Template) -> str:
    parts = [FORMAT, source.name, list(versions.items()), source.entry, template.fingerprint]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return f"{re.sub(r'[^a-zA-Z0-9_.-]', '_', source.name)}-{key[:16]}"


def _make(
    source: Source,
    template: Template,
    versions: Mapping[str, files.Version],
    unfinished: Path,
    workers: int,
    engine: Engine,
    progress: Progress,
) -> None:
    """Makes the shards that are not there yet, then all else that the finished folder holds."""
    shards = joined_units(source.units(), versions)
    _make_room(unfinished, shards)
    left = [shard for shard in shards if not part_path(unfinished, shard.number).is_file()]
    total, todo = sum(shard.bytes for shard in shards), sum(shard.bytes for shard in left)
    progress.start(source.name, total, total - todo)
    if 0 < len(left) < len(shards):
        progress.say(f"preparing {source.name}: going on after {len(shards) - len(left)} of {len(shards)} shards")
    if not workers and engine is local_engine.run:
        workers = cores() if todo >= MANY_BYTES else 1
    # The longest first, so that no worker is left with one at the end.
    order = sorted(left, key=lambda shard: -shard.bytes)
    engine(
        PrepareUnit(source, template, unfinished), order, workers,
        progress.tick, lambda shard: progress.done(shard.bytes),
    )  # fmt: skip
    _finish(source, template, unfinished, [shard.number for shard in shards])


def joined_units(units: Sequence[Unit], versions: Mapping[str, files.Version]) -> list[Shard]:
    """Returns what becomes a shard each: units, small ones of them joined, so that many small files are few shards."""
    spans: collections.Counter[str] = collections.Counter()
    for unit in units:
        spans[unit.file] += unit.stop - unit.start
    sizes = []
    for unit in units:
        span = unit.stop - unit.start
        is_file = unit.file in versions
        sizes.append(versions[unit.file].size * span // max(spans[unit.file], 1) if is_file else span * DOCUMENT_BYTES)
    most = max(SHARD_BYTES, min(sum(sizes) // SHARDS, LARGE_SHARD_BYTES))
    groups: list[list[Unit]] = []
    bytes_of: list[int] = []
    for unit, size in zip(units, sizes, strict=True):
        if not groups or bytes_of[-1] + size > most:
            groups.append([])
            bytes_of.append(0)
        groups[-1].append(unit)
        bytes_of[-1] += size
    return [Shard(k, tuple(group), size) for k, (group, size) in enumerate(zip(groups, bytes_of, strict=True))]


def _make_room(unfinished: Path, shards: Sequence[Shard]) -> None:
    """Makes an unfinished folder, or clears what a killed process left half-done in it."""
    plan = json.dumps(shards) + "\n"
    kept = unfinished / "shards.json"
    if unfinished.exists() and not (kept.is_file() and kept.read_text() == plan):
        shutil.rmtree(unfinished)  # cut into other shards, by another version
    for name in (DATA, INDEX):
        (unfinished / name).mkdir(parents=True, exist_ok=True)
        for temporary in (unfinished / name).glob(".*"):
            temporary.unlink()
    if not kept.exists():
        with published(kept) as temporary:
            temporary.write_text(plan)


class _Totals(NamedTuple):
    """What is known when each shard's part of the index has been looked at once."""

    labels: list[str]
    sizes: dict[str, int]  # of the joined columns
    shards: list[dict[str, Any]]
    reasons: collections.Counter[str]
    dropped: collections.Counter[str]  # images that left their pages
    columns: Seen
    special: dict[str, collections.Counter[str]]  # as of ``shard.Part``
    fingerprint: str


def _finish(source: Source, template: Template, unfinished: Path, numbers: Sequence[int]) -> None:
    totals = _add_up(source, unfinished, numbers)
    data = unfinished / DATA
    expected = {shard["file"] for shard in totals.shards}
    for found in data.iterdir():
        if found.name not in expected:
            found.unlink()
    _write_columns(unfinished, numbers, totals)
    columns = {name: np.load(data / f"{name}.npy", mmap_mode="r") for name in COLUMNS}
    meta = {
        "format": FORMAT,
        "name": source.name,
        "fingerprint": totals.fingerprint,
        "template": template.fingerprint,
        "examples": len(columns["tokens_E"]),
        "tokens": int(columns["tokens_E"].sum(dtype=np.int64)),
        "images": len(columns["image_at_I"]),
        "feature_widths": feature_widths(columns["image_kind_I"]),
        "labels": totals.labels,
        "shards": totals.shards,
        "skipped": totals.reasons.total(),
        "special": {kind: dict(counts.most_common()) for kind, counts in totals.special.items()},
        "columns": {
            name: {"bytes": path.stat().st_size, "crc32": file_checksum(path)}
            for name, path in ((name, data / f"{name}.npy") for name in COLUMNS)
        },
    }
    if source.boxes:
        meta["boxes"] = boxes.settings(source.boxes, source.image)
    told = report(meta, columns, totals.reasons)
    told |= {"dropped_images": dict(sorted(totals.dropped.items())), "columns": totals.columns.as_json()}
    _write_json(data / "report.json", told)
    _write_json(data / "meta.json", sealed(meta))
    sync_folder(data)


def _add_up(source: Source, unfinished: Path, numbers: Iterable[int]) -> _Totals:
    """Looks at each part of the index once.

    Raises:
      UserError: if too many documents were skipped, none is left, or there are too many labels.
    """
    totals = _Totals(
        [], dict.fromkeys(COLUMNS, 0), [], collections.Counter(), collections.Counter(), Seen.nothing(),
        {"letters": collections.Counter(), "tokens": collections.Counter()}, "",
    )  # fmt: skip
    content = hashlib.sha256()
    first_skipped, examples = "", 0
    for number in numbers:
        part, columns = read_part(part_path(unfinished, number))
        content.update(part.digest.encode())
        totals.labels.extend(label for label in part.labels if label not in totals.labels)
        for name, column in columns.items():
            totals.sizes[name] += len(column)
        if part.records:
            totals.shards.append({"file": part.file, "records": part.records, "bytes": part.bytes})
        totals.columns.add(part.columns)
        for kind, named in part.special.items():
            totals.special[kind].update(named)
        for file, record, reason, detail in part.skipped:
            if detail == DROPPED:
                totals.dropped[reason] += 1
                continue
            totals.reasons[reason] += 1
            why = f"{reason}: {detail}" if detail else reason
            first_skipped = first_skipped or f"{file}{f', record {record}' if record != '' else ''} ({why})"
        examples += part.records
    for name in ("runs_E1", "images_E1"):
        totals.sizes[name] = examples + 1
    skipped = totals.reasons.total()
    if _too_many(skipped, examples, source.max_skipped):
        counts = ", ".join(f"{count} {reason}" for reason, count in totals.reasons.most_common())
        most = totals.reasons.most_common(1)[0][0]
        advice = ", or ".join(known[most] for known in (SKIP_ADVICE, image.ADVICE) if most in known)
        raise UserError(
            f"data source '{source.name}': {skipped} of {examples + skipped} documents cannot be used ({counts}), more "
            f"than {source.max_skipped:.0%} (config.data.max_skipped); the first is {first_skipped}; {advice}"
        )
    if not examples:
        raise UserError(f"data source '{source.name}' has no documents")
    if len(totals.labels) > 64:
        raise UserError(f"more than 64 different labels, the last '{totals.labels[-1]}': group documents more coarsely")
    return totals._replace(fingerprint=content.hexdigest())


def _too_many(skipped: int, examples: int, most: float) -> bool:
    """Whether more are skipped than may be: a single one never stops, and if nothing is left it always does."""
    return skipped > max(1, most * (examples + skipped)) or (skipped > 0 and not examples)


def _refuse_skipped(source: Source, folder: Path) -> None:
    """Raises UserError for what was prepared when more documents might be skipped."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
    except (OSError, ValueError):
        return  # who opens it says so
    skipped, examples = meta.get("skipped", 0), meta.get("examples", 0)
    if _too_many(skipped, examples, source.max_skipped):
        raise UserError(
            f"data source '{source.name}': {skipped} of {examples + skipped} documents were skipped, more than "
            f"{source.max_skipped:.0%} (config.data.max_skipped): {folder / 'skipped.jsonl'} lists them"
        )


def _write_columns(unfinished: Path, numbers: Iterable[int], totals: _Totals) -> None:
    """Joins the columns of all parts, one part in memory at a time, and lists what was skipped."""
    data = unfinished / DATA
    rows = dict.fromkeys(COLUMNS, 0)
    with contextlib.ExitStack() as stack:
        opened = {name: stack.enter_context(open(data / f"{name}.npy", "wb")) for name in COLUMNS}
        for name, kind in COLUMNS.items():
            header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": (totals.sizes[name],)}
            np.lib.format.write_array_header_1_0(opened[name], header)
        for name in ("runs_E1", "images_E1"):
            opened[name].write(np.zeros(1, COLUMNS[name]).tobytes())
        with open(data / "skipped.jsonl", "w", encoding="utf-8") as skipped:
            for number in numbers:
                part, columns = read_part(part_path(unfinished, number))
                for file, record, reason, detail in part.skipped:
                    line = {"file": file, "record": record, "reason": reason} | ({"detail": detail} if detail else {})
                    skipped.write(json.dumps(line) + "\n")
                columns["labels_E"] = _renamed(columns["labels_E"], part, totals.labels)
                columns["runs_E1"] = columns["runs_E1"][1:] + rows["run_start_R"]
                columns["images_E1"] = columns["images_E1"][1:] + rows["image_at_I"]
                for name, column in columns.items():
                    opened[name].write(column.tobytes())
                    rows[name] += len(column)
            _sync(skipped)
        for column_file in opened.values():
            _sync(column_file)


def _renamed(labels_E: np.ndarray, part: Part, names: Sequence[str]) -> np.ndarray:
    """A part's label bits as bits of the whole source's names."""
    renamed = np.zeros_like(labels_E)
    for bit, label in enumerate(part.labels):
        has = labels_E >> np.uint64(bit) & np.uint64(1)
        renamed |= has << np.uint64(names.index(label))
    return renamed


def _write_json(path: Path, value: Any) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1) + "\n")
        _sync(file)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
