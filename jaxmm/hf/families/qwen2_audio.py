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
from jaxmm.hf.decoders import Decoder, decoder_of, plain_decoder_of
from jaxmm.hf.families.family import HearingFamily, Joined, Layout
from jaxmm.hf.names import linear
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec

# What of Whisper's config is its encoder's.
ENCODER = (
    "num_mel_bins", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "activation_function",
    "max_source_positions", "scale_embedding",
)  # fmt: skip
PROJECTOR_RULES = linear("connector.linear", "audio_connector.down")
# As its releases write them.
PREFIXES = {
    "text": "language_model.model.", "audio": "audio_tower.", "lm_head": "language_model.lm_head.",
    "connector": "multi_modal_projector.",
}  # fmt: skip


class Qwen2Audio(HearingFamily):
    model_type = "qwen2_audio"
    architecture = "Qwen2AudioForConditionalGeneration"
    releases = ("Qwen/Qwen2-Audio-7B-Instruct",)
    audio_extractor = "WhisperFeatureExtractor"
    markup = Markup("Audio {number}: <|audio_bos|>", "<|audio_eos|>\n")

    audio_token, audio_token_key = "<|AUDIO|>", "audio_token_index"
    processor_class = "Qwen2AudioProcessor"
    hears = ("qwen2_audio_encoder", "whisper")

    def layout(self, config: Any) -> Layout:
        decoder = decoder_of(config.text_config, config.text_config.tie_word_embeddings)
        return self._layout(config.audio_config, decoder)

    def join(self, audio: Any, text: Any, tied: bool) -> Joined:
        """Whisper's encoder is taken as this family's: without the silence that fills 30 s, and pooled in pairs."""
        written, told = audio.to_dict(), tuple[str, ...]()
        if audio.model_type == "whisper":
            from transformers import Qwen2AudioEncoderConfig

            audio = Qwen2AudioEncoderConfig(**{key: written[key] for key in ENCODER})
            written = audio.to_dict()
            told = ("Whisper's encoder is joined as Qwen2-Audio's: the silence that fills 30 s is not attended to, and "
                    "positions are pooled in pairs",)  # fmt: skip
        layout = self._layout(audio, plain_decoder_of(text, tied))
        config = {
            "architectures": [self.architecture], "model_type": self.model_type, "audio_config": written,
            "text_config": text.to_dict() | {"tie_word_embeddings": tied},
        }  # fmt: skip
        return Joined(self, layout, config, {}, told)

    def _layout(self, audio: Any, decoder: Decoder) -> Layout:
        tower = audio_tower_of(audio)
        connector = ConnectorSpec(merge=1, mlp=0, norm="")
        spec = ModelSpec(None, None, decoder.spec, tower.spec, connector)
        return Layout(spec, [*tower.rules, *PROJECTOR_RULES, *decoder.rules], PREFIXES, tower.audio)
