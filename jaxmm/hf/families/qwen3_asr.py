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
from jaxmm.hf.decoders import Decoder, decoder_of, plain_decoder_of
from jaxmm.hf.families.family import HearingFamily, Joined, Layout
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


class Qwen3ASR(HearingFamily):
    model_type = "qwen3_asr"
    architecture = "Qwen3ASRForConditionalGeneration"
    releases = ("Qwen/Qwen3-ASR-1.7B-hf",)
    audio_extractor = "Qwen3ASRFeatureExtractor"
    markup = Markup("<|audio_start|>", "<|audio_end|>")

    audio_token, audio_token_key = "<|audio_pad|>", "audio_token_id"
    processor_class = "Qwen3ASRProcessor"
    hears = ("qwen3_asr_encoder",)

    def layout(self, config: Any) -> Layout:
        return self._layout(config.audio_config, decoder_of(config.text_config, config.tie_word_embeddings))

    def join(self, audio: Any, text: Any, tied: bool) -> Joined:
        layout = self._layout(audio, plain_decoder_of(text, tied))
        config = {
            "architectures": [self.architecture], "model_type": self.model_type,
            "audio_config": audio.to_dict() | {"output_dim": layout.spec.decoder.width}, "text_config": text.to_dict(),
            "tie_word_embeddings": tied,
        }  # fmt: skip
        return Joined(self, layout, config, {})

    def _layout(self, audio: Any, decoder: Decoder) -> Layout:
        tower = audio_tower_of(audio)
        activation = supported.activation(audio.activation_function)
        connector = ConnectorSpec(merge=1, mlp=tower.spec.width, norm="", activation=activation)
        spec = ModelSpec(None, None, decoder.spec, tower.spec, connector)
        return Layout(spec, [*tower.rules, *PROJECTOR_RULES, *decoder.rules], PREFIXES, tower.audio)
