"""GLM-4.1V: a tower with positions of two kinds, a merger with a gated MLP, and a GLM-4 decoder.

Where the facts come from, in ``transformers``: sizes and connector from ``Glm4vConfig`` and ``Glm4vVisionModel``; names
of tensors from ``Glm4vForConditionalGeneration`` and its releases; what stands around an image from their chat
template; sizes of pictures from ``Glm4vImageProcessor``, frames of videos from ``Glm4vVideoProcessor``, the seconds
behind each temporal patch from ``Glm4vProcessor``. That boxes are in thousandths of the picture is what its makers say.
"""

from __future__ import annotations

from typing import Any

from jaxmm.data.text.template import Markup
from jaxmm.hf.decoders import decoder_of
from jaxmm.hf.families.family import MODULES, Family, Layout
from jaxmm.hf.names import Rule, linear, norm
from jaxmm.hf.pictures import ByFramePixels
from jaxmm.hf.supported import activation
from jaxmm.hf.towers import tower_of
from jaxmm.hf.videos import GLM4V_VIDEOS
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec

MERGER_RULES = [
    Rule("vision.downsample.weight", ("connector.merger.kernel",), "convolution of patches"),
    Rule("vision.downsample.bias", ("connector.merger.bias",)),
    *linear("vision.merger.proj", "connector.up"),
    *norm("vision.merger.post_projection_norm", "connector.hidden_norm"),
    *linear("vision.merger.gate_proj", "connector.down.gate"),
    *linear("vision.merger.up_proj", "connector.down.up"),
    *linear("vision.merger.down_proj", "connector.down.down"),
]
PREFIXES = {"text": "model.language_model.", "vision": "model.visual.", "lm_head": "lm_head."}
VISUAL = {**MODULES, "vision": "model.visual."}  # what its class calls its modules


class Glm4V(Family):
    model_type = "glm4v"
    architecture = "Glm4vForConditionalGeneration"
    releases: tuple[str, ...] = ("zai-org/GLM-4.1V-9B-Base", "zai-org/GLM-4.1V-9B-Thinking")
    image_processor = "Glm4vImageProcessor"
    pictures = ByFramePixels()
    videos = GLM4V_VIDEOS
    markup = Markup("<|begin_of_image|>", "<|end_of_image|>")
    video_markup = Markup("<|begin_of_video|>", "<|end_of_video|>")
    boxes = "thousandths"

    def merger_width(self, vision: Any) -> int:
        """The hidden width of the merger's gated MLP, by the tower's config."""
        return int(vision.intermediate_size)

    def layout(self, config: Any) -> Layout:
        vision = config.vision_config
        tower, decoder = tower_of(vision), decoder_of(config.text_config, config.tie_word_embeddings)
        connector = ConnectorSpec(
            merge=vision.spatial_merge_size, norm="", merged=vision.out_hidden_size, merged_bias=True,
            mlp=vision.out_hidden_size, hidden_norm=True, gated=self.merger_width(vision),
            gated_activation=activation(vision.hidden_act), bias=False,
        )  # fmt: skip
        rules = [*tower.rules, *MERGER_RULES, *decoder.rules]
        return Layout(ModelSpec(tower.spec, connector, decoder.spec), rules, PREFIXES, modules=VISUAL)
