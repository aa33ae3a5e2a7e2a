"""Qwen2-VL to Qwen3.5."""

from __future__ import annotations

from typing import Any

import numpy as np

from parities.tiny.parts import EXPERTS, PATCH, QWEN_TOKENS, Case, rope, text


def qwen2_vl(rng: np.random.Generator) -> Any:
    from transformers import Qwen2VLConfig

    vision = {
        "depth": 3, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2, "num_heads": 2, "patch_size": PATCH,
    }  # fmt: skip
    decoder = text("qwen2_vl_text", head_dim=8, **rope("default", mrope_section=[1, 1, 2]))
    return Qwen2VLConfig(vision_config=vision, text_config=decoder, tie_word_embeddings=False, **QWEN_TOKENS)


def qwen2_5_vl(rng: np.random.Generator) -> Any:
    from transformers import Qwen2_5_VLConfig

    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 44, "num_heads": 2, "patch_size": PATCH,
        "out_hidden_size": 48, "window_size": 4 * PATCH, "fullatt_block_indexes": [1],
    }  # fmt: skip
    decoder = text("qwen2_5_vl_text", head_dim=8, **rope("default", mrope_section=[2, 1, 1]))
    return Qwen2_5_VLConfig(vision_config=vision, text_config=decoder, tie_word_embeddings=False, **QWEN_TOKENS)


def qwen3_vl(rng: np.random.Generator) -> Any:
    from transformers import Qwen3VLConfig

    vision = {
        "depth": 4, "hidden_size": 32, "intermediate_size": 44, "num_heads": 2, "patch_size": PATCH,
        "out_hidden_size": 48, "num_position_embeddings": int(rng.integers(3, 7)) ** 2,
        "deepstack_visual_indexes": [0, 2],
    }  # fmt: skip
    decoder = text("qwen3_vl_text", **rope("default", mrope_section=[4, 2, 2], mrope_interleaved=True))
    return Qwen3VLConfig(vision_config=vision, text_config=decoder, tie_word_embeddings=True, **QWEN_TOKENS)


def qwen3_vl_moe(rng: np.random.Generator) -> Any:
    from transformers import Qwen3VLMoeConfig

    config = qwen3_vl(rng)
    decoder = text("qwen3_vl_moe_text", **EXPERTS, **rope("default", mrope_section=[4, 2, 2], mrope_interleaved=True))
    vision = {key: value for key, value in config.vision_config.to_dict().items() if key != "model_type"}
    return Qwen3VLMoeConfig(vision_config=vision, text_config=decoder, tie_word_embeddings=False, **QWEN_TOKENS)


def qwen3_5(rng: np.random.Generator) -> Any:
    from transformers import Qwen3_5Config

    return _qwen3_5(Qwen3_5Config, "qwen3_5_text", rng, num_hidden_layers=5)


def qwen3_5_moe(rng: np.random.Generator) -> Any:
    from transformers import Qwen3_5MoeConfig

    sizes = {**EXPERTS, "shared_expert_intermediate_size": 20, "num_hidden_layers": 3}
    return _qwen3_5(Qwen3_5MoeConfig, "qwen3_5_moe_text", rng, **sizes)


def _qwen3_5(kind: Any, decoder: str, rng: np.random.Generator, **changes: Any) -> Any:
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 44, "num_heads": 2, "patch_size": PATCH,
        "out_hidden_size": 48, "num_position_embeddings": int(rng.integers(3, 7)) ** 2,
    }  # fmt: skip
    parameters = {"mrope_section": [2, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.5}
    config = text(
        decoder, full_attention_interval=2, linear_key_head_dim=8,
        linear_value_head_dim=12, linear_num_key_heads=2, linear_num_value_heads=4, **rope("default", **parameters),
        **changes,
    )  # fmt: skip
    return kind(vision_config=vision, text_config=config, tie_word_embeddings=False, **QWEN_TOKENS)


CASES = (
    Case("qwen2-vl", "qwen2_vl", qwen2_vl),
    Case("qwen2.5-vl", "qwen2_5_vl", qwen2_5_vl),
    Case("qwen3-vl", "qwen3_vl", qwen3_vl),
    Case("qwen3.5", "qwen3_5", qwen3_5),
    Case("qwen3.5, experts", "qwen3_5_moe", qwen3_5_moe),
    Case("qwen3-vl, experts", "qwen3_vl_moe", qwen3_vl_moe),
)  # fmt: skip
