"""LLaVA 1.5: a tower for pictures of one size, an MLP on the features of its patches, and a decoder.

Where the facts come from, in ``transformers``: sizes and connector from ``LlavaConfig`` and
``LlavaMultiModalProjector``; names of tensors from ``LlavaForConditionalGeneration`` and its releases; the newline
after an image, and that the processor writes the begin token, from ``LlavaProcessor`` and its releases' chat template;
sizes of pictures from ``CLIPImageProcessor`` and ``SiglipImageProcessor``. Its ``do_pad`` is not followed.

A SigLIP or CLIP tower that is joined with a decoder gets this layout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmm.data.text.template import Markup
from jaxmm.errors import UserError
from jaxmm.hf import supported
from jaxmm.hf.decoders import plain_decoder_of
from jaxmm.hf.families.family import MODULES, OLD, ONE_TILE, PROJECTOR, Joined, JoiningFamily, Layout
from jaxmm.hf.names import Rule
from jaxmm.hf.pictures import OneSize
from jaxmm.hf.processors import DEFAULTS, processor_kind, read_processor
from jaxmm.hf.towers import ONE_SIZE, TOWERS, hidden_states, tower_of
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec

NEWLINE = "image_newline"  # the name of the vector that ends rows, in releases and in common
NOT_FOLLOWED = {**ONE_TILE, "do_pad": "images are not padded to squares"}


class Llava(JoiningFamily):
    model_type = "llava"
    architecture = "LlavaForConditionalGeneration"
    releases = ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf")
    image_processor = "LlavaImageProcessor"
    pictures = OneSize()
    markup = Markup("", "\n", begins=True)
    image_token_key = "image_token_index"
    not_followed = NOT_FOLLOWED
    joins = ONE_SIZE
    keeps_whole_tower = True  # its transformers class also runs the last layer, without using it

    def layout(self, config: Any) -> Layout:
        return layout_of_llava(config, self.model_type)

    def join(self, vision: Any, text: Any, tied: bool, folder: Path, connector: ConnectorSpec) -> Joined:
        """Joins with LLaVA's own connector; if another one is asked for, ``told`` says that it is not followed."""
        import transformers

        has_class = bool(tower_of(vision).spec.class_tokens)
        config = {
            "model_type": self.model_type,
            "vision_config": vision.to_dict() | TOWERS[vision.model_type].headless,
            "text_config": text.to_dict() | {"tie_word_embeddings": tied},
            "image_token_index": text.vocab_size,  # an export replaces it by the tokenizer's
            "image_seq_length": (vision.image_size // vision.patch_size) ** 2,
            "projector_hidden_act": "gelu",
            "multimodal_projector_bias": True,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default" if has_class else "full",
            "tie_word_embeddings": tied,
        }
        layout = self.layout(transformers.LlavaConfig(**config))
        _, spec = layout.spec.seeing
        told: tuple[str, ...] = ()
        if (connector.merge, connector.mlp) != (spec.merge, spec.mlp):
            told = (
                f"a tower of pictures of one size goes with a decoder as in LLaVA: each patch is a soft token, and the "
                f"connector is {spec.mlp} wide; config.image.merge and config.connector.mlp are not read",
            )
        return Joined(self, layout, config, self._processor_of_tower(vision, folder), told)

    def _processor_of_tower(self, vision: Any, folder: Path) -> dict[str, Any]:
        """The image settings of a tower's folder; if it has no file, the defaults of its kind, at its size."""
        settings = read_processor(folder, self.image_processor)
        kind = TOWERS[vision.model_type].image_processor
        if "image_processor_type" in settings:
            kind = processor_kind(settings, kind)
        side = vision.image_size
        square = {"height": side, "width": side}
        is_cropped = "crop_size" in DEFAULTS[kind]
        size = {"size": {"shortest_edge": side}, "crop_size": square} if is_cropped else {"size": square}
        return {"image_processor_type": kind, **DEFAULTS[kind], **size} | settings

    def joined_processor(self, config: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        own = {"processor_class": "LlavaProcessor"}
        strategy, vision = config["vision_feature_select_strategy"], config["vision_config"]
        whole = {
            **own, "patch_size": vision["patch_size"], "vision_feature_select_strategy": strategy,
            "num_additional_image_tokens": int(strategy == "default"), "image_token": "<image>",
        }  # fmt: skip
        return {"preprocessor_config.json": {**processor, **own}, "processor_config.json": whole}


def layout_of_llava(config: Any, family: str, newline: bool = False) -> Layout:
    """A tower of squares, an MLP and any decoder.

    Args:
      family: for errors.
      newline: whether there is a vector that ends rows of soft tokens, beside the connector.
    """
    tower = tower_of(config.vision_config)
    if TOWERS[config.vision_config.model_type].pictures != ONE_SIZE:
        raise UserError(f"config.json: {family} with a tower '{config.vision_config.model_type}' is not supported")
    decoder = plain_decoder_of(config.text_config, config.tie_word_embeddings)
    has_class = bool(tower.spec.class_tokens)
    if (config.vision_feature_select_strategy == "default") != has_class:
        raise UserError(
            f"config.json: vision_feature_select_strategy '{config.vision_feature_select_strategy}' with a tower "
            f"{'with' if has_class else 'without'} a class token is not supported"
        )
    states = hidden_states(config.vision_feature_layer, tower.spec.layers)
    features = tuple(i - 1 for i in states) if len(states) > 1 else ()
    vision = dataclasses.replace(tower.spec, layers=max(states), final_norm=False, features=features)
    connector = ConnectorSpec(
        merge=1, mlp=decoder.spec.width, bias=config.multimodal_projector_bias, norm="", newline=newline,
        activation=supported.activation(config.projector_hidden_act),
    )  # fmt: skip
    ends = [Rule(NEWLINE, ("connector.newline",))] if newline else []
    rules = [*tower.rules, *ends, *PROJECTOR, *decoder.rules]
    spec = ModelSpec(vision, connector, decoder.spec)
    return Layout(spec, rules, OLD | {NEWLINE: NEWLINE}, modules={**MODULES, NEWLINE: f"model.{NEWLINE}"})
