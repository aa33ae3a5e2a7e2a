"""Tiny random models of ``transformers``, one or more for each family: what parity is measured against.

Sizes are unequal wherever a model lets them be, so that no two dims can be mistaken for each other.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

VOCABULARY = 203
IMAGE_TOKEN, VIDEO_TOKEN, START_TOKEN, END_TOKEN = 202, 201, 200, 199
BREAK_TOKEN = 198
TEXT_TOKENS = (3, 198)  # drawn from, the last one exclusive
PATCH = 4


def let_torchvision_import() -> None:
    """Declares torchvision's operators where its own library does not load, as that of a CUDA build without CUDA.

    ``transformers`` imports torchvision for its image processors, which need none of these operators.
    """
    import torch

    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        return
    if hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    source = Path(found.submodule_search_locations[0], "_meta_registrations.py").read_text()
    for name in sorted(set(re.findall(r'"(?:torchvision::)?(\w+)"\)', source))):
        library.define(f"{name}(Tensor x) -> Tensor")
    _KEPT.append(library)


_KEPT: list[Any] = []  # torch forgets a library's operators when it is gone


class Case(NamedTuple):
    """One kind of model.

    Attributes:
      name: of the case; ``family``: of docs and tables.
      config: makes the config of ``transformers``, of a family's class, from a generator of numbers.
      fixed: all images have the tower's own grid.
      row_break: the token between two rows of an image; 0 is none.
    """

    name: str
    family: str
    config: Callable[[np.random.Generator], Any]
    fixed: bool = False
    row_break: int = 0

    def grid(self, config: Any) -> int:
        """Patches on a side of every image, by the config of a model of this case; 0 where it takes any shape."""

        def side(size: Any) -> int:
            return size[0] if isinstance(size, (list, tuple)) else size

        vision = config.vision_config
        return side(vision.image_size) // side(vision.patch_size) if self.fixed else 0

    @staticmethod
    def sizes(config: Any) -> list[list[int]]:
        """(height, width) in pixels of the squares that are read as one picture; [] where none are."""
        return getattr(config, "image_grid_pinpoints", [])

    @staticmethod
    def most(config: Any) -> int:
        """How many squares' worth of their soft tokens are read at most; 0 is all."""
        return int(getattr(config, "vision_aspect_ratio", "0").rpartition("_")[2])


def text(kind: str, **changes: Any) -> dict[str, Any]:
    """A decoder's config, of 6 heads of 16 over 2 key-value heads, 3 layers."""
    sizes = {
        "model_type": kind, "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 72,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    return sizes | changes


def lfm2(*kinds: str, **changes: Any) -> dict[str, Any]:
    """LFM2's decoder, with layers of these types."""
    return text(
        "lfm2", head_dim=8, num_hidden_layers=len(kinds), layer_types=list(kinds), block_multiple_of=8, **changes
    )


def vit(kind: str, **changes: Any) -> dict[str, Any]:
    sizes = {
        "model_type": kind, "hidden_size": 24, "intermediate_size": 44, "num_hidden_layers": 3,
        "num_attention_heads": 3, "patch_size": PATCH,
    }  # fmt: skip
    return sizes | changes


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


def lfm2_vl(decoder: dict[str, Any], **changes: Any) -> Callable[[np.random.Generator], Any]:
    def config(rng: np.random.Generator) -> Any:
        from transformers import Lfm2VlConfig

        vision = vit("siglip2_vision_model", num_patches=int(rng.integers(3, 7)) ** 2, vision_use_head=False)
        sizes = {"projector_hidden_size": 56, "image_token_id": IMAGE_TOKEN, "tie_word_embeddings": False}
        return Lfm2VlConfig(vision_config=vision, text_config=decoder, **(sizes | changes))

    return config


def llava(vision: dict[str, Any], decoder: dict[str, Any], **changes: Any) -> Callable[[np.random.Generator], Any]:
    def config(rng: np.random.Generator) -> Any:
        from transformers import LlavaConfig

        return LlavaConfig(vision_config=vision, text_config=decoder, image_token_index=IMAGE_TOKEN, **changes)

    return config


def llava_next(rng: np.random.Generator) -> Any:
    from transformers import LlavaNextConfig

    vision = CLIP | {"num_hidden_layers": 2, "image_size": 2 * PATCH}
    decoder = text("mistral", num_hidden_layers=1, sliding_window=None)
    return LlavaNextConfig(
        vision_config=vision, text_config=decoder, image_token_index=IMAGE_TOKEN, image_grid_pinpoints=GRIDS
    )


def llava_onevision(rng: np.random.Generator) -> Any:
    """Of each square two pixels are left over behind its patches, as of the releases' six."""
    from transformers import LlavaOnevisionConfig

    vision = vit("siglip_vision_model", image_size=OVER, num_hidden_layers=2, vision_use_head=False)
    decoder = text("qwen2", head_dim=8, num_hidden_layers=1)
    return LlavaOnevisionConfig(
        vision_config=vision, text_config=decoder, image_token_index=IMAGE_TOKEN, video_token_index=VIDEO_TOKEN,
        image_grid_pinpoints=ALL_GRIDS, vision_aspect_ratio="anyres_max_2",
    )  # fmt: skip


# Their models take patches in the order of merge groups, each as equal frames, and a grid for each picture.
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v", "glm46v",
        "glm4v_moe", "glm_ocr")  # fmt: skip
