"""GLM-4.5V and GLM-4.6V: GLM-4.1V's tower and merger before GLM-4.5's decoder with experts.

Where the facts come from, in ``transformers``: ``Glm4vMoeConfig`` and ``Glm4vMoeForConditionalGeneration``. GLM-4.5V's
folder names ``Glm4vImageProcessor`` and ``Glm4vVideoProcessor``, GLM-4.6V's ``Glm46VImageProcessor``, which is alike,
and ``Glm46VVideoProcessor``, which is not. The decoder is ``glm4v_moe_text`` in ``hf/decoders.py``. What PEFT takes for
experts is in its ``transformers_weight_conversion.py`` (0.21).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxmm.hf.families.family import Layout
from jaxmm.hf.families.glm4v import Glm4V
from jaxmm.hf.videos import GLM4V_VIDEOS, GLM46V_VIDEOS


class Glm4VMoe(Glm4V):
    model_type = "glm4v_moe"
    architecture = "Glm4vMoeForConditionalGeneration"
    videos = dataclasses.replace(GLM4V_VIDEOS, others=(GLM46V_VIDEOS,))
    releases = ("zai-org/GLM-4.5V", "zai-org/GLM-4.6V")

    def layout(self, config: Any) -> Layout:
        return super().layout(config)._replace(taken_for_experts=("gate_proj", "up_proj", "down_proj"))
