"""PaddleOCR-VL."""

from __future__ import annotations

from typing import Any

import numpy as np

from parities.tiny.parts import PATCH, QWEN_TOKENS, Case, rope, text, vit


def paddleocr_vl(rng: np.random.Generator) -> Any:
    from transformers import PaddleOCRVLConfig

    decoder = text(
        "paddleocr_vl_text", use_bias=True, tie_word_embeddings=False, **rope("default", mrope_section=[4, 2, 2])
    )
    vision = vit("paddleocr_vl_vision", image_size=int(rng.integers(3, 7)) * PATCH)
    return PaddleOCRVLConfig(vision_config=vision, text_config=decoder, tie_word_embeddings=False, **QWEN_TOKENS)


CASES = (
    Case("paddleocr-vl", "paddleocr_vl", paddleocr_vl),
)  # fmt: skip
