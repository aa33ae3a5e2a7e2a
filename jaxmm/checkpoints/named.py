"""The leaves of a state by their dotted names, as checkpoints hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax


def named(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a tree by their dotted path. In the tree's own order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    flat = {".".join(filter(None, (prefix, name))): leaf for name, (_, leaf) in zip(names, leaves, strict=True)}
    if len(flat) != len(leaves):
        raise ValueError(f"two leaves of the state share a dotted path: {sorted(names)}")
    return flat


def is_within(name: str, key: str) -> bool:
    """Whether a dotted path is a key's, or inside it; all are inside ''."""
    return not key or name == key or name.startswith(f"{key}.")


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """In what the leaves of a checkpoint differ from those that a run wants, in words: names, dtypes and shapes."""

    def kind(leaf: Any) -> str:
        return f"{leaf.dtype}{list(leaf.shape)}"

    lines = [f"{name} is not in it" for name in wanted if name not in saved]
    lines += [f"{name} is only in it" for name in saved if name not in wanted]
    both = [name for name in wanted if name in saved and kind(saved[name]) != kind(wanted[name])]
    return lines + [f"{name} is {kind(saved[name])} there and {kind(wanted[name])} here" for name in both]
