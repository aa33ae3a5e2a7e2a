"""Checks the numbers of a spec, whether a config or a folder gives them."""

from __future__ import annotations

import math
from typing import Any


def check_sizes(spec: Any, part: str, *names: str, least: int = 1) -> None:
    """Raises ValueError for a field that is no integer of at least ``least``; ``part``: of the model."""
    for name in names:
        size = getattr(spec, name)
        if not isinstance(size, int) or isinstance(size, bool) or size < least:
            raise ValueError(f"{part} {name} is {size!r}: it must be an integer, {least} or above")


def check_numbers(spec: Any, part: str, *names: str, may_be_0: bool = False) -> None:
    """Raises ValueError for a field that is no finite number above 0, or 0 where that ``may_be``."""
    for name in names:
        number = getattr(spec, name)
        is_number = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        if not is_number or number < 0 or (number == 0 and not may_be_0):
            raise ValueError(f"{part} {name} is {number!r}: it must be a finite number, {'0 or ' * may_be_0}above 0")
