"""Which line of a config file sets a key: found in its source, as a ConfigDict does not remember."""

from __future__ import annotations

import ast
from collections.abc import Iterator


def line_of(source: str, key: str) -> int:
    """The last line of a Python source that sets ``key`` ("optimizer.rate"), or may be it; 0 where none does."""
    try:
        named_lines = list(_named(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError):
        return 0
    whole = [line for name, line in named_lines if f".{name}".endswith(f".{key}")]
    last = [line for name, line in named_lines if name.split(".")[-1] == key.split(".")[-1]]
    return max(whole or last, default=0)


def _named(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Names that are set, as far as they are known, with their lines: of attributes, items, keywords and dicts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
            yield _dotted(node), node.lineno
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg, node.value.lineno
        elif isinstance(node, ast.Dict):
            for key in node.keys:
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield key.value, key.lineno


def _dotted(node: ast.expr) -> str:
    """``config.optimizer.rate`` and ``config["optimizer"].rate`` as "config.optimizer.rate"."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
        return f"{_dotted(node.value)}.{node.slice.value}"
    return node.id if isinstance(node, ast.Name) else "?"
