"""What Python programs use of jaxmm, as ``jaxmm.NAME``: configs, packed batches, the model, and a model that answers.

The commands are built of the same parts; a loop of one's own gets the batches and the loss that ``train`` has. All
raise ``UserError``, one line, for what the user can mend.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from jaxmm import capacity, sharding
from jaxmm.batch import Batch
from jaxmm.checkpoints import references
from jaxmm.checkpoints.base import Base
from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.checkpoints.chosen import chosen_step
from jaxmm.checkpoints.params import pretrained_params, saved_params
from jaxmm.config import consistency
from jaxmm.config.file import load_file, load_weights_of, load_workdir, settled
from jaxmm.config.keys import flat
from jaxmm.config.packaged import path_of
from jaxmm.corpus import Corpus, make_assembler, read_budgets, read_steps
from jaxmm.corpus import make_plan as plan_of
from jaxmm.data import loader
from jaxmm.data.assemble import Loaded
from jaxmm.data.documents import Media
from jaxmm.data.media import table
from jaxmm.data.packing.plan import Plan
from jaxmm.errors import UserError, printable
from jaxmm.hf.folder import is_folder
from jaxmm.hf.pretrained import generation
from jaxmm.inference import generation_config, sampling
from jaxmm.inference.answers import Prompt, answers, make_generator
from jaxmm.inference.decode import Generator
from jaxmm.inference.prompts import Given, given_medium
from jaxmm.models import multimodal
from jaxmm.models.tables import Head, dense
from jaxmm.models.tree import Params
from jaxmm.recipe import Recipe, fitted, read_data, read_recipe, train_corpus
from jaxmm.training import cpu_dtype
from jaxmm.training.loss import batch_loss
from jaxmm.training.objectives import needs_answers, objective_of
from jaxmm.workdir.spool import opened

Many = Given | list[Given] | tuple[Given, ...]


def load_config(name: str | os.PathLike[str] = "base", **changes: Any) -> ConfigDict:
    """A whole config, checked; its keys can be set as attributes, and there are no others.

    Args:
      name: of a config that comes with jaxmm ("base"), or the path of a config file, or the path or URL of a run's
        workdir.
      changes: by key or group: ``steps=10``, ``optimizer={"rate": 1e-3}``, ``**{"optimizer.rate": 1e-3}``.

    Raises:
      UserError: if there is no such config or key, or for a value that it may not have.
    """
    text = opened("load_config", os.fspath(name), reads=True)
    is_workdir = os.path.isdir(text) and not path_of(text)
    config = load_workdir(text) if is_workdir else load_file(text)
    return _checked(settled(flat(config) | flat(changes), "load_config"))


def _checked(config: ConfigDict) -> ConfigDict:
    """A config of the caller's, which may have been changed since it was loaded.

    Raises:
      UserError: if it is none, or for its values.
    """
    if not isinstance(config, ConfigDict):
        raise UserError(f"a config is wanted, not {config!r}: jaxmm.load_config('base') gives one")
    whole = settled(config.to_dict(), "config")
    consistency.check(flat(whole))
    return whole


def _recipe(config: ConfigDict) -> Recipe:
    """Of a new run; in a job of several processes, which need not all ask, only the config says what it computes in."""
    if jax.process_count() == 1:
        cpu_dtype.settle(config)
    return read_recipe(config)


def _planned(config: ConfigDict) -> tuple[Corpus, Plan]:
    corpus = train_corpus(config, read_data(config))
    budgets = read_budgets(config, corpus)
    if config.objective and needs_answers(recipe := _recipe(config)):
        fingerprint = references.fingerprint_of(Base.find(config.init_from), recipe, config.seed)
        references.check_pictures(config, corpus.lengths)
        references.attach(corpus.lengths, fingerprint, recipe, budgets)
    return corpus, plan_of(config, corpus, budgets)


def make_plan(config: ConfigDict) -> Plan:
    """Which documents stand in which row of every batch; data is prepared into the cache first, where it is not yet.

    ``plan.batch(k)`` is the rows of batch k, each a list of pieces of documents; ``plan.budgets`` is
    what a row may hold.

    Raises:
      UserError: for what is wrong with the config or the data.
    """
    return _planned(_checked(config))[1]


def batches(config: ConfigDict, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
    """The packed batches of a run, made ahead in threads or processes (``data.threads``, ``data.workers``).

    Batch k is what ``train`` has at step k on the same config: NumPy arrays of ``batch_size`` rows (``jaxmm.batch`` is
    the legend), the same shapes always. A document with a picture that cannot be
    read is left out, and told on stderr.

    Args:
      start, stop: numbers of batches; ``stop`` is the run's own end where it is not given.

    Raises:
      UserError: for what is wrong with the config or the data, at the call; while iterating, if a worker dies.
    """
    config = _checked(config)
    corpus, plan = _planned(config)
    assemble = make_assembler(config, corpus.lengths[0].spec.only(corpus.media), corpus, plan.budgets)
    end = read_steps(config, plan) if stop is None else stop
    if not 0 <= start <= end:
        raise UserError(f"batches {start} to {end}: start must be 0 or above, and at most stop")
    if not plan.mixture.is_endless and end > (there := plan.batches(end)):
        raise UserError(f"batches {start} to {end}: the plan ends after {there}")
    loaded = loader.batches(
        plan, assemble, start, end, threads=config.data.threads, workers=config.data.workers
    )  # fmt: skip
    return _told(loaded, start)


def _told(made: Iterator[Loaded], start: int) -> Iterator[Batch]:
    told = set()
    for number, loaded in enumerate(made, start):
        for document in loaded.skipped:
            if document.origin not in told:
                told.add(document.origin)
                why = table.advice(document.reason, [document.medium]) or document.reason
                line = f"batch {number} is without {document.origin}: {why}"
                print(printable(line), file=sys.stderr, flush=True)
        yield loaded.batch


class Model(NamedTuple):
    """The model of a config as pure functions, ready for ``jax.jit`` and ``jax.grad``; see ``make_model``."""

    recipe: Recipe

    def init(self, key: jax.Array) -> Params:
        """Random parameters, float32: nested dicts by part ("vision", "connector", ..., "decoder")."""
        return multimodal.make_model(self.recipe.model)[0](key)

    def apply(self, params: Params, batch: Batch, target_positions_BR: Any = None) -> tuple[jax.Array, jax.Array]:
        """Hidden states, (B, T, D) or (B, R, D) at these positions alone, and the vocabulary projection, (V, D).

        Logits are ``hidden @ head.T``, through ``recipe.model.decoder.logit_softcap`` where that is not 0.
        """
        hidden, head = self._applied(params, batch, target_positions_BR)
        return hidden, dense(head)

    def _applied(self, params: Params, batch: Batch, target_positions_BR: Any = None) -> tuple[jax.Array, Head]:
        return multimodal.make_model(self.recipe.model)[1](params, batch, self.recipe.compute, target_positions_BR)

    def loss(self, params: Params, batch: Batch, *, target_budget: int = 0, z_loss: float = 0.0) -> jax.Array:
        """The mean cross-entropy of a batch's targets, in nats, by their weights: a scalar. With ``config.objective``
        the mean loss of its preferences.

        Args:
          target_budget: targets that a row may have, ``plan.budgets.targets``; 0 is any number, and more work.
          z_loss: as ``config.optimizer.z_loss``.
        """
        budget = target_budget or batch.weights_BT.shape[1]
        if self.recipe.preference:
            objective = objective_of(self.recipe, self.recipe.model, budget, sources=1)
            return objective.loss(params, batch, None)[0] / jax.numpy.maximum(objective.total(batch), 1e-6)

        hidden_at = functools.partial(self._applied, params, batch)
        total, _, _ = batch_loss(hidden_at, batch, budget, z_loss, self.recipe.model.decoder.logit_softcap)
        return total / jax.numpy.maximum(batch.weights_BT.sum(), 1e-6)

    def with_params(self, params: Params) -> TrainedModel:
        """The model with parameters of the caller's, to ask it."""
        return TrainedModel(self, params, {})


