"""PaliGemma and PaliGemma 2: a SigLIP tower, a linear map, and a decoder of Gemma or Gemma 2 that sees prompts whole.

Where the facts come from, in ``transformers``: sizes and connector from ``PaliGemmaConfig`` and
``PaliGemmaMultiModalProjector``; names of tensors from ``PaliGemmaForConditionalGeneration`` and its releases; what
stands around a question from ``PaliGemmaProcessor``; sizes of pictures from ``SiglipImageProcessor``. Positions count
from 1 there: rotary positions are relative, and from 0 they are the same, except where frequencies depend on how many
there are. All of a prompt is seen from each of its positions, in Gemma 2's layers with a window, too.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxmm.data.text.template import Markup
from jaxmm.errors import UserError
from jaxmm.hf.decoders import decoder_of
from jaxmm.hf.families.family import OLD, Family, Layout
from jaxmm.hf.names import linear
from jaxmm.hf.pictures import OneSize
from jaxmm.hf.towers import tower_of
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec

BY_LENGTH = ("dynamic", "longrope")  # rotary positions that depend on the length of a document


class PaliGemma(Family):
    model_type = "paligemma"
    architecture = "PaliGemmaForConditionalGeneration"
    releases = (
        "google/paligemma-3b-pt-224", "google/paligemma-3b-mix-224", "google/paligemma2-3b-pt-224",
        "google/paligemma2-3b-mix-224", "google/paligemma2-10b-pt-224", "google/paligemma2-28b-pt-224",
    )  # fmt: skip
    image_processor = "SiglipImageProcessor"
    pictures = OneSize()
    markup = Markup("", "")

    def layout(self, config: Any) -> Layout:
        text = config.text_config
        if text.model_type not in ("gemma", "gemma2"):
            raise UserError(
                f"config.json: paligemma with a decoder '{text.model_type}' is not supported: gemma and gemma2 are"
            )
        if config.projection_dim != text.hidden_size:
            raise UserError(
                f"config.json: projection_dim is {config.projection_dim}, and hidden_size of its decoder "
                f"{text.hidden_size}: they must be equal"
            )
        tower, decoder = tower_of(config.vision_config), decoder_of(text, config.tie_word_embeddings)
        if (kind := decoder.spec.rope_scaling.kind) in BY_LENGTH:
            raise UserError(
                f"config.json: paligemma with rotary positions of rope_type '{kind}' is not supported: they depend on "
                f"how long a document is, which its class counts from 1"
            )
        spec = ModelSpec(
            tower.spec,
            ConnectorSpec(merge=1, mlp=0, norm=""),
            dataclasses.replace(decoder.spec, bidirectional_blocks=True, prefix_blocks=True),
        )
        return Layout(spec, [*tower.rules, *linear("connector.linear", "connector.down"), *decoder.rules], OLD)
