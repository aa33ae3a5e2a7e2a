"""Qwen2-Audio: Whisper's encoder with pooled positions, one linear map, and a Qwen 2 decoder.

Where the facts come from, in ``transformers``: sizes from ``Qwen2AudioConfig``; names of tensors from
``Qwen2AudioForConditionalGeneration`` and its releases; what stands around a recording from the chat template of
``Qwen2AudioProcessor``; log-mel frames from ``WhisperFeatureExtractor``. It takes the first 30 s of a recording; here a
longer one is several pieces of 30 s, each heard by itself.
"""

from __future__ import annotations

from typing import Any

from jaxmm.data.text.template import Markup
from jaxmm.hf.audio_towers import audio_tower_of
from jaxmm.hf.decoders import decoder_of
from jaxmm.hf.families.family import Family, Layout
from jaxmm.hf.names import linear
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec

PROJECTOR_RULES = linear("connector.linear", "audio_connector.down")
# As its releases write them.
PREFIXES = {
    "text": "language_model.model.", "audio": "audio_tower.", "lm_head": "language_model.lm_head.",
    "connector": "multi_modal_projector.",
}  # fmt: skip


class Qwen2Audio(Family):
    model_type = "qwen2_audio"
    architecture = "Qwen2AudioForConditionalGeneration"
    audio_extractor = "WhisperFeatureExtractor"
    markup = Markup("Audio {number}: <|audio_bos|>", "<|audio_eos|>\n")

    def layout(self, config: Any) -> Layout:
        tower = audio_tower_of(config.audio_config)
        decoder = decoder_of(config.text_config, config.text_config.tie_word_embeddings)
        connector = ConnectorSpec(merge=1, mlp=0, norm="")
        spec = ModelSpec(None, None, decoder.spec, tower.spec, connector)
        return Layout(spec, [*tower.rules, *PROJECTOR_RULES, *decoder.rules], PREFIXES, tower.audio)
