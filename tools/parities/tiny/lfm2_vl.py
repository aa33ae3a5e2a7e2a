"""LFM2-VL, before whose decoders any tower can stand: so its cases are those of decoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parities.tiny.parts import EXPERTS, IMAGE_TOKEN, Case, rope, text, vit

LONGROPE = {"original_max_position_embeddings": 8, "short_factor": [1.0 + i / 8 for i in range(8)],
            "long_factor": [2.0 + i for i in range(8)]}  # fmt: skip


def lfm2(*kinds: str, **changes: Any) -> dict[str, Any]:
    """LFM2's decoder, with layers of these types."""
    return text(
        "lfm2", head_dim=8, num_hidden_layers=len(kinds), layer_types=list(kinds), block_multiple_of=8, **changes
    )


def lfm2_vl(decoder: dict[str, Any], **changes: Any) -> Callable[[np.random.Generator], Any]:
    def config(rng: np.random.Generator) -> Any:
        from transformers import Lfm2VlConfig

        vision = vit("siglip2_vision_model", num_patches=int(rng.integers(3, 7)) ** 2, vision_use_head=False)
        sizes = {"projector_hidden_size": 56, "image_token_id": IMAGE_TOKEN, "tie_word_embeddings": False}
        return Lfm2VlConfig(vision_config=vision, text_config=decoder, **(sizes | changes))

    return config


CASES = (
    Case("siglip2 + llama", "lfm2_vl", lfm2_vl(text("llama"))),
    Case("llama, biases, tied", "lfm2_vl", lfm2_vl(text("llama", attention_bias=True, mlp_bias=True),
         tie_word_embeddings=True, projector_use_layernorm=False, projector_bias=False)),
    Case("llama, linear rope", "lfm2_vl", lfm2_vl(text("llama", **rope("linear", factor=2.0)))),
    Case("llama, dynamic rope", "lfm2_vl",
         lfm2_vl(text("llama", **rope("dynamic", factor=2.0) | {"max_position_embeddings": 10}))),
    Case("llama, yarn rope", "lfm2_vl",
         lfm2_vl(text("llama", **rope("yarn", factor=4.0, original_max_position_embeddings=128)))),
    Case("llama, longrope", "lfm2_vl", lfm2_vl(text("llama", **rope("longrope", **LONGROPE)))),
    Case("llama, llama3 rope", "lfm2_vl", lfm2_vl(text("llama", **rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)))),
    Case("mistral, window", "lfm2_vl", lfm2_vl(text("mistral", sliding_window=6))),
    Case("qwen2", "lfm2_vl", lfm2_vl(text("qwen2", head_dim=8))),
    Case("qwen2, some windows", "lfm2_vl", lfm2_vl(text("qwen2", head_dim=8, sliding_window=5,
         use_sliding_window=True, max_window_layers=2))),
    Case("qwen3", "lfm2_vl", lfm2_vl(text("qwen3"), downsample_factor=3)),
    Case("ernie4.5", "lfm2_vl", lfm2_vl(text("ernie4_5", use_bias=True, num_hidden_layers=2))),
    Case("lfm2", "lfm2_vl", lfm2_vl(lfm2("conv", "conv", "full_attention", "conv", "full_attention"))),
    Case("lfm2, biases, tied", "lfm2_vl", lfm2_vl(lfm2(*["conv", "full_attention"] * 2, conv_bias=True, conv_L_cache=4,
         block_auto_adjust_ff_dim=False), tie_word_embeddings=True)),
    Case("qwen3, experts", "lfm2_vl", lfm2_vl(text("qwen3_moe", **EXPERTS, norm_topk_prob=True))),
    Case("qwen3, experts in some layers", "lfm2_vl", lfm2_vl(
         text("qwen3_moe", **EXPERTS, num_hidden_layers=5, decoder_sparse_step=2, mlp_only_layers=[3]))),
    Case("lfm2, experts", "lfm2_vl", lfm2_vl(text(
         "lfm2_moe", head_dim=8, num_hidden_layers=4, layer_types=["conv", "full_attention"] * 2, num_dense_layers=1,
         routed_scaling_factor=1.5, **EXPERTS))),
    Case("glm4, experts", "lfm2_vl", lfm2_vl(text(
         "glm4_moe", n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=28, n_group=3, topk_group=2,
         first_k_dense_replace=1, use_qk_norm=True, attention_bias=True, routed_scaling_factor=1.5, num_mtp_layers=0,
         **rope("default", partial_rotary_factor=0.5)))),
    Case("gemma", "lfm2_vl", lfm2_vl(text("gemma"), tie_word_embeddings=True)),
)  # fmt: skip
