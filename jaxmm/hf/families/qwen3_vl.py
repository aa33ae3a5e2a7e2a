"""Qwen3-VL: a tower with DeepStack, a merger, and a Qwen 3 decoder with positions of three axes.

Where the facts come from, in ``transformers``: sizes and connector from ``Qwen3VLConfig`` and
``Qwen3VLVisionPatchMerger``; names of tensors from ``Qwen3VLForConditionalGeneration`` and its releases; what stands
around an image from their chat template; sizes of pictures from ``Qwen2VLImageProcessor``, frames of videos from
``Qwen3VLVideoProcessor``. That boxes are in thousandths of the picture is what its makers say.

The whole family is in this file, except for its two parts, which other families may use as well: the tower is
``qwen3_vl_vision`` in ``hf/towers.py``, the decoder ``qwen3_vl_text`` in ``hf/decoders.py``. ``docs/extend.md`` walks
through it.
"""

from __future__ import annotations

from typing import Any

from jaxmm.data.text.template import Markup
from jaxmm.hf.decoders import decoder_of
from jaxmm.hf.families.family import MODULES, Family, Layout
from jaxmm.hf.names import linear, norm
from jaxmm.hf.pictures import ByPixels
from jaxmm.hf.towers import tower_of
from jaxmm.hf.videos import QWEN3_VIDEOS
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec

# The connector is a merger: a norm and two linear maps. DeepStack has one more merger for each layer that it taps, with
# the number {i}; ours are stacked.
MERGERS = {"vision.merger": "connector", "vision.deepstack_merger_list.{i}": "connector.deep"}
MERGER_RULES = [
    rule
    for theirs, ours in MERGERS.items()
    for rule in (
        *norm(f"{theirs}.norm", f"{ours}.norm"),
        *linear(f"{theirs}.linear_fc1", f"{ours}.up"),
        *linear(f"{theirs}.linear_fc2", f"{ours}.down"),
    )
]
# What an export writes for our common prefixes. The connector has none: its names are under the tower's.
PREFIXES = {"text": "model.language_model.", "vision": "model.visual.", "lm_head": "lm_head."}
# What its class calls its modules, as adapters name them: here the same.
VISUAL = {**MODULES, "vision": "model.visual."}


class Qwen3VL(Family):
    # config.json
    model_type = "qwen3_vl"
    architecture = "Qwen3VLForConditionalGeneration"
    releases: tuple[str, ...] = (
        "Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-8B-Instruct",
        "Qwen/Qwen3-VL-32B-Instruct",
    )  # fmt: skip
    # Pictures, and what stands around them
    image_processor = "Qwen2VLImageProcessor"
    pictures = ByPixels()
    videos = QWEN3_VIDEOS
    markup = Markup("<|vision_start|>", "<|vision_end|>")
    boxes = "thousandths"

    def layout(self, config: Any) -> Layout:
        tower = tower_of(config.vision_config)
        decoder = decoder_of(config.text_config, config.tie_word_embeddings)
        merge = config.vision_config.spatial_merge_size
        connector = ConnectorSpec(
            merge=merge, mlp=tower.spec.width * merge**2, norm_first=True, norm_eps=1e-6, deep=len(tower.spec.taps)
        )
        rules = [*tower.rules, *MERGER_RULES, *decoder.rules]
        return Layout(ModelSpec(tower.spec, connector, decoder.spec), rules, PREFIXES, modules=VISUAL)
