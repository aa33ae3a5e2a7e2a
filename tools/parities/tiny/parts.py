"""What the tiny models share: tokens, sizes of towers and decoders, and what a case is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

VOCABULARY = 203
IMAGE_TOKEN, VIDEO_TOKEN, START_TOKEN, END_TOKEN = 202, 201, 200, 199
BREAK_TOKEN = 198
TEXT_TOKENS = (3, 198)  # drawn from, the last one exclusive
PATCH = 4
QWEN_TOKENS: dict[str, Any] = {
    "image_token_id": IMAGE_TOKEN, "video_token_id": VIDEO_TOKEN, "vision_start_token_id": START_TOKEN,
    "vision_end_token_id": END_TOKEN,
}  # fmt: skip
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 28}
# Their models take patches in the order of merge groups, each as equal frames, and a grid for each picture.
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v", "glm46v",
        "glm4v_moe", "glm_ocr")  # fmt: skip


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


def vit(kind: str, **changes: Any) -> dict[str, Any]:
    sizes = {
        "model_type": kind, "hidden_size": 24, "intermediate_size": 44, "num_hidden_layers": 3,
        "num_attention_heads": 3, "patch_size": PATCH,
    }  # fmt: skip
    return sizes | changes


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}
