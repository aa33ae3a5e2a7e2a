"""skipped.jsonl: the records that could not be used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxmm.atomic import read_lines, write_lines


class SkippedFile:
    """skipped.jsonl: {"file", "record", "reason"} of each record that could not be used, once, over resumes too.

    Args:
      path: of the file.
      lines: of it that the checkpoint gone on from knew of: later ones are dropped, as their steps are done again. None
        keeps all, and counts none of them as met.
      writes: whether this process of the job drops them.
      gather: of a job whose processes have a file each, gives to all what one has: (items) to the items of all.
    """

    def __init__(
        self, path: Path, lines: int | None = None, writes: bool = True,
        gather: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] | None = None,
    ) -> None:  # fmt: skip
        self._path, self._gather = path, gather
        self._new: list[dict[str, Any]] = []  # that the other processes do not know of
        lines_there = read_lines(path)
        known = lines_there[:lines]
        self._seen = {self._key(item) for item in known}
        self._noted = set(self._seen) if lines is None else set()
        is_cut = path.exists() and not path.read_bytes().endswith(b"\n")  # by a kill in its last line
        if writes and (is_cut or len(known) < len(lines_there)):
            write_lines(path, known)

    @property
    def met(self) -> int:
        """How many of them batches held; the others were left out of the plan."""
        return len(self._seen - self._noted)

    def lines(self) -> int:
        """How many the file has."""
        return len(read_lines(self._path))

    def note(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Adds what preparing left out."""
        for item in items:
            self._add({key: item[key] for key in ("file", "record", "reason")})
            self._noted.add(self._key(item))

    def __len__(self) -> int:
        return len(self._seen)

    def reread(self) -> None:
        """Takes in what the other processes of the job have added."""
        if self._gather is None:
            self._seen |= {self._key(item) for item in read_lines(self._path)}
            return
        new, self._new = self._new, []
        for item in self._gather(new):
            self._add(item)

    def add(self, file: str, record: str | int, reason: str) -> bool:
        """Records one; returns whether it was new."""
        item = {"file": file, "record": record, "reason": reason}
        is_new = self._add(item)
        if is_new:
            self._new.append(item)
        return is_new

    def _add(self, item: Mapping[str, Any]) -> bool:
        if self._key(item) in self._seen:
            return False
        self._seen.add(self._key(item))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as out:
            out.write(f"{json.dumps(item)}\n")
        return True

    def _key(self, item: Mapping[str, Any]) -> tuple[str, str, str]:
        return str(item.get("file")), str(item.get("record")), str(item.get("reason"))