QWEN_TOKENS: dict[str, Any] = {
    "image_token_id": IMAGE_TOKEN, "video_token_id": VIDEO_TOKEN, "vision_start_token_id": START_TOKEN,
    "vision_end_token_id": END_TOKEN,
}  # fmt: skip


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


def qwen3_vl_moe(rng: np.random.Generator) -> Any:
    from transformers import Qwen3VLMoeConfig

    config = qwen3_vl(rng)
    decoder = text("qwen3_vl_moe_text", **EXPERTS, **rope("default", mrope_section=[4, 2, 2], mrope_interleaved=True))
    vision = {key: value for key, value in config.vision_config.to_dict().items() if key != "model_type"}
    return Qwen3VLMoeConfig(vision_config=vision, text_config=decoder, tie_word_embeddings=False, **QWEN_TOKENS)


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


def paligemma(decoder: dict[str, Any]) -> Callable[[np.random.Generator], Any]:
    def config(rng: np.random.Generator) -> Any:
        from transformers import PaliGemmaConfig

        return PaliGemmaConfig(
            vision_config=vit("siglip_vision_model", image_size=4 * PATCH, vision_use_head=False), text_config=decoder,
            projection_dim=48, image_token_index=IMAGE_TOKEN,
        )  # fmt: skip

    return config


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


def internvl(decoder: dict[str, Any], **vision: Any) -> Callable[[np.random.Generator], Any]:
    def config(rng: np.random.Generator) -> Any:
        from transformers import InternVLConfig

        return InternVLConfig(
            vision_config=vit("internvl_vision", image_size=4 * PATCH, **vision), text_config=decoder,
            image_token_id=IMAGE_TOKEN, tie_word_embeddings=False,
        )  # fmt: skip

    return config


def squares(family: str) -> Callable[[np.random.Generator], Any]:
    """Idefics 3, or SmolVLM 2, which is the same."""

    def config(rng: np.random.Generator) -> Any:
        import transformers

        kind = {"idefics3": transformers.Idefics3Config, "smolvlm": transformers.SmolVLMConfig}[family]
        return kind(
            vision_config=vit(f"{family}_vision", image_size=4 * PATCH), text_config=text("llama"),
            image_token_id=IMAGE_TOKEN, tie_word_embeddings=family == "smolvlm",
        )  # fmt: skip

    return config


def mistral3(rng: np.random.Generator) -> Any:
    from transformers import Mistral3Config

    vision = vit(
        "pixtral", image_size=8 * PATCH, head_dim=8, rope_parameters={"rope_type": "axial", "rope_theta": 100.0}
    )
    return Mistral3Config(
        vision_config=vision, text_config=text("mistral"), image_token_index=IMAGE_TOKEN, tie_word_embeddings=False,
    )  # fmt: skip


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


def paddleocr_vl(rng: np.random.Generator) -> Any:
    from transformers import PaddleOCRVLConfig

    decoder = text(
        "paddleocr_vl_text", use_bias=True, tie_word_embeddings=False, **rope("default", mrope_section=[4, 2, 2])
    )
    vision = vit("paddleocr_vl_vision", image_size=int(rng.integers(3, 7)) * PATCH)
    return PaddleOCRVLConfig(vision_config=vision, text_config=decoder, tie_word_embeddings=False, **QWEN_TOKENS)


