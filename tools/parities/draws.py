"""Models of sizes and features that nobody chose: each family's config drawn from what it may hold.

A draw is a ``Case`` like those that are named, so that whatever compares these compares it too. ``DRAWN`` is the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parities.drawn_parts import (
    ACTIVATIONS,
    LLAMAS,
    Draw,
    any_decoder,
    decoder,
    layer_types,
    qwen_tower,
    rope,
    tower,
    turns,
)
from parities.tiny.parts import BREAK_TOKEN, END_TOKEN, IMAGE_TOKEN, QWEN_TOKENS, START_TOKEN, VIDEO_TOKEN, Case


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
    return LlavaConfig(**llava_parts(draw))


def llava_parts(draw: Draw) -> dict[str, Any]:
    """What LLaVA, LLaVA-NeXT and LLaVA-OneVision have: a tower of squares, any decoder, and what joins them."""
    is_clip = draw.maybe()
    vision = tower(draw, "clip_vision_model" if is_clip else "siglip_vision_model")
    # What is left of the image beside whole patches is not seen.
    vision["image_size"] = vision["patch_size"] * draw.between(1, 6)
    vision |= {"projection_dim": 20} if is_clip else {"vision_use_head": draw.maybe()}
    layers = vision["num_hidden_layers"]
    one = draw.of(-1, -layers, draw.between(1, layers), -draw.between(1, layers))
    several = [draw.of(-1, 1) * draw.between(1, layers) for _ in range(draw.between(1, 3))]
    return {
        "vision_config": vision, "text_config": any_decoder(draw), "image_token_index": IMAGE_TOKEN,
        "vision_feature_layer": draw.of(one, one, several), "multimodal_projector_bias": draw.maybe(),
        "vision_feature_select_strategy": "default" if is_clip else "full",
        "projector_hidden_act": draw.of(*ACTIVATIONS), "tie_word_embeddings": draw.maybe(),
    }  # fmt: skip


def any_resolution(kind: str, **more: Any) -> Callable[[np.random.Generator], Any]:
    """LLaVA-NeXT and LLaVA-OneVision."""

    def config(rng: np.random.Generator) -> Any:
        import transformers

        draw = Draw(rng)
        parts = llava_parts(draw)
        patch = parts["vision_config"]["patch_size"]
        side = patch * draw.between(1, 4) + draw.between(0, patch - 1)
        parts["vision_config"]["image_size"] = side
        grids = [
            [1, draw.between(1, 4)],
            *([draw.between(1, 4), draw.between(1, 4)] for _ in range(draw.between(0, 5))),
        ]
        most = {"vision_aspect_ratio": f"anyres_max_{draw.between(1, 9)}"} if "video_token_index" in more else {}
        return getattr(transformers, kind)(
            **parts, **most, **more, image_grid_pinpoints=[[rows * side, columns * side] for rows, columns in grids]
        )

    return config


def qwen2_vl(rng: np.random.Generator) -> Any:
    from transformers import Qwen2VLConfig

    draw = Draw(rng)
    text = decoder(draw, "qwen2_vl_text", free_head_dim=False)
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
    vision = qwen_tower(draw, text)
    least = vision["spatial_merge_size"] * vision["patch_size"]
    vision["window_size"] = draw.between(least, 5 * least)
    vision["fullatt_block_indexes"] = draw.some(vision["depth"] + 1)
    return Qwen2_5_VLConfig(
        vision_config=vision, text_config=text, tie_word_embeddings=draw.maybe(), **QWEN_TOKENS
    )  # fmt: skip


def qwen3(kind: str, text_kind: str, taps: bool = False) -> Callable[[np.random.Generator], Any]:
    """Qwen3-VL and 3.5, with experts and without; ``kind``: the config's class. ``taps``: it has DeepStack."""

    def config(rng: np.random.Generator) -> Any:
        import transformers

        draw = Draw(rng)
        text = decoder(draw, text_kind)
        vision = qwen_tower(draw, text) | {"num_position_embeddings": draw.between(1, 7) ** 2}
        vision |= {"deepstack_visual_indexes": draw.some(vision["depth"])} if taps else {}
        return getattr(transformers, kind)(
            vision_config=vision, text_config=text, tie_word_embeddings=draw.maybe(), **QWEN_TOKENS
        )

    return config


