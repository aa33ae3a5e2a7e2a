"""Gemma 3: a SigLIP tower, a connector that averages, and a Gemma 3 decoder with bidirectional attention in an image.

Where the facts come from, in ``transformers``: sizes and connector from ``Gemma3Config`` and
``Gemma3MultiModalProjector``; names of tensors from ``Gemma3ForConditionalGeneration`` and its releases; what stands
around an image, and around the slices of a long one, from ``Gemma3Processor``; sizes of pictures and which are cut into
slices from ``Gemma3ImageProcessor``.
"""

from __future__ import annotations

from typing import Any

from jaxmm.data.text.template import Markup
from jaxmm.errors import UserError
from jaxmm.hf.decoders import decoder_of
from jaxmm.hf.families.family import OLD, Family, Layout
from jaxmm.hf.names import Rule, norm
from jaxmm.hf.pan_and_scan import PanAndScan
from jaxmm.hf.supported import square_root
from jaxmm.hf.towers import tower_of
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec

PROJECTOR = [
    Rule("connector.mm_input_projection_weight", ("connector.down.kernel",)),
    *norm("connector.mm_soft_emb_norm", "connector.norm"),
]


class Gemma3(Family):
    model_type = "gemma3"
    architecture = "Gemma3ForConditionalGeneration"
    releases = ("google/gemma-3-4b-it", "google/gemma-3-12b-it", "google/gemma-3-27b-it")
    image_processor = "Gemma3ImageProcessor"
    pictures = PanAndScan(
        intro="Here is the original image ",
        whole_text="<end_of_image>\n\n and here are some crops to help you see better ",
        between="<end_of_image>\n\n ",
        square_text="\n\n<start_of_image>",
    )
    markup = Markup("\n\n<start_of_image>", "<end_of_image>\n\n")

    def layout(self, config: Any) -> Layout:
        tower = tower_of(config.vision_config)
        decoder = decoder_of(config.text_config, config.tie_word_embeddings)
        side = square_root(config.mm_tokens_per_image, "mm_tokens_per_image")
        if tower.spec.positions % side:
            raise UserError(f"config.json: {side} soft tokens along {tower.spec.positions} patches are not supported")
        connector = ConnectorSpec(
            merge=tower.spec.positions // side, mlp=0, pool="mean", norm="rms_offset", norm_eps=tower.spec.norm_eps,
            bias=False,
        )  # fmt: skip
        rules = [*tower.rules, *PROJECTOR, *decoder.rules]
        return Layout(ModelSpec(tower.spec, connector, decoder.spec), rules, OLD)
