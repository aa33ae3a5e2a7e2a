"""Models of sizes and features that nobody chose: each family's config drawn from what it may hold.

A draw is a ``Case`` like those that are named, so that whatever compares these compares it too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parities.models import END_TOKEN, IMAGE_TOKEN, QWEN_TOKENS, START_TOKEN, VOCABULARY, Case

ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "quick_gelu", "silu", "relu", "gelu_new", "gelu_fast", "swish")
FAMILIES = ("lfm2_vl", "llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "internvl")


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
    found: dict[str, Any] = {"rope_type": kind, "rope_theta": draw.of(100.0, 10000.0, 500000.0, 1e6)}
    if kind in ("linear", "dynamic", "llama3", "yarn"):
        found["factor"] = draw.of(1.0, 2.0, 8.0, 3.5)
    if kind in ("llama3", "yarn", "longrope"):
        found["original_max_position_embeddings"] = draw.of(8, 32, length)
    if kind == "llama3":
        found |= {"low_freq_factor": draw.of(1.0, 2.0), "high_freq_factor": draw.of(4.0, 5.0)}
    if kind == "yarn":
        found |= draw.of({}, {"beta_fast": 16.0, "beta_slow": 2.0}, {"truncate": False}, {"attention_factor": 1.3},
                         {"mscale": 1.0, "mscale_all_dim": 0.7})  # fmt: skip
    if kind == "longrope":
        for name in ("short_factor", "long_factor"):
            found[name] = [float(x) for x in np.round(draw.rng.uniform(1, 4, head_dim // 2), 3)]
        found |= draw.of({}, {"factor": 4.0}, {"attention_factor": 1.2})
    return found


def decoder(draw: Draw, kind: str, free_head_dim: bool = True) -> dict[str, Any]:
    """A decoder's config; ``free_head_dim``: it need not be hidden_size / heads."""
    heads = draw.between(1, 6)
    kv = draw.of(*(n for n in range(1, heads + 1) if heads % n == 0))
    length = draw.of(12, 64, 4096)
    found: dict[str, Any] = {
        "model_type": kind, "vocab_size": VOCABULARY + draw.between(0, 60), "intermediate_size": draw.between(9, 80),
        "num_hidden_layers": draw.between(1, 5), "num_attention_heads": heads, "num_key_value_heads": kv,
        "max_position_embeddings": length, "rms_norm_eps": draw.of(1e-5, 1e-6, 1e-3),
        "hidden_act": draw.of(*ACTIVATIONS), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "tie_word_embeddings": draw.maybe(),
    }  # fmt: skip
    head_dim = 2 * draw.between(2, 8)
    if free_head_dim and draw.maybe():
        found["head_dim"] = head_dim
        found["hidden_size"] = heads * draw.between(3, 12)
    else:
        found["hidden_size"] = heads * head_dim
        if kind == "qwen3":  # its default is no quotient
            found["head_dim"] = head_dim
    found["rope_parameters"] = rope(draw, head_dim, length)
    if kind in ("llama", "qwen3", "gemma3_text"):
        found["attention_bias"] = draw.maybe()
    if kind == "llama":
        found["mlp_bias"] = draw.maybe()
    if kind == "mistral":
        found["sliding_window"] = draw.of(None, draw.between(1, 12))
    if kind in ("qwen2", "qwen3", "qwen2_vl_text", "qwen2_5_vl_text"):
        found |= {
            "use_sliding_window": draw.maybe(), "sliding_window": draw.between(1, 12),
            "max_window_layers": draw.between(0, found["num_hidden_layers"]),
        }  # fmt: skip
        if draw.between(1, 4) == 1:
            kinds = "full_attention", "sliding_attention"
            found["layer_types"] = [draw.of(*kinds) for _ in range(found["num_hidden_layers"])]
            found["use_sliding_window"] = True
    return found


def any_decoder(draw: Draw) -> dict[str, Any]:
    return decoder(draw, draw.of("llama", "mistral", "qwen2", "qwen3"))


def tower(draw: Draw, kind: str, **more: Any) -> dict[str, Any]:
    heads = draw.between(1, 4)
    return {
        "model_type": kind, "hidden_size": heads * draw.between(3, 12), "intermediate_size": draw.between(9, 60),
        "num_hidden_layers": draw.between(1, 5), "num_attention_heads": heads, "patch_size": draw.between(2, 5),
        "hidden_act": draw.of(*ACTIVATIONS), "layer_norm_eps": draw.of(1e-5, 1e-6, 1e-3), **more,
    }  # fmt: skip


