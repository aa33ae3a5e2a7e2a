"""The samples of a run: held-out questions with the model's answers, as pictures, and maps of what it looked at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmm.atomic import plain, published
from jaxmm.data import files
from jaxmm.data.packing.plan import Lengths
from jaxmm.errors import UserError
from jaxmm.inference.answers import Prompt, make_generator, write
from jaxmm.inference.stop_strings import Reply
from jaxmm.monitor.attention import Probe
from jaxmm.monitor.heatmaps import TOKENS, looks, sample
from jaxmm.training import samples
from jaxmm.training.run import Run

SAMPLES = 16  # questions of each source that are drawn
ANSWER_TOKENS = 32  # the longest answer under one


class HeldOutSamples:
    """Asks the same questions each time. Programs are compiled the first time."""

    def __init__(self, run: Run):
        recipe = run.recipe
        self._run, self.folder = run, run.workdir / "samples"
        self._generate = make_generator(recipe.model, recipe.compute, recipe.template.stop_ids)
        self._probe = Probe(recipe.model, recipe.compute, TOKENS)
        held_out = run.held_out.lengths if run.held_out else []
        self._asked = [
            (source, samples.questions(source.prepared, recipe.template, SAMPLES, recipe.image)) for source in held_out
        ]

    def draw(self, params: Any, step: int) -> dict[str, Path]:
        """Writes the picture and the maps of each source that has something to ask; returns the pictures by source.

        What cannot be asked any more, as its file has gone, is told in a line.
        """
        drawn: dict[str, Path] = {}
        for source, asked in self._asked:
            if asked:
                try:
                    drawn[source.name] = self._of_source(source, asked, params, step)
                except UserError as error:
                    self._run.say(f"samples: {source.name} cannot be asked: {error}")
        return drawn

    def _of_source(self, source: Lengths, asked: Sequence[tuple[Prompt, str]], params: Any, step: int) -> Path:
        run, recipe = self._run, self._run.recipe
        name = files.bare(source.name)
        picture = self.folder / f"{name}.png"
        prompts = [prompt for prompt, _ in asked]
        *_, replies = write(
            self._generate, params, prompts, recipe.template, recipe.image, ANSWER_TOKENS, fits_row=True
        )
        if run.is_first:
            answers = [reply.text for reply in replies]
            samples.draw(asked, answers, picture, recipe.template, recipe.image)
        if kept := self._maps(asked, replies, params):
            spec = recipe.model.decoder
            whole = {"step": step, "source": source.name, "layers": spec.layers, "heads": spec.heads, "samples": kept}
            if run.is_first:
                with published(self.folder / f"{name}.json") as file:
                    file.write_text(json.dumps(plain(whole), allow_nan=False, separators=(",", ":")))
        return picture

    def _maps(self, asked: Sequence[tuple[Prompt, str]], replies: Sequence[Reply], params: Any) -> list[dict[str, Any]]:
        """The first questions with maps of their answers; all processes of a job ask the model."""
        monitor, recipe = self._run.config.monitor, self._run.recipe
        count = monitor.heatmaps if monitor.attention_every >= 0 else 0
        asked, replies = asked[:count], replies[:count]
        if not asked:
            return []
        found = looks(
            self._probe, params, [prompt for prompt, _ in asked], [reply.tokens for reply in replies],
            recipe.template, recipe.image, fits_row=True,
        )  # fmt: skip
        return [
            sample(prompt.text, reply.text, truth, look)
            for (prompt, truth), reply, look in zip(asked, replies, found, strict=True)
        ]
