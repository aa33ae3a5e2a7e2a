"""Whether a run may resume from a workdir's checkpoints: compares its settings and the content of its data."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxmm import command
from jaxmm.checkpoints.record import Record
from jaxmm.config.file import from_json, load_workdir
from jaxmm.config.keys import completed
from jaxmm.corpus import Corpus
from jaxmm.data.packing.plan import FORMATS, Budgets, formats_of
from jaxmm.errors import UserError
from jaxmm.runtime.barrier import Barrier
from jaxmm.workdir.folder import has_saved
from jaxmm.workdir.spool import name_of

# What may differ when a run goes on; data is told apart by its content, not by where it lies.
FREE = (
    "steps", "accumulation", "mesh", "compute", "eval", "checkpoint", "log", "monitor", "init_from",
    *(f"data.{name}" for name in (
        "cache", "threads", "workers", "path", "media_dir", "follow_outside", "tokenizer", "allow_change", "columns",
        "split", "val_size", "placeholder", "video_placeholder", "audio_placeholder", "bare_placeholder", "allow_urls",
        "url_hosts", "on_error", "max_skipped", "drop_image",
    )),
)  # fmt: skip
CHANGEABLE = ("data", "epochs")  # what data.allow_change lets differ besides, and with it the content of the data


# Keys with the value that leaves them to jaxmm: a run that goes on has what it had, written out or not.
LEFT_OPEN = {
    "init_from": "", "adapter.init_from": "", "data.media": "", "image.min_pixels": 0, "image.max_pixels": 0,
    "data.jitter": -1.0,
}  # fmt: skip


def as_it_was(config: ConfigDict, workdir: Path) -> ConfigDict:
    """The config of a run that goes on: what it leaves open is as the run's own config has it.

    Runs of jaxmm 0.1 had no such values, and wrote out what base.py said.

    Raises:
      UserError: if the run's config cannot be read.
    """
    is_begun = Barrier("config").largest(int(has_saved(workdir)), "the run's config")  # if any process sees that it is
    if not is_begun or not (workdir / "config.json").is_file():
        return config
    old, asked = load_workdir(str(workdir)), from_json(command.to_json(config))
    for key, left_open in LEFT_OPEN.items():
        *groups, name = key.split(".")
        new, before = (functools.reduce(lambda tree, group: tree.get(group, {}), groups, tree) for tree in (asked, old))
        if new[name] == left_open:
            new[name] = before.get(name, left_open)
    return asked


class Identity(NamedTuple):
    """What a workdir's checkpoints belong to: the config, and the content of the data."""

    config: dict[str, Any]
    data: dict[str, Any]

    @classmethod
    def of(cls, config: dict[str, Any], corpus: Corpus, budgets: Budgets, template: str) -> Identity:
        sources = {s.name: s.prepared.meta["fingerprint"] for s in corpus.lengths}
        data = {"sources": sources, "template": template, "budgets": list(budgets), "plan": formats_of(budgets)[-1]}
        return cls(config, data)

    def going_on(self, record: Record) -> Identity:
        """The same with the plan's format that a checkpoint was made with, where today's code still has it."""
        plan = record.data.get("plan")
        is_kept = plan in FORMATS and self.data["plan"] in FORMATS
        return self._replace(data=self.data | {"plan": plan}) if is_kept else self

    def check(self, record: Record, workdir: Path, allow_change: bool) -> list[str]:
        """Compares with what a checkpoint was saved with.

        Returns:
          The differences in the data, which ``allow_change`` lets pass; none if it is all the same.

        Raises:
          UserError: with the differences.
        """
        data = [f"content of {line}" for line in command.differences(record.data, self.data)]
        was, now = completed(record.config), completed(self.config)
        every = command.differences(was, now, FREE)
        fixed = command.differences(was, now, (*FREE, *CHANGEABLE))
        if fixed or record.plan is None or ((every or data) and not allow_change):
            way_out = "" if fixed or record.plan is None else ", go on with the other data by config.data.allow_change"
            # What is made of the data follows its keys, so a key that may not differ tells enough.
            told = every if fixed else every + data
            raise UserError(
                f"{name_of(workdir)} holds a run with other settings ({'; '.join(told)}): "
                f"set them as they were{way_out}, or give another --workdir"
            )
        return every + data
