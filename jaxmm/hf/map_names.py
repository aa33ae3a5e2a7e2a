"""What a family calls the linear maps and tables of our model: the modules of its class, as adapters name them."""

from __future__ import annotations

from typing import NamedTuple

from jaxmm.hf import names
from jaxmm.hf.families.family import Layout
from jaxmm.models.adapters import CONVOLUTIONS
from jaxmm.models.multimodal import flat_axes
from jaxmm.models.tables import TABLES
from jaxmm.models.tree import ParamPath, matches

WEIGHT = ".weight"


class NamedMap(NamedTuple):
    """A linear map of a family's class, or its embedding.

    Attributes:
      name: of its module, with ``{i}`` for the number of a layer: ``model.language_model.layers.{i}.mlp.up_proj``.
      common: the same in the common spelling of ``names``.
      released: the same as the family's releases name its tensor.
      paths: of our maps that it is: several where a family has queries, keys and values in one. A table that is the
        embedding and the projection is both of their modules.
      layers: the numbers of the layers that have it, in the order of our stack; () is all of them.
    """

    name: str
    common: str
    released: str
    paths: tuple[ParamPath, ...]
    layers: tuple[int, ...] = ()

    def number(self, place: int) -> int:
        """The number of the layer at a place in our stack."""
        return self.layers[place] if self.layers else place

    def place(self, number: int) -> int | None:
        """The place of a layer in our stack; None if it has no such map."""
        if not self.layers:
            return number
        return self.layers.index(number) if number in self.layers else None


def named_maps(layout: Layout) -> list[NamedMap]:
    """The linear maps and tables of a model, in the order of its tensors.

    But for convolutions, and for Linears whose parts are of different sizes, or lie head by head (Qwen3.5's): adapters
    of these have no name in a PEFT folder.
    """
    found = []
    is_tied, shapes = layout.spec.decoder.tie_embeddings, flat_axes(layout.spec.plain)
    for rule in layout.rules:
        paths = [tuple(path.split(".")) for path in rule.paths]
        is_map = rule.transform == "transpose" and rule.name.endswith(WEIGHT) and all(p[-1] == "kernel" for p in paths)
        is_map = is_map and len({shapes[path][0] for path in paths if path in shapes}) <= 1
        if rule.name in (names.EMBEDDING, names.HEAD):
            maps = [TABLES[0]] if is_tied else paths
        elif is_map and not any(matches(paths[0], pattern) for pattern in CONVOLUTIONS):
            maps = [path[:-1] for path in paths]
        else:
            continue
        spelt = (rule.name, *(names.foreign_name(rule.name, written) for written in (layout.modules, layout.prefixes)))
        common, name, released = (one.removesuffix(WEIGHT) for one in spelt)
        found.append(NamedMap(name, common, released, tuple(maps), rule.layers))
    return found


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
