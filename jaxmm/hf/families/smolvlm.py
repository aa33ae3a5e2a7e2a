"""SmolVLM 2: Idefics 3's model and pictures under names of its own. Its videos are not taken.

Where the facts come from, in ``transformers``: ``SmolVLMConfig``, ``SmolVLMForConditionalGeneration``,
``SmolVLMImageProcessor`` and ``SmolVLMProcessor``.
"""

from __future__ import annotations

from jaxmm.hf.families.idefics3 import Idefics3


class SmolVLM(Idefics3):
    model_type = "smolvlm"
    architecture = "SmolVLMForConditionalGeneration"
    releases = (
        "HuggingFaceTB/SmolVLM2-256M-Video-Instruct", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    )  # fmt: skip
    image_processor = "SmolVLMImageProcessor"
