"""A host-side barrier; unlike a collective it can name who is missing. Also the signals that end a run."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax

from jaxmm.errors import STRANDED, StrandedError, UserError, end_at_once
from jaxmm.runtime.jax_internals import absent_processes, coordinator, failed_collective, gone_process, is_deadline
from jaxmm.runtime.patience import seconds_of

SECONDS = 600  # that a process is waited for; JAXMM_BARRIER_SECONDS changes it
_POLL, _DAY = 0.002, 86400  # seconds
_REFUSED = 1000  # and the process's number: above all signals


class OddOne(NamedTuple):
    """A process that brings to a meeting something else than process 0.

    Attributes:
      process: its number.
      first: what process 0 brings.
      other: what it brings.
    """

    process: int
    first: Any
    other: Any


class Barrier:
    """A place where all processes of a job meet, again and again.

    They meet at the job's coordinator and on no device: a process that does not come stops nobody in a collective,
    where nothing could say who is missing.
    """

    def __init__(self, name: str):
        self.name, self._times = name, 0
        self._seconds = seconds_of("JAXMM_BARRIER_SECONDS", SECONDS)

    def largest(self, number: int, where: str) -> int:
        """The largest of the numbers, 0 and above, that the processes bring; the same in all of them.

        Args:
          where: what they meet for, for the error.

        Raises:
          StrandedError: naming the processes that did not come in time.
        """
        if jax.process_count() == 1:
            return number
        self._times += 1
        here = f"jaxmm/{self.name}/{self._times}"  # the number is of this time: others may still read the last one's
        if number:
            coordinator().key_value_set(f"{here}/{jax.process_index()}", str(number))
        self._meet(self.name, where, self._seconds)
        return max((int(value) for _, value in coordinator().key_value_dir_get(here)), default=0)

    def total(self, numbers: Sequence[float], share: int, where: str) -> list[float]:
        """The numbers of all shares of a batch added up, each with its like; the same in all processes.

        Args:
          share: which one the numbers are of. Processes that hold the same share bring the same numbers: they count
            once.
          where: what they meet for, for the error.

        Raises:
          StrandedError: naming the processes that did not come in time.
        """
        return self._answer(numbers, share, where, lambda shares: [sum(same) for same in zip(*shares, strict=True)])

    def each(self, numbers: Sequence[float], where: str) -> list[list[float]]:
        """The numbers of every process, by its number; the same in all of them.

        Args:
          where: what they meet for, for the error.

        Raises:
          StrandedError: naming the processes that did not come in time.
        """
        return self._answer(numbers, jax.process_index(), where, lambda shares: shares)

    def gathered(self, items: Sequence[Any], where: str) -> list[Any]:
        """The items of all processes, of JSON, in the order of the processes; the same in all of them.

        Args:
          where: what they meet for, for the error.

        Raises:
          StrandedError: naming the processes that did not come in time.
        """
        return list(self._answer(items, jax.process_index(), where, lambda shares: [x for one in shares for x in one]))

    def odd_one(self, item: Any, where: str) -> OddOne | None:
        """The first process that brings something else than process 0; None where all bring the same.

        Small however many they are: a digest of each, and of two what they bring, if they differ.

        Args:
          item: of JSON.
          where: what they meet for, for the error.

        Raises:
          StrandedError: naming the processes that did not come in time.
        """
        if jax.process_count() == 1:
            return None
        digest = hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()
        number = self._answer([digest], jax.process_index(), where, _first_other)
        if not number:
            return None
        own = [item] if jax.process_index() in (0, number) else []
        return OddOne(number, *self.gathered(own, where))

    def _answer(self, numbers: Sequence[Any], share: int, where: str, made_of: Callable[[list[list[Any]]], Any]) -> Any:
        """What process 0 makes of the numbers of all shares, in their order; the same in all processes.

        Process 0 alone reads them: if all did, a job of thousands would read millions of values at each meeting, and
        the coordinator gives them out one reader after another.
        """
        if jax.process_count() == 1:
            return made_of([list(numbers)])
        self._times += 1
        here, before = (f"jaxmm/{self.name}/{times}" for times in (self._times, self._times - 1))
        coordinator().key_value_set(f"{here}/{share}", json.dumps(list(numbers)), allow_overwrite=True)
        self._meet(self.name, where, self._seconds)
        if jax.process_index():
            return json.loads(self._told(f"{here}/answer", where))
        coordinator().key_value_delete(before)  # all have read it, as all are here
        by_share = {int(key.rpartition("/")[2]): value for key, value in coordinator().key_value_dir_get(here)}
        found = made_of([json.loads(by_share[n]) for n in sorted(by_share)])
        coordinator().key_value_set(f"{here}/answer", json.dumps(found))
        return found

    def _told(self, key: str, where: str) -> str:
        """What process 0 tells the others, who have met it just now."""
        try:
            return coordinator().blocking_key_value_get(key, 1000 * self._seconds)
        except jax.errors.JaxRuntimeError as error:
            if not is_deadline(str(error)):
                raise
            raise StrandedError(f"process 0 came to {where} and told nothing within {self._seconds} s") from error

    def wait_for(self, arrays: Any, where: str) -> None:
        """Waits until the devices have computed them.

        Raises:
          StrandedError: if they have not in time; naming the processes that are stuck, where the others wait too.
        """
        if jax.process_count() == 1:
            return
        end = time.monotonic() + self._seconds
        while not all(x.is_ready() for x in jax.tree.leaves(arrays)):
            if time.monotonic() > end:
                # All who wait in the same collective come here at about the same time.
                self._meet(f"{self.name}/late", where, 5 + self._seconds // 10)
                raise StrandedError(f"{where} was not done within {self._seconds} s, though all processes wait for it")
            time.sleep(_POLL)

    @contextmanager
    def together(self, where: str) -> Iterator[None]:
        """A block that all processes enter and leave together, though it may wait for them in collectives not our own.

        A thread of each looks to the others while the block lasts: one that is frozen or gone is named by all others,
        which end there and then. A block in which all are alive may take as long as it does.

        Raises:
          StrandedError: naming the processes that did not come to it.
        """
        if jax.process_count() == 1:
            yield
            return
        self.largest(0, where)
        done, name = threading.Event(), f"{self.name}/{self._times}"
        threading.Thread(target=self._watch, args=(done, name, where), daemon=True).start()
        try:
            yield
            self._meet(f"{name}/end", where, _DAY)  # the thread knows before
        finally:
            done.set()

    @contextmanager
    def agreed(self, where: str) -> Iterator[None]:
        """A block after which all processes go on, or, where it fails in one, none.

        Raises:
          Exception: the block's own, where it is this process's; a UserError where it is another's.
        """
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        if first := self.largest(0 if failed is None else jax.process_index() + 1, where):
            raise failed or UserError(f"process {first - 1} failed at {where}: its log says why")

    def _watch(self, done: threading.Event, name: str, where: str) -> None:
        looks = 0
        while not done.wait(self._seconds):
            looks += 1
            try:
                self._meet(f"{name}/look{looks}", where, 5 + self._seconds // 10)
            except StrandedError as error:
                if not done.is_set():
                    end_at_once(str(error), STRANDED)
            if jax.process_index() == 0 and not done.is_set():
                print(f"{where} takes longer than {looks * self._seconds} s; all processes are alive", file=sys.stderr)

    def _meet(self, name: str, where: str, seconds: int) -> None:
        try:
            coordinator().wait_at_barrier(f"jaxmm/{name}", 1000 * seconds)  # one name: the coordinator keeps every one
        except jax.errors.JaxRuntimeError as error:
            if (gone := gone_process(str(error))) is not None:
                raise StrandedError(f"process {gone} of {jax.process_count()} is gone: no sign of life") from error
            if not is_deadline(str(error)):
                raise
            raise StrandedError(
                f"{_missing(str(error))} of {jax.process_count()} did not come to {where} within {self._seconds} s: "
                f"its log says where it is; JAXMM_BARRIER_SECONDS waits longer"
            ) from error


@contextmanager
def collectives() -> Iterator[None]:
    """A block whose collectives may fail, as another process has ended or is slow: then that is one line.

    Raises:
      StrandedError: in place of the collective's error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not (why := failed_collective(str(error))):
            raise
        raise StrandedError(
            f"a collective with the other processes failed ({why}): one of them has ended, as its log says, or came "
            f"30 s late"
        ) from error