def lfm2_vl(rng: np.random.Generator) -> Any:
    from transformers import Lfm2VlConfig

    draw = Draw(rng)
    vision = tower(
        draw, "siglip2_vision_model", num_patches=draw.between(1, 7) ** 2, vision_use_head=draw.maybe()
    )  # fmt: skip
    return Lfm2VlConfig(
        vision_config=vision, text_config=any_decoder(draw), image_token_id=IMAGE_TOKEN,
        downsample_factor=draw.between(1, 3), projector_hidden_size=draw.between(8, 60),
        projector_hidden_act=draw.of(*ACTIVATIONS), projector_bias=draw.maybe(),
        projector_use_layernorm=draw.maybe(), tie_word_embeddings=draw.maybe(),
    )  # fmt: skip


def llava(rng: np.random.Generator) -> Any:
    from transformers import LlavaConfig

    draw = Draw(rng)
    is_clip = draw.maybe()
    vision = tower(draw, "clip_vision_model" if is_clip else "siglip_vision_model")
    # What is left of the image beside whole patches is not seen.
    vision["image_size"] = vision["patch_size"] * draw.between(1, 6)
    vision |= {"projection_dim": 20} if is_clip else {"vision_use_head": draw.maybe()}
    layers = vision["num_hidden_layers"]
    one = draw.of(-1, -layers, draw.between(1, layers), -draw.between(1, layers))
    several = [draw.of(-1, 1) * draw.between(1, layers) for _ in range(draw.between(1, 3))]
    return LlavaConfig(
        vision_config=vision, text_config=any_decoder(draw), image_token_index=IMAGE_TOKEN,
        vision_feature_layer=draw.of(one, one, several), multimodal_projector_bias=draw.maybe(),
        vision_feature_select_strategy="default" if is_clip else "full",
        projector_hidden_act=draw.of(*ACTIVATIONS), tie_word_embeddings=draw.maybe(),
    )  # fmt: skip


def sections(draw: Draw, count: int) -> list[int]:
    """Three that add up to ``count``."""
    first = draw.between(0, count)
    second = draw.between(0, count - first)
    return [first, second, count - first - second]


def qwen_tower(draw: Draw, text: dict[str, Any]) -> dict[str, Any]:
    heads = draw.between(1, 4)
    return {
        "depth": draw.between(1, 5), "hidden_size": heads * 4 * draw.between(1, 4), "num_heads": heads,
        "intermediate_size": draw.between(9, 60), "patch_size": draw.between(2, 5), "hidden_act": draw.of(*ACTIVATIONS),
        "out_hidden_size": text["hidden_size"], "spatial_merge_size": draw.between(1, 3),
        "temporal_patch_size": draw.between(1, 3),
    }  # fmt: skip


def qwen2_vl(rng: np.random.Generator) -> Any:
    from transformers import Qwen2VLConfig

    draw = Draw(rng)
    text = decoder(draw, "qwen2_vl_text", free_head_dim=False)
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    text["rope_parameters"] = {
        "rope_type": "default", "rope_theta": draw.of(10000.0, 1e6), "mrope_section": sections(draw, half)
    }  # fmt: skip
    vision = qwen_tower(draw, text)
    del vision["intermediate_size"], vision["out_hidden_size"]
    vision |= {"embed_dim": vision["hidden_size"], "hidden_size": text["hidden_size"], "mlp_ratio": draw.between(1, 4)}
    return Qwen2VLConfig(
        vision_config=vision, text_config=text, tie_word_embeddings=draw.maybe(), **QWEN_TOKENS
    )  # fmt: skip


def qwen2_5_vl(rng: np.random.Generator) -> Any:
    from transformers import Qwen2_5_VLConfig

    draw = Draw(rng)
    text = decoder(draw, "qwen2_5_vl_text", free_head_dim=False)
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    text["rope_parameters"] = {
        "rope_type": "default", "rope_theta": draw.of(10000.0, 1e6), "mrope_section": sections(draw, half)
    }  # fmt: skip
    vision = qwen_tower(draw, text)
    least = vision["spatial_merge_size"] * vision["patch_size"]
    vision["window_size"] = draw.between(least, 5 * least)
    vision["fullatt_block_indexes"] = draw.some(vision["depth"] + 1)
    return Qwen2_5_VLConfig(
        vision_config=vision, text_config=text, tie_word_embeddings=draw.maybe(), **QWEN_TOKENS
    )  # fmt: skip


