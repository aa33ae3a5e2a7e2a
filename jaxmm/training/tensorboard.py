"""TensorBoard event files, written at once: a Writer of figures and pictures."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class Events:
    """A TensorBoard file. Written at once: tensorboardX's own writer has a thread, which a full disk ends
    with a traceback, and which is waited for then for ever."""

    def __init__(self, workdir: Path, first: int, config: Mapping[str, Any]) -> None:
        """Begins a file. Steps from ``first`` on that other files of the folder have are hidden."""
        del config
        # After the first line of a run: it imports torch where that is installed.
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.proto.summary_pb2 import Summary

        self._summary = Summary
        self._scalar, self._event = summary.scalar, event_pb2.Event
        self._writer = EventsWriter(os.path.join(workdir, "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.write_event(self._event(step=first, file_version="brain.Event:2", wall_time=time.time()))
        self._writer.write_event(self._event(step=first, session_log=start, wall_time=time.time()))

    def add(self, step: int, figures: Iterable[tuple[str, float]]) -> None:
        for name, value in figures:
            self._write(step, self._scalar(name, value))
        self._writer.flush()

    def add_pictures(self, step: int, pictures: Mapping[str, bytes]) -> None:
        for name, png in pictures.items():
            width, height = struct.unpack(">II", png[16:24])  # as each PNG begins
            image = self._summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
            self._write(step, self._summary(value=[self._summary.Value(tag=name, image=image)]))
        self._writer.flush()

    def _write(self, step: int, summary: Any) -> None:
        self._writer.write_event(self._event(step=step, summary=summary, wall_time=time.time()))

    def close(self) -> None:
        with contextlib.suppress(OSError):  # every point has been written, or its failure was told
            self._writer.close()
