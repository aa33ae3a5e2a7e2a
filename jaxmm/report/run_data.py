"""What a run's folder holds, read for a page: its files may be missing, of an older version, or cut by a kill."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxmm.atomic import read_json, read_lines
from jaxmm.config.file import run_config
from jaxmm.workdir.folder import LOCK
from jaxmm.workdir.spool import name_of

TEXT = "text"  # the modality of documents without media
OF_MEDIA = ("images_per_second", "videos_per_second", "recordings_per_second", "patch_fill", "audio_fill")
SILENCE = 90.0  # seconds without a sign of life after which a run that holds its folder counts as dead


class RunData(NamedTuple):
    """A run as far as its folder tells.

    Attributes:
      state: "waiting" (no line of a log yet), "running", "finished" or "stopped".
      step: of the last line of the log; 0 where there is none.
      steps: that the run will have; 0 where that is not known.
      lines: of metrics.jsonl; the other lists are those of the files of their names.
      samples: the objects of samples/*.json.
    """

    name: str
    folder: Path
    state: str
    step: int
    steps: int
    changed: datetime.datetime | None  # the log
    lines: list[dict[str, Any]]
    config: dict[str, Any]
    summary: dict[str, Any]
    machine: dict[str, Any]
    skipped: list[dict[str, Any]]
    slow_steps: list[dict[str, Any]]
    timeline: list[dict[str, Any]]
    samples: list[dict[str, Any]]

    @property
    def sources(self) -> list[str]:
        """Names of the sources that it trains on, in their order."""
        return names(self.lines, "sources") or names(self.lines, "balance", "sources")

    @property
    def learns_media(self) -> bool:
        """Whether its log tells of media in what it trains on. The tower of a run without them does nothing."""
        return any(name != TEXT for name in names(self.lines, "balance", "modalities")) or any(
            (figure(line, name) or 0.0) > 0 for line in self.lines for name in OF_MEDIA
        )

    def last(self, *path: str) -> Any:
        """The newest value at a path of the log's lines, or None."""
        for line in reversed(self.lines):
            if (value := at(line, *path)) is not None:
                return value
        return None

    def evaluations(self) -> list[tuple[int, dict[str, Any]]]:
        """(step, figures by source) of each evaluation."""
        return [(line["step"], line["eval"]) for line in self.lines if isinstance(line.get("eval"), dict)]


def read_run(workdir: Path, state: str = "") -> RunData:
    """Reads a workdir.

    Args:
      state: what the caller knows of the run, one of ``RunData``'s; '' takes what the folder tells. A process that ends
        a run still holds its folder, so that the run seems to go on.

    Raises:
      UserError: if it is none, or holds no run.
    """
    config = run_config(str(workdir))
    log = workdir / "metrics.jsonl"
    lines = [line for line in read_lines(log) if isinstance(line.get("step"), int)]
    summary, machine = read_json(workdir / "summary.json"), read_json(workdir / "machine.json")
    step = lines[-1]["step"] if lines else 0
    planned = (machine.get("steps"), summary.get("steps"), config.get("steps") if not config.get("epochs") else None)
    steps = next((n for n in planned if isinstance(n, int)), 0)
    samples = [read_json(path) for path in sorted((workdir / "samples").glob("*.json"))]
    return RunData(
        name=name_of(workdir.resolve()).rpartition("/")[2],
        folder=workdir,
        state=state or _state(workdir, step, steps, bool(summary)),
        step=step,
        steps=steps,
        changed=datetime.datetime.fromtimestamp(log.stat().st_mtime).astimezone() if log.exists() else None,
        lines=lines,
        config=config,
        summary=summary,
        machine=machine,
        skipped=read_lines(workdir / "skipped.jsonl"),
        slow_steps=read_lines(workdir / "slow_steps.jsonl"),
        timeline=read_lines(workdir / "timeline.jsonl"),
        samples=[sample for sample in samples if sample],
    )


def _state(workdir: Path, step: int, steps: int, has_summary: bool) -> str:
    if has_summary and step >= steps:
        return "finished"
    try:
        is_held = time.time() - (workdir / LOCK).stat().st_mtime < SILENCE
    except OSError:
        is_held = False
    if is_held:
        return "running" if step else "waiting"
    return "stopped" if step else "waiting"


def at(tree: Any, *path: str) -> Any:
    """What lies at a path of keys in nested mappings, or None."""
    for key in path:
        if not isinstance(tree, dict):  # of JSON; a Mapping would be asked much more slowly
            return None
        tree = tree.get(key)
    return tree


def figure(tree: Any, *path: str) -> float | None:
    """The finite number at a path, or None."""
    value = at(tree, *path)
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None


def names(lines: Iterable[Mapping[str, Any]], *path: str) -> list[str]:
    """The keys of the mappings at a path of all lines, in the order in which they first come."""
    seen: dict[str, None] = {}
    for line in lines:
        if isinstance(value := at(line, *path), dict):
            seen |= dict.fromkeys(value)
    return list(seen)


def is_table(value: Any, rows: int, columns: int) -> bool:
    """Whether it is a list of so many lists of so many numbers."""
    return (
        isinstance(value, list)
        and len(value) == rows
        and all(isinstance(row, list) and len(row) == columns for row in value)
        and all(isinstance(cell, int | float) for row in value for cell in row)
    )
