"""Which linear maps multiply in float8 where a model does, and which devices have units for it."""

from __future__ import annotations

import re
from typing import Any

from flax import nnx

from jaxmm.models.linear import Linear
from jaxmm.models.tree import ParamPath, matches

MATMULS = ("", "fp8")

# The layers of towers and decoder. What comes before, between and behind them is few FLOPs, and is where published
# recipes stay in sixteen bits: embeddings, the vocabulary projection and routers (DeepSeek-V3, section 3.3.1;
# torchtitan's float8, which leaves "output" out), patch embeddings and connectors, which learn from random weights.
LAYERS = ("vision.blocks", "audio.blocks", "decoder.blocks")
# In these, what decides how long a state lasts and how much of an expert counts: one number a head, or one in all, as
# the FP8 releases of Qwen3-Next and Qwen3.5 leave out `in_proj_a`, `in_proj_b` and `shared_expert_gate`.
KEPT = ("*.delta.decay", "*.delta.rate", "*.experts.shared_gate")
# The maps of experts are multiplied in groups, `lax.ragged_dot`, for which XLA has no FP8 kernels.
GROUPED = ("*.experts.gate", "*.experts.up", "*.experts.down")


def is_float8(path: ParamPath) -> bool:
    """Whether the linear map at a path multiplies in float8."""
    is_kept = is_grouped(path) or any(matches(path, kept) for kept in KEPT)
    return not is_kept and any(matches(path, layers) for layers in LAYERS)


def is_grouped(path: ParamPath) -> bool:
    """Whether the linear map at a path is one of each expert."""
    return any(matches(path, maps) for maps in GROUPED)


def multiply_in_float8(model: nnx.Module) -> None:
    """Tells the linear maps of a model that ``is_float8`` means to do so."""
    for keys, module in list(nnx.iter_modules(model)):
        if isinstance(module, Linear) and is_float8(tuple(map(str, keys))):
            module.is_float8 = True


def has_float8_units(device: Any) -> bool:
    """Whether a jax.Device multiplies float8 faster than bfloat16: NVIDIA's from Ada and Hopper on (compute capability
    8.9, H100, H200, B200), and TPUs from v7 (Ironwood). Others compute the same numbers in wider units."""
    if device.platform == "gpu":
        capability = str(getattr(device, "compute_capability", ""))
        return bool(re.fullmatch(r"\d+\.\d+", capability)) and tuple(map(int, capability.split("."))) >= (8, 9)
    return device.platform == "tpu" and re.match(r"TPU ?v?7", device.device_kind) is not None
