"""Gemma 3 and 4, PaliGemma and PaliGemma 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parities.tiny.parts import END_TOKEN, IMAGE_TOKEN, PATCH, START_TOKEN, TEXT_TOKENS, VIDEO_TOKEN, Case, text, vit


def paligemma(decoder: dict[str, Any]) -> Callable[[np.random.Generator], Any]:
    def config(rng: np.random.Generator) -> Any:
        from transformers import PaliGemmaConfig

        return PaliGemmaConfig(
            vision_config=vit("siglip_vision_model", image_size=4 * PATCH, vision_use_head=False), text_config=decoder,
            projection_dim=48, image_token_index=IMAGE_TOKEN,
        )  # fmt: skip

    return config


def gemma3(rng: np.random.Generator) -> Any:
    from transformers import Gemma3Config

    decoder = text(
        "gemma3_text", sliding_window=int(rng.integers(5, 9)), query_pre_attn_scalar=20,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    )  # fmt: skip
    return Gemma3Config(
        vision_config=vit("siglip_vision_model", image_size=4 * PATCH, vision_use_head=False), text_config=decoder,
        mm_tokens_per_image=4, image_token_index=IMAGE_TOKEN, boi_token_index=START_TOKEN, eoi_token_index=END_TOKEN,
    )  # fmt: skip


def gemma4(**changes: Any) -> Callable[[np.random.Generator], Any]:
    """No id of a medium is in the vocabulary: one that is generated would be read as padding."""
    sizes = {
        "num_hidden_layers": 4, "vocab_size": TEXT_TOKENS[1], "sliding_window": 6, "hidden_size_per_layer_input": 0,
        "global_head_dim": 24, "num_global_key_value_heads": 3, "attention_k_eq_v": True,
        "final_logit_softcapping": 20.0, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 50000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }  # fmt: skip

    def config(rng: np.random.Generator) -> Any:
        from transformers import Gemma4Config

        vision = {
            "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 4, "head_dim": 8, "patch_size": PATCH, "pooling_kernel_size": 3,
            "position_embedding_size": 240, "standardize": "attention_k_eq_v" not in changes,
            "use_clipped_linears": "num_kv_shared_layers" in changes,
        }  # fmt: skip
        audio = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 12}
        return Gemma4Config(
            vision_config=vision, text_config=text("gemma4_text", **(sizes | changes)), image_token_id=IMAGE_TOKEN,
            audio_config=audio if "num_kv_shared_layers" in changes else None,
            video_token_id=VIDEO_TOKEN, boi_token_id=START_TOKEN, eoi_token_id=END_TOKEN, audio_token_id=198,
        )  # fmt: skip

    return config


CASES = (
    Case("paligemma", "paligemma", paligemma(text("gemma", num_hidden_layers=2)), fixed=True),
    Case("paligemma2", "paligemma", paligemma(text(
         "gemma2", sliding_window=6, query_pre_attn_scalar=20, attn_logit_softcapping=1.5,
         final_logit_softcapping=4.0)), fixed=True),
    Case("gemma3", "gemma3", gemma3, fixed=True),
    Case("gemma4", "gemma4", gemma4(use_bidirectional_attention="vision")),
    Case("gemma4, causal, own values", "gemma4", gemma4(attention_k_eq_v=False)),
    Case("gemma4, experts", "gemma4", gemma4(
         use_bidirectional_attention="vision", enable_moe_block=True, num_experts=6, top_k_experts=2,
         moe_intermediate_size=28, num_hidden_layers=3, layer_types=["sliding_attention"] * 2 + ["full_attention"])),
    Case("gemma4, e2b", "gemma4", gemma4(
         attention_k_eq_v=False, num_hidden_layers=6, layer_types=["sliding_attention", "sliding_attention",
         "full_attention"] * 2, hidden_size_per_layer_input=10, vocab_size_per_layer_input=TEXT_TOKENS[1],
         num_kv_shared_layers=3, use_double_wide_mlp=True)),
)  # fmt: skip
