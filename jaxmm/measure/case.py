"""What jaxmm and PyTorch are compared on: one packed batch of a LLaVA model, as each side takes it.

Rows hold documents of equal layout: an image of a fixed grid, then text. Both sides read the same weights.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

IMAGE_TOKEN = 0
RATE, CLIP, DECAY = 3e-4, 1.0, 0.1
BETAS, EPS = (0.9, 0.95), 1e-8


@dataclasses.dataclass(frozen=True)
class PeerCase:
    """Sizes of a model and of its batch.

    Attributes:
      grid: patches a side of an image.
      documents: of each row, each an image and ``text`` tokens.
      rank: of adapters on all linear maps but the vocabulary's, over frozen weights; 0 trains all of them.
      loader: whether documents are read from files, and their JPEGs decoded, while the step runs; else one batch of
        noise is in memory.
    """

    vision_layers: int = 4
    vision_width: int = 192
    vision_heads: int = 3
    vision_mlp: int = 768
    patch: int = 16
    grid: int = 14
    layers: int = 4
    width: int = 256
    heads: int = 4
    kv_heads: int = 4
    mlp: int = 688
    vocabulary: int = 4096
    rows: int = 4
    documents: int = 4
    text: int = 60
    rank: int = 0
    loader: bool = False

    @property
    def length(self) -> int:
        """Positions of a row."""
        return self.documents * (self.grid**2 + self.text)

    @property
    def targets(self) -> int:
        """Predicted tokens of a row; of the batch in memory, the first of each text is not one."""
        return self.documents * (self.text if self.loader else self.text - 1)

    @property
    def side(self) -> int:
        """Pixels."""
        return self.grid * self.patch

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def load(cls, path: Path) -> PeerCase:
        return cls(**json.loads(path.read_text()))

    def llava(self) -> Any:
        """The model's config in ``transformers``."""
        from transformers import LlavaConfig

        vision = {
            "model_type": "siglip_vision_model", "hidden_size": self.vision_width, "intermediate_size": self.vision_mlp,
            "num_hidden_layers": self.vision_layers, "num_attention_heads": self.vision_heads,
            "patch_size": self.patch, "image_size": self.side, "vision_use_head": False,
        }  # fmt: skip
        text = {
            "model_type": "llama", "vocab_size": self.vocabulary, "hidden_size": self.width,
            "intermediate_size": self.mlp, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.width // self.heads,
            "max_position_embeddings": self.length, "bos_token_id": 1, "eos_token_id": 2,
        }  # fmt: skip
        return LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN, vision_feature_layer=-1,
            vision_feature_select_strategy="full", tie_word_embeddings=False,
        )  # fmt: skip

    def tokens(self, seed: int) -> np.ndarray:
        """int64 (rows, length), image tokens in the places of patches."""
        rng = np.random.default_rng(seed)
        text = rng.integers(3, self.vocabulary, (self.rows, self.documents, self.text))
        image = np.full((self.rows, self.documents, self.grid**2), IMAGE_TOKEN)
        return np.concatenate([image, text], -1).reshape(self.rows, self.length)

    def pixels(self, seed: int) -> np.ndarray:
        """uint8 (rows * documents, side, side, 3)."""
        rng = np.random.default_rng(seed + 1)
        return rng.integers(0, 256, (self.rows * self.documents, self.side, self.side, 3)).astype(np.uint8)

    def segments(self) -> np.ndarray:
        """int32 (rows, length), documents from 1."""
        row = np.repeat(np.arange(1, self.documents + 1), self.length // self.documents)
        return np.broadcast_to(row, (self.rows, self.length)).astype(np.int32)

    def positions(self) -> np.ndarray:
        """int32 (rows, length), from 0 in each document."""
        row = np.tile(np.arange(self.length // self.documents), self.documents)
        return np.broadcast_to(row, (self.rows, self.length)).astype(np.int32)
