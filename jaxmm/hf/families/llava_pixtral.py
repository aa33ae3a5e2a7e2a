"""Pixtral 12B: its tower for pictures of any shape, an MLP on the features of each patch, and a Mistral decoder.

Its ``config.json`` is LLaVA's, and its tower alone tells it apart. Where the facts come from, in ``transformers``:
sizes, connector and names of tensors from ``LlavaForConditionalGeneration`` and its release; the tokens after the rows
of an image from ``PixtralProcessor``; sizes of pictures from ``PixtralImageProcessor``.
"""

from __future__ import annotations

from typing import Any

from jaxmm.data.text.template import Markup
from jaxmm.hf import supported
from jaxmm.hf.decoders import plain_decoder_of
from jaxmm.hf.families.family import OLD, PROJECTOR, Family, Layout
from jaxmm.hf.pictures import ByLongestEdge
from jaxmm.hf.towers import tower_of
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec


class LlavaPixtral(Family):
    model_type = "llava"
    towers = ("pixtral",)
    variant = "llava_pixtral"
    architecture = "LlavaForConditionalGeneration"
    releases = ("mistral-community/pixtral-12b",)
    image_processor = "PixtralImageProcessor"
    pictures = ByLongestEdge(row_break="[IMG_BREAK]")
    markup = Markup("", "[IMG_END]")

    def layout(self, config: Any) -> Layout:
        supported.require(config, vision_feature_layer=-1, vision_feature_select_strategy="full")
        tower = tower_of(config.vision_config)
        decoder = plain_decoder_of(config.text_config, config.tie_word_embeddings)
        connector = ConnectorSpec(
            merge=1, mlp=decoder.spec.width, norm="", bias=bool(config.multimodal_projector_bias),
            activation=supported.activation(config.projector_hidden_act),
        )  # fmt: skip
        rules = [*tower.rules, *PROJECTOR, *decoder.rules]
        return Layout(ModelSpec(tower.spec, connector, decoder.spec), rules, OLD)
