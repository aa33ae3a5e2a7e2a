"""LLaVA-OneVision: LLaVA-NeXT's squares before a SigLIP tower, pooled where they are many; a Qwen 2 decoder.

Where the facts come from, in ``transformers``: sizes and connector from ``LlavaOnevisionConfig`` and
``LlavaOnevisionMultiModalProjector``; names of tensors from ``LlavaOnevisionForConditionalGeneration`` and its
releases; where images and a line's end stand in a turn from its releases' chat template; the squares, their pooling,
and that only a picture alone has them, from ``LlavaOnevisionImageProcessor``, ``LlavaOnevisionProcessor`` and
``LlavaOnevisionModel.pack_image_features``; its videos, of pooled frames, from ``LlavaOnevisionVideoProcessor`` and
``LlavaOnevisionModel.get_video_features``.
"""

from __future__ import annotations

from typing import Any

from jaxmm.data.text.template import Markup
from jaxmm.hf.any_resolution import AnyResolution
from jaxmm.hf.families.family import Family, Layout
from jaxmm.hf.families.llava import layout_of_llava
from jaxmm.hf.videos import ONEVISION_VIDEOS


class LlavaOnevision(Family):
    model_type = "llava_onevision"
    architecture = "LlavaOnevisionForConditionalGeneration"
    releases = (
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        "llava-hf/llava-onevision-qwen2-7b-si-hf", "llava-hf/llava-onevision-qwen2-72b-ov-hf",
    )  # fmt: skip
    image_processor = "LlavaOnevisionImageProcessor"
    pictures = AnyResolution(several=True)
    videos = ONEVISION_VIDEOS
    markup = Markup("", "", lead="\n")

    def layout(self, config: Any) -> Layout:
        return layout_of_llava(config, self.model_type, newline=True)
