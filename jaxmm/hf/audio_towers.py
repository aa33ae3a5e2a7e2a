"""The audio towers of the families: from an ``audio_config`` to specs, and the names of their tensors.

``AUDIO_TOWERS`` is the table, by the config's ``model_type``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxmm.clip_spec import AudioSpec
from jaxmm.errors import UserError
from jaxmm.hf import supported
from jaxmm.hf.names import Rule, linear, norm
from jaxmm.models.towers.audio import AudioTowerSpec


class AudioTower(NamedTuple):
    """An audio tower's sizes and features, how it takes a clip, and the names of its tensors.

    ``audio``: as the tower decides it; rate, hop and window are those of the folder's feature extractor.
    """

    spec: AudioTowerSpec
    audio: AudioSpec
    rules: list[Rule]


class AudioTowerKind(NamedTuple):
    """An entry of the table: makes the specs from a config, and has the names of its tensors."""

    specs: Callable[[Any], tuple[AudioTowerSpec, AudioSpec]]
    rules: list[Rule]


def audio_tower_of(config: Any) -> AudioTower:
    """Returns the tower of a config. Raises UserError for an unknown architecture, or sizes that do not match."""
    kind = supported.entry(AUDIO_TOWERS, supported.kind_of(config), "audio tower")
    try:
        return AudioTower(*kind.specs(config), kind.rules)
    except ValueError as error:  # sizes that do not match
        raise UserError(f"config.json: {error}") from error


# Configs


def _encoder(config: Any, **features: Any) -> AudioTowerSpec:
    supported.require(config, scale_embedding=False)
    return AudioTowerSpec(
        mels=config.num_mel_bins, width=config.d_model, layers=config.encoder_layers,
        heads=config.encoder_attention_heads, mlp=config.encoder_ffn_dim,
        activation=supported.activation(config.activation_function), **features,
    )  # fmt: skip


def _pieces(config: Any, pool: int, filled: bool) -> tuple[AudioTowerSpec, AudioSpec]:
    """Whisper's encoder: pieces of 30 s, each by itself."""
    spec = _encoder(config, stem="whisper", positions=config.max_source_positions, pool=pool)
    audio = AudioSpec(
        mels=spec.mels, chunk=4, chunk_positions=2, pool=pool, attend=0, halo=2, piece=2 * spec.positions,
        filled=filled, silence=True,
    )  # fmt: skip
    return spec, audio


def _whisper(config: Any) -> tuple[AudioTowerSpec, AudioSpec]:
    return _pieces(config, pool=1, filled=True)


def _qwen2(config: Any) -> tuple[AudioTowerSpec, AudioSpec]:
    return _pieces(config, pool=2, filled=False)


def _qwen3(config: Any) -> tuple[AudioTowerSpec, AudioSpec]:
    # Chunks of other sizes: ``transformers`` counts the positions of a full one as 13, whatever they are.
    supported.require(config, n_window=50, max_position_embeddings=13)
    frames, window = 2 * config.n_window, config.n_window_infer
    if window < frames or window % frames:
        raise UserError(f"config.json: n_window_infer={window} is not supported: only multiples of {frames} are")
    spec = _encoder(config, stem="chunks", chunk=frames, channels=config.downsample_hidden_size, key_bias=True)
    return spec, AudioSpec(mels=spec.mels, chunk=frames, chunk_positions=13, attend=window // frames)


# Names


def _layers() -> list[Rule]:
    layer, block = "audio.layers.{i}", "audio.blocks"
    norms = {"self_attn_layer_norm": "norm_attention", "final_layer_norm": "norm_mlp"}
    maps = {
        "self_attn.q_proj": "attention.query", "self_attn.k_proj": "attention.key",
        "self_attn.v_proj": "attention.value", "self_attn.out_proj": "attention.out",
        "fc1": "mlp.up", "fc2": "mlp.down",
    }  # fmt: skip
    return [
        *(rule for name, path in norms.items() for rule in norm(f"{layer}.{name}", f"{block}.{path}")),
        *(rule for name, path in maps.items() for rule in linear(f"{layer}.{name}", f"{block}.{path}")),
    ]


def _convolutions(paths: Mapping[str, str]) -> list[Rule]:
    """Rules for convolutions, from their names to paths inside our stem."""
    return [
        rule
        for name, path in paths.items()
        for rule in (
            Rule(f"audio.{name}.weight", (f"audio.stem.{path}.kernel",), "reversed"),
            Rule(f"audio.{name}.bias", (f"audio.stem.{path}.bias",)),
        )
    ]


WHISPER_RULES = [
    *_convolutions({"conv1": "first", "conv2": "second"}),
    Rule("audio.embed_positions.weight", ("audio.stem.position_embedding",)),
    *_layers(),
    *norm("audio.layer_norm", "audio.norm"),
]
QWEN3_RULES = [
    *_convolutions({"conv2d1": "first", "conv2d2": "second", "conv2d3": "third"}),
    *linear("audio.conv_out", "audio.stem.out"),
    *_layers(),
    *norm("audio.ln_post", "audio.norm"),
]
AUDIO_TOWERS = {
    "whisper": AudioTowerKind(_whisper, WHISPER_RULES),
    "qwen2_audio_encoder": AudioTowerKind(_qwen2, WHISPER_RULES),
    "qwen3_asr_encoder": AudioTowerKind(_qwen3, QWEN3_RULES),
}
