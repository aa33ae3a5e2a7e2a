"""Preparing: makes the folder that ``prepared`` opens from a raw source, once, however often it is interrupted.

A source is read once and tokenized, and each image's header is read. No pixel is decoded, and nothing depends on a
vision tower, unless boxes are written in its pixels, or its processor writes text before pictures by their sizes. The
work is cut into shards, which any process may make (``shard``). They are collected in an unfinished folder,
``.NAME-KEY.part``. When all are there, their columns are joined and the folder gets its name, ``NAME-KEY``. Its bytes
are the same for any number of workers, for either engine, and after any interruption.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxmm.atomic import published, sync_folder
from jaxmm.data import files
from jaxmm.data.documents import Source, Unit
from jaxmm.data.prepare import local_engine
from jaxmm.data.prepare.disk import DiskFull, space_wanted
from jaxmm.data.prepare.finish import finish, too_many
from jaxmm.data.prepare.lock import locked
from jaxmm.data.prepare.meta import FORMAT
from jaxmm.data.prepare.progress import Progress, Silent
from jaxmm.data.prepare.shard import DATA, INDEX, PrepareUnit, Shard, part_path
from jaxmm.data.prepare.statistics import lost_rests
from jaxmm.data.processes import TooManyWorkers
from jaxmm.data.text.template import Template
from jaxmm.errors import UserError
from jaxmm.json_text import parse_json
from jaxmm.machine import cores

SHARD_BYTES = 8 << 20  # of input: smaller units are joined up to this size,
SHARDS, LARGE_SHARD_BYTES = 1000, 256 << 20  # or up to a larger one, so that there are about so many shards
MANY_BYTES = 64 << 20  # of input: from here on, worker processes are worth the seconds that they take to start
DOCUMENT_BYTES = 1000  # assumed size of a document where a unit counts documents

# Runs a task over items: (task, items, workers, tick, done), as ``local_engine.run``.
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
    """Returns the folder of the prepared source; it is made unless the cache has it.

    The cache identifies a source by its files (name, size, time or tag), how they are read, and the template. Images
    named by path are not checked again: after repairing some, touch the data file to include their documents. If
    several processes prepare one source at once, one works and the others wait. A killed one leaves its finished shards
    to the next.

    Args:
      cache: a local folder, or one on a disk that several machines share.
      workers: number of processes; 1 is only this one, 0 picks: this one for little data, else one per core.

    Raises:
      UserError: if a record makes no sense, no document is left, more than the source's ``max_skipped`` of them are
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
            except (DiskFull, local_engine.WorkerDied, TooManyWorkers):
                raise  # what is finished stays
            except UserError:
                # Repaired files have another key, but repaired images do not: they must be read again.
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
    """Reports the files whose rest was not read; it is unknown how many documents that is."""
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
    """Returns the name that ``prepare`` gives a source's folder: its own, and a key of all that decides the content."""
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
    """Makes the shards that are missing, then everything else in the finished folder."""
    shards = joined_units(source.units(), versions)
    _make_room(unfinished, shards)
    left = [shard for shard in shards if not part_path(unfinished, shard.number).is_file()]
    total, todo = sum(shard.bytes for shard in shards), sum(shard.bytes for shard in left)
    progress.start(source.name, total, total - todo)
    if 0 < len(left) < len(shards):
        progress.say(f"preparing {source.name}: going on after {len(shards) - len(left)} of {len(shards)} shards")
    if not workers and engine is local_engine.run:
        workers = cores() if todo >= MANY_BYTES else 1
    # The largest first, so that no worker still has a long one at the end.
    order = sorted(left, key=lambda shard: -shard.bytes)
    engine(
        PrepareUnit(source, template, unfinished), order, workers,
        progress.tick, lambda shard: progress.done(shard.bytes),
    )  # fmt: skip
    finish(source, template, unfinished, [shard.number for shard in shards])


def joined_units(units: Sequence[Unit], versions: Mapping[str, files.Version]) -> list[Shard]:
    """Returns the shards: units, with small ones joined, so that many small files become few shards."""
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
    """Makes the unfinished folder, or removes the half-done files that a killed process left in it."""
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


def _refuse_skipped(source: Source, folder: Path) -> None:
    """Raises UserError if the folder was prepared when more documents could be skipped than now."""
    try:
        meta = parse_json((folder / "meta.json").read_text())
    except (OSError, ValueError):
        return  # opening the folder reports it
    skipped, examples = meta.get("skipped", 0), meta.get("examples", 0)
    if too_many(skipped, examples, source.max_skipped):
        raise UserError(
            f"data source '{source.name}': {skipped} of {examples + skipped} documents were skipped, more than "
            f"{source.max_skipped:.0%} (config.data.max_skipped): {folder / 'skipped.jsonl'} lists them"
        )
