"""What a tracker of experiments must do: take figures and pictures of a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol


class Writer(Protocol):
    """Where the figures of a run go besides ``metrics.jsonl``: one file, or one service.

    It is made with the run's folder, the first step that comes, and its config as JSON. Whatever it raises is told,
    once, and the run goes on without it.
    """

    def add(self, step: int, figures: Iterable[tuple[str, float]]) -> None:
        """Writes one point of each figure. After a kill the steps begin again at an earlier one."""

    def add_pictures(self, step: int, pictures: Mapping[str, bytes]) -> None:
        """Writes pictures, PNG files by their names."""

    def close(self) -> None:
        """Ends it: all that was added is kept."""
