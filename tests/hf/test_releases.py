"""Configs in the shape of the releases, old spellings and missing fields included: their sizes come out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from jaxmm.errors import UserError
from jaxmm.hf import folder as hf
from jaxmm.hf.decoders import decoder_of, plain_decoder_of
from jaxmm.hf.families.registry import layout_of
from jaxmm.hf.towers import tower_of
from jaxmm.models.multimodal import ModelSpec, flat_axes
from jaxmm.models.rope import axis_of_frequency
from jaxmm.models.routing import ExpertSpec

pytestmark = pytest.mark.usefixtures("whole_transformers")


LLAVA = {  # llava-hf/llava-1.5-7b-hf
    "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 32000,
    "model_type": "llava", "pad_token_id": 32001, "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05, "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.36.0.dev0",
    "vision_config": {
        "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "vocab_size": 32064,
}  # fmt: skip
LLAVA_NEXT = {  # llava-hf/llava-v1.6-mistral-7b-hf
    "architectures": ["LlavaNextForConditionalGeneration"], "ignore_index": -100,
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]], "image_token_index": 32000,
    "model_type": "llava_next", "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2", "architectures": ["MistralForCausalLM"],
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
        "torch_dtype": "bfloat16", "vocab_size": 32064,
    },
    "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.39.0.dev0",
    "use_image_newline_parameter": True, "vision_config": LLAVA["vision_config"], "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}  # fmt: skip
LLAVA_ONEVISION = {  # llava-hf/llava-onevision-qwen2-0.5b-ov-hf
    "architectures": ["LlavaOnevisionForConditionalGeneration"], "image_token_index": 151646,
    "model_type": "llava_onevision", "projector_hidden_act": "gelu",
    "text_config": {
        "architectures": ["Qwen2ForCausalLM"], "eos_token_id": 151645, "hidden_size": 896, "intermediate_size": 4864,
        "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
        "num_key_value_heads": 2, "rope_theta": 1000000.0, "tie_word_embeddings": True, "vocab_size": 151936,
    },
    "tie_word_embeddings": True, "video_token_index": 151647, "vision_aspect_ratio": "anyres_max_9",
    "vision_config": {
        "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304, "model_type": "siglip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 26, "patch_size": 14, "vision_use_head": False,
    },
    "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
}  # fmt: skip
QWEN2_VL = {  # Qwen/Qwen2-VL-7B-Instruct: the text's fields are at the top
    "architectures": ["Qwen2VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
    "vision_token_id": 151654, "image_token_id": 151655, "video_token_id": 151656, "hidden_act": "silu",
    "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944, "max_position_embeddings": 32768,
    "max_window_layers": 28, "model_type": "qwen2_vl", "num_attention_heads": 28, "num_hidden_layers": 28,
    "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.41.2", "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3, "hidden_size": 3584,
        "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vocab_size": 152064,
}  # fmt: skip
QWEN2_VL_2B = {  # Qwen/Qwen2-VL-2B-Instruct
    **QWEN2_VL, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2,
    "tie_word_embeddings": True, "vocab_size": 151936,
    "vision_config": {**QWEN2_VL["vision_config"], "hidden_size": 1536},  # type: ignore[dict-item]
}  # fmt: skip
QWEN2_5_VL = {  # Qwen/Qwen2.5-VL-7B-Instruct: the text's fields are at the top
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
    "vision_token_id": 151654, "image_token_id": 151655, "video_token_id": 151656, "hidden_act": "silu",
    "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944, "max_position_embeddings": 128000,
    "max_window_layers": 28, "model_type": "qwen2_5_vl", "num_attention_heads": 28, "num_hidden_layers": 28,
    "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.41.2", "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
        "in_chans": 3, "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
        "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vocab_size": 152064,
}  # fmt: skip
QWEN2_5_VL_3B = {  # Qwen/Qwen2.5-VL-3B-Instruct
    **QWEN2_5_VL, "hidden_size": 2048, "intermediate_size": 11008, "max_window_layers": 70, "num_attention_heads": 16,
    "num_hidden_layers": 36, "num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": 151936,
    "vision_config": {**QWEN2_5_VL["vision_config"], "out_hidden_size": 2048},  # type: ignore[dict-item]
}  # fmt: skip
QWEN3_VL = {  # Qwen/Qwen3-VL-4B-Instruct
    "architectures": ["Qwen3VLForConditionalGeneration"], "image_token_id": 151655, "model_type": "qwen3_vl",
    "text_config": {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643, "dtype": "bfloat16",
        "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560,
        "initializer_range": 0.02, "intermediate_size": 9728, "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text", "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000, "tie_word_embeddings": True, "use_cache": True, "vocab_size": 151936,
    },
    "tie_word_embeddings": True, "transformers_version": "4.57.0.dev0", "video_token_id": 151656,
    "vision_config": {
        "deepstack_visual_indexes": [5, 11, 17], "depth": 24, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 1024,
        "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 4096, "model_type": "qwen3_vl",
        "num_heads": 16, "num_position_embeddings": 2304, "out_hidden_size": 2560, "patch_size": 16,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    },
    "vision_end_token_id": 151653, "vision_start_token_id": 151652,
}  # fmt: skip
QWEN3_VL_MOE = {  # Qwen/Qwen3-VL-30B-A3B-Instruct
    **QWEN3_VL, "architectures": ["Qwen3VLMoeForConditionalGeneration"], "model_type": "qwen3_vl_moe",
    "text_config": {
        **QWEN3_VL["text_config"], "decoder_sparse_step": 1, "hidden_size": 2048,  # type: ignore[dict-item]
        "intermediate_size": 6144, "mlp_only_layers": [], "model_type": "qwen3_vl_moe_text",
        "moe_intermediate_size": 768, "norm_topk_prob": True, "num_experts": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 48, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        **QWEN3_VL["vision_config"], "deepstack_visual_indexes": [8, 16, 24], "depth": 27,  # type: ignore[dict-item]
        "hidden_size": 1152, "intermediate_size": 4304, "model_type": "qwen3_vl_moe", "out_hidden_size": 2048,
    },
}  # fmt: skip
QWEN3_MOE = {  # Qwen/Qwen3-30B-A3B
    "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "decoder_sparse_step": 1, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 40960,
    "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
    "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 48, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001, "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
GEMMA3 = {  # google/gemma-3-4b-it: most of the text's fields are not there
    "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
    "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
    "vision_config": {
        "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False,
    },
}  # fmt: skip
PALIGEMMA = {  # google/paligemma-3b-pt-224
    "architectures": ["PaliGemmaForConditionalGeneration"], "bos_token_id": 2, "eos_token_id": 1, "hidden_size": 2048,
    "ignore_index": -100, "image_token_index": 257152, "model_type": "paligemma", "pad_token_id": 0,
    "projection_dim": 2048,
    "text_config": {
        "hidden_size": 2048, "intermediate_size": 16384, "model_type": "gemma", "num_attention_heads": 8,
        "num_hidden_layers": 18, "num_image_tokens": 256, "num_key_value_heads": 1, "torch_dtype": "float32",
        "vocab_size": 257216,
    },
    "torch_dtype": "float32", "transformers_version": "4.41.0.dev0",
    "vision_config": {
        "hidden_size": 1152, "intermediate_size": 4304, "model_type": "siglip_vision_model", "num_attention_heads": 16,
        "num_hidden_layers": 27, "num_image_tokens": 256, "patch_size": 14, "projection_dim": 2048,
        "projector_hidden_act": "gelu_fast", "torch_dtype": "float32", "vision_use_head": False,
    },
    "vocab_size": 257216,
}  # fmt: skip
PALIGEMMA2 = {  # google/paligemma2-3b-pt-224
    **PALIGEMMA, "projection_dim": 2304,
    "text_config": {
        "architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid",
        "eos_token_id": [1, 107], "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216,
        "model_type": "gemma2", "num_hidden_layers": 26, "num_image_tokens": 256, "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256, "sliding_window": 4096, "torch_dtype": "bfloat16", "vocab_size": 257216,
    },
    "vision_config": {**PALIGEMMA["vision_config"], "projection_dim": 2304},  # type: ignore[dict-item]
}  # fmt: skip
SMOLVLM2_500M = {  # HuggingFaceTB/SmolVLM2-500M-Video-Instruct
    "architectures": ["SmolVLMForConditionalGeneration"], "image_token_id": 49190, "model_type": "smolvlm",
    "pad_token_id": 128002, "scale_factor": 4,
    "text_config": {
        "architectures": ["VLlama3ForCausalLM"], "head_dim": 64, "hidden_size": 960, "intermediate_size": 2560,
        "max_position_embeddings": 8192, "model_type": "llama", "num_attention_heads": 15, "num_hidden_layers": 32,
        "num_key_value_heads": 5, "pad_token_id": 2, "rms_norm_eps": 1e-05, "rope_theta": 100000, "vocab_size": 49280,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 768, "image_size": 512, "model_type": "smolvlm_vision", "num_attention_heads": 12,
        "patch_size": 16,
    },
}  # fmt: skip
SMOLVLM = {  # HuggingFaceTB/SmolVLM-Instruct
    "architectures": ["Idefics3ForConditionalGeneration"], "image_token_id": 49153, "model_type": "idefics3",
    "scale_factor": 3,
    "text_config": {
        "head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 16384,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 24, "rms_norm_eps": 1e-05,
        "rope_theta": 273768.0, "vocab_size": 49155,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304, "model_type": "idefics3",
        "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14,
    },
}  # fmt: skip
GEMMA4 = {  # google/gemma-4-31B-it
    "architectures": ["Gemma4ForConditionalGeneration"], "audio_config": None, "audio_token_id": 258881,
    "boa_token_id": 256000, "boi_token_id": 255999, "dtype": "bfloat16", "eoa_token_index": 258883,
    "eoi_token_id": 258882, "image_token_id": 258880, "initializer_range": 0.02, "model_type": "gemma4",
    "text_config": {
        "attention_bias": False, "attention_k_eq_v": True, "enable_moe_block": False, "final_logit_softcapping": 30.0,
        "global_head_dim": 512, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 5376,
        "hidden_size_per_layer_input": 0, "intermediate_size": 21504,
        "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 10, "max_position_embeddings": 262144,
        "model_type": "gemma4_text", "num_attention_heads": 32, "num_experts": None, "num_global_key_value_heads": 4,
        "num_hidden_layers": 60, "num_key_value_heads": 16, "num_kv_shared_layers": 0, "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "sliding_window": 1024, "tie_word_embeddings": True, "top_k_experts": None,
        "use_bidirectional_attention": "vision", "use_double_wide_mlp": False, "vocab_size": 262144,
        "vocab_size_per_layer_input": 262144,
    },
    "tie_word_embeddings": True, "transformers_version": "5.7.0", "video_token_id": 258884,
    "vision_config": {
        "attention_bias": False, "default_output_length": 280, "global_head_dim": 72, "head_dim": 72,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 4304,
        "model_type": "gemma4_vision", "num_attention_heads": 16, "num_hidden_layers": 27, "num_key_value_heads": 16,
        "patch_size": 16, "pooling_kernel_size": 3, "position_embedding_size": 10240, "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}, "standardize": True,
        "use_clipped_linears": False,
    },
    "vision_soft_tokens_per_image": 280,
}  # fmt: skip
INTERNVL3 = {  # OpenGVLab/InternVL3-1B-hf
    "architectures": ["InternVLForConditionalGeneration"], "downsample_ratio": 0.5, "image_seq_length": 256,
    "image_token_id": 151667, "model_type": "internvl", "projector_hidden_act": "gelu",
    "text_config": {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2",
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}, "rope_theta": 1000000.0,
        "sliding_window": None, "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False,
        "vocab_size": 151674,
    },
    "torch_dtype": "bfloat16", "transformers_version": "4.52.0.dev0",
    "vision_config": {
        "architectures": ["InternVisionModel"], "attention_bias": True, "attention_dropout": 0.0, "dropout": 0.0,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "hidden_size": 1024, "image_size": [448, 448],
        "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 4096, "layer_norm_eps": 1e-06,
        "layer_scale_init_value": 0.1, "model_type": "internvl_vision", "norm_type": "layer_norm",
        "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 24, "patch_size": [14, 14],
        "projection_dropout": 0.0, "torch_dtype": "bfloat16", "use_absolute_position_embeddings": True,
        "use_mask_token": False, "use_mean_pooling": True, "use_qk_norm": False,
    },
    "vision_feature_layer": -1, "vision_feature_select_strategy": "default",
}  # fmt: skip
GEMMA4_26B = {  # google/gemma-4-26B-A4B-it
    **GEMMA4,
    "text_config": {
        **GEMMA4["text_config"], "enable_moe_block": True, "hidden_size": 2816,  # type: ignore[dict-item]
        "intermediate_size": 2112, "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 5,
        "moe_intermediate_size": 704, "num_attention_heads": 16, "num_experts": 128, "num_global_key_value_heads": 2,
        "num_hidden_layers": 30, "num_key_value_heads": 8, "top_k_experts": 8,
    },
}  # fmt: skip
GEMMA4_E2B = {  # google/gemma-4-E2B-it
    **GEMMA4, "audio_config": {"model_type": "gemma4_audio", "hidden_size": 1024, "num_hidden_layers": 12},
    "text_config": {
        **GEMMA4["text_config"], "attention_k_eq_v": False, "hidden_size": 1536,  # type: ignore[dict-item]
        "hidden_size_per_layer_input": 256, "intermediate_size": 6144,
        "layer_types": [*["sliding_attention"] * 4, "full_attention"] * 7, "num_attention_heads": 8,
        "num_global_key_value_heads": None, "num_hidden_layers": 35, "num_key_value_heads": 1,
        "num_kv_shared_layers": 20, "sliding_window": 512, "use_bidirectional_attention": None,
        "use_double_wide_mlp": True, "vocab_size_per_layer_input": 262144,
    },
    "vision_config": {
        **GEMMA4["vision_config"], "hidden_size": 768, "intermediate_size": 3072,  # type: ignore[dict-item]
        "num_attention_heads": 12, "num_hidden_layers": 16, "num_key_value_heads": 12, "head_dim": 64,
        "standardize": False, "use_clipped_linears": True,
    },
}  # fmt: skip
MISTRAL3 = {  # mistralai/Mistral-Small-3.1-24B-Instruct-2503
    "architectures": ["Mistral3ForConditionalGeneration"], "image_token_index": 10, "model_type": "mistral3",
    "multimodal_projector_bias": False, "projector_hidden_act": "gelu", "spatial_merge_size": 2,
    "text_config": {
        "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
        "initializer_range": 0.02, "intermediate_size": 32768, "max_position_embeddings": 131072,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000000.0, "sliding_window": None, "use_cache": True,
        "vocab_size": 131072,
    },
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
    "vision_config": {
        "attention_dropout": 0.0, "head_dim": 64, "hidden_act": "silu", "hidden_size": 1024, "image_size": 1540,
        "initializer_range": 0.02, "intermediate_size": 4096, "model_type": "pixtral", "num_attention_heads": 16,
        "num_channels": 3, "num_hidden_layers": 24, "patch_size": 14, "rope_theta": 10000.0,
    },
    "vision_feature_layer": -1,
}  # fmt: skip
GLM4V = {  # zai-org/GLM-4.1V-9B-Thinking
    "architectures": ["Glm4vForConditionalGeneration"], "image_end_token_id": 151340, "image_start_token_id": 151339,
    "image_token_id": 151343, "model_type": "glm4v",
    "text_config": {
        "attention_bias": True, "attention_dropout": 0.0, "eos_token_id": [151329, 151336, 151338, 151348],
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 13696,
        "max_position_embeddings": 65536, "model_type": "glm4v_text", "num_attention_heads": 32,
        "num_hidden_layers": 40, "num_key_value_heads": 2, "pad_token_id": 151329, "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-05, "rope_scaling": {"mrope_section": [8, 12, 12], "rope_type": "default"},
        "rope_theta": 10000.0, "use_cache": True, "vocab_size": 151552,
    },
    "tie_word_embeddings": False, "video_token_id": 151344,
    "vision_config": {
        "attention_bias": False, "attention_dropout": 0.0, "depth": 24, "hidden_act": "silu", "hidden_size": 1536,
        "image_size": 336, "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 13696,
        "model_type": "glm4v_vision", "num_heads": 12, "out_hidden_size": 4096, "patch_size": 14,
        "rms_norm_eps": 1e-05, "spatial_merge_size": 2, "temporal_patch_size": 2,
    },
}  # fmt: skip
GLM4_5V = {  # zai-org/GLM-4.5V
    "architectures": ["Glm4vMoeForConditionalGeneration"], "image_end_token_id": 151340,
    "image_start_token_id": 151339, "image_token_id": 151363, "model_type": "glm4v_moe",
    "text_config": {
        "attention_bias": True, "attention_dropout": 0.0, "eos_token_id": [151329, 151336, 151338],
        "first_k_dense_replace": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 10944, "max_position_embeddings": 65536,
        "model_type": "glm4v_moe_text", "moe_intermediate_size": 1408, "n_group": 1, "n_routed_experts": 128,
        "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 96, "num_experts_per_tok": 8,
        "num_hidden_layers": 46, "num_key_value_heads": 8, "pad_token_id": 151329, "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-05, "rope_scaling": {"mrope_section": [8, 12, 12], "rope_type": "default"},
        "rope_theta": 10000.0, "routed_scaling_factor": 1.0, "router_aux_loss_coef": 0.0001, "topk_group": 1,
        "use_cache": True, "use_qk_norm": False, "vocab_size": 151552,
    },
    "tie_word_embeddings": False, "video_end_token_id": 151342, "video_start_token_id": 151341,
    "video_token_id": 151364,
    "vision_config": {
        "attention_bias": False, "attention_dropout": 0.0, "depth": 24, "hidden_act": "silu", "hidden_size": 1536,
        "image_size": 336, "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 10944,
        "model_type": "glm4v_moe_vision", "num_heads": 12, "out_hidden_size": 4096, "patch_size": 14,
        "rms_norm_eps": 1e-05, "spatial_merge_size": 2, "temporal_patch_size": 2,
    },
}  # fmt: skip
GLM_OCR = {  # zai-org/GLM-OCR
    "architectures": ["GlmOcrForConditionalGeneration"], "image_end_token_id": 59257, "image_start_token_id": 59256,
    "image_token_id": 59280, "model_type": "glm_ocr",
    "text_config": {
        "attention_bias": False, "attention_dropout": 0.0, "dtype": "bfloat16", "eos_token_id": [59246, 59253],
        "head_dim": 128, "hidden_act": "silu", "hidden_size": 1536, "initializer_range": 0.02,
        "intermediate_size": 4608, "max_position_embeddings": 131072, "model_type": "glm_ocr_text",
        "num_attention_heads": 16, "num_hidden_layers": 16, "num_key_value_heads": 8, "num_nextn_predict_layers": 1,
        "pad_token_id": 59246, "rms_norm_eps": 1e-05,
        "rope_parameters": {
            "mrope_section": [16, 24, 24], "partial_rotary_factor": 1.0, "rope_theta": 10000, "rope_type": "default",
        },
        "tie_word_embeddings": False, "use_cache": True, "vocab_size": 59392,
    },
    "tie_word_embeddings": False, "video_end_token_id": 59259, "video_start_token_id": 59258,
    "video_token_id": 59281,
    "vision_config": {
        "attention_bias": True, "attention_dropout": 0.0, "depth": 24, "hidden_act": "silu",
        "hidden_dropout_prob": 0.0, "hidden_size": 1024, "image_size": 336, "in_channels": 3,
        "initializer_range": 0.02, "intermediate_size": 4096, "model_type": "glm_ocr_vision", "num_heads": 16,
        "out_hidden_size": 1536, "patch_size": 14, "rms_norm_eps": 1e-05, "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}  # fmt: skip
PADDLEOCR_VL = {  # PaddlePaddle/PaddleOCR-VL: the text's fields are at the top
    "architectures": ["PaddleOCRVLForConditionalGeneration"], "compression_ratio": 1.0, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 1024, "image_token_id": 100295, "intermediate_size": 3072,
    "max_position_embeddings": 131072, "model_type": "paddleocr_vl", "num_attention_heads": 16,
    "num_hidden_layers": 18, "num_key_value_heads": 2, "pad_token_id": 0, "rms_norm_eps": 1e-05,
    "rope_is_neox_style": True,
    "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
    "rope_theta": 500000, "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "use_3d_rope": True, "use_bias": False, "video_token_id": 101307,
    "vision_config": {
        "hidden_act": "gelu_pytorch_tanh", "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304,
        "layer_norm_eps": 1e-06, "model_type": "paddleocr_vl", "num_attention_heads": 16, "num_channels": 3,
        "num_hidden_layers": 27, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "tokens_per_second": 2,
    },
    "vision_start_token_id": 101305, "vocab_size": 103424, "weight_share_add_bias": True,
}  # fmt: skip
SIGLIP2 = {  # google/siglip2-so400m-patch16-naflex
    "architectures": ["Siglip2Model"], "initializer_factor": 1.0, "model_type": "siglip2",
    "text_config": {
        "hidden_size": 1152, "intermediate_size": 4304, "model_type": "siglip2_text_model",
        "num_attention_heads": 16, "num_hidden_layers": 27, "projection_size": 1152, "torch_dtype": "float32",
        "vocab_size": 256000,
    },
    "torch_dtype": "float32", "transformers_version": "4.49.0.dev0",
    "vision_config": {
        "hidden_size": 1152, "intermediate_size": 4304, "model_type": "siglip2_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 27, "num_patches": 256, "torch_dtype": "float32",
    },
}  # fmt: skip
QWEN3 = {  # Qwen/Qwen3-0.6B
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
    "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
LLAMA3 = {  # meta-llama/Llama-3.2-1B
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
MISTRAL = {  # mistralai/Mistral-7B-v0.1
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
    "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip

QWEN3_5 = {  # Qwen/Qwen3.5-9B, by the defaults of its class
    "architectures": ["Qwen3_5ForConditionalGeneration"], "image_token_id": 248056, "model_type": "qwen3_5",
    "text_config": {
        "attention_bias": False, "full_attention_interval": 4, "head_dim": 256, "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 12288, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
        "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_value_head_dim": 128,
        "max_position_embeddings": 262144, "model_type": "qwen3_5_text", "num_attention_heads": 16,
        "num_hidden_layers": 32, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "mrope_interleaved": True, "mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25,
            "rope_theta": 10000000, "rope_type": "default",
        },
        "vocab_size": 248320,
    },
    "tie_word_embeddings": False, "video_token_id": 248057,
    "vision_config": {
        "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "model_type": "qwen3_5", "num_heads": 16,
        "num_position_embeddings": 2304, "out_hidden_size": 4096, "patch_size": 16, "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "vision_end_token_id": 248054, "vision_start_token_id": 248053,
}  # fmt: skip
QWEN3_5_MOE = {  # Qwen/Qwen3.5-35B-A3B
    **QWEN3_5, "architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe",
    "text_config": {
        **{k: v for k, v in QWEN3_5["text_config"].items() if k != "intermediate_size"},  # type: ignore[attr-defined]
        "hidden_size": 2048, "mlp_only_layers": [], "model_type": "qwen3_5_moe_text", "moe_intermediate_size": 512,
        "num_experts": 256, "num_experts_per_tok": 8, "num_hidden_layers": 40, "num_key_value_heads": 2,
        "router_aux_loss_coef": 0.001, "shared_expert_intermediate_size": 512,
    },
    "vision_config": {
        **QWEN3_5["vision_config"], "model_type": "qwen3_5_moe", "out_hidden_size": 2048,  # type: ignore[dict-item]
    },
}  # fmt: skip
LFM2 = {  # LiquidAI/LFM2-1.2B: the width of the MLPs is calculated
    "architectures": ["Lfm2ForCausalLM"], "block_auto_adjust_ff_dim": True, "block_dim": 2048, "block_ff_dim": 12288,
    "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256, "block_norm_eps": 1e-05, "block_use_swiglu": True,
    "bos_token_id": 1, "conv_L_cache": 3, "conv_bias": False, "conv_dim": 2048, "conv_use_xavier_init": True,
    "eos_token_id": 7, "full_attn_idxs": [2, 5, 8, 10, 12, 14], "hidden_size": 2048, "initializer_range": 0.02,
    "max_position_embeddings": 128000, "model_type": "lfm2", "norm_eps": 1e-05, "num_attention_heads": 32,
    "num_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pad_token_id": 0, "rope_theta": 1000000.0,
    "torch_dtype": "bfloat16", "use_cache": True, "use_pos_enc": True, "vocab_size": 65536,
}  # fmt: skip
LFM2_350M = {  # LiquidAI/LFM2-350M
    **LFM2, "block_dim": 1024, "block_ff_dim": 6656, "conv_dim": 1024, "hidden_size": 1024, "num_attention_heads": 16,
    "num_heads": 16,
}  # fmt: skip
LFM2_MOE = {  # LiquidAI/LFM2-8B-A1B
    "architectures": ["Lfm2MoeForCausalLM"], "bos_token_id": 1, "conv_L_cache": 3, "conv_bias": False,
    "eos_token_id": 7, "hidden_size": 2048, "intermediate_size": 7168,
    "layer_types": ["full_attention" if n in (2, 6, 10, 14, 18, 21) else "conv" for n in range(24)],
    "max_position_embeddings": 128000, "model_type": "lfm2_moe", "moe_intermediate_size": 1792, "norm_eps": 1e-05,
    "norm_topk_prob": True, "num_attention_heads": 32, "num_dense_layers": 2, "num_experts": 32,
    "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8, "pad_token_id": 0,
    "rope_theta": 1000000.0, "routed_scaling_factor": 1.0, "use_expert_bias": True, "vocab_size": 65536,
}  # fmt: skip
GLM4_5_AIR = {  # zai-org/GLM-4.5-Air
    "architectures": ["Glm4MoeForCausalLM"], "attention_bias": True, "eos_token_id": [151329, 151336, 151338],
    "first_k_dense_replace": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 10944, "max_position_embeddings": 131072, "model_type": "glm4_moe",
    "moe_intermediate_size": 1408, "n_group": 1, "n_routed_experts": 128, "n_shared_experts": 1,
    "norm_topk_prob": True, "num_attention_heads": 96, "num_experts_per_tok": 8, "num_hidden_layers": 46,
    "num_key_value_heads": 8, "num_nextn_predict_layers": 1, "pad_token_id": 151329, "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 1000000, "routed_scaling_factor": 1.0,
    "tie_word_embeddings": False, "topk_group": 1, "use_qk_norm": False, "vocab_size": 151552,
}  # fmt: skip


def config_of(config: dict[str, Any], folder: Path) -> Any:
    (folder / "config.json").write_text(json.dumps(config))
    return hf.read_config(folder)


def count(spec: ModelSpec, *parts: str) -> int:
    return sum(math.prod(shape) for path, (shape, _) in flat_axes(spec).items() if path[0] in parts)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        # Of LLaVA's tower the last layer (12,596,224) and the norm after it (2,048) are not used.
        (LLAVA, 7_063_427_072 - 12_596_224 - 2_048),
        (LLAVA_NEXT, 7_566_747_648 - 12_596_224 - 2_048),
        # Of LLaVA-OneVision's tower the norm behind its layers is not used.
        (LLAVA_ONEVISION, 893_618_208 - 2_304),
        (QWEN2_VL, 8_291_375_616),
        (QWEN2_VL_2B, 2_208_985_600),
        (QWEN2_5_VL, 8_292_166_656),
        (QWEN2_5_VL_3B, 3_754_622_976),
        (QWEN3_VL, 4_437_815_808),
        (QWEN3_VL_MOE, 31_070_754_032),
        # Of Qwen3.5's the weights that guess a second token (844,640,768) are not used.
        (QWEN3_5_MOE, 35_951_822_704 - 844_640_768),
        (PALIGEMMA, 2_923_466_480),
        (PALIGEMMA2, 3_032_242_416),
        (GEMMA3, 4_300_079_472),
        (SMOLVLM2_500M, 507_482_304),
        (SMOLVLM, 2_246_272_880),
        (MISTRAL3, 24_011_361_280),
        (GLM4V, 10_292_777_472),
        (GEMMA4, 31_273_088_876),
        (GLM4_5V, 107_710_933_120),
        (GLM_OCR, 1_107_405_824),  # without the layer that guesses a further token, which is not used
        # Of PaddleOCR-VL a table of positions (37,748,736) and the tower's head (15,238,352) are not used. Its head of
        # the vocabulary (105,906,176) is the embedding by its config, and one of its own by its tensors.
        (PADDLEOCR_VL, 958_588_736 - 37_748_736 - 15_238_352 - 105_906_176),
    ],
    ids=lambda x: x["model_type"] if isinstance(x, dict) else "",
)
def test_a_released_config_gives_as_many_parameters_as_the_release_has(config, parameters, tmp_path):
    layout = layout_of(config_of(config, tmp_path))
    assert count(layout.spec, "vision", "connector", "decoder") == parameters


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (QWEN3, 596_049_920),
        (QWEN3_MOE, 30_532_122_624),
        (LLAMA3, 1_235_814_400),
        (MISTRAL, 7_241_732_096),
        (LFM2, 1_170_340_608),
        (LFM2_350M, 354_483_968),
        # Of GLM-4.5-Air a layer that guesses a further token, with an embedding and a head of its own, is not used.
        (GLM4_5_AIR, 110_468_824_832 - 3_616_573_568),
        (LFM2_MOE, 8_339_929_856 + 704),  # in bfloat16, and of the choice of experts in float32
    ],
    ids=lambda x: x["model_type"] if isinstance(x, dict) else "",
)
def test_a_released_decoder_has_as_many_parameters(config, parameters, tmp_path):
    found = config_of(config, tmp_path)
    decoder = plain_decoder_of(found, found.tie_word_embeddings)
    assert count(ModelSpec(decoder=decoder.spec), "decoder") == parameters


def test_what_sparse_configs_do_not_say_is_what_the_family_means(tmp_path):
    gemma = layout_of(config_of(GEMMA3, tmp_path)).spec
    assert (gemma.decoder.heads, gemma.decoder.kv_heads, gemma.decoder.head_dim) == (8, 4, 256)
    assert (gemma.decoder.rope_theta, gemma.decoder.local_rope_theta) == (1e6, 1e4)
    assert (gemma.decoder.rope_scaling.kind, gemma.decoder.rope_scaling.factor) == ("linear", 8.0)
    assert (gemma.decoder.window, gemma.decoder.global_layers) == (1024, (5, 11, 17, 23, 29))
    one, two = (layout_of(config_of(config, tmp_path)).spec.decoder for config in (PALIGEMMA, PALIGEMMA2))
    assert (one.activation, one.norm_offset, one.embed_scale, one.window) == ("gelu_tanh", 1.0, 2048**0.5, 0)
    assert (two.attention_scale, two.attention_softcap, two.logit_softcap) == (1 / 16, 50.0, 30.0)
    assert (two.window, two.global_layers, two.post_norms) == (4096, tuple(range(1, 26, 2)), True)
    assert (one.prefix_blocks, two.prefix_blocks) == (True, True)
    four = layout_of(config_of(GEMMA4, tmp_path)).spec.decoder
    assert (four.global_attention, four.kv_heads, four.head_dim) == ((4, 512, True), 16, 256)
    assert (four.rope_scaling.kind, four.rope_scaling.fraction, four.window) == ("proportional", 0.25, 1024)
    assert four.layers_of("global_attention") == four.global_layers == tuple(range(5, 60, 6))
    assert (gemma.decoder.vocab_size, gemma.decoder.tie_embeddings, gemma.connector.merge) == (262208, True, 4)
    tower = tower_of(config_of(SIGLIP2, tmp_path).vision_config).spec
    assert (tower.width, tower.layers, tower.heads, tower.mlp) == (1152, 27, 16, 4304)
    assert (tower.patch_size, tower.positions, tower.activation) == (16, 16, "gelu_tanh")
    llava = layout_of(config_of(LLAVA, tmp_path)).spec
    assert (llava.decoder.layers, llava.decoder.kv_heads, llava.decoder.rope_theta) == (32, 32, 10000.0)
    assert (llava.vision.layers, llava.vision.positions, llava.vision.activation) == (23, 24, "quick_gelu")


def test_gemma_4_s_other_sizes_are_those_that_its_makers_name(tmp_path):
    """25.2 billion parameters of which 3.8 are active, and 2.3 beside the rows of tokens."""
    experts, small = (layout_of(config_of(config, tmp_path)) for config in (GEMMA4_26B, GEMMA4_E2B))
    decoder = experts.spec.decoder
    shapes = {path: math.prod(shape) for path, (shape, _) in flat_axes(experts.spec).items() if path[0] == "decoder"}
    idle = sum(n for path, n in shapes.items() if path[2:4] in {("experts", part) for part in ("gate", "up", "down")})
    assert round(sum(shapes.values()) / 1e9, 1) == 25.2
    assert round((sum(shapes.values()) - idle * 120 / 128) / 1e9, 1) == 3.8
    assert len(decoder.layers_of("mlp")) == len(decoder.layers_of("experts")) == 30
    assert (decoder.global_attention, decoder.kv_heads) == ((2, 512, True), 8)
    decoder = small.spec.decoder
    assert round((count(small.spec, "decoder") - 262144 * 35 * 256) / 1e9, 1) == 2.3
    assert (decoder.first_handed, decoder.handed_mlp, decoder.layer_inputs, decoder.window) == (15, 12288, 256, 512)
    assert decoder.places_of_keys().tolist()[13:20] == [11, 2, 11, 11, 11, 11, 2]
    assert (decoder.global_attention, small.spec.vision.clipped) == ((1, 512, False), True)
    assert "audio tower is not built" in small.told[0]


def test_old_spellings_of_rotary_positions_are_read(tmp_path):
    qwen = layout_of(config_of(QWEN2_5_VL, tmp_path)).spec
    assert (qwen.decoder.rope_theta, qwen.decoder.rope_sections, qwen.decoder.window) == (1e6, (16, 24, 24), 0)
    assert (qwen.vision.window, qwen.vision.global_layers, qwen.vision.frames) == (8, (7, 15, 23, 31), 2)
    two = layout_of(config_of(QWEN2_VL_2B, tmp_path)).spec
    assert (two.decoder.rope_sections, two.decoder.window, two.decoder.tie_embeddings) == ((16, 24, 24), 0, True)
    assert (two.vision.width, two.vision.mlp, two.vision.activation, two.vision.window) == (1280, 5120, "quick_gelu", 0)
    three = layout_of(config_of(QWEN2_5_VL_3B, tmp_path)).spec
    assert three.decoder.tie_embeddings
    qwen3 = layout_of(config_of(QWEN3_VL, tmp_path)).spec
    assert (qwen3.decoder.rope_theta, qwen3.decoder.rope_sections) == (5e6, (24, 20, 20))
    assert (qwen3.vision.taps, qwen3.vision.positions) == ((5, 11, 17), 48)
    intern = layout_of(config_of(INTERNVL3, tmp_path)).spec
    assert (intern.vision.positions, intern.vision.patch_size, intern.vision.qkv_bias) == (32, 14, True)
    assert (intern.decoder.width, intern.decoder.head_dim, intern.decoder.window) == (896, 64, 0)
    scaling = intern.decoder.rope_scaling
    assert (scaling.kind, scaling.factor, scaling.trained_length) == ("dynamic", 2.0, 32768)
    llama = decoder_of(config_of(LLAMA3, tmp_path), True).spec
    assert (llama.rope_scaling.kind, llama.rope_scaling.trained_length, llama.rope_theta) == ("llama3", 8192, 5e5)
    old = {**MISTRAL, "model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}}
    assert decoder_of(config_of(old, tmp_path), False).spec.rope_scaling.factor == 4.0
    assert decoder_of(config_of(MISTRAL, tmp_path), False).spec.window == 4096


@pytest.mark.parametrize(
    ("changes", "dense"),
    [
        ({}, set()), ({"mlp_only_layers": [0, 47]}, {0, 47}), ({"decoder_sparse_step": 2}, set(range(0, 48, 2))),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [5]}, {*range(0, 48, 2), 5}),
        ({"decoder_sparse_step": 64}, None),
    ],
)  # fmt: skip
def test_a_config_says_which_layers_have_experts(changes, dense, tmp_path):
    """None: no layer has, and the decoder is one of MLPs."""
    spec = decoder_of(config_of(QWEN3_MOE | changes, tmp_path), False).spec
    assert (set(spec.dense_layers) if spec.experts else None) == dense
    assert len(spec.layers_of("mlp")) == (48 if dense is None else len(dense))


def test_what_a_router_does_is_read_from_the_config(tmp_path):
    lfm2 = decoder_of(config_of(LFM2_MOE, tmp_path), True).spec
    wanted = ExpertSpec(32, 4, 1792, gate="sigmoid", normalised=True, sum_offset=1e-6)
    assert (lfm2.experts, lfm2.dense_layers, lfm2.mlp) == (wanted, (0, 1), 7168)
    assert lfm2.layers_of("attention") == (2, 6, 10, 14, 18, 21)
    with pytest.raises(UserError, match="lfm2_moe with use_expert_bias=False is not supported"):
        decoder_of(config_of(LFM2_MOE | {"use_expert_bias": False}, tmp_path), True)
    glm = decoder_of(config_of(GLM4_5_AIR, tmp_path), False).spec
    wanted = ExpertSpec(128, 8, 1408, gate="sigmoid", normalised=True, sum_offset=1e-20, shared_mlp=1408)
    assert (glm.experts, glm.dense_layers, glm.rotary_dim, glm.qkv_bias) == (wanted, (0,), 64, True)
    qwen = layout_of(config_of(QWEN3_5_MOE, tmp_path)).spec.decoder
    wanted = ExpertSpec(256, 8, 512, normalised=True, shared_mlp=512, shared_gate=True, balance_loss=0.001)
    assert (qwen.experts, qwen.dense_layers, qwen.layers_of("mlp")) == (wanted, (), ())


def test_axes_that_take_turns_need_no_section_for_every_frequency(tmp_path):
    """As in transformers, where sections of small heads may be missing from the file: the first axis takes the rest."""
    small = config_of({"model_type": "qwen3_vl_text", "hidden_size": 84, "num_attention_heads": 6,
                       "num_key_value_heads": 3, "head_dim": 14, "vocab_size": 219}, tmp_path)  # fmt: skip
    spec = decoder_of(small, False).spec
    axes = axis_of_frequency(spec.rope_sections, spec.rope_interleaved, spec.head_dim // 2)
    assert axes.tolist() == [0, 1, 2, 0, 1, 2, 0]


def changed(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """With other values: ``vision__x`` and ``text__x`` go to x of these configs."""
    found = json.loads(json.dumps(config))
    for name, value in changes.items():
        part, _, key = name.rpartition("__")
        (found[f"{part}_config"] if part else found)[key] = value
    return found


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(GEMMA3, mm_tokens_per_image=250), "mm_tokens_per_image=250 is not supported: it is no square"),
        (changed(GEMMA3, mm_tokens_per_image=225), "15 soft tokens along 64 patches are not supported"),
        (changed(GEMMA3, text__use_bidirectional_attention=True), "use_bidirectional_attention=True is not supported"),
        (changed(LLAVA, vision_config=MISTRAL3["vision_config"]), "llava with a tower 'pixtral' is not supported"),
        (changed(MISTRAL3, vision_config=LLAVA["vision_config"]), "mistral3 with a tower 'clip_vision_model'"),
        (changed(MISTRAL3, vision_feature_layer=-2), "vision_feature_layer=-2 is not supported: only -1"),
        (changed(LLAVA, vision_feature_layer=-30), "vision_feature_layer -30 is no layer of a tower of 24"),
        (changed(LLAVA, vision_feature_select_strategy="full"), "strategy 'full' with a tower with a class token"),
        (changed(LLAVA, vision__hidden_act="mish"), "activation 'mish' of the checkpoint is not supported"),
        (changed(LLAVA, text__num_key_value_heads=5), "32 attention heads are no multiple of 5 key-value heads"),
        (changed(LLAVA, vision__num_channels=4), "num_channels=4 is not supported: only 3"),
        (changed(QWEN3_VL, vision__num_heads=15), "vision width 1024 is no multiple of 15 heads"),
        (changed(LLAVA, vision__image_size=[336, 224]), "image_size of 336 x 224 is not supported: only squares"),
        (changed(LLAVA, text__model_type="opt"), "decoder 'opt' is not supported: those are llama, mistral"),
        (changed(LLAVA, vision__model_type="dinov2"), "vision tower 'dinov2' is not supported: those are siglip2"),
        (changed(QWEN3_VL, vision__deepstack_visual_indexes=[5, 11, 40]), r"deepstack_visual_indexes \[5, 11, 40\]"),
        (changed(QWEN3_VL, vision__num_position_embeddings=2300), "num_position_embeddings=2300 is not supported"),
        (changed(QWEN3_5_MOE, text__mlp_only_layers=[3]), r"qwen3_5_moe_text with mlp_only_layers=\[3\] is not"),
        (changed(QWEN3_VL_MOE, text__num_experts_per_tok=129), "129 experts a position are more than are open to it"),
        (changed(QWEN3_VL_MOE, text__moe_intermediate_size=1024), "moe_intermediate_size 1024 with hidden_size 2048"),
        (changed(QWEN2_5_VL, rope_scaling={"type": "mrope", "mrope_section": [16, 24, 8]}), "does not add up to half"),
        (changed(GEMMA4_E2B, text__vocab_size_per_layer_input=512), "vocab_size_per_layer_input=512 is not supported"),
        (changed(GEMMA4_E2B, text__pad_token_id=3), "pad_token_id=3 is not supported: only 0"),
        (changed(GEMMA4_E2B, text__num_kv_shared_layers=31), "last 31 layers see keys of layers before them, of which"),
        (changed(GEMMA4, text__use_bidirectional_attention="all"), "use_bidirectional_attention=all is not supported"),
        (changed(PALIGEMMA, projection_dim=1024), "projection_dim is 1024, and hidden_size of its decoder 2048"),
        (changed(PALIGEMMA, text__model_type="gemma3_text"), "decoder 'gemma3_text' is not supported: gemma and"),
        (changed(INTERNVL3, vision_feature_layer=[-1, -2]), r"vision_feature_layer=\[-1, -2\] is not supported"),
        (changed(INTERNVL3, downsample_ratio=0.3), "downsample_ratio=0.3 is not supported: only 1 / n is"),
        (changed(INTERNVL3, vision__use_mean_pooling=False, vision__norm_type="rms_norm"), "norm_type=rms_norm is not"),
        (changed(INTERNVL3, text__model_type="gpt_oss"), "decoder 'gpt_oss' is not supported: those are llama"),
        ({"model_type": "qwen3"}, "'qwen3' is no whole model but a part of one: name both parts, as "
         "vision:DIR,decoder:DIR or audio:DIR,decoder:DIR$"),
        ({"model_type": "siglip2"}, "'siglip2' is no whole model but .*: name both parts, as vision:DIR,decoder:DIR$"),
        ({"model_type": "whisper"}, "'whisper' is no whole model but .*: name both parts, as audio:DIR,decoder:DIR$"),
        (changed(LLAVA_NEXT, vision_config=MISTRAL3["vision_config"]), "llava_next with a tower 'pixtral' is not"),
        (changed(LLAVA, model_type="llava_next_video"), "model 'llava_next_video' is not supported: those are lfm2_vl"),
        ({"model_type": "bert_of_mine"}, "model 'bert_of_mine' is not supported: those are lfm2_vl, llava"),
        (changed(LLAVA, quantization_config={"quant_method": "awq"}), "weights quantised by awq are not supported"),
        ({"architectures": ["Mystery"]}, "model '' is not supported: those are lfm2_vl, llava"),
    ],
)  # fmt: skip
def test_what_a_config_asks_and_we_do_not_do_is_one_line(config, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        layout_of(config_of(config, tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "has no config.json"), ("{", "config.json cannot be read"), ("[1]", "config.json cannot be read"),
     (json.dumps(changed(LLAVA, text__hidden_size="wide")), "text_config.hidden_size is .wide.: it must be")],
)  # fmt: skip
def test_a_folder_without_a_readable_config_is_one_line(text, message, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        hf.read_config(tmp_path)
    assert "\n" not in str(caught.value)
