"""Which checkpoints a run has, and which of them are as they were written: nothing else is chosen.

The processes of a job agree on both. Each looks by itself, and one may see the folder as it was a minute ago (NFS), or
another folder at the same path: arrays of several steps would be put together without a word.

One that was cut short, lost a file or changed a bit later (``checksums``) is passed over with a line; one that cannot
be read is never touched, as nobody knows whether it is broken.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxmm.checkpoints import checksums
from jaxmm.checkpoints.checksums import META, METRICS, RECORD, STATE, Fault
from jaxmm.checkpoints.manager import METRIC_KEY
from jaxmm.checkpoints.stored import Stored, local_steps
from jaxmm.errors import UserError
from jaxmm.runtime.barrier import Barrier
from jaxmm.workdir.objects import StoreError

LOOKS, PAUSE = 14, 5.0  # at a folder that processes see differently, and seconds between: NFS may show one the past
ASIDE, WHY = ".incomplete", "fault.txt"  # what a broken checkpoint's name ends with, and a file in it that says why


class Inventory:
    """The checkpoints of a folder, or of the store that it stands for. No save is in flight where it is asked.

    Args:
      folder: holds one folder a checkpoint, named by its step.
      stored: the checkpoints in the store; None where the workdir is an ordinary one.
      is_parted: whether no process has a whole checkpoint, as several write to a store.
      barrier: where processes that look and compare together meet; None for one that does it alone.
      say: prints a line.
    """

    def __init__(
        self, folder: Path, stored: Stored | None, is_parted: Callable[[], bool], barrier: Barrier | None,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._folder, self._stored, self._is_parted = folder, stored, is_parted
        self._barrier, self._say = barrier, say
        self._share = (jax.process_index(), jax.process_count()) if barrier else (0, 1)  # of files to compare
        self._faults: dict[int, Fault | None] = {}
        self._verified: set[tuple[int, str]] = set()  # (step, part) whose bytes were found to be those written

    @property
    def place(self) -> str:
        """The folder, or its URL in a store."""
        return self._stored.url if self._stored else str(self._folder)

    def told(self, step: int) -> str:
        """The name of a checkpoint, for people."""
        return f"{self.place}/{step}"

    # What is there

    def steps(self) -> list[int]:
        """The steps of the checkpoints from which nothing is missing, ascending."""
        return [step for step, fault in self._look().items() if not fault]

    def faults(self) -> dict[int, str]:
        """What is wrong with the others, by step."""
        return {step: fault.text for step, fault in self._look().items() if fault}

    def latest(self) -> int | None:
        """The step of the newest checkpoint that is as it was written, bit for bit, or None.

        Raises:
          UserError: if there is one that cannot be read, and may be newer: nobody knows whether it is broken.
        """
        for step in reversed(self._look()):
            fault = self._faults[step] or self._verify(step)
            if not fault:
                return step
            if not fault.is_proven:
                raise self._cannot_be_read(step, fault.text)
        return None

    def best(self) -> int | None:
        """The step of the intact checkpoint with the lowest metric (the newest of equals), or None."""
        metrics = {step: value for step in self.steps() if (value := self._metric(step)) is not None}
        by_metric = sorted(metrics, key=lambda step: (metrics[step], -step))
        return next((step for step in by_metric if not self._verify(step)), None)

    def chosen(self, step: int | None, part: str) -> int:
        """The step, or the newest intact one; what is read of it has its checksums.

        Raises:
          UserError: if there is no such checkpoint, or it cannot be read.
        """
        if step is None and (latest := self.latest()) is not None:
            return latest
        steps = self.steps()
        if step in steps and (fault := self._verify(step, part)):
            if not fault.is_proven:
                raise self._cannot_be_read(step, fault.text)
            steps = self.steps()
        if step is None or step not in steps:
            bad = "".join(f"; {n} cannot be read: {text}" for n, text in [*self.faults().items()][-3:])
            have = (", ".join(map(str, steps)) or "none") + bad
            which = "no complete checkpoint" if step is None else f"no complete checkpoint of step {step}"
            raise UserError(f"{self.place} holds {which} (complete: {have}); train first, or give another workdir")
        return step

    def _look(self) -> dict[int, Fault | None]:
        """What is missing from each checkpoint, by step, ascending; a line for each fault that is new."""
        seen = self._agreed()
        for step, fault in seen.items():
            if step not in self._faults:
                self._note(step, fault, told=jax.process_index() == 0)
        self._faults = seen
        return self._faults

    def _agreed(self) -> dict[int, Fault | None]:
        """What this process sees, once all see the same.

        Raises:
          UserError: if they still do not after a minute.
        """
        looks = 0
        while True:
            seen = self._seen()
            if self._barrier is None or jax.process_count() == 1:
                return seen
            own = [self._mark(step, fault) for step, fault in seen.items()]
            if (odd := self._barrier.odd_one(own, "the list of checkpoints")) is None:
                return seen
            if (looks := looks + 1) == LOOKS:
                raise UserError(
                    f"process {odd.process} sees in {self.place} {_listed(odd.other, odd.first)}, and process 0 sees "
                    f"{_listed(odd.first, odd.other)}: nothing was changed; is --workdir the same folder on all "
                    f"machines?"
                )
            time.sleep(PAUSE)

    def _seen(self) -> dict[int, Fault | None]:
        """What is missing from each checkpoint, as this process sees it now."""
        steps = self._stored.steps() if self._stored else local_steps(self._folder)
        return {step: self._faults[step] if step in self._faults else self._missing(step) for step in steps}

    def _missing(self, step: int) -> Fault | None:
        return self._stored.look(step) if self._stored else checksums.look(self._path(step))

    def _mark(self, step: int, fault: Fault | None) -> list[Any]:
        """What processes must see alike of a checkpoint: its step, what is wrong, and a checksum of its record."""
        if step in self._faults:
            return [step, "", 0]  # agreed on before
        try:
            read = self._stored.read(step, RECORD) if self._stored else (self._path(step) / RECORD).read_bytes()
        except (OSError, StoreError):
            read = None
        return [step, fault.kind if fault else "", zlib.crc32(read or b"")]

    def _verify(self, step: int, part: str = "") -> Fault | None:
        """Compares the checkpoint's bytes with their checksums, each process some of its files."""
        if fault := self._faults[step]:
            return fault
        if {(step, part), (step, "")} & self._verified:
            return None
        path = self._path(step)
        fault = own = self._compared(step, part)
        worst = self._worst(0 if not own else 1 if own.is_proven else 2, f"the reading of {path}")
        if worst and (own is None or own.is_proven != (worst == 1)):  # the same verdict in all of them
            text = own.text if own else "a file that another process read is not as it was written"
            fault = Fault(text, worst == 1, True)
        self._note(step, fault, told=own is not None)
        if not fault:
            self._verified.add((step, part))
            if part != META and jax.process_index() == 0 and not checksums.has_record(path):
                self._say(f"checkpoint {path} has no checksums (version 0.1 wrote none): it is taken as it is")
        return fault

    def _worst(self, number: int, where: str) -> int:
        """The largest number of all processes that look together."""
        return self._barrier.largest(number, where) if self._barrier else number

    def _compared(self, step: int, part: str) -> Fault | None:
        """What differs in this process's share of the files; from a store they are fetched first."""
        path = self._path(step)
        if not self._stored:
            return checksums.verify(path, part, self._share)
        if self._is_parted() and part in ("", STATE):
            return self._compared(step, META) or self._stored.compare(step, STATE, self._share)
        if fault := self._stored.fetch(step, part):
            return fault
        if fault := checksums.verify(path, part):
            self._stored.forget(step)  # it may be this copy that has changed
            fault = self._stored.fetch(step, part) or checksums.verify(path, part)
        return fault

    def _note(self, step: int, fault: Fault | None, told: bool) -> None:
        self._faults[step] = fault
        if fault and told:
            aside = f"takes away its {checksums.RECORD}" if self._stored else f"renames it to {step}{ASIDE}"
            way = f" (the next save {aside})" if fault.is_proven else ""
            self._say(f"warning: ignoring the {fault.kind} checkpoint {self.told(step)}: {fault.text}{way}")

    def _cannot_be_read(self, step: int, why: str) -> UserError:
        older = max((other for other in self.steps() if other < step), default=None)
        way = f"move it to another folder to go on from step {older}" if older is not None else "give another --workdir"
        return UserError(
            f"checkpoint {self.told(step)} cannot be read ({why}), which does not prove it broken: nothing was "
            f"changed; mend that, or {way}"
        )

    def _metric(self, step: int) -> float | None:
        import orbax.checkpoint as ocp

        path = self._path(step) / METRICS
        fault = self._stored.fetch(step, METRICS) if self._stored else None
        is_lacking = fault is not None or not (path / METRICS).is_file()
        if self._worst(int(is_lacking), f"the metric of {path}") or self._verify(step, METRICS):
            return None
        return float(ocp.JsonCheckpointHandler(filename=METRICS).restore(path)[METRIC_KEY])

    def _path(self, step: int) -> Path:
        return self._folder / str(step)

    # Before and after a save

    def put_aside_broken(self) -> None:
        """Takes broken checkpoints, and what saves that were cut short have left, out of the way of the first save."""
        self._look()
        if jax.process_index() == 0:
            for step in (step for step, fault in self._faults.items() if fault and fault.is_proven):
                self._put_aside(step)
            if self._stored:
                self._stored.remove_unfinished(0, self._say)
        if self._stored:  # what is here in part, or of a save that the store has not
            for step in local_steps(self._folder):
                if self._is_parted() or (step, "") not in self._verified:
                    self._stored.forget(step)
        self._faults = {step: fault for step, fault in self._faults.items() if not (fault and fault.is_proven)}

    def _put_aside(self, step: int) -> None:
        """Renames a broken checkpoint: in its place Orbax would count it, and refuse to save its step again."""
        aside, fault = self._folder / f"{step}{ASIDE}", self._faults[step]
        if self._stored:
            self._stored.put_aside(step, fault.text if fault else "")
            return
        shutil.rmtree(aside, ignore_errors=True)
        self._path(step).rename(aside)
        with contextlib.suppress(OSError):
            (aside / WHY).write_text(f"{fault.text if fault else ''}\n")

    def remove_broken(self, saved: int) -> None:
        """Removes the broken checkpoints of before a step that is saved. One that may be whole stays."""
        if self._stored:
            self._stored.remove_unfinished(saved, self._say)
            return
        for aside in self._folder.glob(f"*{ASIDE}"):
            step = aside.name.removesuffix(ASIDE)
            if step.isdecimal() and int(step) < saved:
                fault = checksums.look(aside)
                if (aside / WHY).exists() or (fault and fault.is_proven):
                    shutil.rmtree(aside, ignore_errors=True)
                    self._say(f"removed {aside}: it was broken, and step {saved} is saved")


def _listed(marks: list[list[Any]], others: list[list[Any]]) -> str:
    """The checkpoints that a process sees, in words, next to those that another sees."""
    by_step = {step: (kind, record) for step, kind, record in others}

    def told(step: int, kind: str, record: int) -> str:
        is_other = kind == by_step.get(step, (kind,))[0] and record != by_step.get(step, ("", record))[1]
        return f"{step}{f' ({kind})' if kind else ' (with other contents)' if is_other else ''}"

    return f"checkpoints {', '.join(told(*mark) for mark in marks)}" if marks else "no checkpoint"
