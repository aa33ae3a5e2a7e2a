"""GLM-4.6V-Flash: GLM-4.1V, with other classes around it.

Where the facts come from, in ``transformers``: ``Glm46VConfig``, ``Glm46VForConditionalGeneration``,
``Glm46VImageProcessor``, ``Glm46VVideoProcessor`` and ``Glm46VProcessor``.
"""

from __future__ import annotations

from jaxmm.hf.families.glm4v import Glm4V
from jaxmm.hf.videos import GLM46V_VIDEOS


class Glm46V(Glm4V):
    model_type = "glm46v"
    architecture = "Glm46VForConditionalGeneration"
    releases = ("zai-org/GLM-4.6V-Flash",)
    image_processor = "Glm46VImageProcessor"
    videos = GLM46V_VIDEOS
