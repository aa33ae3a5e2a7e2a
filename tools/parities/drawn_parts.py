"""Parts of models whose sizes and features are drawn: decoders, their rotary positions and experts, and towers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parities.tiny.parts import VOCABULARY

ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "quick_gelu", "silu", "relu", "gelu_new", "gelu_fast", "swish")


class Draw:
    """Choices by a seeded generator."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def of(self, *options: Any) -> Any:
        return options[self.rng.integers(len(options))]

    def between(self, low: int, high: int) -> int:
        """Both included."""
        return int(self.rng.integers(low, high + 1))

    def maybe(self) -> bool:
        return bool(self.rng.integers(2))

    def some(self, count: int) -> list[int]:
        """Numbers below ``count``, in order, maybe none."""
        return [i for i in range(count) if self.maybe()]


def rope(draw: Draw, head_dim: int, length: int) -> dict[str, Any]:
    """``rope_parameters`` of any kind, whose trained length documents pass or do not."""
    kind = draw.of("default", "linear", "dynamic", "yarn", "longrope", "llama3")
    drawn: dict[str, Any] = {"rope_type": kind, "rope_theta": draw.of(100.0, 10000.0, 500000.0, 1e6)}
    if kind in ("linear", "dynamic", "llama3", "yarn"):
        drawn["factor"] = draw.of(1.0, 2.0, 8.0, 3.5)
    if kind in ("llama3", "yarn", "longrope"):
        drawn["original_max_position_embeddings"] = draw.of(8, 32, length)
    if kind == "llama3":
        drawn |= {"low_freq_factor": draw.of(1.0, 2.0), "high_freq_factor": draw.of(4.0, 5.0)}
    if kind == "yarn":
        drawn |= draw.of({}, {"beta_fast": 16.0, "beta_slow": 2.0}, {"truncate": False}, {"attention_factor": 1.3},
                         {"mscale": 1.0, "mscale_all_dim": 0.7})  # fmt: skip
    if kind == "longrope":
        for name in ("short_factor", "long_factor"):
            drawn[name] = [float(x) for x in np.round(draw.rng.uniform(1, 4, head_dim // 2), 3)]
        drawn |= draw.of({}, {"factor": 4.0}, {"attention_factor": 1.2})
    return drawn


def axes(draw: Draw, turning: int, length: int, interleaved: bool = False) -> dict[str, Any]:
    """``rope_parameters`` with positions of three axes, over so many dims of a head."""
    kind = draw.of("default", "default", "default", "linear", "yarn")
    drawn: dict[str, Any] = {"rope_type": kind, "rope_theta": draw.of(10000.0, 5e6)}
    drawn |= {"factor": draw.of(2.0, 3.5)} if kind != "default" else {}
    drawn |= {"original_max_position_embeddings": draw.of(8, 32, length)} if kind == "yarn" else {}
    drawn |= {"mrope_section": sections(draw, turning // 2)}
    return drawn | ({"mrope_interleaved": True} if interleaved else {})


def sections(draw: Draw, count: int) -> list[int]:
    """Three that add up to ``count``."""
    first = draw.between(0, count)
    second = draw.between(0, count - first)
    return [first, second, count - first - second]


def partly(draw: Draw, head_dim: int) -> tuple[int, dict[str, float]]:
    """How many dims of a head turn, and the ``partial_rotary_factor`` that says so, whichever way it is rounded."""
    turning = 2 * draw.between(1, head_dim // 2)
    return turning, {"partial_rotary_factor": min(1.0, (turning + 0.5) / head_dim)}


def decoder(draw: Draw, kind: str, free_head_dim: bool = True) -> dict[str, Any]:
    """A decoder's config; ``free_head_dim``: it need not be hidden_size / heads."""
    heads = draw.between(1, 6)
    kv = draw.of(*(n for n in range(1, heads + 1) if heads % n == 0))
    length = draw.of(12, 64, 4096)
    drawn: dict[str, Any] = {
        "model_type": kind, "vocab_size": VOCABULARY + draw.between(0, 60), "intermediate_size": draw.between(9, 80),
        "num_hidden_layers": draw.between(1, 5), "num_attention_heads": heads, "num_key_value_heads": kv,
        "max_position_embeddings": length, "rms_norm_eps": draw.of(1e-5, 1e-6, 1e-3),
        "hidden_act": draw.of(*ACTIVATIONS), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "tie_word_embeddings": draw.maybe(),
    }  # fmt: skip
    head_dim = 2 * draw.between(2, 8)
    if free_head_dim and draw.maybe():
        drawn["head_dim"] = head_dim
        drawn["hidden_size"] = heads * draw.between(3, 12)
    else:
        drawn["hidden_size"] = heads * head_dim
        if kind in OWN_HEAD_DIM:
            drawn["head_dim"] = head_dim
    drawn["rope_parameters"] = rope(draw, head_dim, length)
    return drawn | FEATURES[kind](draw, drawn)


OWN_HEAD_DIM = ("qwen3", "qwen3_moe", "qwen3_vl_text", "qwen3_vl_moe_text", "qwen3_5_text", "qwen3_5_moe_text",
                "paddleocr_vl_text", "gemma", "gemma2")  # fmt: skip
# Whose default is no quotient.


def _head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def layer_types(draw: Draw, config: dict[str, Any], other: str) -> dict[str, Any]:
    """Layers of attention, one at least, and of another type."""
    kinds = [draw.of("full_attention", other) for _ in range(config["num_hidden_layers"])]
    kinds[draw.between(0, len(kinds) - 1)] = "full_attention"
    return {"layer_types": kinds}


def some_windows(draw: Draw, config: dict[str, Any]) -> dict[str, Any]:
    drawn: dict[str, Any] = {
        "use_sliding_window": draw.maybe(), "sliding_window": draw.between(1, 12),
        "max_window_layers": draw.between(0, config["num_hidden_layers"]),
    }  # fmt: skip
    if draw.between(1, 4) == 1:
        kinds = "full_attention", "sliding_attention"
        drawn["layer_types"] = [draw.of(*kinds) for _ in range(config["num_hidden_layers"])]
        drawn["use_sliding_window"] = True
    return drawn


def experts(draw: Draw, count: int = 0) -> dict[str, Any]:
    """``count``: of the experts; 0 is drawn."""
    count = count or draw.between(2, 9)
    return {
        "num_experts": count, "num_experts_per_tok": draw.between(1, count),
        "moe_intermediate_size": draw.between(9, 60), "norm_topk_prob": draw.maybe(),
    }  # fmt: skip


def experts_of_some_layers(draw: Draw, config: dict[str, Any]) -> dict[str, Any]:
    drawn = experts(draw) | {"decoder_sparse_step": draw.of(1, 1, 2, 3)}
    if draw.between(1, 3) == 1:
        drawn["mlp_only_layers"] = draw.some(config["num_hidden_layers"])
    # Square tensors of experts are refused: nobody can tell their sides.
    while config["hidden_size"] in (drawn["moe_intermediate_size"], 2 * drawn["moe_intermediate_size"]):
        drawn["moe_intermediate_size"] += 1
    return drawn


def convolutions(draw: Draw, config: dict[str, Any]) -> dict[str, Any]:
    return layer_types(draw, config, "conv") | {
        "norm_eps": config["rms_norm_eps"], "conv_bias": draw.maybe(), "conv_L_cache": draw.between(1, 5),
        "block_auto_adjust_ff_dim": draw.maybe(), "block_multiple_of": draw.between(1, 16),
        "block_ffn_dim_multiplier": draw.of(1.0, 1.3),
    }  # fmt: skip


def sigmoid_experts(draw: Draw, config: dict[str, Any]) -> dict[str, Any]:
    """GLM-4.5's."""
    groups, each = draw.between(1, 3), draw.between(2, 4)
    chosen = draw.between(1, groups)
    turning, part = partly(draw, _head_dim(config))
    return experts(draw, groups * each) | {
        "n_routed_experts": groups * each, "n_group": groups, "topk_group": chosen,
        "num_experts_per_tok": draw.between(1, chosen * each), "n_shared_experts": draw.between(1, 2),
        "first_k_dense_replace": draw.between(0, config["num_hidden_layers"]), "use_qk_norm": draw.maybe(),
        "attention_bias": draw.maybe(), "routed_scaling_factor": draw.of(1.0, 2.5), "num_mtp_layers": 0,
        "rope_parameters": rope(draw, turning, config["max_position_embeddings"]) | part,
    }  # fmt: skip


def delta(draw: Draw, config: dict[str, Any]) -> dict[str, Any]:
    """Qwen3.5's layers and positions."""
    turning, part = partly(draw, _head_dim(config))
    heads = draw.between(1, 3)
    return layer_types(draw, config, "linear_attention") | {
        "linear_num_key_heads": heads, "linear_num_value_heads": heads * draw.between(1, 3),
        "linear_key_head_dim": draw.between(2, 12), "linear_value_head_dim": draw.between(2, 12),
        "linear_conv_kernel_dim": draw.between(1, 5),
        "rope_parameters": axes(draw, turning, config["max_position_embeddings"], interleaved=True) | part,
    }  # fmt: skip


def qwen3_axes(draw: Draw, config: dict[str, Any]) -> dict[str, Any]:
    positions = axes(draw, _head_dim(config), config["max_position_embeddings"], interleaved=True)
    if draw.between(1, 4) == 1:
        positions = {"rope_type": "default", "rope_theta": 10000.0}
    return {"attention_bias": draw.maybe(), "rope_parameters": positions}


def qwen2_axes(draw: Draw, config: dict[str, Any]) -> dict[str, Any]:
    positions = axes(draw, _head_dim(config), config["max_position_embeddings"])
    return some_windows(draw, config) | {"rope_parameters": positions}


def glm_axes(draw: Draw, config: dict[str, Any]) -> dict[str, Any]:
    turning, part = partly(draw, _head_dim(config))
    return {"rope_parameters": axes(draw, turning, config["max_position_embeddings"]) | part}


def glm_experts(draw: Draw, config: dict[str, Any]) -> dict[str, Any]:
    """GLM-4.5V's, whose class norms no head."""
    return {**sigmoid_experts(draw, config), **glm_axes(draw, config), "use_qk_norm": False}


def ernie_axes(draw: Draw, config: dict[str, Any]) -> dict[str, Any]:
    """PaddleOCR-VL's."""
    positions = axes(draw, _head_dim(config), config["max_position_embeddings"])
    return {"use_bias": draw.maybe(), "rope_parameters": positions}


def gemma2(draw: Draw, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "attention_bias": draw.maybe(), "hidden_activation": draw.of(*ACTIVATIONS),
        "sliding_window": draw.between(1, 12), "query_pre_attn_scalar": draw.between(4, 40),
        "final_logit_softcapping": draw.of(None, 4.0), "attn_logit_softcapping": draw.of(None, 1.5),
    }  # fmt: skip


# What decoders have beside the sizes of all, by ``model_type``.
FEATURES: dict[str, Callable[[Draw, dict[str, Any]], dict[str, Any]]] = {
    "llama": lambda draw, config: {"attention_bias": draw.maybe(), "mlp_bias": draw.maybe()},
    "mistral": lambda draw, config: {"sliding_window": draw.of(None, draw.between(1, 12))},
    "qwen2": some_windows,
    "qwen3": lambda draw, config: {"attention_bias": draw.maybe()} | some_windows(draw, config),
    "qwen3_moe": lambda draw, config: experts_of_some_layers(draw, config)
    | {"attention_bias": draw.maybe(), "use_sliding_window": draw.maybe(), "sliding_window": draw.between(1, 12)},
    "lfm2": convolutions,
    "lfm2_moe": lambda draw, config: convolutions(draw, config) | experts(draw)
    | {"num_dense_layers": draw.between(0, config["num_hidden_layers"]), "routed_scaling_factor": draw.of(1.0, 1.5)},
    "glm4_moe": sigmoid_experts,
    "gemma": lambda draw, config: {"attention_bias": draw.maybe()},
    "gemma2": gemma2,
    "gemma3_text": lambda draw, config: {"attention_bias": draw.maybe()},
    "gemma4_text": lambda draw, config: {"attention_bias": draw.maybe()},
    "qwen2_vl_text": qwen2_axes,
    "qwen2_5_vl_text": qwen2_axes,
    "qwen3_vl_text": qwen3_axes,
    "qwen3_vl_moe_text": lambda draw, config: experts_of_some_layers(draw, config) | qwen3_axes(draw, config),
    "qwen3_5_text": delta,
    "qwen3_5_moe_text": lambda draw, config: delta(draw, config) | experts(draw)
    | {"shared_expert_intermediate_size": draw.between(9, 40)},
    "glm4v_text": glm_axes,
    "glm_ocr_text": glm_axes,
    "glm4v_moe_text": glm_experts,
    "paddleocr_vl_text": ernie_axes,
}  # fmt: skip
LLAMAS = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "glm4_moe")
PLAIN = (*LLAMAS, "lfm2", "lfm2_moe", "gemma")  # those of families that take any decoder


def any_decoder(draw: Draw, kinds: tuple[str, ...] = PLAIN) -> dict[str, Any]:
    return decoder(draw, draw.of(*kinds))


def tower(draw: Draw, kind: str, **more: Any) -> dict[str, Any]:
    heads = draw.between(1, 4)
    return {
        "model_type": kind, "hidden_size": heads * draw.between(3, 12), "intermediate_size": draw.between(9, 60),
        "num_hidden_layers": draw.between(1, 5), "num_attention_heads": heads, "patch_size": draw.between(2, 5),
        "hidden_act": draw.of(*ACTIVATIONS), "layer_norm_eps": draw.of(1e-5, 1e-6, 1e-3), **more,
    }  # fmt: skip


def turns(draw: Draw) -> dict[str, Any]:
    """``rope_parameters`` of a tower."""
    return {"rope_type": "axial", "rope_theta": draw.of(100.0, 10000.0)}


def qwen_tower(draw: Draw, text: dict[str, Any]) -> dict[str, Any]:
    heads = draw.between(1, 4)
    return {
        "depth": draw.between(1, 5), "hidden_size": heads * 4 * draw.between(1, 4), "num_heads": heads,
        "intermediate_size": draw.between(9, 60), "patch_size": draw.between(2, 5), "hidden_act": draw.of(*ACTIVATIONS),
        "out_hidden_size": text["hidden_size"], "spatial_merge_size": draw.between(1, 3),
        "temporal_patch_size": draw.between(1, 3), "rope_parameters": turns(draw),
    }  # fmt: skip
