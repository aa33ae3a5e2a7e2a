"""Qwen3-VL with experts: all of Qwen3-VL, and experts in the place of the decoder's MLPs.

Where the facts come from, in ``transformers``: sizes from ``Qwen3VLMoeConfig``; how weights of experts are normalised
from ``Qwen3VLMoeTextTopKRouter``; that releases hold experts the other way round than the class does from its
``conversion_mapping.py``. The names of tensors are ``QWEN3_VL`` in ``hf/experts.py``; all else is Qwen3-VL's.
"""

from __future__ import annotations

from jaxmm.hf.families.qwen3_vl import Qwen3VL


class Qwen3VLMoe(Qwen3VL):
    model_type = "qwen3_vl_moe"
    architecture = "Qwen3VLMoeForConditionalGeneration"
    releases = ("Qwen/Qwen3-VL-30B-A3B-Instruct", "Qwen/Qwen3-VL-235B-A22B-Instruct")
