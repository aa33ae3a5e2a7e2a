"""The end of a preparation: joins the index parts of all shards, and writes the reports of the finished folder.

Only one part of the index is in memory at a time; for the whole source there are only counts.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmm.atomic import sync_folder
from jaxmm.data.documents import SKIP_ADVICE, Source
from jaxmm.data.media import table
from jaxmm.data.media.headers import DROPPED
from jaxmm.data.prepare.index import CLIPS, COLUMNS, PREFERENCES, preferences_of
from jaxmm.data.prepare.meta import CLIPS_FORMAT, FORMAT, PREFERENCES_FORMAT, sealed
from jaxmm.data.prepare.prepared import file_checksum
from jaxmm.data.prepare.shard import DATA, Part, part_path, read_part
from jaxmm.data.prepare.statistics import report
from jaxmm.data.readers.columns import Seen
from jaxmm.data.text import boxes, intros
from jaxmm.data.text.template import Template
from jaxmm.errors import UserError


class _Totals(NamedTuple):
    """What is known after each shard's part of the index has been read once."""

    labels: list[str]
    sizes: dict[str, int]  # of the joined columns
    shards: list[dict[str, Any]]
    reasons: collections.Counter[str]
    dropped: collections.Counter[str]  # images that were removed from their pages
    columns: Seen
    special: dict[str, collections.Counter[str]]  # as in ``shard.Part``
    fingerprint: str


def finish(source: Source, template: Template, unfinished: Path, numbers: Sequence[int]) -> None:
    """Writes everything in the finished folder beside its shards.

    Raises:
      UserError: as ``_add_up``.
    """
    totals = _add_up(source, unfinished, numbers)
    data = unfinished / DATA
    expected = {shard["file"] for shard in totals.shards}
    for file in data.iterdir():
        if file.name not in expected:
            file.unlink()
    _write_columns(unfinished, numbers, totals)
    columns = {name: np.load(data / f"{name}.npy", mmap_mode="r") for name in COLUMNS}
    preferences = preferences_of(columns["verdict_E"])
    for further in (CLIPS, PREFERENCES):
        if not columns[further[0]].any():
            for name in further:
                del columns[name]
                (data / f"{name}.npy").unlink()
    described = table.described(columns["image_kind_I"])
    meta = {
        "format": PREFERENCES_FORMAT if preferences else CLIPS_FORMAT if "media" in described else FORMAT,
        "name": source.name,
        "fingerprint": totals.fingerprint,
        "template": template.fingerprint,
        "examples": len(columns["tokens_E"]),
        "tokens": int(columns["tokens_E"].sum(dtype=np.int64)),
        "images": len(columns["image_at_I"]),
        **described,
        "labels": totals.labels,
        "shards": totals.shards,
        "skipped": totals.reasons.total(),
        "special": {kind: dict(counts.most_common()) for kind, counts in totals.special.items()},
        "columns": {
            name: {"bytes": path.stat().st_size, "crc32": file_checksum(path)}
            for name, path in ((name, data / f"{name}.npy") for name in columns)
        },
    }
    if preferences:
        meta["preferences"] = preferences
    if source.boxes:
        meta["boxes"] = boxes.settings(source.boxes, source.image)
    if of_pictures := intros.settings(source.image):
        meta["intros"] = of_pictures
    told = report(meta, columns, totals.reasons)
    told |= {"dropped_images": dict(sorted(totals.dropped.items())), "columns": totals.columns.as_json()}
    _write_json(data / "report.json", told)
    _write_json(data / "meta.json", sealed(meta))
    sync_folder(data)


def _add_up(source: Source, unfinished: Path, numbers: Iterable[int]) -> _Totals:
    """Reads each part of the index once, and adds them up.

    Raises:
      UserError: if too many documents were skipped, none is left, or there are too many labels.
    """
    totals = _Totals(
        [], dict.fromkeys(COLUMNS, 0), [], collections.Counter(), collections.Counter(), Seen.nothing(),
        {"letters": collections.Counter(), "tokens": collections.Counter()}, "",
    )  # fmt: skip
    content = hashlib.sha256()
    first_skipped, examples, bad = "", 0, collections.defaultdict[str, set[str]](set)
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
            bad[reason].add(name if (name := detail.partition(" ")[0]) in table.MEDIA else "")
            why = f"{reason}: {detail}" if detail else reason
            first_skipped = first_skipped or f"{file}{f', record {record}' if record != '' else ''} ({why})"
        examples += part.records
    for name in ("runs_E1", "images_E1"):
        totals.sizes[name] = examples + 1
    skipped = totals.reasons.total()
    if too_many(skipped, examples, source.max_skipped):
        counts = ", ".join(f"{count} {reason}" for reason, count in totals.reasons.most_common())
        most = totals.reasons.most_common(1)[0][0]
        own = SKIP_ADVICE.get(most, "") if "" in bad[most] else ""
        of_media = table.advice(most, bad[most]) if not own or bad[most] - {""} else ""
        advice = ", or ".join(filter(None, (own, of_media)))
        raise UserError(
            f"data source '{source.name}': {skipped} of {examples + skipped} documents cannot be used ({counts}), more "
            f"than {source.max_skipped:.0%} (config.data.max_skipped); the first is {first_skipped}; {advice}"
        )
    if not examples:
        raise UserError(f"data source '{source.name}' has no documents")
    if len(totals.labels) > 64:
        raise UserError(f"more than 64 different labels, the last '{totals.labels[-1]}': group documents more coarsely")
    return totals._replace(fingerprint=content.hexdigest())


def too_many(skipped: int, examples: int, most: float) -> bool:
    """Whether more are skipped than allowed. A single one never stops the run; if nothing is left, it always stops."""
    return skipped > max(1, most * (examples + skipped)) or (skipped > 0 and not examples)


def _write_columns(unfinished: Path, numbers: Iterable[int], totals: _Totals) -> None:
    """Joins the columns of all parts, one part in memory at a time, and writes skipped.jsonl."""
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
    """Translates a part's label bits, uint64 (E,), to the bits of the whole source's names."""
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
