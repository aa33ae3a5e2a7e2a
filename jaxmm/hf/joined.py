"""Joins a tower and a decoder from different folders, in the layout of a family, so that ``transformers`` can run them.

A tower for pictures of any shape goes into one family's layout, a tower of one size into another's. The tower says
which pictures it takes (``towers.TOWERS``), the family which towers it joins (``JoiningFamily.joins``). An audio tower
goes into the layout of the family that hears it. A model that sees and hears is both joins, of one decoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from jaxmm.errors import UserError
from jaxmm.hf import folder as hf
from jaxmm.hf.families.family import Joined
from jaxmm.hf.families.registry import family_that_hears, family_that_joins, heard_towers
from jaxmm.hf.pictures import normalised
from jaxmm.hf.processors import json_object
from jaxmm.hf.recordings import audio_settings
from jaxmm.hf.towers import TOWERS, joinable, tower_of
from jaxmm.models.connector import ConnectorSpec


class Decoder(NamedTuple):
    """A decoder's config, as ``transformers`` reads it, and whether its vocabulary projection is its embedding."""

    config: Any
    tied: bool


def _decoder(folder: Path) -> Decoder:
    config = hf.read_config(folder)
    tied = hf.is_tied(folder, bool(getattr(config, "tie_word_embeddings", False)))
    return Decoder(getattr(config, "text_config", config), tied)


def join_to_hear(tower: Path, decoder: Path) -> Joined:
    """Joins an audio tower and a decoder, by their folders.

    Raises:
      UserError: for a tower that no family joins with a decoder.
    """
    whole, (text, tied) = hf.read_config(tower), _decoder(decoder)
    audio = getattr(whole, "audio_config", whole)
    family = family_that_hears(audio.model_type)
    if family is None:
        raise UserError(
            f"{tower}: '{audio.model_type}' is no audio tower that is joined with a decoder: those are "
            f"{', '.join(heard_towers())}"
        )
    joined = family.join(audio, text, tied)
    assert joined.layout.audio is not None
    settings = audio_settings(joined.layout.audio, tower, family.audio_extractor)
    extractor = tower / "preprocessor_config.json"
    processor = json_object(extractor) if extractor.exists() else {"feature_size": settings.mels}
    return joined._replace(layout=joined.layout._replace(audio=settings), processor=processor)


def join_to_see(tower: Path, decoder: Path, connector: ConnectorSpec) -> Joined:
    """Joins a vision tower and a decoder, by their folders.

    Args:
      connector: the one that is asked for; some layouts leave no choice.

    Raises:
      UserError: for a tower that no family joins with a decoder.
    """
    whole, (text, tied) = hf.read_config(tower), _decoder(decoder)
    vision = getattr(whole, "vision_config", whole)
    kind = vision.model_type
    if kind not in joinable():
        tower_of(vision)  # raises if there is no such tower at all
        raise UserError(
            f"{tower}: a tower '{kind}' runs in its own family alone: start from a whole model, or take a tower of "
            f"{', '.join(joinable())}"
        )
    joined = family_that_joins(TOWERS[kind].pictures).join(vision, text, tied, tower, connector)
    layout = joined.layout._replace(spec=normalised(joined.layout.spec, joined.processor))
    return joined._replace(layout=layout)
