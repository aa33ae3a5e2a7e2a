"""The record beside the arrays of a checkpoint: how far the run was, of what config and data, and its plan's origin."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from jaxmm.checkpoints.checksums import META
from jaxmm.checkpoints.stored import Stored, local_steps
from jaxmm.errors import UserError
from jaxmm.json_text import parse_json


class PlanRecord(NamedTuple):
    """Where the plan of a run began, and how far it is, in examples of each source by its name.

    Attributes:
      batch: the first batch of this plan; not 0 after a change of the data.
      begun_after: examples seen before that batch.
      seen: examples seen so far.
    """

    batch: int
    begun_after: dict[str, int]
    seen: dict[str, int]


class Record(NamedTuple):
    """What a run notes of itself with each checkpoint.

    Attributes:
      position: steps done, which is the batch to go on with.
      steps: that the schedule was for; None in records of version 0.1.
      config: the whole config, as in ``config.json``.
      data: fingerprints of sources and template, budgets, and the plan's format.
      examples_seen: by the run so far, resumes included.
      plan: None in a record that is older than plans that can change.
      skipped_lines: of ``skipped.jsonl`` that count; None in records of version 0.1.
    """

    position: int
    steps: int | None
    config: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str]
    examples_seen: int
    plan: PlanRecord | None
    skipped_lines: int | None

    @classmethod
    def read(cls, saved: Any, where: Path) -> Record:
        """From the JSON of a checkpoint, of this version or an older one.

        Raises:
          UserError: naming the checkpoint, ``where``, if it is no such record.
        """
        try:
            plan = saved.get("plan")
            return cls(
                saved["position"], saved.get("steps"), saved["config"], saved["data"], saved.get("versions", {}),
                saved["examples_seen"], PlanRecord(**plan) if plan is not None else None, saved.get("skipped_lines"),
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{where} has a damaged record ({error}): move it away, and the run goes on from the checkpoint before"
            ) from error

    @classmethod
    def newest(cls, folder: Path) -> Record | None:
        """Of the newest checkpoint in a folder that has a record; None where there is none.

        For reading a plan: neither the arrays nor the checksums are looked at, and no device is.
        """
        stored = Stored.of(folder)
        for step in reversed(stored.steps() if stored else local_steps(folder)):
            with contextlib.suppress(OSError, ValueError, UserError):
                where = folder / str(step)
                if stored:
                    stored.fetch(step, META)
                return cls.read(parse_json((where / META / "metadata").read_bytes()), where)
        return None

    def to_json(self) -> dict[str, Any]:
        return self._asdict() | {"plan": self.plan._asdict() if self.plan else None}

    @property
    def schedule_steps(self) -> int:
        """Of the schedule it was trained by; 0 where the record does not tell."""
        if self.steps:
            return self.steps
        return 0 if self.config.get("epochs") else self.config["steps"]
