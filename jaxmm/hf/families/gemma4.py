"""Gemma 4: a tower of 2-D rotary positions, pooling, and a decoder with two kinds of attention, experts or not.

Where the facts come from, in ``transformers``: sizes and connector from ``Gemma4Config``, ``Gemma4VisionPooler`` and
``Gemma4MultimodalEmbedder``; names of tensors from ``Gemma4ForConditionalGeneration``; what stands around an image from
``Gemma4Processor``; sizes of pictures from ``Gemma4ImageProcessor``. The tower is ``gemma4_vision`` in
``hf/towers.py``, the decoder ``gemma4_text`` in ``hf/decoders.py``. The soft tokens of an image see each other both
ways in the layers that have a window, and not in the others. The audio tower of E2B and E4B is not built: its tensors,
and those of keys and values that no layer uses, are kept as they are.
"""

from __future__ import annotations

from typing import Any

from jaxmm.data.text.template import Markup
from jaxmm.errors import UserError
from jaxmm.hf.decoders import decoder_of
from jaxmm.hf.families.family import MODULES, NEW, Family, Layout
from jaxmm.hf.names import linear
from jaxmm.hf.pictures import Filled
from jaxmm.hf.towers import tower_of
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec

EMBEDDER = {"connector": "model.embed_vision."}
AUDIO = "the folder's audio tower is not built: it hears nothing here, and its weights are exported as they are"


class Gemma4(Family):
    model_type = "gemma4"
    architecture = "Gemma4ForConditionalGeneration"
    releases = (
        "google/gemma-4-31B", "google/gemma-4-31B-it", "google/gemma-4-26B-A4B", "google/gemma-4-26B-A4B-it",
        "google/gemma-4-E2B", "google/gemma-4-E2B-it", "google/gemma-4-E4B", "google/gemma-4-E4B-it",
    )  # fmt: skip
    image_processor = "Gemma4ImageProcessor"
    pictures = Filled()
    markup = Markup("<|image>", "<image|>")

    def layout(self, config: Any) -> Layout:
        if config.vision_config is None:
            raise UserError("config.json: Gemma 4 without vision_config is not supported")
        vision = config.vision_config
        if vision.pooling_kernel_size < 2:
            raise UserError(
                "config.json: Gemma 4 with pooling_kernel_size=1 is not supported: nor does transformers run it"
            )
        tower = tower_of(vision)
        decoder = decoder_of(config.text_config, config.tie_word_embeddings)
        connector = ConnectorSpec(
            merge=vision.pooling_kernel_size, mlp=0, pool="mean", pool_scale=vision.hidden_size**0.5,
            standardised=bool(vision.standardize), norm="rms_unit", norm_eps=vision.rms_norm_eps, bias=False,
        )  # fmt: skip
        rules = [*tower.rules, *linear("connector.embedding_projection", "connector.down"), *decoder.rules]
        spec = ModelSpec(tower.spec, connector, decoder.spec)
        layers = range(spec.decoder.first_handed, spec.decoder.layers)
        kept = tuple(rf"text\.layers\.{n}\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\." for n in layers)
        told: tuple[str, ...] = ()
        if config.audio_config is not None:
            kept, told = (*kept, r"audio\.", r"text\.embed_audio\."), (AUDIO,)
        return Layout(spec, rules, NEW | EMBEDDER, modules=MODULES | EMBEDDER, kept=kept, told=told)