def glm(kind: str, part: str = "glm4v") -> Callable[[np.random.Generator], Any]:
    """GLM-4.1V, 4.5V and 4.6V, and GLM-OCR; ``part``: what the names of their parts begin with."""

    def config(rng: np.random.Generator) -> Any:
        import transformers

        draw = Draw(rng)
        text = decoder(draw, f"{part}_text", free_head_dim=part != "glm4v")
        vision = qwen_tower(draw, text) | {"model_type": f"{part}_vision", "attention_bias": draw.maybe()}
        vision |= {"image_size": vision["patch_size"] * draw.between(2, 7), "rms_norm_eps": draw.of(1e-5, 1e-3)}
        tokens = {key: value for key, value in QWEN_TOKENS.items() if not key.startswith("vision")}
        around = {"image_start_token_id": START_TOKEN, "image_end_token_id": END_TOKEN}
        return getattr(transformers, kind)(
            vision_config=vision, text_config=text, tie_word_embeddings=draw.maybe(), **tokens, **around
        )

    return config


def paddleocr_vl(rng: np.random.Generator) -> Any:
    from transformers import PaddleOCRVLConfig

    draw = Draw(rng)
    text = decoder(draw, "paddleocr_vl_text")
    vision = tower(draw, "paddleocr_vl_vision", rope_parameters=turns(draw), spatial_merge_size=draw.between(1, 3))
    vision |= {
        "hidden_size": vision["num_attention_heads"] * 4 * draw.between(1, 3),
        "image_size": vision["patch_size"] * draw.between(2, 7),
    }  # fmt: skip
    return PaddleOCRVLConfig(
        vision_config=vision, text_config=text, tie_word_embeddings=text["tie_word_embeddings"], **QWEN_TOKENS
    )  # fmt: skip


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


def paligemma(rng: np.random.Generator) -> Any:
    """Both, with rotary positions that do not depend on the length of a document."""
    from transformers import PaliGemmaConfig

    draw = Draw(rng)
    text = decoder(draw, draw.of("gemma", "gemma2"))
    while text["rope_parameters"]["rope_type"] in ("dynamic", "longrope"):
        text["rope_parameters"] = rope(draw, text["head_dim"], text["max_position_embeddings"])
    if text["model_type"] == "gemma2":
        del text["hidden_act"]
        text |= layer_types(draw, text, "sliding_attention")
    vision = tower(draw, "siglip_vision_model", vision_use_head=draw.maybe())
    vision["image_size"] = vision["patch_size"] * draw.between(1, 6)
    return PaliGemmaConfig(
        vision_config=vision, text_config=text, projection_dim=text["hidden_size"], image_token_index=IMAGE_TOKEN,
        tie_word_embeddings=draw.maybe(),
    )  # fmt: skip


def gemma4(rng: np.random.Generator) -> Any:
    from transformers import Gemma4Config

    draw = Draw(rng)
    text = decoder(draw, "gemma4_text")
    heads = text["num_attention_heads"]
    del text["hidden_act"]
    text["num_hidden_layers"] += 1
    text |= layer_types(draw, text, "sliding_attention") | {
        "head_dim": 2 * draw.between(2, 8), "global_head_dim": 2 * draw.between(2, 8),
        "num_global_key_value_heads": draw.of(*(n for n in range(1, heads + 1) if heads % n == 0)),
        "hidden_activation": draw.of(*ACTIVATIONS), "sliding_window": draw.between(1, 12),
        "attention_k_eq_v": draw.maybe(), "hidden_size_per_layer_input": 0,
        "use_bidirectional_attention": draw.of(None, "vision"), "final_logit_softcapping": draw.of(None, 1.5),
        "rope_parameters": {
            "full_attention": draw.of(
                {"rope_type": "default"}, {"rope_type": "proportional", "partial_rotary_factor": draw.of(0.25, 0.5)}
            ) | {"rope_theta": draw.of(1e4, 1e6)},
            "sliding_attention": {"rope_type": "default", "rope_theta": draw.of(100.0, 1e4)},
        },
    }  # fmt: skip
    text["layer_types"][-1] = "full_attention"  # as its class makes it
    vision = tower(draw, "gemma4_vision")
    dim = 4 * draw.between(1, 4)
    vision |= {
        "head_dim": dim, "hidden_size": dim * vision["num_attention_heads"], "rope_parameters": turns(draw),
        "num_key_value_heads": vision["num_attention_heads"], "hidden_activation": vision.pop("hidden_act"),
        "rms_norm_eps": vision.pop("layer_norm_eps"), "pooling_kernel_size": draw.between(2, 3),
        "position_embedding_size": 240, "standardize": draw.maybe(),
    }  # fmt: skip
    return Gemma4Config(
        vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN, video_token_id=VIDEO_TOKEN,
        boi_token_id=START_TOKEN, eoi_token_id=END_TOKEN, audio_token_id=198, tie_word_embeddings=draw.maybe(),
    )  # fmt: skip


