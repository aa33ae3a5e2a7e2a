"""Output that nobody reads any more, as ``| head`` leaves it, ends a command without a word."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator
from typing import TextIO

STATUS = 141  # what a shell tells of a program that SIGPIPE has ended


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Around all that a command does: exits with STATUS where its standard output or error is a closed pipe.

    A broken pipe to anything else is an error as ever, which is why SIGPIPE stays as Python has it.
    """
    try:
        try:
            yield
        except SystemExit:
            _flush()
            raise
        _flush()
    except BrokenPipeError:
        if not (closed := [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream)]):
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in closed:  # what is still buffered is flushed once more at the interpreter's end
            os.dup2(nowhere, stream.fileno())
        sys.exit(STATUS)


def _flush() -> None:
    """Writes what is buffered while an error can still be caught."""
    for stream in (sys.stdout, sys.stderr):
        if stream and not stream.closed:  # None where it was closed before the start
            stream.flush()


def _is_closed(stream: TextIO | None) -> bool:
    """Whether a stream is a pipe whose reader has gone."""
    try:
        poll = select.poll()
        poll.register(stream.fileno() if stream else -1, 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):  # of no file
        return False
