"""What a run looks at beside its loss, now and then: attention, gradients by source and modality, held-out samples."""

from __future__ import annotations

import functools
from typing import Any

from jaxmm.atomic import published
from jaxmm.batch import Batch
from jaxmm.data.assemble import Loaded
from jaxmm.monitor.attention import AttentionMonitor
from jaxmm.monitor.layers_by_heads import layers_by_heads
from jaxmm.training.group_gradients import GroupNorms, Pulls
from jaxmm.training.held_out_samples import HeldOutSamples, told
from jaxmm.training.logger import Logger
from jaxmm.training.run import Run

PICTURE = "attention.png"  # layers by heads, of the newest look


class Monitor:
    """Its programs are compiled when they are first asked for; the training step is the same with and without it."""

    def __init__(self, run: Run, logger: Logger):
        recipe, lengths = run.recipe, run.corpus.lengths
        self._run, self._logger = run, logger
        self._attention = AttentionMonitor(
            recipe.model, recipe.compute, run.mesh, lengths, recipe.template, run.config.monitor.queries,
            run.config.accumulation,
        )  # fmt: skip
        self._group_norms = GroupNorms(run.program.group_norms, lengths, run.mesh)

    @functools.cached_property
    def _samples(self) -> HeldOutSamples:
        return HeldOutSamples(self._run)

    def look(self, step: int, params: Any, loaded: Loaded, batch: Batch) -> None:
        """Logs where attention goes in a step's own batch, with the parameters after it; all processes must ask."""
        self._logger.status(f"step {step}: looking at attention", at_once=True)
        with self._run.barrier.together(f"a look at the attention of step {step}"):
            figures = self._attention(params, loaded, batch)
        if figures:
            self._logger.log(step, {"attention": figures})
            if self._run.is_first:
                with told(self._run.say, path := self._run.workdir / PICTURE):
                    with published(path) as whole:
                        layers_by_heads(figures).save(whole, "PNG")
                    self._logger.pictures(step, {"attention": path})

    def pulls(self, step: int, params: Any, loaded: Loaded, batch: Batch) -> Pulls:
        """Gradient norms by source and modality of a step's own batch, with the parameters after it; all processes must
        ask."""
        if self._run.recipe.preference:
            return Pulls({}, {}, {})  # these gradients are of targets, one by one
        self._logger.status(f"step {step}: gradients by source and modality", at_once=True)
        return self._group_norms(params, batch, loaded)

    def draw_samples(self, step: int, params: Any) -> str:
        """Answers and draws held-out questions; returns their folder, or ''. All processes of a job must ask."""
        self._logger.status("answering samples", at_once=True)
        drawn = self._samples.draw(params, step)
        self._logger.pictures(step, {f"samples/{name}": path for name, path in drawn.items()})
        return str(self._samples.folder) if drawn else ""
