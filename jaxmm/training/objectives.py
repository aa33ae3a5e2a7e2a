"""From a recipe to what its step makes small, where that is not the cross-entropy of targets: preferences."""

from __future__ import annotations

from jaxmm.models.multimodal import ModelSpec, flat_axes
from jaxmm.recipe import Recipe
from jaxmm.training.preference_objective import make_both, make_objective
from jaxmm.training.step import Objective


def asks_reference(recipe: Recipe) -> bool:
    """Whether each step asks the reference, the model beneath the adapters: they alone learn."""
    spec, trainable = recipe.preference, recipe.trainable
    return bool(spec and spec.has_reference and not spec.asked and trainable.adapters and not trainable.whole)


def needs_answers(recipe: Recipe) -> bool:
    """Whether what the reference says must be in the batches, so that it was asked before."""
    return bool(recipe.preference and recipe.preference.has_reference and not asks_reference(recipe))


def parts_of_reference(recipe: Recipe) -> tuple[str, ...]:
    """The parts of the model that a step runs a second time, beneath the adapters: media are encoded once where they
    are frozen."""
    if not asks_reference(recipe):
        return ()
    return ("decoder",) if _shares_media(recipe) else recipe.model.parts


def _shares_media(recipe: Recipe) -> bool:
    return all(path[0] == "decoder" for path in flat_axes(recipe.model) if recipe.trainable.learns(path))


def objective_of(recipe: Recipe, model: ModelSpec, targets: int, sources: int) -> Objective:
    """The objective of preferences.

    Args:
      model: the recipe's, with its dropout in training.
      targets: the target budget of a row.
      sources: of data.
    """
    if recipe.preference is None:
        raise ValueError("the recipe learns targets")
    both = make_both(
        model, recipe.compute, shares_media=_shares_media(recipe), asks_reference=asks_reference(recipe)
    )  # fmt: skip
    softcap = model.decoder.logit_softcap
    return make_objective(both, recipe.preference, target_budget=targets, sources=sources, logit_softcap=softcap)
