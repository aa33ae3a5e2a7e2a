"""Which parameters learn, by their parts and by patterns of their paths."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from jaxmm.errors import UserError, nearest
from jaxmm.models.adapters import FIRST, is_factor
from jaxmm.models.multimodal import ModelSpec, flat_axes, kernel_dims
from jaxmm.models.tree import ParamPath, Params, matches, only

SHOWN = 8  # paths that an error lists


class Trainable(NamedTuple):
    """The parameters that learn.

    Attributes:
      frozen: patterns of those that do not.
      adapters: whether only adapters learn, and what a pattern of ``whole`` means.
    """

    frozen: tuple[str, ...] = ()
    adapters: bool = False
    whole: tuple[str, ...] = ()

    def learns(self, path: ParamPath) -> bool:
        if path[-1] in FIRST or any(matches(path, pattern) for pattern in self.frozen):
            return False
        return not self.adapters or is_factor(path) or any(matches(path, pattern) for pattern in self.whole)

    def split(self, params: Mapping[str, Any]) -> tuple[Params, Params]:
        """Those that learn, and the others, for which no gradient is taken and no optimizer state held."""
        return only(params, self.learns), only(params, lambda path: not self.learns(path))

    def shares(self, model: ModelSpec) -> dict[str, float | None]:
        """By part, what share of the weights of its linear maps that a position goes through learns; None where nothing
        of the part does."""
        return dict(_shares(self, model))


EVERYTHING = Trainable()


@functools.cache
def _shares(trainable: Trainable, model: ModelSpec) -> tuple[tuple[str, float | None], ...]:
    parameters, maps = flat_axes(model.plain), kernel_dims(model)
    shares: list[tuple[str, float | None]] = []
    for part in model.parts:
        if not any(trainable.learns(path) for path in parameters if path[0] == part):
            shares.append((part, None))
            continue
        sizes: dict[ParamPath, float] = {path: math.prod(parameters[path][0]) for path in maps if path[0] == part}
        if (experts := model.decoder.experts) and part == "decoder":  # a position goes through some alone
            of_experts = {path for path in sizes if "expert" in parameters[path][1]}
            sizes |= {path: sizes[path] * experts.chosen / experts.count for path in of_experts}
        learnt = sum(size for path, size in sizes.items() if trainable.learns(path))
        shares.append((part, learnt / sum(sizes.values())))
    return tuple(shares)


def check_patterns(patterns: Iterable[str], key: str, model: ModelSpec) -> None:
    """Raises UserError for a pattern that means no parameter of the model; ``key``: of the config, that has it."""
    paths = list(flat_axes(model.plain))
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
