"""How families take recordings: the settings of a folder's feature extractor as those of an ``AudioSpec``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmm.clip_spec import AudioSpec
from jaxmm.errors import UserError
from jaxmm.hf.processors import json_object

# What transformers' feature extractors do where a folder does not say it.
EXTRACTORS: dict[str, dict[str, Any]] = {
    "WhisperFeatureExtractor": {"min_length": 0},
    "Qwen3ASRFeatureExtractor": {"min_length": 8000},
}
DEFAULTS = {"sampling_rate": 16000, "hop_length": 160, "n_fft": 400, "dither": 0.0}
FILES = ("preprocessor_config.json", "processor_config.json")


def audio_settings(audio: AudioSpec, folder: Path, default: str) -> AudioSpec:
    """Returns how recordings are taken: as the tower decides, and as the folder's feature extractor does.

    Args:
      default: the extractor's class, for a folder that does not name it.

    Raises:
      UserError: for another extractor, or settings of it that are not followed.
    """
    settings = _read(folder)
    kind = str(settings.get("feature_extractor_type") or default)
    if kind not in EXTRACTORS:
        raise UserError(f"{folder}: recordings heard by {kind} are not supported: those by {', '.join(EXTRACTORS)} are")
    settings = {**DEFAULTS, "feature_size": audio.mels, **EXTRACTORS[kind], **settings}
    if settings["feature_size"] != audio.mels or settings["dither"]:
        raise UserError(
            f"{folder}: its feature extractor has feature_size={settings['feature_size']} and "
            f"dither={settings['dither']}: the tower takes {audio.mels} bands, without dither"
        )
    try:
        return dataclasses.replace(
            audio, rate=int(settings["sampling_rate"]), hop=int(settings["hop_length"]), window=int(settings["n_fft"]),
            least=int(settings["min_length"]),
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder}: its feature extractor's settings cannot be read: {error}") from error


def _read(folder: Path) -> Mapping[str, Any]:
    for name in FILES:
        if (folder / name).exists():
            whole = json_object(folder / name)
            settings = whole.get("feature_extractor", whole)
            if isinstance(settings, dict) and (settings.get("feature_extractor_type") or settings is not whole):
                return settings
    return {}