def squares(kind: str, vision_kind: str) -> Callable[[np.random.Generator], Any]:
    """Idefics 3 and SmolVLM 2, with sides that are powers of two: no rounding moves a position (``hf/towers.py``)."""

    def config(rng: np.random.Generator) -> Any:
        import transformers

        draw = Draw(rng)
        merge, vision = draw.of(1, 2, 4), tower(draw, vision_kind)
        vision["image_size"] = vision["patch_size"] * max(merge, draw.of(2, 4, 8))
        return getattr(transformers, kind)(
            vision_config=vision, text_config=any_decoder(draw), image_token_id=IMAGE_TOKEN, scale_factor=merge,
            tie_word_embeddings=draw.maybe(),
        )  # fmt: skip

    return config


def pixtral_tower(draw: Draw) -> dict[str, Any]:
    vision = tower(draw, "pixtral")
    return vision | {
        "hidden_size": vision["num_attention_heads"] * 4 * draw.between(1, 4),
        "image_size": vision["patch_size"] * draw.between(12, 20), "rope_parameters": turns(draw),
    }  # fmt: skip


def mistral3(rng: np.random.Generator) -> Any:
    from transformers import Mistral3Config

    draw = Draw(rng)
    return Mistral3Config(
        vision_config=pixtral_tower(draw), text_config=any_decoder(draw, LLAMAS), image_token_index=IMAGE_TOKEN,
        spatial_merge_size=draw.between(1, 3), multimodal_projector_bias=draw.maybe(),
        projector_hidden_act=draw.of(*ACTIVATIONS), tie_word_embeddings=draw.maybe(),
    )  # fmt: skip


def pixtral(rng: np.random.Generator) -> Any:
    from transformers import LlavaConfig

    draw = Draw(rng)
    return LlavaConfig(
        vision_config=pixtral_tower(draw), text_config=any_decoder(draw, LLAMAS), image_token_index=IMAGE_TOKEN,
        multimodal_projector_bias=draw.maybe(), projector_hidden_act=draw.of(*ACTIVATIONS), vision_feature_layer=-1,
        vision_feature_select_strategy="full", tie_word_embeddings=draw.maybe(),
    )  # fmt: skip


# What is drawn of each family; the others have named cases alone.
DRAWN = tuple(
    case._replace(name=f"{case.name}, drawn")
    for case in (
        Case("lfm2_vl", "lfm2_vl", lfm2_vl),
        Case("llava", "llava", llava, fixed=True),
        Case("llava_next", "llava_next", any_resolution("LlavaNextConfig"), fixed=True),
        Case(
            "llava_onevision",
            "llava_onevision",
            any_resolution("LlavaOnevisionConfig", video_token_index=VIDEO_TOKEN),
            fixed=True,
        ),
        Case("qwen2_vl", "qwen2_vl", qwen2_vl),
        Case("qwen2_5_vl", "qwen2_5_vl", qwen2_5_vl),
        Case("qwen3_vl", "qwen3_vl", qwen3("Qwen3VLConfig", "qwen3_vl_text", taps=True)),
        Case("qwen3_vl_moe", "qwen3_vl_moe", qwen3("Qwen3VLMoeConfig", "qwen3_vl_moe_text", taps=True)),
        Case("qwen3_5", "qwen3_5", qwen3("Qwen3_5Config", "qwen3_5_text")),
        Case("qwen3_5_moe", "qwen3_5_moe", qwen3("Qwen3_5MoeConfig", "qwen3_5_moe_text")),
        Case("gemma3", "gemma3", gemma3, fixed=True),
        Case("paligemma", "paligemma", paligemma, fixed=True),
        Case("gemma4", "gemma4", gemma4),
        Case("internvl", "internvl", internvl, fixed=True),
        Case("idefics3", "idefics3", squares("Idefics3Config", "idefics3_vision"), fixed=True),
        Case("smolvlm", "smolvlm", squares("SmolVLMConfig", "smolvlm_vision"), fixed=True),
        Case("mistral3", "mistral3", mistral3, row_break=BREAK_TOKEN),
        Case("pixtral", "llava_pixtral", pixtral, row_break=BREAK_TOKEN),
        Case("glm4v", "glm4v", glm("Glm4vConfig")),
        Case("glm46v", "glm46v", glm("Glm46VConfig")),
        Case("glm4v_moe", "glm4v_moe", glm("Glm4vMoeConfig", "glm4v_moe")),
        Case("glm_ocr", "glm_ocr", glm("GlmOcrConfig", "glm_ocr")),
        Case("paddleocr_vl", "paddleocr_vl", paddleocr_vl),
    )
)
