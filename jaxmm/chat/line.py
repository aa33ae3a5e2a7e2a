"""One thread that computes, and the line of those who wait for it: a device answers one question at a time."""

from __future__ import annotations

import queue
import secrets
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from jaxmm.errors import UserError

Found = TypeVar("Found")
MOST_WAITING = 16
TELL_EVERY = 0.5  # seconds between two lines to one who waits: a client that has gone is noticed by them
FAILED = "the model failed: the terminal that it runs in says why"


class Waiting(NamedTuple):
    """Nothing new yet: so many are before; 0 is that this one is being answered."""

    ahead: int


class Failed(NamedTuple):
    """No more comes, and why."""

    message: str


class FullError(UserError):
    """Too many wait already."""


class FailedError(Exception):
    """The work did not come to what was waited for."""


class Job:
    """Work that is waited for. ``name`` is not to be guessed: who knows it may stop the work."""

    def __init__(self, work: Work, line: Line):
        self.name = secrets.token_hex(8)
        self._work, self._line = work, line
        self._found: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stopped, self._left = threading.Event(), threading.Event()

    def stop(self) -> None:
        """Asks to end early; what is there by then is waited for."""
        self._stopped.set()

    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    def leave(self) -> None:
        """Says that nobody waits any more: the work is not begun, or ends where it is."""
        self._left.set()
        self._line.drop(self)

    def is_left(self) -> bool:
        return self._left.is_set()

    def run(self) -> None:
        try:
            for event in () if self.is_left() else self._work(self):
                self._found.put(event)
                if self.is_left():
                    break
        except UserError as error:
            self._found.put(Failed(" ".join(str(error).split())))
        except Exception:  # the next one is answered
            traceback.print_exc(file=sys.stderr)
            self._found.put(Failed(FAILED))
        self._found.put(None)

    def events(self) -> Iterator[Any]:
        """What the work yields as it comes, with ``Waiting`` between; a ``Failed`` is the last."""
        try:
            while True:
                try:
                    event = self._found.get(timeout=TELL_EVERY)
                except queue.Empty:
                    yield Waiting(self._line.ahead(self))
                    continue
                if event is None:
                    return
                yield event
        finally:
            self.leave()

    def first(self, kind: type[Found], is_gone: Callable[[], bool]) -> Found:
        """Waits for the first event of a kind.

        Args:
          is_gone: asked between events, whether nobody waits any more.

        Raises:
          FailedError: if there is none.
        """
        for event in self.events():
            if isinstance(event, kind):
                return event
            if isinstance(event, Failed):
                raise FailedError(event.message)
            if is_gone():
                break
        raise FailedError("nobody waits for the answer any more")


Work = Callable[[Job], Iterator[Any]]  # asks the job whether to go on


class Line:
    """Jobs, done in the order in which they come."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()  # the first is being done
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="answers", daemon=True).start()

    def join(self, work: Work) -> Job:
        """Stands in line.

        Raises:
          FullError: if MOST_WAITING do already.
        """
        job = Job(work, self)
        with self._changed:
            self.check_room()
            self._jobs.append(job)
            self._changed.notify()
        return job

    def check_room(self) -> None:
        """Raises FullError if MOST_WAITING stand in line."""
        with self._changed:
            if len(self._jobs) > MOST_WAITING:
                raise FullError(f"{len(self._jobs)} questions wait already: try again later")

    def drop(self, job: Job) -> None:
        """Takes a job out of the line that has not been begun."""
        with self._changed:
            if job in self._jobs and job is not self._jobs[0]:
                self._jobs.remove(job)

    def ahead(self, job: Job) -> int:
        """How many come before."""
        with self._changed:
            return self._jobs.index(job) if job in self._jobs else 0

    def find(self, name: str) -> Job | None:
        """The job of that name, if it still waits or is being done."""
        with self._changed:
            return next((job for job in self._jobs if job.name == name), None)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs)
                job = self._jobs[0]
            job.run()
            with self._changed:
                self._jobs.remove(job)
