"""PaddleOCR-VL: SigLIP's tower with rotary positions, a merger, and an ERNIE 4.5 decoder with positions of three axes.

Where the facts come from, in ``transformers``: sizes and connector from ``PaddleOCRVLConfig`` and
``PaddleOCRProjector``; names of tensors from its releases, which ``conversion_mapping.py`` tells from those of
``PaddleOCRVLForConditionalGeneration``; sizes of pictures from ``PaddleOCRVLImageProcessor``; what stands around an
image from their chat template. That template writes a turn's images before its text.
"""

from __future__ import annotations

from typing import Any

from jaxmm.data.text.template import Markup
from jaxmm.hf.decoders import decoder_of
from jaxmm.hf.families.family import Family, Layout
from jaxmm.hf.names import linear, norm
from jaxmm.hf.pictures import ByRaisedPixels
from jaxmm.hf.towers import tower_of
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec

PROJECTOR = [
    *norm("connector.pre_norm", "connector.norm"),
    *linear("connector.linear_1", "connector.up"),
    *linear("connector.linear_2", "connector.down"),
]
PREFIXES = {"text": "model.", "vision": "visual.vision_model.", "lm_head": "lm_head.", "connector": "mlp_AR."}
MODULES = {"text": "model.language_model.", "vision": "model.visual.vision_model.", "lm_head": "lm_head.",
           "connector": "model.projector."}  # fmt: skip


class PaddleOCRVL(Family):
    model_type = "paddleocr_vl"
    architecture = "PaddleOCRVLForConditionalGeneration"
    releases = ("PaddlePaddle/PaddleOCR-VL", "PaddlePaddle/PaddleOCR-VL-1.5", "PaddlePaddle/PaddleOCR-VL-1.6")
    image_processor = "PaddleOCRVLImageProcessor"
    pictures = ByRaisedPixels()
    markup = Markup("<|IMAGE_START|>", "<|IMAGE_END|>")

    def layout(self, config: Any) -> Layout:
        tower = tower_of(config.vision_config)
        decoder = decoder_of(config.text_config, config.tie_word_embeddings)
        merge = config.vision_config.spatial_merge_size
        connector = ConnectorSpec(merge=merge, mlp=tower.spec.width * merge**2, norm_first=True, norm_eps=1e-5)
        rules = [*tower.rules, *PROJECTOR, *decoder.rules]
        return Layout(ModelSpec(tower.spec, connector, decoder.spec), rules, PREFIXES, modules=MODULES)