def make_model(config: ConfigDict) -> Model:
    """The model of a config; with ``init_from`` that of the folder, whose weights ``jaxmm.load`` reads.

    Raises:
      UserError: for what is wrong with the config.
    """
    return Model(_recipe(_checked(config)))


class TrainedModel:
    """A model with its parameters on one device.

    Attributes:
      model: its functions, of ``params``.
      step: of its checkpoint; None of a folder's weights and of parameters of the caller's.
      said: the generation_config.json of the folder it comes from.
      mesh: the device it is on.
      generate: what writes its answers.
    """

    def __init__(self, model: Model, params: Params, said: dict[str, Any], step: int | None = None):
        self.model, self.params, self.said, self.step = model, params, said, step
        self.mesh = _one_device()
        recipe = model.recipe
        self.generate: Generator = make_generator(recipe.model, recipe.compute, recipe.template.stop_ids)

    def answer(
        self, image: Many | None = None, text: str = "", *, video: Many | None = None, audio: Many | None = None,
        max_tokens: int = 64, temperature: float = 0.0, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0,
        repetition_penalty: float = 0.0, seed: int = 0, stop: Sequence[str] = (),
    ) -> str:  # fmt: skip
        """The model's answer to pictures, clips, or text alone: ``answer("cat.png", "What is this?")``.

        The first call compiles; later ones of about the same length do not.

        Args:
          image: a path, an encoded file's bytes or a PIL image, or a list of them; they come before the text.
          video: a path (of a file, or of a folder of frames) or a file's bytes, or a list of them; behind the pictures.
          audio: a path or a file's bytes, or a list of them; behind the videos.
          max_tokens: of the longest answer.
          temperature: 0 is the most likely answer; above 0 answers are drawn, as ``top_p``, ``top_k``, ``min_p`` and
            ``seed`` say.
          repetition_penalty: 0 is as the model's folder says.
          stop: texts that end an answer, and are left out of it.

        Raises:
          UserError: for a medium that cannot be read or that the model does not take, a value out of range, or nothing
            to answer.
        """
        media: list[Media] = []
        for kind, value in (("image", image), ("video", video), ("audio", audio)):
            values = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
            media += [given_medium(kind, one) for one in values]
        prompt = Prompt(tuple(media), text)
        if not prompt.media and not prompt.text:
            raise UserError("nothing to answer: give a picture, a text or both, or a video or a recording")
        asked = {
            "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed, "top_k": top_k,
            "min_p": min_p, "repetition_penalty": repetition_penalty,
        }  # fmt: skip
        sampling.check(asked, mark="")
        penalty = generation_config.repetition_penalty(self.said, repetition_penalty)
        chosen = sampling.Sampling(temperature, top_p, seed, top_k, min_p, penalty)
        recipe, stops = fitted(self.model.recipe, prompt.kinds()), [stop] if isinstance(stop, str) else list(stop)
        capacity.check_cache(recipe.model.decoder, recipe.compute, 1, max_tokens, jax.devices()[:1])
        with jax.set_mesh(self.mesh):
            (told,) = answers(
                self.generate, self.params, [prompt], recipe.template, recipe.image, max_tokens,
                sampling=chosen, stops=stops,
            )  # fmt: skip
        return told


