"""GLM-4.6V-Flash: GLM-4.1V, with other classes around it.

Where the facts come from, in ``transformers``: ``Glm46VConfig``, ``Glm46VForConditionalGeneration`` and
``Glm46VImageProcessor``.
"""

from __future__ import annotations

from jaxmm.hf.families.glm4v import Glm4V


class Glm46V(Glm4V):
    model_type = "glm46v"
    architecture = "Glm46VForConditionalGeneration"
    releases = ("zai-org/GLM-4.6V-Flash",)
    image_processor = "Glm46VImageProcessor"
