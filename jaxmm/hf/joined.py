"""A tower and a decoder that no folder had together: the layout that they go into, so that ``transformers`` runs it.

Pictures of any shape, as SigLIP 2's NaFlex tower takes them, go into LFM2-VL's; pictures of one size into LLaVA's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from jaxmm.errors import UserError
from jaxmm.hf import specs
from jaxmm.hf.processors import DEFAULTS, processor_kind, read_processor
from jaxmm.hf.specs import Family
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec

LFM2_VL, LLAVA = "lfm2_vl", "llava"
LAYOUTS = {"siglip2_vision_model": LFM2_VL, "siglip_vision_model": LLAVA, "clip_vision_model": LLAVA}
# Of a tower's folder that does not name its processor.
PROCESSORS = {
    "siglip2_vision_model": "Siglip2ImageProcessor", "siglip_vision_model": "SiglipImageProcessor",
    "clip_vision_model": "CLIPImageProcessor",
}  # fmt: skip


class Joined(NamedTuple):
    """The whole: its family and ``config.json``, what the tower's folder says of images, what people should know."""

    family: Family
    config: dict[str, Any]
    processor: dict[str, Any]
    told: tuple[str, ...] = ()


def join(vision: Any, text: Any, tied: bool, folder: Path, connector: ConnectorSpec) -> Joined:
    """Joins the two by their configs, as ``transformers`` reads them.

    Args:
      tied: whether the decoder's vocabulary projection is its embedding.
      folder: the tower's.
      connector: as it is asked for, which LLaVA's layout leaves no choice of.

    Raises:
      UserError: for a tower that goes into neither layout.
    """
    kind = vision.model_type
    if kind not in LAYOUTS:
        specs.tower_of(vision)  # says so where there is no such tower at all
        raise UserError(
            f"{folder}: a tower '{kind}' runs in its own family alone: start from a whole model, or take a tower of "
            f"{', '.join(LAYOUTS)}"
        )
    if LAYOUTS[kind] == LLAVA:
        return _llava(vision, text, tied, folder, connector)
    tower, decoder = specs.tower_of(vision), specs.plain_decoder_of(text, tied)
    family = Family(ModelSpec(tower.spec, connector, decoder.spec), tower.names, decoder.names, "mlp", specs.NEW)
    config = specs.lfm2_vl_config(vision.to_dict(), text.to_dict(), connector, decoder.spec.tie_embeddings)
    return Joined(family, config, read_processor(folder, LFM2_VL))


def _llava(vision: Any, text: Any, tied: bool, folder: Path, connector: ConnectorSpec) -> Joined:
    import transformers

    has_class = vision.model_type == "clip_vision_model"
    unused = {"vision_use_head": False} if vision.model_type == "siglip_vision_model" else {}
    config = {
        "model_type": LLAVA,
        "vision_config": vision.to_dict() | unused,
        "text_config": text.to_dict() | {"tie_word_embeddings": tied},
        "image_token_index": text.vocab_size,  # an export puts the tokenizer's in its place
        "image_seq_length": (vision.image_size // vision.patch_size) ** 2,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default" if has_class else "full",
        "tie_word_embeddings": tied,
    }
    family = specs.family_of(transformers.LlavaConfig(**config))
    spec = family.spec.connector
    told: tuple[str, ...] = ()
    if (connector.merge, connector.mlp) != (spec.merge, spec.mlp):
        told = (
            f"a tower of pictures of one size goes with a decoder as in LLaVA: each patch is a soft token, and the "
            f"connector is {spec.mlp} wide; config.image.merge and config.connector.mlp are not read",
        )
    return Joined(family, config, _of_one_size(vision, folder), told)


def _of_one_size(vision: Any, folder: Path) -> dict[str, Any]:
    """What a tower's folder says of its images, and where it has no file what its kind does at its size."""
    found = read_processor(folder, LLAVA)
    kind = processor_kind(found, LLAVA) if "image_processor_type" in found else PROCESSORS[vision.model_type]
    side = vision.image_size
    square = {"height": side, "width": side}
    size = {"size": {"shortest_edge": side}, "crop_size": square} if "crop_size" in DEFAULTS[kind] else {"size": square}
    return {"image_processor_type": kind, **DEFAULTS[kind], **size} | found


def save_processor(config: dict[str, Any], processor: dict[str, Any], folder: Path) -> None:
    """Writes the files by which ``transformers`` makes the processor of a model in LLaVA's layout."""
    own = {"processor_class": "LlavaProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | own, indent=2))
    strategy, vision = config["vision_feature_select_strategy"], config["vision_config"]
    whole = {
        **own, "patch_size": vision["patch_size"], "vision_feature_select_strategy": strategy,
        "num_additional_image_tokens": int(strategy == "default"), "image_token": "<image>",
    }  # fmt: skip
    (folder / "processor_config.json").write_text(json.dumps(whole, indent=2))