def qwen3_vl(rng: np.random.Generator) -> Any:
    from transformers import Qwen3VLConfig

    draw = Draw(rng)
    text = decoder(draw, "qwen3")
    for name in ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"):
        text.pop(name, None)
    text["model_type"] = "qwen3_vl_text"
    half = text["head_dim"] // 2
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": draw.of(10000.0, 5e6)}
    if draw.between(1, 4) > 1:
        text["rope_parameters"] |= {"mrope_section": sections(draw, half), "mrope_interleaved": True}
    vision = qwen_tower(draw, text)
    vision["num_position_embeddings"] = draw.between(1, 7) ** 2
    vision["deepstack_visual_indexes"] = draw.some(vision["depth"])
    return Qwen3VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=draw.maybe(), **QWEN_TOKENS)


def gemma3(rng: np.random.Generator) -> Any:
    from transformers import Gemma3Config

    draw = Draw(rng)
    text = decoder(draw, "gemma3_text")
    text["head_dim"] = text.get("head_dim", text["hidden_size"] // text["num_attention_heads"])
    del text["hidden_act"]
    text |= {
        "hidden_activation": draw.of(*ACTIVATIONS), "sliding_window": draw.between(1, 12),
        "query_pre_attn_scalar": draw.between(4, 40),
        "final_logit_softcapping": draw.of(None, 1.5), "attn_logit_softcapping": draw.of(None, 0.5),
        "rope_parameters": {
            "full_attention": draw.of({"rope_type": "default"}, {"rope_type": "linear", "factor": 8.0})
            | {"rope_theta": draw.of(1e4, 1e6)},
            "sliding_attention": {"rope_type": "default", "rope_theta": draw.of(100.0, 1e4)},
        },
    }  # fmt: skip
    if draw.maybe():
        kinds = "full_attention", "sliding_attention"
        text["layer_types"] = [draw.of(*kinds) for _ in range(text["num_hidden_layers"])]
    else:
        text["sliding_window_pattern"] = draw.between(2, 6)
    side, merge = draw.between(1, 3), draw.between(1, 3)
    vision = tower(draw, "siglip_vision_model", vision_use_head=draw.maybe())
    vision["image_size"] = vision["patch_size"] * side * merge
    return Gemma3Config(
        vision_config=vision, text_config=text, mm_tokens_per_image=side**2, image_token_index=IMAGE_TOKEN,
        boi_token_index=START_TOKEN, eoi_token_index=END_TOKEN, tie_word_embeddings=draw.maybe(),
    )  # fmt: skip


def internvl(rng: np.random.Generator) -> Any:
    from transformers import InternVLConfig

    draw = Draw(rng)
    vision = tower(
        draw, "internvl_vision", attention_bias=draw.maybe(), use_qk_norm=draw.maybe(),
        norm_type=draw.of("layer_norm", "rms_norm"), layer_scale_init_value=draw.of(0.1, 0.0, 1.0),
        use_absolute_position_embeddings=draw.maybe(), use_mask_token=draw.maybe(),
    )  # fmt: skip
    # The norm after the layers is LayerNorm whatever they have; only the one that goes with them is supported.
    vision["use_mean_pooling"] = vision["norm_type"] == "rms_norm" or draw.maybe()
    merge = draw.of(1, 2, 2, 4)
    size, patch = vision["patch_size"] * merge * draw.between(1, 3), vision["patch_size"]
    vision |= draw.of({"image_size": size}, {"image_size": [size, size], "patch_size": [patch, patch]})
    return InternVLConfig(
        vision_config=vision, text_config=any_decoder(draw), image_token_id=IMAGE_TOKEN, downsample_ratio=1 / merge,
        projector_hidden_act=draw.of(*ACTIVATIONS), tie_word_embeddings=draw.maybe(),
        vision_feature_layer=draw.of(-1, -1, draw.between(1, vision["num_hidden_layers"])),
    )  # fmt: skip


CONFIGS: dict[str, Callable[[np.random.Generator], Any]] = {
    "lfm2_vl": lfm2_vl, "llava": llava, "qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl,
    "gemma3": gemma3, "internvl": internvl,
}  # fmt: skip


def drawn(family: str) -> Case:
    """The case of a family whose config is all drawn: give ``parity.world`` a seed of your own."""
    return Case(f"{family}, drawn", family, CONFIGS[family], fixed=family in ("llava", "gemma3", "internvl"))