class Stop:
    """Notes SIGTERM, SIGINT and SIGHUP, so that the loop ends between two steps; a second Ctrl-C interrupts at once.

    A signal that is ignored stays ignored: SIGHUP under nohup.
    """

    def __init__(self, barrier: Barrier) -> None:
        self.signal, self._barrier = 0, barrier
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN or number != signal.SIGHUP:
                    self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        del frame
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.signal:
            again = "; Ctrl-C again ends at once, without saving" if number == signal.SIGINT else ""
            # Not print: it may be what the signal has interrupted.
            os.write(2, f"\n{signal.Signals(number).name}: stopping after this step, and saving{again}\n".encode())
        self.signal = number

    def agreed(self, step: int, refused: UserError | None = None) -> int:
        """The signal that any process got, the same answer in all of them; all must ask before each step.

        Args:
          refused: why this process cannot go on: then none does.

        Raises:
          StrandedError: naming the processes that did not come.
          UserError: if one cannot go on.
        """
        where = f"step {step}"
        largest = self._barrier.largest(_REFUSED + jax.process_index() if refused else self.signal, where)
        if largest >= _REFUSED:
            raise refused or UserError(f"process {largest - _REFUSED} cannot go on to {where}: its log says why")
        return largest


def _first_other(digests: list[list[Any]]) -> int:
    """The number of the first process whose digest is not that of process 0; 0 where there is none."""
    return next((number for number, digest in enumerate(digests) if digest != digests[0]), 0)


def _missing(message: str) -> str:
    """The processes that did not come, as a barrier's error names them."""
    absent = absent_processes(message)
    if not absent:
        return "a process"
    return f"process{'es' if len(absent) > 1 else ''} {', '.join(map(str, absent))}"
