"""Which parameters learn, by their parts and by patterns of their paths."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from jaxmm.errors import UserError, nearest
from jaxmm.models.multimodal import ModelSpec, ParamPath, Params, flat_axes, kernel_dims

SHOWN = 8  # paths that an error lists


def matches(path: ParamPath, pattern: str) -> bool:
    """Whether a parameter is meant by a pattern: ``decoder``, ``decoder.blocks.mlp``, ``*.bias``.

    ``*`` stands for anything, dots too; a pattern of the beginning of a path, up to a dot, means all that is below it.
    """
    name = ".".join(path)
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


class Trainable(NamedTuple):
    """The parameters that learn: all but those that a pattern of ``frozen`` means."""

    frozen: tuple[str, ...] = ()

    def learns(self, path: ParamPath) -> bool:
        return not any(matches(path, pattern) for pattern in self.frozen)

    def split(self, params: Mapping[str, Any]) -> tuple[Params, Params]:
        """Those that learn, and the others, for which no gradient is taken and no optimizer state held."""
        return self._branch(params, (), True), self._branch(params, (), False)

    def _branch(self, tree: Mapping[str, Any], above: ParamPath, wanted: bool) -> Params:
        found: Params = {}
        for key, value in tree.items():
            path = (*above, key)
            if isinstance(value, Mapping):
                if below := self._branch(value, path, wanted):
                    found[key] = below
            elif self.learns(path) == wanted:
                found[key] = value
        return found

    def shares(self, model: ModelSpec) -> dict[str, float | None]:
        """By part, what share of the weights of its linear maps learns; None where nothing of the part does."""
        return dict(_shares(self, model))


EVERYTHING = Trainable()


@functools.cache
def _shares(trainable: Trainable, model: ModelSpec) -> tuple[tuple[str, float | None], ...]:
    parameters, maps = flat_axes(model), kernel_dims(model)
    shares: list[tuple[str, float | None]] = []
    for part in model.parts:
        if not any(trainable.learns(path) for path in parameters if path[0] == part):
            shares.append((part, None))
            continue
        sizes = {path: math.prod(parameters[path][0]) for path in maps if path[0] == part}
        learnt = sum(size for path, size in sizes.items() if trainable.learns(path))
        shares.append((part, learnt / sum(sizes.values())))
    return tuple(shares)


def joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> Params:
    """The tree that ``Trainable.split`` has split."""
    whole: Params = dict(one)
    for key, value in other.items():
        mine = whole.get(key)
        whole[key] = joined(mine, value) if isinstance(mine, Mapping) and isinstance(value, Mapping) else value
    return whole


def check_patterns(patterns: Iterator[str] | tuple[str, ...], key: str, model: ModelSpec) -> None:
    """Raises UserError for a pattern that means no parameter of the model; ``key``: of the config, that has it."""
    paths = list(flat_axes(model))
    for pattern in patterns:
        if any(matches(path, pattern) for path in paths):
            continue
        names = [".".join(path) for path in paths]
        if any(part.isdecimal() for part in pattern.split(".")):
            told = "layers have no numbers here, as those of a part lie in one array: leave the number out"
        elif "." not in pattern and "*" not in pattern:
            raise UserError(
                f"{key}: no part '{pattern}': the parts are {', '.join(model.parts)}{nearest(pattern, model.parts)}"
            )
        else:
            told = f"there are {', '.join(names[:SHOWN])} and {len(names) - SHOWN} more{nearest(pattern, names)}"
        raise UserError(f"{key}: '{pattern}' is no parameter: {told}")
