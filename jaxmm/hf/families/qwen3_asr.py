"""Qwen3-ASR: an encoder of chunks of a second, two linear maps, and a Qwen 3 decoder.

Where the facts come from, in ``transformers``: sizes from ``Qwen3ASRConfig``; names of tensors from
``Qwen3ASRForConditionalGeneration``; what stands around a recording from its chat template; log-mel frames from
``Qwen3ASRFeatureExtractor``.
"""

from __future__ import annotations

from typing import Any

from jaxmm.data.text.template import Markup
from jaxmm.hf import supported
from jaxmm.hf.audio_towers import audio_tower_of
from jaxmm.hf.decoders import decoder_of
from jaxmm.hf.families.family import Family, Layout
from jaxmm.hf.names import linear
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec

PROJECTOR_RULES = [
    *linear("connector.linear_1", "audio_connector.up"),
    *linear("connector.linear_2", "audio_connector.down"),
]
PREFIXES = {
    "text": "model.language_model.", "audio": "model.audio_tower.", "lm_head": "lm_head.",
    "connector": "model.multi_modal_projector.",
}  # fmt: skip


class Qwen3ASR(Family):
    model_type = "qwen3_asr"
    architecture = "Qwen3ASRForConditionalGeneration"
    audio_extractor = "Qwen3ASRFeatureExtractor"
    markup = Markup("<|audio_start|>", "<|audio_end|>")

    def layout(self, config: Any) -> Layout:
        tower = audio_tower_of(config.audio_config)
        decoder = decoder_of(config.text_config, config.tie_word_embeddings)
        connector = ConnectorSpec(
            merge=1, mlp=tower.spec.width, norm="",
            activation=supported.activation(config.audio_config.activation_function),
        )  # fmt: skip
        spec = ModelSpec(None, None, decoder.spec, tower.spec, connector)
        return Layout(spec, [*tower.rules, *PROJECTOR_RULES, *decoder.rules], PREFIXES, tower.audio)
