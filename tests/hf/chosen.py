"""Which of the tiny models CI compares with ``transformers``: what is left waits for ``pytest --parity --full``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from parities.tiny.parts import Case

# One of each mechanism of a tower, a connector or a decoder; the logits of most others are in tests/hf/goldens.
ONE_A_MECHANISM = (
    "siglip2 + llama", "lfm2, experts", "llava-onevision", "qwen2.5-vl", "qwen3-vl, experts", "qwen3.5, experts",
    "paligemma", "gemma3", "gemma4, e2b", "internvl", "smolvlm", "mistral3", "glm-4.5v", "glm-ocr", "paddleocr-vl",
)  # fmt: skip
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
