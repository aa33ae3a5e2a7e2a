"""The samples of a run: held-out questions with the model's answers, as pictures, and maps of what it looked at.

They are for looking: what is wrong with one is told, and ends no run. All that one process alone may fail at (its file
has gone, its disk is full) is done before or after the devices are asked, and agreed on where the others must know.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxmm.atomic import plain, published
from jaxmm.data import files
from jaxmm.data.packing.plan import Lengths
from jaxmm.errors import UserError
from jaxmm.inference.answers import Prompt, make_generator, prompt_rows, write_rows
from jaxmm.inference.stop_strings import Reply
from jaxmm.monitor import heatmaps
from jaxmm.monitor.attention import Probe
from jaxmm.training import samples
from jaxmm.training.run import Run

SAMPLES = 16  # questions of each source that are drawn
ANSWER_TOKENS = 32  # the longest answer under one
Asked = list[tuple[Prompt, str]]  # questions with their true answers


@contextlib.contextmanager
def told(say: Callable[[str], None], path: Path) -> Iterator[None]:
    """A block that writes something to look at: where it fails, that is told, and the run goes on."""
    try:
        yield
    except (OSError, UserError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        say(f"warning: {path} was not written: {reason}")


class HeldOutSamples:
    """Asks the same questions each time. Programs are compiled the first time. All processes of a job must ask."""

    def __init__(self, run: Run):
        recipe, monitor = run.recipe, run.config.monitor
        self._run, self.folder = run, run.workdir / "samples"
        self._generate = make_generator(recipe.model, recipe.compute, recipe.template.stop_ids)
        self._probe = Probe(recipe.model, recipe.compute, ANSWER_TOKENS)
        self._mapped = monitor.heatmaps if monitor.attention_every >= 0 else 0

    @functools.cached_property
    def _asked(self) -> list[tuple[Lengths, Asked]]:
        held_out, recipe = self._run.held_out, self._run.recipe
        return [
            (source, samples.questions(source.prepared, recipe.template, SAMPLES, recipe.image))
            for source in (held_out.lengths if held_out else [])
        ]

    def draw(self, params: Any, step: int) -> dict[str, Path]:
        """Writes the picture and the maps of each source that has something to ask; returns the pictures by source."""
        drawn: dict[str, Path] = {}
        for source, asked in self._asked:
            path = self.folder / f"{files.bare(source.name)}.png"
            if asked and self._of_source(source.name, asked, params, path, step):
                drawn[source.name] = path
        return drawn

    def _of_source(self, name: str, asked: Asked, params: Any, path: Path, step: int) -> bool:
        """Whether the questions of a source could be asked; the picture is there then, unless that is told."""
        run, recipe = self._run, self._run.recipe
        prompts = [prompt for prompt, _ in asked]
        try:
            with run.barrier.agreed(f"the questions of {name}"):
                rows = prompt_rows(prompts, recipe.template, recipe.image, fits_row=True)
        except (UserError, ValueError) as error:
            run.say(f"warning: samples: {name} cannot be asked: {error}")
            return False
        with run.barrier.together(f"the answers of {name} at step {step}"):
            *_, replies = write_rows(self._generate, params, rows.loaded.batch, recipe.template, ANSWER_TOKENS)
        if run.is_first:
            with told(run.say, path):
                shown = [reply.text if reply.done else f"{reply.text} ..." for reply in replies]
                samples.draw(asked, shown, path, recipe.template, recipe.image)
        if self._mapped:
            self._map(name, asked[: self._mapped], replies[: self._mapped], params, path.with_suffix(".json"), step)
        return True

    def _map(self, name: str, asked: Asked, replies: list[Reply], params: Any, path: Path, step: int) -> None:
        """Writes where the answers to the first questions looked; "cut": that one goes on behind its last token."""
        run, recipe, tokens = self._run, self._run.recipe, [reply.tokens for reply in replies]
        try:
            with run.barrier.agreed(f"the maps of {name}"):
                rows = heatmaps.lay_out(
                    [prompt for prompt, _ in asked], tokens, recipe.template, recipe.image, fits_row=True,
                    most=ANSWER_TOKENS,
                )  # fmt: skip
        except (UserError, ValueError) as error:
            run.say(f"warning: {path} was not written: {error}")
            return
        with run.barrier.together(f"the maps of {name} at step {step}"):
            looks = list(heatmaps.looks(self._probe, params, rows))
        kept = [
            heatmaps.sample(prompt.text, reply.text, truth, look) | {"cut": not reply.done}
            for (prompt, truth), reply, look in zip(asked, replies, looks, strict=True)
        ]
        spec = recipe.model.decoder
        layers = len(spec.attention_layers())
        whole = {"step": step, "source": name, "layers": layers, "heads": spec.heads, "samples": kept}
        if run.is_first:
            with told(run.say, path), published(path) as file:
                file.write_text(json.dumps(plain(whole), allow_nan=False, separators=(",", ":")))