CLIP = vit("clip_vision_model", image_size=4 * PATCH, projection_dim=20)
SIGLIP = vit("siglip_vision_model", image_size=5 * PATCH)
GRIDS = [[rows * 2 * PATCH, columns * 2 * PATCH] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
OVER = 3 * PATCH + 2
ALL_GRIDS = [[rows * OVER, columns * OVER] for rows in (1, 2, 3) for columns in (1, 2, 3)]
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 28}
LONGROPE = {"original_max_position_embeddings": 8, "short_factor": [1.0 + i / 8 for i in range(8)],
            "long_factor": [2.0 + i for i in range(8)]}  # fmt: skip

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
    Case("llava, clip", "llava", llava(CLIP, text("llama")), fixed=True),
    Case("llava, clip, two layers", "llava", llava(CLIP, text("llama"), vision_feature_layer=[-2, 1]), fixed=True),
    Case("llava, siglip", "llava",
         llava(SIGLIP, text("qwen2", head_dim=8), vision_feature_select_strategy="full"), fixed=True),
    Case("llava-next", "llava_next", llava_next, fixed=True),
    Case("llava-onevision", "llava_onevision", llava_onevision, fixed=True),
    Case("qwen2-vl", "qwen2_vl", qwen2_vl),
    Case("qwen2.5-vl", "qwen2_5_vl", qwen2_5_vl),
    Case("qwen3-vl", "qwen3_vl", qwen3_vl),
    Case("qwen3.5", "qwen3_5", qwen3_5),
    Case("qwen3.5, experts", "qwen3_5_moe", qwen3_5_moe),
    Case("qwen3-vl, experts", "qwen3_vl_moe", qwen3_vl_moe),
    Case("gemma", "lfm2_vl", lfm2_vl(text("gemma"), tie_word_embeddings=True)),
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
    Case("internvl", "internvl", internvl(text("qwen2", head_dim=8)), fixed=True),
    Case("idefics3", "idefics3", squares("idefics3"), fixed=True),
    Case("smolvlm", "smolvlm", squares("smolvlm"), fixed=True),
    Case("internvl, 6B's tower", "internvl",
         internvl(text("qwen2", head_dim=8), use_qk_norm=True, attention_bias=True, norm_type="rms_norm"), fixed=True),
    Case("internvl, experts", "internvl",
         internvl(text("qwen3_moe", **EXPERTS, norm_topk_prob=True, mlp_only_layers=[0])), fixed=True),
    Case("mistral3", "mistral3", mistral3, row_break=BREAK_TOKEN),
    Case("glm-4.1v", "glm4v", glm4v),
    Case("glm-4.6v-flash", "glm46v", glm46v),
    Case("glm-4.5v", "glm4v_moe", glm4v_moe),
    Case("glm-ocr", "glm_ocr", glm_ocr),
    Case("paddleocr-vl", "paddleocr_vl", paddleocr_vl),
)  # fmt: skip


def case(name: str, cases: Sequence[Case] = CASES) -> Case:
    return next(c for c in cases if c.name == name)


def make(case: Case, folder: Path, seed: int = 0) -> Any:
    """Saves a model of random weights, none of them at its initial value; returns it, ready for evaluation."""
    let_torchvision_import()
    import torch
    import transformers

    rng = np.random.default_rng(seed)
    config = case.config(rng)
    torch.manual_seed(seed)
    kind: Any = transformers.AutoModelForImageTextToText._model_mapping[type(config)]
    # torch's grouped matmul takes no experts of odd sizes.
    plainly = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = kind._from_config(config, **plainly).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            is_scale = parameter.ndim == 1 and bool((parameter == 1).all())
            parameter.copy_(0.15 * torch.randn_like(parameter) + float(is_scale))
        if (
            config.text_config.model_type == "gemma4_text"
        ):  # whose logits of attention have no scale but that of these norms
            for name, parameter in model.named_parameters():
                parameter *= 0.3 if name.endswith("q_norm.weight") else 1.0
        kept = set(model.state_dict())
        for name, buffer in model.named_buffers():
            if name in kept and buffer.is_floating_point():
                drawn = 0.15 * torch.randn_like(buffer) + float(bool((buffer == 1).all()))
                side = -1.0 if name.endswith("_min") else 1.0
                buffer.copy_(side * (0.5 + drawn.abs()) if name.endswith(("_min", "_max")) else drawn)
    model.save_pretrained(folder)
    if case.family in AS_RELEASED:
        rewrite(folder / "model.safetensors", AS_RELEASED[case.family])
    return model


def rewrite(file: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = {name: np.ascontiguousarray(x) for name, x in change(load_file(file)).items()}
    save_file(tensors, file, {"format": "pt"})


def turned(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Experts as Qwen3-VL's releases have them: the other way round than ``transformers`` writes them."""
    return {name: x.swapaxes(1, 2) if ".experts." in name else x for name, x in tensors.items()}


def fused(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Experts as Qwen3.5's releases have them: one tensor of all of a layer, where ``transformers`` writes each."""
    found: dict[str, np.ndarray] = {name: x for name, x in tensors.items() if ".experts." not in name}
    for prefix in sorted({name.partition("experts.")[0] + "experts." for name in tensors if ".experts." in name}):
        count = sum(name.startswith(prefix) for name in tensors) // 3
        of = {
            part: np.stack([tensors[f"{prefix}{n}.{part}_proj.weight"] for n in range(count)])
            for part in ("gate", "up", "down")
        }
        found |= {f"{prefix}gate_up_proj": np.concatenate([of["gate"], of["up"]], 1), f"{prefix}down_proj": of["down"]}
    return found


# What makes of the tensors that ``transformers`` writes those that releases have, by family.
AS_RELEASED = {"qwen3_vl_moe": turned, "qwen3_5_moe": fused}
