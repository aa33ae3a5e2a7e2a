"""A checkpoint that is asked: its parameters, which make room on the device for newer ones, and what measures it."""

from __future__ import annotations

from typing import Any

import jax

from jaxmm import api
from jaxmm.monitor.attention import Probe
from jaxmm.monitor.heatmaps import TOKENS


class Loaded:
    """A model with what was compiled for it. Only the thread that computes moves its parameters.

    Attributes:
      trained: the model; its ``params`` may be in memory, see ``leave``.
    """

    def __init__(self, trained: api.TrainedModel):
        self.trained = trained
        self._probe: Probe | None = None
        self._places: Any = None  # on the device, of parameters that are in memory

    @property
    def step(self) -> int | None:
        """Of the checkpoint; None of a Hugging Face folder."""
        return self.trained.step

    def leave(self) -> None:
        """Takes the parameters from the device into memory."""
        if self._places is None:
            self._places = jax.tree.map(lambda x: x.sharding, self.trained.params)
            self.trained.params = jax.device_get(self.trained.params)

    def come_back(self) -> None:
        """Puts the parameters on the device, where they are not there."""
        if self._places is not None:
            self.trained.params = jax.device_put(self.trained.params, self._places)
            self._places = None

    def follow(self, before: Loaded) -> None:
        """Takes over what was compiled for another checkpoint of the same model."""
        old, new = before.trained.model.recipe, self.trained.model.recipe
        if (old.model, old.compute, old.template.stop_ids) == (new.model, new.compute, new.template.stop_ids):
            self.trained.generate, self._probe = before.trained.generate, before._probe

    def probe(self) -> Probe:
        """What measures where an answer of it looked."""
        if self._probe is None:
            recipe = self.trained.model.recipe
            self._probe = Probe(recipe.model, recipe.compute, TOKENS)
        return self._probe
