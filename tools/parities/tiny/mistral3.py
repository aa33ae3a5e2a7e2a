"""Mistral Small 3.1, and Pixtral 12B."""

from __future__ import annotations

from typing import Any

import numpy as np

from parities.tiny.parts import BREAK_TOKEN, IMAGE_TOKEN, PATCH, Case, text, vit


def mistral3(rng: np.random.Generator) -> Any:
    from transformers import Mistral3Config

    vision = vit(
        "pixtral", image_size=8 * PATCH, head_dim=8, rope_parameters={"rope_type": "axial", "rope_theta": 100.0}
    )
    return Mistral3Config(
        vision_config=vision, text_config=text("mistral"), image_token_index=IMAGE_TOKEN, tie_word_embeddings=False,
    )  # fmt: skip


def pixtral(rng: np.random.Generator) -> Any:
    from transformers import LlavaConfig

    vision = vit(
        "pixtral", image_size=8 * PATCH, head_dim=8, rope_parameters={"rope_type": "axial", "rope_theta": 100.0}
    )
    return LlavaConfig(
        vision_config=vision, text_config=text("mistral"), image_token_index=IMAGE_TOKEN, vision_feature_layer=-1,
        vision_feature_select_strategy="full", tie_word_embeddings=False,
    )  # fmt: skip


CASES = (
    Case("mistral3", "mistral3", mistral3, row_break=BREAK_TOKEN),
    Case("pixtral", "llava_pixtral", pixtral, row_break=BREAK_TOKEN),
)  # fmt: skip
