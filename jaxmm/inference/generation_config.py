"""Reads ``generation_config.json`` of a model's folder: what is followed, and what is not and is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxmm.hf.pretrained import MODEL, Pretrained, generation

# What a folder may say that chooses tokens, with the value that changes nothing.
DRAWS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
NOT_FOLLOWED: dict[str, Any] = {
    "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "bad_words_ids": [], "suppress_tokens": [],
    "begin_suppress_tokens": [], "sequence_bias": {}, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "min_length": 0, "min_new_tokens": 0, "exponential_decay_length_penalty": None, "stop_strings": [],
    "num_beams": 1, "num_beam_groups": 1, "penalty_alpha": 0.0, "guidance_scale": 1.0, "typical_p": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "top_h": None,
}  # fmt: skip


def said_by(start: Pretrained | None, workdir: Path) -> dict[str, Any]:
    """What the folder says that the run's model, or the decoder of a joined one, came from; {} for random weights."""
    return generation(workdir / MODEL) if start else {}


def repetition_penalty(said: Mapping[str, Any], asked: float) -> float:
    """What is asked for, or, for 0, what the folder says; 1 is none."""
    return asked or float(said.get("repetition_penalty") or 1.0)


def differences(said: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    """What of a folder's settings is not followed, and what is, for people to know.

    Args:
      asked: the flags of ``generate``.
    """
    penalty = repetition_penalty(said, 0.0)
    if penalty != 1 and not asked["repetition_penalty"]:
        yield f"repetition_penalty {penalty} of the model's folder is followed: --repetition_penalty=1 leaves it out"
    draws = {key: said[key] for key, neutral in DRAWS.items() if said.get(key) not in (None, neutral)}
    other = {key: value for key, value in draws.items() if value != asked[key]}
    if said.get("do_sample") and (other or not asked["temperature"]):
        draws = {"temperature": 1.0} | draws
        flags = " ".join(f"--{key}={value}" for key, value in draws.items())
        yield f"the model's folder says that answers are drawn otherwise than here: {flags}"
    others = [f"{key} {said[key]}" for key, neutral in NOT_FOLLOWED.items() if said.get(key) not in (None, neutral)]
    if others:
        yield f"not followed, of the generation_config.json of the model's folder: {', '.join(others)}"
