"""Which of the tiny models CI compares with ``transformers``: what is left waits for ``pytest --parity --full``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from parities.models import CASES
from parities.tiny.parts import Case

# Each family's first case, and decoders and towers that none of these has.
BESIDE_FIRST = ("qwen2, some windows", "lfm2, experts", "gemma4, e2b")
ONE_A_FAMILY = (*{case.family: case.name for case in reversed(CASES)}.values(), *BESIDE_FIRST)
# One of each kind of what a cache holds or a position is.
CACHES = (
    "lfm2, experts", "qwen2.5-vl", "qwen3.5", "paligemma2", "gemma4, e2b", "mistral3",
)  # fmt: skip
# One of each kind of ranges that are drawn from.
DRAWS = ("lfm2_vl, drawn", "qwen3_vl_moe, drawn", "gemma4, drawn")


def chosen(cases: Sequence[Case], names: Iterable[str]) -> list[Any]:
    """The cases as pytest's parameters, those of other names marked full.

    Raises:
      ValueError: if a name is none of the cases'.
    """
    if unknown := set(names) - {case.name for case in cases}:
        raise ValueError(f"no cases: {', '.join(sorted(unknown))}")
    return [pytest.param(case, id=case.name, marks=[] if case.name in names else pytest.mark.full) for case in cases]
