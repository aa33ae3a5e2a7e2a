"""A model that answers conversations token by token, and then shows where it looked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxmm import api, capacity
from jaxmm.chat.loaded import Loaded
from jaxmm.errors import UserError
from jaxmm.inference import generation_config, sampling
from jaxmm.inference.answers import Prompt, PromptRows, prompt_rows, write_rows
from jaxmm.inference.sampling import Sampling
from jaxmm.monitor.heatmaps import lay_out, looks, sample
from jaxmm.recipe import Recipe, fitted

MOST_TOKENS, MOST_POSITIONS = 4096, 32_768  # of an answer, and of what stands before it
MEDIA = ("image", "video", "audio")
DEFAULTS: dict[str, Any] = {
    "max_tokens": 64, "temperature": 0.0, "top_p": 1.0, "seed": 0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 0.0,
}  # fmt: skip


class Piece(NamedTuple):
    """Text that has been written, and stays as it is."""

    text: str


class End(NamedTuple):
    """A whole answer.

    Attributes:
      finish: "stop", "length", or "stopped" by who asked.
      prompt_tokens: before it, those of media among them; tokens: of its own.
    """

    text: str
    finish: str
    prompt_tokens: int
    tokens: int


class Looked(NamedTuple):
    """Where the first ``heatmaps.TOKENS`` tokens of the answer looked, as ``heatmaps.sample`` has it."""

    look: dict[str, Any]


Event = Piece | End | Looked


class Question(NamedTuple):
    """A conversation that is laid out, for the parameters that answer it.

    Attributes:
      options: by the names of DEFAULTS, all of them.
    """

    prompt: Prompt
    rows: PromptRows
    recipe: Recipe
    model: Loaded
    options: dict[str, Any]
    stops: tuple[str, ...]


class Speaker:
    """The model of a run's workdir, or of a Hugging Face folder.

    Attributes:
      name: what it is asked by.
      folder: where it comes from.
    """

    def __init__(self, name: str, folder: Path, step: str = ""):
        """Loads the parameters.

        Raises:
          UserError: as of ``api.load``.
        """
        self.name, self.folder = name, folder
        self._model = Loaded(api.load(folder, step))

    @property
    def step(self) -> int | None:
        """Of the checkpoint that is asked; None of a Hugging Face folder."""
        return self._model.step

    def takes(self) -> list[str]:
        """Which of MEDIA the model takes."""
        return [name for name in MEDIA if _is_taken(self._model.trained.model.recipe, name)]

    def reload(self) -> None:
        """Takes the newest checkpoint; questions that were laid out before stay with the one of then.

        The device need not hold two: the old parameters are in memory meanwhile, and come back if this fails. Not to be
        called while an answer is computed.

        Raises:
          UserError: if there is none, or it cannot be read.
        """
        before = self._model
        before.leave()
        try:
            newest = Loaded(api.load(self.folder))
        except BaseException:
            before.come_back()
            raise
        newest.follow(before)
        self._model = newest

    def question(self, prompt: Prompt, options: dict[str, Any], stops: Sequence[str] = ()) -> Question:
        """Lays a conversation out; its media are decoded here.

        Args:
          options: by the names of DEFAULTS, which has the others; of the right types.

        Raises:
          UserError: for media that the model does not take or that cannot be read, values out of range, or too much.
        """
        model, options = self._model, DEFAULTS | options
        sampling.check(options, mark="")
        if options["max_tokens"] > MOST_TOKENS:
            raise UserError(f"max_tokens is {options['max_tokens']}: it must be at most {MOST_TOKENS}")
        recipe = fitted(model.trained.model.recipe, prompt.kinds())
        rows = prompt_rows([prompt], recipe.template, recipe.image, most=MOST_POSITIONS)
        room = rows.loaded.batch.text.values.shape[1] + options["max_tokens"]
        capacity.check_cache(recipe.model.decoder, recipe.compute, 1, room, jax.devices()[:1])
        return Question(prompt, rows, recipe, model, options, tuple(stops))

    def answer(
        self, asked: Question, is_stopped: Callable[[], bool], is_gone: Callable[[], bool] = lambda: False,
        with_look: bool = True,
    ) -> Iterator[Event]:  # fmt: skip
        """Writes the answer: pieces of its text, its end, and where it looked; an empty one looked nowhere.

        Args:
          is_stopped: asked after every token, whether the answer is to end there.
          is_gone: asked after every token, whether nobody wants it any more: nothing more is computed then, and there
            is no end.
        """
        if is_gone():
            return
        asked.model.come_back()
        options, model, recipe = asked.options, asked.model.trained, asked.recipe
        penalty = generation_config.repetition_penalty(model.said, options["repetition_penalty"])
        chosen = Sampling(**{name: options[name] for name in Sampling._fields} | {"repetition_penalty": penalty})
        printed, is_cut = 0, is_stopped()
        with jax.set_mesh(model.mesh):
            written = write_rows(
                model.generate, model.params, asked.rows.loaded.batch, recipe.template, options["max_tokens"],
                sampling=chosen, stops=asked.stops, every=1,
            )  # fmt: skip
            tokens: list[int] = []
            text, is_done = "", False
            for (reply,) in () if is_cut else written:
                tokens, text, is_done = reply.tokens, reply.text, reply.done
                if sure := reply.sure()[printed:]:
                    printed += len(sure)
                    yield Piece(sure)
                if is_gone():
                    return
                if not is_done and (is_cut := is_stopped()):
                    break
            if text[printed:]:
                yield Piece(text[printed:])
            finish = "stop" if is_done else "stopped" if is_cut else "length"
            yield End(text, finish, int(asked.rows.lengths.tokens_E[0]), len(tokens))
            if with_look and tokens and not is_gone():
                yield Looked(self._look(asked, text, tokens))

    def _look(self, asked: Question, text: str, tokens: Sequence[int]) -> dict[str, Any]:
        recipe, probe, params = asked.recipe, asked.model.probe(), asked.model.trained.params
        (look,) = looks(probe, params, lay_out([asked.prompt], [tokens], recipe.template, recipe.image))
        return sample(asked.prompt.text, text, "", look)


def _is_taken(recipe: Recipe, medium: str) -> bool:
    try:
        fitted(recipe, [medium])
    except UserError:
        return False
    return True


def shares(look: dict[str, Any]) -> dict[str, float]:
    """Of all tokens of an answer: where attention went, by class; {} of an answer without tokens."""
    return {name: sum(mass) / len(mass) for name, mass in look["mass"].items() if mass}
