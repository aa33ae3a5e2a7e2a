"""Checks the numbers in a folder's ``config.json``, by file and key, before anything is built from them.

``transformers`` accepts most values as they are: sizes that no model has would be allocated, or waited for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxmm.errors import UserError

# The bounds of each key, inclusive; a key that is null counts as missing.
INTEGERS: dict[str, tuple[int, int]] = {
    "hidden_size": (1, 2**17), "intermediate_size": (1, 2**20), "vocab_size": (1, 2**24),
    "num_hidden_layers": (1, 1000), "depth": (1, 1000),
    "num_attention_heads": (1, 4096), "num_heads": (1, 4096), "num_key_value_heads": (1, 4096), "head_dim": (2, 2**14),
    "max_position_embeddings": (1, 2**31), "original_max_position_embeddings": (1, 2**31), "sliding_window": (0, 2**31),
    "num_channels": (1, 64), "num_patches": (1, 2**24), "num_position_embeddings": (1, 2**24),
    "temporal_patch_size": (1, 64), "spatial_merge_size": (1, 64), "window_size": (1, 2**16),
    "downsample_factor": (1, 64), "projector_hidden_size": (1, 2**20), "mm_tokens_per_image": (1, 2**20),
    "global_head_dim": (2, 2**14), "num_global_key_value_heads": (1, 4096), "pooling_kernel_size": (1, 64),
    "position_embedding_size": (1, 2**24),
}  # fmt: skip
SIDES: dict[str, tuple[int, int]] = {"patch_size": (1, 1024), "image_size": (1, 2**16)}  # one number, or several
NUMBERS: dict[str, tuple[float, float]] = {
    "rms_norm_eps": (1e-12, 0.1), "layer_norm_eps": (1e-12, 0.1), "rope_theta": (1, 1e15),
    "rope_local_base_freq": (1, 1e15), "factor": (1e-6, 1e6), "partial_rotary_factor": (1e-6, 1),
    "query_pre_attn_scalar": (1e-6, 1e12), "downsample_ratio": (1e-3, 1),
}  # fmt: skip
GROUPS = ("text_config", "vision_config", "rope_parameters", "rope_scaling")  # objects that hold such keys


def check(config: Mapping[str, Any], path: Path) -> None:
    """Checks the content of a ``config.json``.

    Raises:
      UserError: for the first number that is out of range, not finite, or not a number.
    """
    for wrong in _wrong(config, ""):
        raise UserError(f"{path}: {wrong}")


def _wrong(config: Mapping[str, Any], inside: str) -> Iterator[str]:
    for key, value in config.items():
        name = f"{inside}{key}"
        if isinstance(value, Mapping):
            if key in GROUPS or inside.startswith(("rope_", "text_config.rope_")):  # each kind of layer has its own
                yield from _wrong(value, f"{name}.")
        elif key in GROUPS and value is not None:
            yield f"{name} is {value!r}, not an object of keys"
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{name} is {value}: it must be finite"
        elif value is not None:
            yield from _wrong_number(key, name, value)


def _wrong_number(key: str, name: str, value: Any) -> Iterator[str]:
    if key in NUMBERS:
        least, most = NUMBERS[key]
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            yield f"{name} is {value!r}: it must be a number, {least:g} to {most:g}"
    elif key in INTEGERS or key in SIDES:
        bounds = INTEGERS.get(key) or SIDES[key]
        for one in value if key in SIDES and isinstance(value, list) else [value]:
            if not isinstance(one, int) or isinstance(one, bool) or not bounds[0] <= one <= bounds[1]:
                yield f"{name} is {value!r}: it must be an integer, {bounds[0]} to {bounds[1]}"
