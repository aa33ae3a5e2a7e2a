"""What a family calls the linear maps and tables of our model: the modules of its class, as adapters name them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxmm.hf import names, transforms
from jaxmm.hf.experts import EXPERTS
from jaxmm.hf.families.family import Layout
from jaxmm.models.adapters import CONVOLUTIONS
from jaxmm.models.multimodal import flat_axes, kernel_dims
from jaxmm.models.tables import TABLES
from jaxmm.models.tree import ParamPath, matches

WEIGHT = ".weight"
MAPS = ("transpose", "transpose by heads")  # how the kernels of Linears are transformed
# The parameters of a module of experts in transformers 5, in the order of its classes, and our maps that each is.
OF_EXPERTS = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}


class NamedMap(NamedTuple):
    """A linear map of a family's class, its embedding, or one map of all experts of a layer.

    Attributes:
      name: of its module, with ``{i}`` for the number of a layer: ``model.language_model.layers.{i}.mlp.up_proj``. Of
        experts that of the parameter, (experts, outputs, inputs), which their module has.
      common: the same in the common spelling of ``names``.
      released: the same as the family's releases name its tensor.
      paths: of our maps that it is: several where a family has queries, keys and values in one. A table that is the
        embedding and the projection is both of their modules.
      outputs: how many of each of these.
      layers: the numbers of the layers that have it, in the order of our stack; () is all of them.
      heads: where several are one head by head, of how many heads; 0 where one comes after the other.
      experts: how many there are, if it is of experts; else 0.
    """

    name: str
    common: str
    released: str
    paths: tuple[ParamPath, ...]
    outputs: tuple[int, ...]
    layers: tuple[int, ...] = ()
    heads: int = 0
    experts: int = 0

    @property
    def module(self) -> str:
        """Its module in the common spelling: of experts the one that has the parameter."""
        return self.common.rpartition(".")[0] if self.experts else self.common

    def joined(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The rows of the outputs of all parts, in the order of the Linear."""
        whole = np.concatenate(parts)
        return transforms.turned(whole, len(parts), self.heads) if self.heads else whole

    def split(self, whole: np.ndarray) -> list[np.ndarray]:
        """The inverse."""
        whole = transforms.turned(whole, self.heads, len(self.paths)) if self.heads else whole
        return np.split(whole, np.cumsum(self.outputs)[:-1])

    def number(self, place: int) -> int:
        """The number of the layer at a place in our stack."""
        return self.layers[place] if self.layers else place

    def place(self, number: int) -> int | None:
        """The place of a layer in our stack; None if it has no such map."""
        if not self.layers:
            return number
        return self.layers.index(number) if number in self.layers else None


def named_maps(layout: Layout) -> list[NamedMap]:
    """The linear maps and tables of a model, in the order of its tensors, but for convolutions; then experts' maps."""
    named = []
    is_tied, shapes = layout.spec.decoder.tie_embeddings, flat_axes(layout.spec.plain)
    sides = {path: outputs for path, (_, outputs) in kernel_dims(layout.spec).items()} | dict.fromkeys(TABLES, (1,))
    for rule in layout.rules:
        paths = [tuple(path.split(".")) for path in rule.paths]
        is_map = rule.transform in MAPS and rule.name.endswith(WEIGHT) and all(p[-1] == "kernel" for p in paths)
        is_table = rule.name in (names.EMBEDDING, names.HEAD)
        if not is_table and (not is_map or any(matches(paths[0], pattern) for pattern in CONVOLUTIONS)):
            continue
        kernels = [TABLES[0]] if is_table and is_tied else paths
        if not all(path in shapes for path in kernels):  # no layer has such a map
            continue
        spelt = (rule.name, *(names.foreign_name(rule.name, written) for written in (layout.modules, layout.prefixes)))
        common, name, released = (one.removesuffix(WEIGHT) for one in spelt)
        maps = tuple(path if is_table else path[:-1] for path in kernels)
        outputs = tuple(math.prod(shapes[path][0][dim] for dim in sides[path]) for path in kernels)
        heads = shapes[kernels[0]][0][-2] if transforms.TRANSFORMS[rule.transform].by_heads else 0
        named.append(NamedMap(name, common, released, maps, outputs, rule.layers, heads))
    return [*named, *_of_experts(layout)]


def _of_experts(layout: Layout) -> Iterator[NamedMap]:
    """The maps of experts, however many tensors they are in releases."""
    shapes = flat_axes(layout.spec.plain)
    for rule in layout.rules:
        gate = tuple(rule.paths[0].split("."))
        if rule.paths[0] != f"{EXPERTS}.gate.kernel" or gate not in shapes:
            continue
        before, experts, _ = rule.name.partition("experts")
        for parameter, parts in OF_EXPERTS.items():
            common = f"{before}{experts}.{parameter}"
            name, released = (names.foreign_name(common, written) for written in (layout.modules, layout.prefixes))
            paths = tuple((*gate[:-2], part) for part in parts)
            outputs = tuple(shapes[(*path, "kernel")][0][-1] for path in paths)
            yield NamedMap(name, common, released, paths, outputs, rule.layers, experts=shapes[gate][0][1])


def called(maps: list[NamedMap], name: str) -> list[ParamPath]:
    """Paths of the maps whose module has this name, or one that ends in it after a dot, as PEFT takes its targets.

    The name may be that of its tensor in a release, too, which is another one for some families.
    """
    common = names.common_name(name)
    meant = [
        one
        for one in maps
        if one.common == common or any(n == name or n.endswith(f".{name}") for n in (one.name, one.released))
    ]
    return [path for one in meant for path in one.paths]
