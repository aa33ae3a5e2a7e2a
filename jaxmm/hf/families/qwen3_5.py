"""Qwen3.5 and 3.6: Qwen3-VL's tower and merger without DeepStack, and a decoder of gated DeltaNet and gated attention.

Where the facts come from, in ``transformers``: ``Qwen3_5Config``, ``Qwen3_5ForConditionalGeneration`` and its releases;
the processors are those of Qwen3-VL. The decoder is ``qwen3_5_text`` in ``hf/decoders.py``. The weights of releases
that guess several tokens at a time (``mtp``) are not used, as in ``transformers``: an export has them as they were.
"""

from __future__ import annotations

from jaxmm.hf.families.qwen3_vl import Qwen3VL


class Qwen35(Qwen3VL):
    model_type = "qwen3_5"
    architecture = "Qwen3_5ForConditionalGeneration"
    releases: tuple[str, ...] = (
        "Qwen/Qwen3.5-0.8B", "Qwen/Qwen3.5-2B", "Qwen/Qwen3.5-4B", "Qwen/Qwen3.5-9B", "Qwen/Qwen3.5-27B",
        "Qwen/Qwen3.6-27B",
    )  # fmt: skip
    boxes = ""  # its makers do not say
