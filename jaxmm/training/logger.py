"""The log of a run: metrics.jsonl, trackers of experiments, a line for people, and the fields of summary.json.

Plain numbers come in; nothing here calls JAX.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, TextIO

from jaxmm.atomic import plain, read_lines, write_lines
from jaxmm.training.prometheus import Endpoint
from jaxmm.training.terminal import Terminal, progress
from jaxmm.training.trackers import Trackers

OF_CLIPS = ("videos_per_second", "recordings_per_second", "audio_fill")  # known of runs that have such clips


class Summary(NamedTuple):
    """summary.json, field by field. None is null: not known."""

    steps: int
    loss: float | None
    eval: Mapping[str, Mapping[str, Any]]  # source -> {"loss", "answer_accuracy", ...}
    tokens_per_second: float | None
    images_per_second: float | None
    token_fill: float | None
    patch_fill: float | None
    data_wait_fraction: float | None
    mfu: float | None
    first_step_seconds: float
    wall_seconds: float  # of this call's training loop; of the run's whole life goodput has "total_seconds"
    examples_seen: int
    examples_skipped: int
    peak_memory_bytes: int
    attention: str  # backend
    cut_short: Mapping[str, Mapping[str, Sequence[float]]] = {}  # source -> medium -> [count, part kept on average]
    videos_per_second: float | None = None
    recordings_per_second: float | None = None
    audio_fill: float | None = None
    media_gain: Mapping[str, Mapping[str, float]] = {}  # source -> modality -> nats a target, of the last evaluation
    goodput: Mapping[str, Any] | None = None  # "seconds" by kind, "fraction", "total_seconds", "starts"


class Logger:
    """Logs steps: a line of metrics.jsonl, figures for trackers, and a line for people.

    Args:
      workdir: of the run. None, for all processes but the first: nothing is written and nothing printed.
      steps: of the whole run, for the progress line.
      start: the step the run goes on from. Lines of later steps, which a killed run left, are dropped.
      writers: names of trackers that get the same figures.
      config: of the run, as JSON, for them.
      out: where lines for people go.
      endpoint: serves the same figures to Prometheus.
    """

    def __init__(
        self, workdir: Path | None, steps: int, start: int = 0, writers: Sequence[str] = ("tensorboard",),
        config: Mapping[str, Any] = MappingProxyType({}), out: TextIO | None = None, endpoint: Endpoint | None = None,
    ) -> None:  # fmt: skip
        self._steps, self._endpoint = steps, endpoint
        self._terminal = Terminal(out or sys.stderr)
        self._file: TextIO | None = None
        self._trackers: Trackers | None = None
        self._new: Path | None = None  # the file, if it was not there: without a line it goes again
        self._last: tuple[int, int, dict[str, Any]] = (-1, 0, {})  # step, offset in the file, figures
        if workdir is None:
            return
        path = workdir / "metrics.jsonl"
        workdir.mkdir(parents=True, exist_ok=True)
        self._new = path if not path.exists() else None
        write_lines(path, [line for line in read_lines(path) if _is_up_to(line.get("step"), start)])
        self._file = path.open("a")
        self._trackers = Trackers(writers, workdir, start + 1, config, self.say)

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Logs a step. A second call for the same step (its evaluation, say) adds to the step's line.

        Args:
          figures: numbers, None, or mappings of them, as deep as they come.
        """
        if self._file is None:
            return
        figures = plain(figures)
        last, offset, logged = self._last
        if step == last:
            self._file.truncate(offset)
            self._file.seek(offset)
            logged = {**logged, **figures}
        else:
            offset, logged = self._file.seek(0, os.SEEK_END), {"step": step, **figures}
        self._last = step, offset, logged
        self._file.write(f"{json.dumps(logged, allow_nan=False)}\n")
        self._file.flush()
        if "loss" in figures:
            self._terminal.figures(progress(step, self._steps, figures))
        if self._trackers is not None:
            self._trackers.add(step, figures)
        if self._endpoint is not None:
            self._endpoint.add(step, self._steps, figures)

    def pictures(self, step: int, files: Mapping[str, Path]) -> None:
        """Gives PNG files, by names, to the trackers."""
        if self._trackers is not None:
            self._trackers.add_pictures(step, files)

    def say(self, text: str) -> None:
        """Prints a line."""
        if self._file is not None:
            self._terminal.say(text)

    def status(self, text: str, at_once: bool = False) -> None:
        """Shows what goes on, on a terminal."""
        if self._file is not None:
            self._terminal.status(text, at_once)

    def close(self) -> None:
        """Ends the files."""
        self._terminal.close()
        trackers, self._trackers = self._trackers, None
        if trackers is not None:
            trackers.close()  # before the file: it may have something to say
        file, self._file = self._file, None
        try:
            if file is not None:
                file.close()
            if self._new is not None and not self._new.stat().st_size:
                self._new.unlink()
        finally:
            self._new = None


def _is_up_to(step: Any, start: int) -> bool:
    return isinstance(step, int) and step <= start