def load(folder: str | os.PathLike[str], step: str | int = "") -> TrainedModel:
    """A model that answers: the run of a workdir, or a Hugging Face folder on this machine.

    Args:
      step: of a run, the checkpoint: its step, or "best"; the newest if left out.

    Raises:
      UserError: if there is none of these, or it cannot be read.
    """
    path, mesh = Path(opened("load", os.fspath(folder), reads=True)), _one_device()
    if is_folder(path):
        if step:
            raise UserError(f"{path} is a model's folder, which has no step {step}")
        recipe = read_recipe(load_config("base", init_from=str(path)))
        assert recipe.start is not None
        with jax.set_mesh(mesh):
            params, _ = pretrained_params(recipe, recipe.start, mesh, seed=0)
        return TrainedModel(Model(recipe), params, generation(path))
    recipe = read_recipe(load_weights_of(str(path)), path)
    chosen = chosen_step(path, str(step))
    checkpoints = Checkpoints(path / "checkpoints")
    chosen = checkpoints.latest() if chosen is None else chosen
    with jax.set_mesh(mesh):
        params = saved_params(path, recipe, mesh, chosen, checkpoints)
    return TrainedModel(Model(recipe), params, generation_config.said_by(recipe.start, path), chosen)


def _one_device() -> jax.sharding.Mesh:
    return sharding.make_mesh({"data": 1}, jax.devices()[:1])
