"""LLaVA, LLaVA-NeXT and LLaVA-OneVision: towers of squares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parities.tiny.parts import IMAGE_TOKEN, PATCH, VIDEO_TOKEN, Case, text, vit

CLIP = vit("clip_vision_model", image_size=4 * PATCH, projection_dim=20)
SIGLIP = vit("siglip_vision_model", image_size=5 * PATCH)
GRIDS = [[rows * 2 * PATCH, columns * 2 * PATCH] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
OVER = 3 * PATCH + 2
ALL_GRIDS = [[rows * OVER, columns * OVER] for rows in (1, 2, 3) for columns in (1, 2, 3)]


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


CASES = (
    Case("llava, clip", "llava", llava(CLIP, text("llama")), fixed=True),
    Case("llava, clip, two layers", "llava", llava(CLIP, text("llama"), vision_feature_layer=[-2, 1]), fixed=True),
    Case("llava, siglip", "llava",
         llava(SIGLIP, text("qwen2", head_dim=8), vision_feature_select_strategy="full"), fixed=True),
    Case("llava-next", "llava_next", llava_next, fixed=True),
    Case("llava-onevision", "llava_onevision", llava_onevision, fixed=True),
)  # fmt: skip
