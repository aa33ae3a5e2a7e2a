"""Idefics 3: a SigLIP tower, a pixel unshuffle with one projection, and a decoder; pictures are split into squares.

Where the facts come from, in ``transformers``: sizes and connector from ``Idefics3Config`` and ``Idefics3Connector``;
names of tensors from ``Idefics3ForConditionalGeneration`` and its releases; sizes of pictures from
``Idefics3ImageProcessor``; what stands around a picture and between its tiles from ``Idefics3Processor``.
"""

from __future__ import annotations

from typing import Any

from jaxmm.data.text.template import Markup
from jaxmm.hf.decoders import plain_decoder_of
from jaxmm.hf.families.family import Family, Layout
from jaxmm.hf.names import linear
from jaxmm.hf.pictures import InSquares
from jaxmm.hf.towers import tower_of
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec

PREFIXES = {"text": "model.text_model.", "vision": "model.vision_model.", "lm_head": "lm_head.",
            "connector": "model.connector."}  # fmt: skip
AROUND = "<fake_token_around_image>"


class Idefics3(Family):
    model_type = "idefics3"
    architecture = "Idefics3ForConditionalGeneration"
    releases: tuple[str, ...] = (
        "HuggingFaceM4/Idefics3-8B-Llama3", "HuggingFaceTB/SmolVLM-256M-Instruct",
        "HuggingFaceTB/SmolVLM-500M-Instruct", "HuggingFaceTB/SmolVLM-Instruct",
    )  # fmt: skip
    image_processor = "Idefics3ImageProcessor"
    pictures = InSquares(
        square_text="<row_{row}_col_{column}>", between=AROUND, row_end="\n", whole_text=f"\n{AROUND}<global-img>",
        alone="<global-img>",
    )  # fmt: skip
    markup = Markup(AROUND, AROUND, joins=True)

    def layout(self, config: Any) -> Layout:
        tower = tower_of(config.vision_config)
        decoder = plain_decoder_of(config.text_config, config.tie_word_embeddings)
        connector = ConnectorSpec(merge=config.scale_factor, mlp=0, norm="", bias=False)
        rules = [*tower.rules, *linear("connector.modality_projection.proj", "connector.down"), *decoder.rules]
        return Layout(ModelSpec(tower.spec, connector, decoder.spec), rules, PREFIXES, modules=PREFIXES)
