"""From a config to the corpora of a run: what it trains on, and what is held out."""

from __future__ import annotations

import dataclasses
import functools

from ml_collections import ConfigDict

from jaxmm.config.shares import parse_schedule
from jaxmm.corpus import Corpus, load_corpus
from jaxmm.data import demos, files
from jaxmm.data.documents import Source
from jaxmm.data.media.table import described_widths
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.reading import Reading
from jaxmm.data_recipe import DataSide, check_media
from jaxmm.errors import UserError
from jaxmm.hf.families.registry import FAMILIES
from jaxmm.hf.pretrained import Pretrained
from jaxmm.training.preference import make_preference


def read_reading(config: ConfigDict, recipe: DataSide, evaluation: bool = False) -> Reading:
    """How the config's data is read."""
    beside = ("boxes", "image", "evaluation", "held_out", "preferences")
    keys = [field.name for field in dataclasses.fields(Reading) if field.name not in beside]
    kind, spec = read_boxes(config, recipe.start), make_preference(config.objective, config.preference)
    return Reading(
        **{key: config.data[key] for key in keys}, boxes=kind, image=recipe.whole.only(()) if kind else None,
        evaluation=evaluation, preferences=("judged" if spec.judges else "pairs") if spec else "",
    )  # fmt: skip


def read_boxes(config: ConfigDict, start: Pretrained | None) -> str:
    """How boxes in texts are written: as ``boxes.KINDS``.

    Raises:
      UserError: if that is to be the model's way, and nobody knows it.
    """
    if config.data.boxes != "model":
        return str(config.data.boxes)
    if not start or not start.family.boxes:
        known = ", ".join(family.name for family in FAMILIES.values() if family.boxes)
        whose = f"the family {start.family.name}" if start else "a model from random weights"
        raise UserError(f"config.data.boxes=model is known of {known}, not of {whose}: say pixels or thousandths")
    return start.family.boxes


def _load(config: ConfigDict, path: str, mixture: str, recipe: DataSide, default: Source, reading: Reading) -> Corpus:
    check = functools.partial(check_media, recipe)
    corpus = load_corpus(path, mixture, recipe.template, recipe.whole, recipe.cache, default, reading, check)
    for source in corpus.lengths:
        if not recipe.whole.is_sighted and (source.patches_E.any() or "features" in source.widths):
            raise UserError(f"{source.name} has pictures, which this model does not take: it has no vision tower")
        _check_widths(config, recipe, source)
    return corpus


def _check_widths(config: ConfigDict, recipe: DataSide, source: Lengths) -> None:
    """Raises UserError for feature vectors that are none of the model's towers."""
    model = recipe.start.layout.spec if recipe.start else None
    own = {
        "features": (model.vision.feature_width if model and model.vision else config.vision.width, "vision"),
        "audio_features": (model.audio.width if model and model.audio else config.audio.width, "audio"),
    }
    for stream, widths in described_widths(source.prepared.meta).items():
        width, tower = own[stream]
        key = f"the {tower} tower's width" if model else f"config.{tower}.width"
        if others := [n for n in widths if n != width]:
            raise UserError(
                f"{source.name} has feature vectors of width {others[0]}, but {key} is {width}: "
                f"{'' if model else 'set it to what the tower that made them has, or '}make them with this one"
            )


def train_corpus(config: ConfigDict, recipe: DataSide) -> Corpus:
    reading = read_reading(config, recipe)
    default = demos.training_source(config.data.demo, reading.preferences)
    stages = parse_schedule(config.data.mixture)
    names = ",".join(dict.fromkeys(name for _, shares in stages for name in shares))
    corpus = _load(config, config.data.path, names, recipe, default, reading)
    for source in corpus.lengths:
        if not source.targets_E.any():
            raise UserError(
                f"{source.name} has nothing to learn: not one of its {len(source)} documents has an assistant's turn "
                f"that is not turned off by a weight, or a text; leave it out of config.data.mixture, or learn all of "
                f"it by config.data.objective=pretrain"
            )

    def shares_of(asked: dict[str, float]) -> list[float]:
        by_size = not any(asked.values())
        return [
            size if by_size and (not asked or name in asked) else asked.get(name, 0.0)
            for name, size in zip(corpus.names, corpus.shares, strict=True)
        ]

    shares = [(step, shares_of(asked)) for step, asked in stages]
    return corpus._replace(shares=shares[0][1], later=tuple(shares[1:]))


def eval_corpus(config: ConfigDict, recipe: DataSide) -> Corpus | None:
    """The held-out sources: the demo's for the demo, else what ``config.eval.path`` names, or None.

    With ``config.data.val_size``, no path or that of the training data is the part that is kept from training.
    """
    path, mixture = config.eval.path, config.eval.mixture
    reading = read_reading(config, recipe, evaluation=True)
    is_same = bool(path) and files.absolute(path) == files.absolute(config.data.path)
    if reading.val_size and config.data.path and (is_same or not path):
        # Of the same files, and so of the same split.
        reading = dataclasses.replace(reading, evaluation=False, held_out=True)
        path = config.data.path
        mixture = mixture or ",".join(dict.fromkeys(n for _, s in parse_schedule(config.data.mixture) for n in s))
    elif not path and config.data.path:
        return None
    else:
        reading = dataclasses.replace(reading, val_size=0.0, split=config.eval.split)
    default = demos.test_source(config.data.demo, reading.preferences)
    return _load(config, path, mixture, recipe, default, reading)
