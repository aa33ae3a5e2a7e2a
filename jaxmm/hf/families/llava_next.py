"""LLaVA-NeXT (LLaVA 1.6): LLaVA's model, whose pictures are squares that are read as one, with a vector at rows' ends.

Where the facts come from, in ``transformers``: sizes and connector from ``LlavaNextConfig`` and
``LlavaNextMultiModalProjector``; names of tensors from ``LlavaNextForConditionalGeneration`` and its releases; the
newline after an image from its releases' chat templates; the squares and their order from ``LlavaNextImageProcessor``,
``LlavaNextProcessor`` and ``LlavaNextModel.pack_image_features``.
"""

from __future__ import annotations

from typing import Any

from jaxmm.data.text.template import Markup
from jaxmm.hf.any_resolution import AnyResolution
from jaxmm.hf.families.family import Family, Layout
from jaxmm.hf.families.llava import layout_of_llava


class LlavaNext(Family):
    model_type = "llava_next"
    architecture = "LlavaNextForConditionalGeneration"
    releases = (
        "llava-hf/llava-v1.6-mistral-7b-hf", "llava-hf/llava-v1.6-vicuna-7b-hf", "llava-hf/llava-v1.6-vicuna-13b-hf",
        "llava-hf/llava-v1.6-34b-hf", "llava-hf/llama3-llava-next-8b-hf", "llava-hf/llava-next-72b-hf",
        "llava-hf/llava-next-110b-hf",
    )  # fmt: skip
    image_processor = "LlavaNextImageProcessor"
    pictures = AnyResolution()
    markup = Markup("", "\n", begins=True)
    image_token_key = "image_token_index"

    def layout(self, config: Any) -> Layout:
        return layout_of_llava(config, self.model_type, newline=True)
