"""The trackers of experiments that a run writes to. One that fails is left out, and the run goes on."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmm.errors import UserError, extra
from jaxmm.training.tensorboard import Events
from jaxmm.training.wandb_writer import WandB, check_login
from jaxmm.training.writer import Writer


class Tracker(NamedTuple):
    """A kind of writer.

    Attributes:
      what: it writes, for a line.
      begin: makes the writer, of the run's folder, the first step that comes, and the config as JSON.
      package: that it needs and jaxmm does not; the extra of its name brings it. '' is none.
      check: raises UserError where it is known beforehand that it cannot work.
    """

    what: str
    begin: Callable[[Path, int, Mapping[str, Any]], Writer]
    package: str = ""
    check: Callable[[], None] = lambda: None


TRACKERS = {
    "tensorboard": Tracker("TensorBoard events", Events),
    "wandb": Tracker("W&B figures", WandB, "wandb", check_login),
}


def check(names: Sequence[str]) -> None:
    """Raises UserError for a tracker that lacks its package, or knows that it cannot work."""
    for name in names:
        package = TRACKERS[name].package
        if package and importlib.util.find_spec(package) is None:
            raise UserError(f"config.log.writers has {name}, and its package is not installed: {extra(package)}")
        TRACKERS[name].check()


class Trackers:
    """Those of a run, by their names in TRACKERS.

    Args:
      workdir: of the run.
      first: the first step that comes.
      config: of the run, as JSON.
      say: is told, once, of one that fails: it gets nothing any more.
    """

    def __init__(
        self, names: Sequence[str], workdir: Path, first: int, config: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self._names, self._say = list(names), say
        self._of_run = workdir, first, config
        self._writers: dict[str, Writer] = {}

    def add(self, step: int, figures: Mapping[str, Any]) -> None:
        """Writes the numbers among a step's figures; those in mappings by names such as ``eval/demo/loss``."""
        for name in list(self._names):
            with self._told(name):
                self._writer(name).add(step, scalars(figures))

    def add_pictures(self, step: int, files: Mapping[str, Path]) -> None:
        """Writes pictures, PNG files by their names."""
        for name in list(self._names):
            with self._told(name):
                self._writer(name).add_pictures(step, {name: path.read_bytes() for name, path in files.items()})

    def close(self) -> None:
        """Ends all of them."""
        writers, self._names, self._writers = self._writers, [], {}
        for name, writer in writers.items():
            with self._told(name):
                writer.close()

    def _writer(self, name: str) -> Writer:
        if name not in self._writers:
            self._writers[name] = TRACKERS[name].begin(*self._of_run)
        return self._writers[name]

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a service raises; metrics.jsonl has the figures
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
            self._say(f"warning: no more {TRACKERS[name].what} are written: {reason}")
            if name in self._names:
                self._names.remove(name)
            writer = self._writers.pop(name, None)
            if writer is not None:
                with contextlib.suppress(Exception):
                    writer.close()


def scalars(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested figures, by their names with a slash between."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", float(value)
