"""Qwen2.5-VL: a tower of windows, a merger, and a Qwen 2.5 decoder with positions of three axes.

Where the facts come from, in ``transformers``: sizes and connector from ``Qwen2_5_VLConfig`` and
``Qwen2_5_VLPatchMerger``; names of tensors from ``Qwen2_5_VLForConditionalGeneration`` and its releases; what stands
around an image from their chat template; sizes of pictures from ``Qwen2VLImageProcessor``, frames of videos from
``Qwen2VLVideoProcessor``. That boxes are in pixels of the picture as the model sees it is what its makers say.
"""

from __future__ import annotations

from typing import Any

from jaxmm.data.text.template import Markup
from jaxmm.hf.decoders import decoder_of
from jaxmm.hf.families.family import MODULES, Family, Layout
from jaxmm.hf.names import linear, norm
from jaxmm.hf.pictures import ByPixels
from jaxmm.hf.towers import tower_of
from jaxmm.hf.videos import QWEN2_5_VIDEOS
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec

MERGER_RULES = [
    *norm("vision.merger.ln_q", "connector.norm"),
    *linear("vision.merger.mlp.0", "connector.up"),
    *linear("vision.merger.mlp.2", "connector.down"),
]
PREFIXES = {"text": "model.", "vision": "visual.", "lm_head": "lm_head."}
VISUAL = {**MODULES, "vision": "model.visual."}  # of the modules of its class, which differ from its tensors' names


class Qwen25VL(Family):
    model_type = "qwen2_5_vl"
    architecture = "Qwen2_5_VLForConditionalGeneration"
    releases: tuple[str, ...] = (
        "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-32B-Instruct",
        "Qwen/Qwen2.5-VL-72B-Instruct",
    )  # fmt: skip
    image_processor = "Qwen2VLImageProcessor"
    pictures = ByPixels()
    videos = QWEN2_5_VIDEOS
    markup = Markup("<|vision_start|>", "<|vision_end|>")
    boxes = "pixels"
    merger_norm = "rms"  # of each patch, as in ConnectorSpec

    def layout(self, config: Any) -> Layout:
        tower = tower_of(config.vision_config)
        decoder = decoder_of(config.text_config, config.tie_word_embeddings)
        merge = config.vision_config.spatial_merge_size
        connector = ConnectorSpec(
            merge=merge, mlp=tower.spec.width * merge**2, norm=self.merger_norm, norm_first=True, norm_eps=1e-6
        )
        rules = [*tower.rules, *MERGER_RULES, *decoder.rules]
        return Layout(ModelSpec(tower.spec, connector, decoder.spec), rules, PREFIXES, modules=VISUAL)
