"""InternVL 3 and 3.5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parities.tiny.parts import EXPERTS, IMAGE_TOKEN, PATCH, Case, text, vit


def internvl(decoder: dict[str, Any], **vision: Any) -> Callable[[np.random.Generator], Any]:
    def config(rng: np.random.Generator) -> Any:
        from transformers import InternVLConfig

        return InternVLConfig(
            vision_config=vit("internvl_vision", image_size=4 * PATCH, **vision), text_config=decoder,
            image_token_id=IMAGE_TOKEN, tie_word_embeddings=False,
        )  # fmt: skip

    return config


CASES = (
    Case("internvl", "internvl", internvl(text("qwen2", head_dim=8)), fixed=True),
    Case("internvl, 6B's tower", "internvl",
         internvl(text("qwen2", head_dim=8), use_qk_norm=True, attention_bias=True, norm_type="rms_norm"), fixed=True),
    Case("internvl, experts", "internvl",
         internvl(text("qwen3_moe", **EXPERTS, norm_topk_prob=True, mlp_only_layers=[0])), fixed=True),
)  # fmt: skip
