"""The PyTorch side of the comparison: ``transformers``' LLaVA with SDPA under a block mask, AdamW, clipping."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peer_case import BETAS, CLIP, DECAY, EPS, RATE, PeerCase


def make(case: PeerCase, folder: Path, seed: int) -> None:
    """Saves the model that both sides start from."""
    import torch
    import transformers

    torch.manual_seed(seed)
    model = transformers.LlavaForConditionalGeneration(case.llava())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.02)
    model.save_pretrained(folder)


class Peer:
    """A model that is stepped; ``kind`` is "float32", "bf16" (autocast) or "compiled" (bf16, torch.compile)."""

    def __init__(self, case: PeerCase, folder: Path, seed: int, kind: str):
        import torch
        import transformers

        self.torch, self.case, self.kind = torch, case, kind
        model: Any = transformers.LlavaForConditionalGeneration.from_pretrained(
            folder, attn_implementation="sdpa", dtype=torch.float32
        )
        self.model = model.train()
        decayed = [p for p in model.parameters() if p.ndim > 1]
        plain = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPS, fused=True)
        self.forward: Callable[..., Any] = torch.compile(model) if kind == "compiled" else model
        self.batch = self._batch(case.tokens(seed))
        self.batch["pixel_values"] = self.normalised(case.pixels(seed))

    def _batch(self, tokens: np.ndarray) -> dict[str, Any]:
        """The block mask: a position sees what came before it in its document."""
        torch, case = self.torch, self.case
        segments = torch.tensor(case.segments())
        index = torch.arange(case.length)
        seen = (segments[:, :, None] == segments[:, None]) & (index[:, None] >= index)[None]
        labels = torch.tensor(tokens)
        first = torch.tensor(case.positions() <= case.grid**2)  # images, and the text token that an image foretells
        return {
            "input_ids": torch.tensor(tokens),
            "attention_mask": seen[:, None],
            "position_ids": torch.tensor(case.positions()).long(),
            "labels": torch.where(first, -100, labels),
        }

    def normalised(self, pixels: np.ndarray) -> Any:
        """float32 (images, 3, side, side)."""
        torch = self.torch
        return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5

    def step(self) -> float:
        """Runs one step; returns its loss."""
        torch = self.torch
        with torch.autocast("cpu", torch.bfloat16, enabled=self.kind != "float32"):
            loss = self.forward(**self.batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss)
