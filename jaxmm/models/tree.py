"""Parameters as a nested dict of arrays, and by their paths in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

Params = dict[str, Any]  # nested dict of arrays, its first keys the model's parts
ParamPath = tuple[str, ...]  # of a parameter in it


def nested(by_path: Mapping[ParamPath, Any]) -> Params:
    """The tree of parameters, or of what is known of them, by their paths."""
    tree: Params = {}
    for path, value in by_path.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree


def flat(tree: Mapping[str, Any], above: ParamPath = ()) -> dict[ParamPath, Any]:
    """Parameters by path: the inverse of ``nested``."""
    by_path: dict[ParamPath, Any] = {}
    for key, value in tree.items():
        by_path |= flat(value, (*above, key)) if isinstance(value, Mapping) else {(*above, key): value}
    return by_path


def only(tree: Mapping[str, Any], is_wanted: Callable[[ParamPath], bool]) -> Params:
    """The tree of those parameters whose paths are wanted."""
    return nested({path: value for path, value in flat(tree).items() if is_wanted(path)})


def joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> Params:
    """One tree of two that have no parameter in common."""
    whole: Params = dict(one)
    for key, value in other.items():
        mine = whole.get(key)
        whole[key] = joined(mine, value) if isinstance(mine, Mapping) and isinstance(value, Mapping) else value
    return whole


def matches(path: ParamPath, pattern: str) -> bool:
    """Whether a parameter is meant by a pattern: ``decoder``, ``decoder.blocks.mlp``, ``*.bias``.

    ``*`` stands for anything, dots too; a pattern of the beginning of a path, up to a dot, means all that is below it.
    """
    name = ".".join(path)
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
