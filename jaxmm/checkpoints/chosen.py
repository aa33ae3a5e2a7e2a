"""Which checkpoint of a run ``--step`` means."""

from __future__ import annotations

from pathlib import Path

from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.errors import UserError
from jaxmm.workdir.spool import name_of


def chosen_step(workdir: Path, asked: str) -> int | None:
    """Which checkpoint ``--step`` means: a step, "best" by evaluation loss, or "", "0" or "newest": None.

    Raises:
      UserError: for something else, or where no checkpoint has been evaluated.
    """
    if asked in ("", "0", "newest"):
        return None
    if asked.isdecimal():
        return int(asked)
    if asked != "best":
        raise UserError(f"step '{asked}' is no checkpoint: give its number, best or newest")
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        best = checkpoints.best()
        have = ", ".join(map(str, checkpoints.steps())) or "none"
    if best is None:
        raise UserError(
            f"{name_of(workdir)}: no checkpoint was evaluated when it was saved, so that none is the best: give the "
            f"number of one (complete: {have})"
        )
    return best
