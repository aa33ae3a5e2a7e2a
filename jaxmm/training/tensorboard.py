"""TensorBoard event files, written at once."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


class Events:
    """A TensorBoard file of scalars. Written at once: tensorboardX's own writer has a thread, which a full disk ends
    with a traceback, and which is waited for then for ever."""

    def __init__(self, folder: str, first: int) -> None:
        """Begins a file. Steps from ``first`` on that other files of the folder have are hidden."""
        # After the first line of a run: it imports torch where that is installed.
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._scalar, self._event = summary.scalar, event_pb2.Event
        self._writer = EventsWriter(os.path.join(folder, "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.write_event(self._event(step=first, file_version="brain.Event:2", wall_time=time.time()))
        self._writer.write_event(self._event(step=first, session_log=start, wall_time=time.time()))

    def add(self, step: int, figures: Iterable[tuple[str, float]]) -> None:
        """Writes one point of each."""
        for name, value in figures:
            self._writer.write_event(
                self._event(step=step, summary=self._scalar(name, value), wall_time=time.time())
            )  # fmt: skip
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        with contextlib.suppress(OSError):  # every point has been written, or its failure was told
            self._writer.close()


def _scalars(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", float(value)
