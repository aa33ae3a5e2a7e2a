"""GLM-OCR: GLM-4.1V with a tower without learnt positions, whose heads are normed, and a smaller decoder.

Where the facts come from, in ``transformers``: ``GlmOcrConfig``, ``GlmOcrVisionModel``, whose merger is as wide as the
decoder times the channels of a picture, and ``GlmOcrForConditionalGeneration``, which leaves out a layer that guesses a
further token. Its folder names ``Glm46VImageProcessor`` and ``Glm46VProcessor``. Its makers do not say how it writes
boxes.
"""

from __future__ import annotations

from typing import Any

from jaxmm.hf.families.glm46v import Glm46V


class GlmOcr(Glm46V):
    model_type = "glm_ocr"
    architecture = "GlmOcrForConditionalGeneration"
    releases = ("zai-org/GLM-OCR",)
    boxes = ""

    def merger_width(self, vision: Any) -> int:
        return int(vision.out_hidden_size * vision.in_channels)
