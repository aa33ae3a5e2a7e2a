"""All tiny random models of ``transformers`` that parity is measured against, and how one is made and saved.

Sizes are unequal wherever a model lets them be, so that no two dims can be mistaken for each other. Each line of
families has its own file in ``tiny``.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parities.tiny import gemma, glm, idefics3, internvl, lfm2_vl, llava, mistral3, paddleocr_vl, qwen
from parities.tiny.parts import Case

CASES: tuple[Case, ...] = (
    *lfm2_vl.CASES, *llava.CASES, *qwen.CASES, *gemma.CASES, *internvl.CASES, *idefics3.CASES, *mistral3.CASES,
    *glm.CASES, *paddleocr_vl.CASES,
)  # fmt: skip


def let_torchvision_import() -> None:
    """Declares torchvision's operators where its own library does not load, as that of a CUDA build without CUDA.

    ``transformers`` imports torchvision for its image processors, which need none of these operators.
    """
    import torch

    package = importlib.util.find_spec("torchvision")
    if package is None or not package.submodule_search_locations:
        return
    if hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    source = Path(package.submodule_search_locations[0], "_meta_registrations.py").read_text()
    for name in sorted(set(re.findall(r'"(?:torchvision::)?(\w+)"\)', source))):
        library.define(f"{name}(Tensor x) -> Tensor")
    _KEPT.append(library)


_KEPT: list[Any] = []  # torch forgets a library's operators when it is gone


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
    joined: dict[str, np.ndarray] = {name: x for name, x in tensors.items() if ".experts." not in name}
    for prefix in sorted({name.partition("experts.")[0] + "experts." for name in tensors if ".experts." in name}):
        count = sum(name.startswith(prefix) for name in tensors) // 3
        of = {
            part: np.stack([tensors[f"{prefix}{n}.{part}_proj.weight"] for n in range(count)])
            for part in ("gate", "up", "down")
        }
        joined |= {f"{prefix}gate_up_proj": np.concatenate([of["gate"], of["up"]], 1), f"{prefix}down_proj": of["down"]}
    return joined


# What makes of the tensors that ``transformers`` writes those that releases have, by family.
AS_RELEASED = {"qwen3_vl_moe": turned, "qwen3_5_moe": fused}
