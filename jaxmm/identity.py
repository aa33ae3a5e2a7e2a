"""Which run a workdir's checkpoints belong to: its settings and the content of its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from jaxmm import command
from jaxmm.data.plan import FORMAT as PLAN_FORMAT
from jaxmm.errors import UserError
from jaxmm.recipe import Corpus

# What may differ when a run goes on; data is told apart by its content, not by where it lies.
FREE = ("steps", "mesh", "compute", "eval", "checkpoint", "log", "data.cache", "data.threads", "data.workers",
        "data.path", "data.media_dir", "data.follow_outside", "data.tokenizer", "data.allow_change",
        "data.columns", "data.split", "data.val_size", "data.placeholder", "data.bare_placeholder", "data.allow_urls",
        "data.url_hosts", "data.on_error", "data.max_skipped", "data.drop_image",
        "init_from")  # fmt: skip
CHANGEABLE = ("data", "epochs")  # what data.allow_change lets differ besides, and with it the content of the data


class Identity(NamedTuple):
    """What a workdir's checkpoints belong to: the config, and the content of the data."""

    config: dict[str, Any]
    data: dict[str, Any]

    @classmethod
    def of(cls, config: dict[str, Any], corpus: Corpus, budgets: Any, template: str) -> Identity:
        sources = {s.name: s.prepared.meta["fingerprint"] for s in corpus.lengths}
        data = {"sources": sources, "template": template, "budgets": list(budgets), "plan": PLAN_FORMAT}
        return cls(config, data)

    def check(self, meta: dict[str, Any], workdir: Path, allow_change: bool) -> list[str]:
        """Compares with what a checkpoint was saved with.

        Returns:
          The differences in the data, which ``allow_change`` lets pass; none if it is all the same.

        Raises:
          UserError: with the differences.
        """
        data = [f"content of {line}" for line in command.differences(meta["data"], self.data)]
        every = command.differences(meta["config"], self.config, FREE)
        fixed = command.differences(meta["config"], self.config, (*FREE, *CHANGEABLE))
        if fixed or "plan" not in meta or ((every or data) and not allow_change):
            way_out = "" if fixed or "plan" not in meta else ", go on with the other data by config.data.allow_change"
            raise UserError(
                f"{workdir} holds a run with other settings ({'; '.join(every + data)}): "
                f"set them as they were{way_out}, or give another --workdir"
            )
        return every + data
