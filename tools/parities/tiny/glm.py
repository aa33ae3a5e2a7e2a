"""GLM-4.1V to 4.6V, and GLM-OCR."""

from __future__ import annotations

from typing import Any

import numpy as np

from parities.tiny.parts import END_TOKEN, PATCH, QWEN_TOKENS, START_TOKEN, Case, rope, text


def glm4v(rng: np.random.Generator) -> Any:
    from transformers import Glm4vConfig

    return Glm4vConfig(**_glm(int(rng.integers(3, 7))))


def glm46v(rng: np.random.Generator) -> Any:
    from transformers import Glm46VConfig

    return Glm46VConfig(**_glm(4))


def glm4v_moe(rng: np.random.Generator) -> Any:
    from transformers import Glm4vMoeConfig

    decoder = text(
        "glm4v_moe_text", num_hidden_layers=2, n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=28,
        n_group=3, topk_group=2, first_k_dense_replace=1, routed_scaling_factor=1.5,
        **rope("default", mrope_section=[1, 1, 2], partial_rotary_factor=0.5),
    )  # fmt: skip
    config = _glm(int(rng.integers(3, 7)))
    vision = {**config["vision_config"], "model_type": "glm4v_moe_vision", "depth": 2}
    return Glm4vMoeConfig(**{**config, "vision_config": vision, "text_config": decoder})


def glm_ocr(rng: np.random.Generator) -> Any:
    from transformers import GlmOcrConfig

    decoder = text("glm_ocr_text", num_hidden_layers=2, **rope("default", mrope_section=[4, 2, 2]))
    config = _glm(4)
    vision = {**config["vision_config"], "model_type": "glm_ocr_vision", "depth": 2}
    return GlmOcrConfig(**{**config, "vision_config": vision, "text_config": decoder})


def _glm(side: int) -> dict[str, Any]:
    vision = {
        "model_type": "glm4v_vision", "depth": 3, "hidden_size": 32, "intermediate_size": 44, "num_heads": 2,
        "patch_size": PATCH, "out_hidden_size": 48, "image_size": side * PATCH,
    }  # fmt: skip
    decoder = text(
        "glm4v_text", head_dim=8, **rope("default", mrope_section=[1, 1, 1], partial_rotary_factor=0.75)
    )  # fmt: skip
    tokens = {key: value for key, value in QWEN_TOKENS.items() if not key.startswith("vision")}
    around = {"image_start_token_id": START_TOKEN, "image_end_token_id": END_TOKEN}
    return {"vision_config": vision, "text_config": decoder, "tie_word_embeddings": False, **tokens, **around}


CASES = (
    Case("glm-4.1v", "glm4v", glm4v),
    Case("glm-4.6v-flash", "glm46v", glm46v),
    Case("glm-4.5v", "glm4v_moe", glm4v_moe),
    Case("glm-ocr", "glm_ocr", glm_ocr),
)  # fmt: skip
