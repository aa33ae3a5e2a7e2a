"""What a key of the config may be: its type, its bounds or choices, and how a value that it may not have is told."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxmm.errors import UserError, nearest

Value = bool | int | float | str | tuple[Any, ...]

KINDS = {bool: "true or false", int: "an integer", float: "a finite number", str: "a string"}


class Form(NamedTuple):
    """How a string is written, in words; ``parse(text, key)`` raises UserError by the key's name where it is not."""

    words: str
    parse: Callable[[str, str], Any]


class Key(NamedTuple):
    """A key of the config. The type of its default is its own.

    Attributes:
      text: what it is for; the comment behind it in ``configs/base.py``, where it has one.
      least, most: bounds of a number; ``above`` and ``below`` are bounds that it may not have itself.
      also: numbers besides, with a meaning of their own.
      choices: of a string.
      form: of a string; '' has any.
      elsewhere: (what other programs call a choice, or have beside them; what to do here).
    """

    default: Value
    text: str
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    also: tuple[float, ...] = ()
    choices: tuple[str, ...] = ()
    form: Form | None = None
    elsewhere: tuple[tuple[str, str], ...] = ()

    def range(self) -> str:
        """The values it may have, in words."""
        if self.choices:
            return "one of " + ", ".join(choice or "''" for choice in self.choices)
        if self.form:
            return self.form.words
        if not isinstance(self.default, int | float) or isinstance(self.default, bool):
            return KINDS.get(type(self.default), "words, comma between them")
        bounds = ((self.above, "above"), (self.most, "at most"), (self.below, "below"))
        told = [f"{words} {_plain(bound)}" for bound, words in bounds if math.isfinite(bound)]
        if math.isfinite(self.least):
            told = [f"{_plain(self.least)} to {_plain(self.most)}" if math.isfinite(self.most)
                    else ", ".join([f"{_plain(self.least)} or above", *told])]  # fmt: skip
        kind = "an integer" if isinstance(self.default, int) else "a number"
        return f"{kind}, {', '.join(told)}" + "".join(f", or {_plain(value)}" for value in self.also)

    def wrong(self, name: str, value: Any) -> str:
        """What is wrong with a value, in words; '' where nothing is. ``name``: with its groups."""
        told = f"config.{name} is {value!r}: it must be {self.range()}"
        if isinstance(self.default, str):
            if any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in value):
                return f"config.{name} is {value!a}: it has control characters, or bytes that are no UTF-8"
            if self.choices and value not in self.choices:
                advice = dict(self.elsewhere).get(value)
                return f"{told}: {advice}" if advice else told + nearest(value, self.choices)
            try:
                if self.form and value:
                    self.form.parse(value, f"config.{name}")
            except UserError as error:
                return str(error)
            return ""
        if isinstance(value, bool | tuple) or value in self.also:
            return ""
        # Not so of NaN, whatever the bounds.
        return "" if self.least <= value <= self.most and self.above < value < self.below else told

    def settled(self, value: Any) -> Any:
        """A value of Python or JSON as the key's type.

        Raises:
          ValueError: if it is of another.
        """
        kind = type(self.default)
        if isinstance(value, list):
            value = tuple(value)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if kind is float and is_number and abs(value) <= sys.float_info.max:  # not so of NaN
            return float(value)
        if kind is int and isinstance(value, float) and value.is_integer():
            return int(value)
        if kind is not float and isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
            return value
        raise ValueError(f"{value!r}, not {KINDS.get(kind, 'a tuple')}")


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() and abs(number) < 1e12 else f"{number:g}"
