"""Idefics 3 and SmolVLM 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parities.tiny.parts import IMAGE_TOKEN, PATCH, Case, text, vit


def squares(family: str) -> Callable[[np.random.Generator], Any]:
    """Idefics 3, or SmolVLM 2, which is the same."""

    def config(rng: np.random.Generator) -> Any:
        import transformers

        kind = {"idefics3": transformers.Idefics3Config, "smolvlm": transformers.SmolVLMConfig}[family]
        return kind(
            vision_config=vit(f"{family}_vision", image_size=4 * PATCH), text_config=text("llama"),
            image_token_id=IMAGE_TOKEN, tie_word_embeddings=family == "smolvlm",
        )  # fmt: skip

    return config


CASES = (
    Case("idefics3", "idefics3", squares("idefics3"), fixed=True),
    Case("smolvlm", "smolvlm", squares("smolvlm"), fixed=True),
)  # fmt: skip
