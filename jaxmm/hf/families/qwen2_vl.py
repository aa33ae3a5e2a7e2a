"""Qwen2-VL: a tower without windows, Qwen2.5-VL's merger with LayerNorm, and Qwen2.5-VL's decoder.

Where the facts come from, in ``transformers``: ``Qwen2VLConfig``, ``PatchMerger`` and
``Qwen2VLForConditionalGeneration`` of its ``qwen2_vl``; frames of videos from ``Qwen2VLVideoProcessor``, of which
positions of text count temporal patches, not seconds. That boxes are in thousandths of the picture is what its makers
say.
"""

from __future__ import annotations

from jaxmm.hf.families.qwen2_5_vl import Qwen25VL
from jaxmm.hf.videos import QWEN2_VIDEOS


class Qwen2VL(Qwen25VL):
    model_type = "qwen2_vl"
    architecture = "Qwen2VLForConditionalGeneration"
    releases: tuple[str, ...] = ("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct", "Qwen/Qwen2-VL-72B-Instruct")
    videos = QWEN2_VIDEOS
    boxes = "thousandths"
    merger_norm = "layer"
