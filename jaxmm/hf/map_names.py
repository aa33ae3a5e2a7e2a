"""What a family calls the linear maps of our model: the modules of its class, as adapters name them."""

from __future__ import annotations

from typing import NamedTuple

from jaxmm.hf import names
from jaxmm.hf.families.family import Layout
from jaxmm.models.tree import ParamPath

WEIGHT = ".weight"


class NamedMap(NamedTuple):
    """A linear map of a family's class.

    Attributes:
      name: of its module, with ``{i}`` for the number of a layer: ``model.language_model.layers.{i}.mlp.up_proj``.
      paths: of our maps that it is: several where a family has queries, keys and values in one.
    """

    name: str
    paths: tuple[ParamPath, ...]


def named_maps(layout: Layout) -> list[NamedMap]:
    """The linear maps of a model, but for convolutions, in the order of its tensors."""
    found = []
    for rule in layout.rules:
        paths = [tuple(path.split(".")) for path in rule.paths]
        if rule.transform == "transpose" and rule.name.endswith(WEIGHT) and all(p[-1] == "kernel" for p in paths):
            name = names.foreign_name(rule.name, layout.prefixes).removesuffix(WEIGHT)
            found.append(NamedMap(name, tuple(path[:-1] for path in paths)))
    return found


def called(maps: list[NamedMap], name: str) -> list[ParamPath]:
    """Paths of the maps whose module has this name, or one that ends in it after a dot, as PEFT takes its targets."""
    meant = [one for one in maps if one.name == name or one.name.endswith(f".{name}")]
    return [path for one in meant for path in one.paths]
