"""Mistral Small 3.1 and 3.2: Pixtral's tower, a merger of patches with an MLP, and a Mistral decoder.

Where the facts come from, in ``transformers``: sizes and connector from ``Mistral3Config`` and
``Mistral3MultiModalProjector``; names of tensors from ``Mistral3ForConditionalGeneration`` and its releases; the tokens
after the rows of an image from ``PixtralProcessor``; sizes of pictures from ``PixtralImageProcessor``.
"""

from __future__ import annotations

from typing import Any

from jaxmm.data.text.template import Markup
from jaxmm.errors import UserError
from jaxmm.hf import supported
from jaxmm.hf.decoders import plain_decoder_of
from jaxmm.hf.families.family import OLD, Family, Layout
from jaxmm.hf.names import Rule, linear, norm
from jaxmm.hf.pictures import ByLongestEdge
from jaxmm.hf.towers import tower_of
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec

PROJECTOR = [
    *norm("connector.norm", "connector.norm"),
    Rule("connector.patch_merger.merging_layer.weight", ("connector.merger.kernel",), "unfolded"),
    *linear("connector.linear_1", "connector.up"),
    *linear("connector.linear_2", "connector.down"),
]


class Mistral3(Family):
    model_type = "mistral3"
    architecture = "Mistral3ForConditionalGeneration"
    releases = ("mistralai/Mistral-Small-3.1-24B-Instruct-2503", "mistralai/Mistral-Small-3.2-24B-Instruct-2506")
    image_processor = "PixtralImageProcessor"
    pictures = ByLongestEdge(row_break="[IMG_BREAK]")
    markup = Markup("", "[IMG_END]")

    def layout(self, config: Any) -> Layout:
        tower = tower_of(config.vision_config)
        if config.vision_config.model_type != "pixtral":
            raise UserError(f"config.json: mistral3 with a tower '{config.vision_config.model_type}' is not supported")
        supported.require(config, vision_feature_layer=-1)
        decoder = plain_decoder_of(config.text_config, config.tie_word_embeddings)
        connector = ConnectorSpec(
            merge=config.spatial_merge_size, merged=tower.spec.width, mlp=decoder.spec.width, norm="rms",
            norm_first=True, norm_eps=config.text_config.rms_norm_eps, bias=bool(config.multimodal_projector_bias),
            activation=supported.activation(config.projector_hidden_act),
        )  # fmt: skip
        rules = [*tower.rules, *PROJECTOR, *decoder.rules]
        return Layout(ModelSpec(tower.spec, connector, decoder.spec), rules, OLD)
