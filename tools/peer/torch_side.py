"""The PyTorch side of the comparison: ``transformers``' LLaVA with SDPA under a block mask, AdamW, clipping."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from jaxmm.measure.case import BETAS, CLIP, DECAY, EPS, IMAGE_TOKEN, RATE, PeerCase


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


def batch_of(case: PeerCase, tokens: np.ndarray, pixels: np.ndarray) -> dict[str, Any]:
    """The model's inputs, under the block mask: a position sees what came before it in its document."""
    import torch

    segments = torch.tensor(case.segments())
    index = torch.arange(case.length)
    seen = (segments[:, :, None] == segments[:, None]) & (index[:, None] >= index)[None]
    # Images are no targets; without a loader nor is the text token that an image foretells.
    ignored = torch.tensor(case.positions() <= case.grid**2 - case.loader)
    return {
        "input_ids": torch.tensor(tokens),
        "attention_mask": seen[:, None],
        "position_ids": torch.tensor(case.positions()).long(),
        "labels": torch.where(ignored, -100, torch.tensor(tokens)),
        "pixel_values": (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5,
    }


class Rows:
    """A dataset for PyTorch's DataLoader: element k is batch k of jaxmm's plan, read and decoded here by Pillow."""

    def __init__(self, case: PeerCase, folder: Path, seed: int):
        from jaxmm.measure import case_data as peer_data

        self.case, self.documents = case, peer_data.read(case, folder, seed)

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, k: int) -> dict[str, Any]:
        case, prepared = self.case, self.documents.lengths.prepared
        records = [prepared.read(piece.example) for row in self.documents.plan.batch(k) for piece in row]
        image = np.full(case.grid**2, IMAGE_TOKEN)
        tokens = np.stack([np.concatenate([image, record.tokens]) for record in records])
        pixels = np.stack([self._pixels(record.images[0]) for record in records])
        return batch_of(case, tokens.reshape(case.rows, case.length).astype(np.int64), pixels)

    def _pixels(self, image: Any) -> np.ndarray:
        """uint8 (side, side, 3)."""
        with PIL.Image.open(image.path or io.BytesIO(image.data)) as opened:
            small = opened.convert("RGB").resize((self.case.side, self.case.side), PIL.Image.Resampling.BICUBIC)
            return np.asarray(small)


def loaded(case: PeerCase, folder: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Batches made ahead by a process of PyTorch's loader."""
    from torch.utils.data import DataLoader

    rows: Any = Rows(case, folder, seed)
    return iter(DataLoader(rows, batch_size=None, shuffle=False, num_workers=1, prefetch_factor=4))


def with_adapters(model: Any, rank: int) -> Any:
    """PEFT's adapters on all linear maps but the vocabulary's; the rest is frozen."""
    import peft
    import torch

    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    targets = [name for name in names if "lm_head" not in name]
    return peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))


class Peer:
    """A model that is stepped; ``kind`` is "float32", "bf16" (autocast) or "compiled" (bf16, torch.compile)."""

    def __init__(self, case: PeerCase, folder: Path, seed: int, kind: str):
        import torch
        import transformers

        self.torch, self.case, self.kind = torch, case, kind
        model: Any = transformers.LlavaForConditionalGeneration.from_pretrained(
            folder, attn_implementation="sdpa", dtype=torch.float32
        )
        if case.rank:
            model = with_adapters(model, case.rank)
        self.model = model.train()
        learnt = [p for p in model.parameters() if p.requires_grad]
        decayed, plain = [p for p in learnt if p.ndim > 1], [p for p in learnt if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPS, fused=True)
        self.forward: Callable[..., Any] = torch.compile(model) if kind == "compiled" else model
        self.batches: Iterator[dict[str, Any]]
        if case.loader:
            self.batches = loaded(case, folder.parent, seed)
        else:
            self.batches = itertools.repeat(batch_of(case, case.tokens(seed), case.pixels(seed)))

    def step(self) -> float:
        """Runs one step; returns its loss."""
        torch = self.torch
        with torch.autocast("cpu", torch.bfloat16, enabled=self.kind != "float32"):
            loss = self.forward(**next(self.batches), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss)
