"""The lock of a workdir in a store, by puts that count only where nobody else has put anything meanwhile."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from jaxmm.errors import UserError, end_at_once
from jaxmm.workdir import holder
from jaxmm.workdir.folder import LOCK, held
from jaxmm.workdir.objects import Objects, StoreError


class StoreLock:
    """Holds a workdir in a store for one ``train``; a context manager.

    A store keeps no locks. So the holder writes its note again and again, and one that gives no such sign for
    ``silence`` seconds no longer counts; nor does one whose process is known to have ended, as it ran on this machine
    and in this container.

    Args:
      objects: of the workdir.
      say: prints a line.
      beat: seconds from a sign of life to the next.
      silence: seconds without one after which a holder is dead.
    """

    def __init__(
        self,
        objects: Objects,
        say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
        beat: float = 15,
        silence: float = 90,
    ) -> None:
        self._objects, self._say = objects, say
        self._signs_by = Objects(objects.place, patience=beat, say=lambda line: None)
        self._beat, self._silence = beat, silence
        self._note, self._beats = holder.note(), 0
        self._tag = b""
        self._ended = threading.Event()
        self._signs = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> StoreLock:
        self._tag = self._take()
        self._signs.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._signs.join()
        try:
            self._signs_by.write_if(LOCK, None, self._tag)
        except StoreError as away:
            self._say(f"warning: the lock stays ({away}): the next run waits {self._silence:.0f} s for a sign of life")

    def _take(self) -> bytes:
        """The tag of our note, written.

        Raises:
          UserError: if somebody else holds it.
        """
        seen: bytes | None = None
        while True:
            if tag := self._objects.write_if(LOCK, self._data(), seen):
                return tag
            there = self._objects.read_tagged(LOCK)
            if there is None:
                seen = None
                continue
            held_by, seen = holder.read(there[0]), there[1]
            if held_by.get("token") == self._note["token"]:  # the answer to our write was lost
                return seen
            if not holder.has_ended(held_by) and not self._falls_silent(held_by, seen):
                seen = None

    def _falls_silent(self, held_by: dict[str, Any], seen: bytes) -> bool:
        """Waits until the holder has given no sign of life for long enough; False if its note has gone meanwhile.

        Raises:
          UserError: if it gives one.
        """
        url, who = self._objects.place.url, holder.who(held_by)
        self._say(f"{url} was last trained in by {who}: waiting up to {self._silence:.0f} s for a sign of life")
        end = time.monotonic() + self._silence
        while time.monotonic() < end:
            time.sleep(min(2, self._silence / 20))
            there = self._objects.read_tagged(LOCK)
            if there is None:
                return False
            if there[1] != seen:
                raise held(url, holder.read(there[0]))
            if holder.has_ended(held_by):
                break
        self._say(f"{url} was last trained in by {who}, which gives no sign of life any more: going on")
        return True

    def _live(self) -> None:
        """Gives a sign of life until the end."""
        while not self._ended.wait(self._beat):
            self._beats += 1
            try:
                if tag := self._signs_by.write_if(LOCK, self._data(), self._tag):
                    self._tag = tag
                    continue
                there = self._signs_by.read_tagged(LOCK)
            except UserError:  # a store that is away for a while, or rights that are
                continue
            if there and holder.read(there[0]).get("token") == self._note["token"]:
                self._tag = there[1]
            elif not self._ended.is_set():
                end_at_once(f"{self._objects.place.url}: another train has taken over while this one stood still")

    def _data(self) -> bytes:
        return json.dumps(self._note | {"beat": self._beats}).encode()  # a tag may be a hash of the content
