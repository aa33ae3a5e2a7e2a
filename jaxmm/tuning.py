"""From a config to what of a model learns: its adapters, what is trained whole, what is frozen."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from jaxmm.config.keys import KEYS
from jaxmm.config.shares import parse_patterns
from jaxmm.errors import UserError, nearest
from jaxmm.hf.adapter_record import Begun
from jaxmm.hf.map_names import called, named_maps
from jaxmm.hf.pretrained import Pretrained
from jaxmm.models.adapters import CONVOLUTIONS, AdapterSpec
from jaxmm.models.frozen import FrozenSpec
from jaxmm.models.multimodal import ModelSpec, flat_axes, kernel_dims, model_maps
from jaxmm.models.tables import TABLES
from jaxmm.models.trainable import Trainable, check_patterns
from jaxmm.models.tree import ParamPath, matches

SHOWN = 12  # names that an error lists


def make_adapter(
    asked: Mapping[str, Any], start: Pretrained | None, model: ModelSpec, frozen: tuple[str, ...] = ()
) -> AdapterSpec | None:
    """The adapters that ``config.adapter`` asks for; None where it asks for none.

    Args:
      frozen: the patterns of config.optimizer.freeze: maps that these mean have no adapter.

    Raises:
      UserError: for a target that is no linear map of the model or means frozen ones alone, a rank that one of them
        cannot have, or what maps of experts have not.
    """
    rank = asked["rank"]
    if not rank:
        return None
    targets = _targets_of(asked["targets"], start, model)
    if not targets:
        raise UserError("config.adapter.targets is empty: name the linear maps that get an adapter, as decoder.blocks")
    if tables := [path for path in targets if path in map(".".join, TABLES)]:
        for key, value in (("kind", "dora"), ("init", "pissa")):
            if asked[key] == value:
                raise UserError(
                    f"config.adapter.{key}={value} is of linear maps, and {tables[0]} is a table over the vocabulary: "
                    f"leave it out of config.adapter.targets, or take another {key}"
                )
    alpha = asked["alpha"] or 2.0 * rank
    spec = AdapterSpec(tuple(dict.fromkeys(targets)), rank, alpha, asked["kind"], start=asked["init"], frozen=frozen)
    for name in _names_of(asked["targets"]):
        alone = dataclasses.replace(spec, targets=tuple(_patterns_of(name, start, model)))
        if not model_maps(dataclasses.replace(model, adapter=alone)):
            raise UserError(
                f"config.adapter.targets: '{name}' means nothing but what config.optimizer.freeze={','.join(frozen)} "
                f"freezes, where an adapter would never learn: leave it out of the one or the other"
            )
    _check_of_experts({"kind": spec.kind == "dora" and "dora", "dropout": asked["dropout"]}, spec, model)
    shapes = flat_axes(model.plain)
    for one in model_maps(dataclasses.replace(model, adapter=spec)):
        shape, _ = shapes[one.kernel]
        most = min(math.prod(shape[dim] for dim in side) for side in (one.inputs, one.outputs))
        if one.rank > most:
            raise UserError(
                f"config.adapter.rank {one.rank} is above the {most} that {'.'.join(one.path)} has at most: lower it, "
                f"or leave that map out of config.adapter.targets"
            )
    return spec


def _check_of_experts(asked: Mapping[str, Any], spec: AdapterSpec, model: ModelSpec) -> None:
    """Raises UserError for values of keys that adapters of experts have not, where some are adapted."""
    axes = {path: names for path, (_, names) in flat_axes(model.base.plain).items()}
    adapted = [one for one in model_maps(dataclasses.replace(model, adapter=spec)) if "expert" in axes[one.kernel]]
    for key, value in asked.items():
        if adapted and value:
            raise UserError(
                f"config.adapter.{key}={value} is not of experts, and {'.'.join(adapted[0].path)} is adapted: name "
                f"other config.adapter.targets, as decoder.blocks.attention, or leave the {key} out"
            )


def check_begun(
    asked: Mapping[str, Any], begun: Begun, start: Pretrained | None, model: ModelSpec, frozen: tuple[str, ...] = ()
) -> None:
    """Compares what ``config.adapter`` asks for with the adapters that a run goes on from; defaults ask for nothing.

    Args:
      frozen: as of ``make_adapter``: what these mean may have an adapter or none.

    Raises:
      UserError: where they differ.
    """
    spec = begun.spec
    for key, own in (("rank", spec.rank), ("alpha", spec.alpha), ("kind", spec.kind)):
        if asked[key] not in (default := KEYS[f"adapter.{key}"].default, own):
            values = " or ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in (own, default))
            raise UserError(
                f"config.adapter.{key} is {asked[key]}, but the adapters in {begun.source} have {own}, which is what "
                f"config.adapter.init_from goes on with: set it to {own if own == default else values}"
            )
    _check_of_experts({"dropout": asked["dropout"]}, spec, model)
    if asked["init"]:
        raise UserError(
            f"config.adapter.init={asked['init']} is how adapters begin, and those of config.adapter.init_from have "
            f"begun: set it to ''"
        )
    if asked["targets"] != KEYS["adapter.targets"].default:
        wanted = AdapterSpec(tuple(_targets_of(asked["targets"], start, model)), frozen=(*spec.frozen, *frozen))
        paths = (*(path[:-1] for path in kernel_dims(model)), *_tables(model))
        may_differ = [path for path in paths if not wanted.is_frozen(path)]
        if differ := [path for path in may_differ if wanted.adapts(path) != spec.adapts(path)]:
            raise UserError(
                f"config.adapter.targets: {'.'.join(differ[0])} has {'an' if spec.adapts(differ[0]) else 'no'} adapter "
                f"in {begun.source}, other than asked for: set it to {KEYS['adapter.targets'].default}, the default"
            )


def _tables(model: ModelSpec) -> list[ParamPath]:
    """The tables over the vocabulary that a model has."""
    return [path for path in TABLES if path in flat_axes(model.base.plain)]


def _targets_of(text: str, start: Pretrained | None, model: ModelSpec) -> list[str]:
    """The patterns of ``config.adapter.targets``."""
    targets: list[str] = []
    for name in _names_of(text):
        targets += _patterns_of(name, start, model)
    return targets


def _names_of(text: str) -> list[str]:
    return [name for name in map(str.strip, text.split(",")) if name]


def make_frozen(base_dtype: str, model: ModelSpec, trainable: Trainable) -> FrozenSpec | None:
    """How what does not learn is held, by config.adapter.base_dtype; None as float32.

    Raises:
      UserError: for a model without adapters, whose checkpoints would hold the rounded weights as its own.
    """
    if not base_dtype:
        return None
    if model.adapter is None:
        raise UserError(
            f"config.adapter.base_dtype is '{base_dtype}', which is of what lies beneath adapters: set "
            f"config.adapter.rank, or leave it out"
        )
    return FrozenSpec(base_dtype, trainable.whole)


def _patterns_of(name: str, start: Pretrained | None, model: ModelSpec) -> list[str]:
    """The patterns of the linear maps and tables that a target means: in our words, or in those of the family."""
    paths = [path[:-1] for path in kernel_dims(model)]
    maps = [path for path in paths if not any(matches(path, pattern) for pattern in CONVOLUTIONS)]
    tables = [".".join(path) for path in _tables(model)]
    if name in tables or any(matches(path, name) for path in maps):
        return [name]
    if name in map(".".join, TABLES):  # the projection, where it is the embedding
        return tables
    theirs = named_maps(start.layout) if start else []
    if matching := called(theirs, name):
        return [".".join(path) for path in matching]
    if any(matches(path, name) for path in paths):
        raise UserError(f"config.adapter.targets: '{name}' is a convolution in other places, and has no adapter here")
    if name in ("all", "all-linear"):  # as other programs write it
        raise UserError(
            f"config.adapter.targets: '{name}' is no name here: all linear maps of the decoder are decoder.blocks, "
            f"those of all parts {','.join(dict.fromkeys(path[0] for path in maps))}"
        )
    known = _words(maps) + tables + list(dict.fromkeys(one.name.rpartition(".")[2] for one in theirs))
    raise UserError(
        f"config.adapter.targets: '{name}' is no linear map of this model: there are {', '.join(known[:SHOWN])}"
        f"{f' and {len(known) - SHOWN} more' if len(known) > SHOWN else ''}{nearest(name, known)}"
    )


def _words(maps: Collection[ParamPath]) -> list[str]:
    """Patterns that mean several maps each: blocks of a part, their attention and MLP."""
    return list(dict.fromkeys(".".join(path[:-1]) if len(path) > 2 else ".".join(path) for path in maps))


def make_trainable(
    freeze: str, whole: str, model: ModelSpec, parts: Collection[str], begun: Begun | None = None
) -> Trainable:
    """What of a model learns.

    Args:
      freeze, whole: config.optimizer.freeze and config.adapter.modules_to_save.
      model: with its adapters.
      parts: that patterns may name; more than the model's where the data is still to say which it has.
      begun: the adapters that the run goes on from; what was trained whole beside them stays so.

    Raises:
      UserError: where nothing does.
    """
    frozen = parse_patterns(freeze, "config.optimizer.freeze", list(parts))
    saved = parse_patterns(whole, "config.adapter.modules_to_save", list(parts))
    if saved and not model.adapter:
        raise UserError("config.adapter.modules_to_save goes with adapters: set config.adapter.rank, or leave it")
    check_patterns(tuple(p for p in saved if p not in parts), "config.adapter.modules_to_save", model)
    saved = tuple(dict.fromkeys((*saved, *(begun.whole if begun else ()))))
    trainable = Trainable(frozen, model.adapter is not None, saved)
    for pattern in begun.whole if begun else ():
        meant = [path for path in flat_axes(model.base.plain) if matches(path, pattern)]
        if still := [path for path in meant if not trainable.learns(path)]:
            raise UserError(
                f"config.optimizer.freeze: {'.'.join(still[0])} is no longer that of the model beneath in "
                f"{begun.source if begun else ''}, so that it must be trained on: leave it out"
            )
    if not any(map(trainable.learns, flat_axes(model))):
        raise UserError("config.optimizer.freeze freezes every part: nothing is left to train")
    return trainable
