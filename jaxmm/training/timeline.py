"""timeline.jsonl: what a run did when, over all its starts, and the sums of its seconds by kind.

A line is a start, a beat or an end:

    {"event": "start", "format": 1, "time": 1754000000.0, "step": 40}
    {"event": "beat", "time": 1754000061.5, "step": 55, "seconds": {"starting": 9.5, "data": 0.5, "stepping": 51.5}}
    {"event": "end", "time": 1754000090.0, "step": 60, "seconds": {"stepping": 28.5}, "why": "SIGTERM"}

``time`` is in seconds since 1970, ``step`` the last step that is done, ``seconds`` those since the line before. Between
a start and the line before it the run was down. Seconds of steps that a start does again are lost.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxmm.json_text import parse_json
from jaxmm.training.line_file import LineFile

KINDS = ("starting", "compiling", "data", "stepping", "evaluating", "saving", "lost", "down")
FORMAT = 1


class Life:
    """The sums of a timeline, line by line.

    Attributes:
      seconds: by kind. Together they are the time from the first start to the last line, as long as no start's time is
        before the line that it follows: the clock went back, and nobody knows for how long the run was down.
      starts: how many there were.
      time: of the last line; None where there is none.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.starts, self._step = 0, 0
        self.time: float | None = None
        self._stretches: list[tuple[int, int, float, float]] = []  # steps (first, last] that count: data, stepping

    def add(self, line: Mapping[str, Any]) -> None:
        """Adds a line, one of those that ``is_line`` takes."""
        if line["event"] == "start":
            if self.time is not None:
                self.seconds["down"] += max(0.0, line["time"] - self.time)
            self._lose(line["step"])
            self.starts += 1
        else:
            for kind, seconds in line["seconds"].items():
                self.seconds[kind] += seconds
            data, stepping = (line["seconds"].get(kind, 0.0) for kind in ("data", "stepping"))
            if data or stepping:
                self._stretches.append((self._step, line["step"], data, stepping))
        self.time, self._step = line["time"], line["step"]

    def _lose(self, step: int) -> None:
        """Moves the seconds of steps after ``step`` to those that are lost."""
        while self._stretches and self._stretches[-1][1] > step:
            first, last, data, stepping = self._stretches.pop()
            part = 1.0 if first >= step else (last - step) / (last - first)
            self.seconds["data"] -= part * data
            self.seconds["stepping"] -= part * stepping
            self.seconds["lost"] += part * (data + stepping)
            if part < 1:
                self._stretches.append((first, step, data - part * data, stepping - part * stepping))


def is_line(line: Any) -> bool:
    """Whether it is one of a timeline."""
    if not isinstance(line, dict) or not _is_number(line.get("time")):
        return False
    step, event = line.get("step"), line.get("event")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        return False
    if event == "start":
        return bool(line.get("format") == FORMAT)
    seconds = line.get("seconds")
    return (
        event in ("beat", "end")
        and isinstance(seconds, dict)
        and all(kind in KINDS and _is_number(value) and value >= 0 for kind, value in seconds.items())
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Timeline:
    """The file, and the life that it tells of.

    A last line that a kill has cut goes. A file that is no timeline is put aside, with a line that says so.

    Args:
      path: of the file; None keeps the lines in memory alone, as processes but the first of a job do.
      say: is told what a user must know.
    """

    def __init__(self, path: Path | None, say: Callable[[str], None]) -> None:
        self.life = Life()
        self._file: LineFile | None = None
        if path is None:
            return
        self._file = LineFile(path, say, "its seconds go into the next line that can be")
        if fault := self._read(path):
            self.life = Life()
            aside = _put_aside(path)
            if not aside:
                self._file = None
            say(f"warning: {path} {fault}: " + (
                f"it is now {aside}, and a new one begins" if aside else "it stays as it is, and none is written"
            ))  # fmt: skip

    def add(self, line: Mapping[str, Any]) -> bool:
        """Adds a line to the file, and to the life where it could be written; returns whether it could."""
        if self._file is not None and not self._file.append(line):
            return False
        self.life.add(line)
        return True

    def _read(self, path: Path) -> str:
        """Adds what is there; returns why it is no timeline, or ''."""
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        for number, row in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), 1):
            try:
                line = parse_json(row)
            except ValueError:
                line = None
            if not is_line(line) or (number == 1 and line["event"] != "start"):
                return f"is no timeline of a run, by its line {number}"
            self.life.add(line)
        return ""


def _put_aside(path: Path) -> str:
    """Gives a file another name, and returns it; '' where that cannot be."""
    numbers = (number for number in itertools.count(1) if not os.path.lexists(_aside(path, number)))
    other = _aside(path, next(numbers))
    try:
        path.rename(other)
    except OSError:
        return ""
    return other.name


def _aside(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.old-{number}{path.suffix}")
