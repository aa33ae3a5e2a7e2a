"""Weights & Biases: the figures and pictures of a run, as one W&B run, however often it goes on.

Where it goes, and whether it is sent, says W&B's own environment: WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY and so on.
"""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import PIL.Image

from jaxmm.atomic import read_json, write_json
from jaxmm.errors import UserError

FILE = "wandb_run.json"  # in the workdir: the W&B run that it belongs to


def check_login() -> None:
    """Raises UserError if figures are to be sent and there is no key for it. On a terminal W&B asks for one."""
    import wandb

    if os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
        return
    try:
        wandb.login()
    except wandb.errors.UsageError as error:
        raise UserError(
            f"config.log.writers has wandb: {error} Or set WANDB_MODE=offline, and send them by `wandb sync` later"
        ) from error
    except Exception:  # no network, say: that is told when figures are to be sent, and ends no run
        return


class WandB:
    """A Writer. Steps are a figure of their own, as W&B's counter never goes back, and a run does after a kill."""

    def __init__(self, workdir: Path, first: int, config: Mapping[str, Any]) -> None:
        import wandb

        del first
        self._wandb = wandb
        known = read_json(workdir / FILE).get("id") or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        self._run = wandb.init(
            id=known, resume="allow", dir=str(workdir), config=dict(config),
            project=os.environ.get("WANDB_PROJECT") or "jaxmm",
            name=os.environ.get("WANDB_NAME") or workdir.resolve().name,
            settings=wandb.Settings(console="off"),  # the terminal is the run's own
        )  # fmt: skip
        write_json(workdir / FILE, {"id": known})
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def add(self, step: int, figures: Iterable[tuple[str, float]]) -> None:
        self._run.log({"step": step, **dict(figures)})

    def add_pictures(self, step: int, pictures: Mapping[str, bytes]) -> None:
        shown = {name: self._wandb.Image(PIL.Image.open(io.BytesIO(png))) for name, png in pictures.items()}
        self._run.log({"step": step, **shown})

    def close(self) -> None:
        self._run.finish()
