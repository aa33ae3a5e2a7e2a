"""Qwen3.5 and 3.6 with experts: all of Qwen3.5, and experts in the place of the decoder's MLPs, one of them for all.

Where the facts come from, in ``transformers``: sizes from ``Qwen3_5MoeConfig``; how weights of experts are normalised
and the shared one is gated from ``Qwen3_5MoeTopKRouter`` and ``Qwen3_5MoeSparseMoeBlock``. Releases hold the experts of
a layer as one tensor, as the class does; ``transformers`` writes each expert's by itself, and so are they in releases
in eight bits. The names of both are ``QWEN3_5`` in ``hf/experts.py``; all else is Qwen3.5's.
"""

from __future__ import annotations

from jaxmm.hf.families.qwen3_5 import Qwen35


class Qwen35Moe(Qwen35):
    model_type = "qwen3_5_moe"
    architecture = "Qwen3_5MoeForConditionalGeneration"
    releases = (
        "Qwen/Qwen3.5-35B-A3B", "Qwen/Qwen3.5-122B-A10B", "Qwen/Qwen3.5-397B-A17B", "Qwen/Qwen3.6-35B-A3B",
    )  # fmt: skip
