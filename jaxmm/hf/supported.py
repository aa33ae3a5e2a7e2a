"""Translates values of a ``config.json`` to ours; values that are not supported are refused in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from jaxmm.errors import UserError

# Of several names for one activation, the first is the one that is written.
ACTIVATIONS = {
    "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "quick_gelu": "quick_gelu",
    "relu": "relu", "silu": "silu", "swish": "silu", "gelu_fast": "gelu_tanh", "gelu_python_tanh": "gelu_tanh",
    "gelu_python": "gelu", "gelu_accurate": "gelu_tanh",
}  # fmt: skip

Entry = TypeVar("Entry")


def activation(name: str) -> str:
    """Our name of an activation."""
    if name not in ACTIVATIONS:
        raise UserError(f"activation '{name}' of the checkpoint is not supported: those are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def activation_written(name: str) -> str:
    """The name in ``transformers`` of one of our activations."""
    return {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}[name]


def require(config: Any, **wanted: Any) -> None:
    """Raises UserError if a key of the config has another value than the wanted one; a missing key is accepted."""
    for key, value in wanted.items():
        actual = getattr(config, key, value)
        if actual != value:
            raise UserError(f"config.json: {config.model_type} with {key}={actual} is not supported: only {value}")


def kind_of(config: Any) -> str:
    """The ``model_type`` by which ``transformers`` builds a part: that of its config's class.

    A whole model whose parts are always of one class lets a ``config.json`` name them otherwise.
    """
    return str(type(config).model_type)


def square_side(value: Any, what: str) -> int:
    """A side given as a number, or as two equal ones."""
    sides = list(value) if isinstance(value, (list, tuple)) else [value, value]
    if sides[0] != sides[1]:
        raise UserError(f"config.json: {what} of {sides[0]} x {sides[1]} is not supported: only squares are")
    return int(sides[0])


def square_root(value: int, what: str) -> int:
    """The side of a square of ``value`` elements. Raises UserError if it is no square number."""
    side = round(value**0.5)
    if side**2 != value:
        raise UserError(f"config.json: {what}={value} is not supported: it is no square")
    return side


def entry(table: Mapping[str, Entry], name: str, what: str) -> Entry:
    """Returns a table's entry; for a name that it lacks, raises UserError with those that it has."""
    if name not in table:
        raise UserError(f"{what} '{name}' is not supported: those are {', '.join(table)}")
    return table[name]
