"""The part of a model that one device of the mesh's axis ``tensor`` computes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jaxmm.models.decoder_spec import DecoderSpec
from jaxmm.models.multimodal import ModelSpec
from jaxmm.models.towers.audio import AudioTowerSpec
from jaxmm.models.towers.vit import VisionSpec


@dataclasses.dataclass(frozen=True)
class _VisionShare(VisionSpec):
    """A tower with a part of its heads, each of the width that it has among all of them."""

    head_dim: int = 1  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True)
class _AudioShare(AudioTowerSpec):
    """As ``_VisionShare``."""

    head_dim: int = 1  # type: ignore[assignment]


def share(model: ModelSpec, tensor: int) -> ModelSpec:
    """The model with the heads and the MLPs' widths that each of so many devices has; what they do not divide is whole.

    The residual stream keeps its width, as every device has it. Mixers that carry a state are whole. Where the devices
    divide the heads of queries and not those of keys, each is taken to have the keys of its queries alone.
    """
    if tensor == 1:
        return model
    vision, audio = model.vision, model.audio
    return dataclasses.replace(
        model,
        vision=_of_tower(vision, _VisionShare, tensor) if vision and not vision.qk_norm else vision,
        audio=_of_tower(audio, _AudioShare, tensor) if audio else audio,
        decoder=_of_decoder(model.decoder, tensor),
    )


def _part(size: int, tensor: int) -> int:
    return size if size % tensor else size // tensor


def _of_tower(spec: Any, kind: Any, tensor: int) -> Any:
    sizes = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    sizes |= {"heads": _part(spec.heads, tensor), "mlp": _part(spec.mlp, tensor), "head_dim": spec.head_dim}
    return kind(**sizes)


def _of_decoder(spec: DecoderSpec, tensor: int) -> DecoderSpec:
    heads = _part(spec.heads, tensor)
    experts, of_global = spec.experts, spec.global_attention
    return dataclasses.replace(
        spec,
        heads=heads,
        kv_heads=math.gcd(heads, _part(spec.kv_heads, tensor)),
        mlp=_part(spec.mlp, tensor),
        handed_mlp=_part(spec.handed_mlp, tensor),
        global_attention=of_global and of_global._replace(kv_heads=math.gcd(heads, _part(of_global.kv_heads, tensor))),
        experts=experts
        and dataclasses.replace(experts, mlp=_part(experts.mlp, tensor), shared_mlp=_part(experts.shared_mlp, tensor)),
    )
