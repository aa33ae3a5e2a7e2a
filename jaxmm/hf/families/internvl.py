"""InternVL 3 and 3.5: an InternViT, a pixel unshuffle with an MLP, and a decoder, which may have experts; a picture is
cut into tiles.

Where the facts come from, in ``transformers``: sizes and connector from ``InternVLConfig`` and
``InternVLMultiModalProjector``; names of tensors from ``InternVLForConditionalGeneration`` and its releases; what
stands around an image, and that it is always cut, from ``InternVLProcessor``; sizes of tiles from
``GotOcr2ImageProcessor``. That boxes are in thousandths of the picture is what its makers say.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxmm.data.text.template import Markup
from jaxmm.errors import UserError
from jaxmm.hf import supported
from jaxmm.hf.decoders import plain_decoder_of
from jaxmm.hf.families.family import OLD, PROJECTOR, Family, Layout
from jaxmm.hf.pictures import OneSize
from jaxmm.hf.towers import hidden_states, tower_of
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec


class InternVL(Family):
    model_type = "internvl"
    architecture = "InternVLForConditionalGeneration"
    releases = (
        "OpenGVLab/InternVL3-1B-hf", "OpenGVLab/InternVL3-2B-hf", "OpenGVLab/InternVL3-8B-hf",
        "OpenGVLab/InternVL3-14B-hf", "OpenGVLab/InternVL3-38B-hf", "OpenGVLab/InternVL3_5-4B-HF",
        "OpenGVLab/InternVL3_5-8B-HF", "OpenGVLab/InternVL3_5-14B-HF", "OpenGVLab/InternVL3_5-38B-HF",
        "OpenGVLab/InternVL3_5-30B-A3B-HF", "OpenGVLab/InternVL3_5-241B-A28B-HF",
    )  # fmt: skip
    image_processor = "GotOcr2ImageProcessor"
    pictures = OneSize(tiles=True)
    markup = Markup("<img>", "</img>\n")
    boxes = "thousandths"

    def layout(self, config: Any) -> Layout:
        supported.require(config, vision_feature_select_strategy="default")
        tower = tower_of(config.vision_config)
        decoder = plain_decoder_of(config.text_config, config.tie_word_embeddings)
        vision, chosen = tower.spec, config.vision_feature_layer
        if chosen != -1:
            states = hidden_states(chosen, vision.layers)
            if len(states) > 1:
                raise UserError(
                    f"config.json: internvl with vision_feature_layer={chosen} is not supported: only one is"
                )
            vision = dataclasses.replace(vision, layers=states[0], final_norm=False)
        merge = round(1 / config.downsample_ratio)
        if merge * config.downsample_ratio != 1:
            raise UserError(f"config.json: downsample_ratio={config.downsample_ratio} is not supported: only 1 / n is")
        activation = supported.activation(config.projector_hidden_act)
        connector = ConnectorSpec(merge=merge, mlp=decoder.spec.width, activation=activation)
        rules = [*tower.rules, *PROJECTOR, *decoder.rules]
        return Layout(ModelSpec(vision, connector, decoder.spec), rules, OLD)
