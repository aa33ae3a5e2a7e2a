"""Joins a tower and a decoder from different folders, in the layout of a family, so that ``transformers`` can run them.

A tower for pictures of any shape goes into one family's layout, a tower of one size into another's. The tower says
which pictures it takes (``towers.TOWERS``), the family which towers it joins (``JoiningFamily.joins``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxmm.errors import UserError
from jaxmm.hf.families.family import Joined
from jaxmm.hf.families.registry import family_that_hears, family_that_joins, heard_towers
from jaxmm.hf.towers import TOWERS, joinable, tower_of
from jaxmm.models.connector import ConnectorSpec


def join_to_hear(audio: Any, text: Any, tied: bool, folder: Path) -> Joined:
    """Joins an audio tower and a decoder by their configs, as ``transformers`` reads them.

    Raises:
      UserError: for a tower that no family joins with a decoder.
    """
    family = family_that_hears(audio.model_type)
    if family is None:
        raise UserError(
            f"{folder}: '{audio.model_type}' is no audio tower that is joined with a decoder: those are "
            f"{', '.join(heard_towers())}"
        )
    return family.join(audio, text, tied)


def join(vision: Any, text: Any, tied: bool, folder: Path, connector: ConnectorSpec) -> Joined:
    """Joins a tower and a decoder by their configs, as ``transformers`` reads them.

    Args:
      tied: whether the decoder's vocabulary projection is its embedding.
      folder: of the tower.
      connector: the one that is asked for; some layouts leave no choice.

    Raises:
      UserError: for a tower that no family joins with a decoder.
    """
    kind = vision.model_type
    if kind not in joinable():
        tower_of(vision)  # raises if there is no such tower at all
        raise UserError(
            f"{folder}: a tower '{kind}' runs in its own family alone: start from a whole model, or take a tower of "
            f"{', '.join(joinable())}"
        )
    return family_that_joins(TOWERS[kind].pictures).join(vision, text, tied, folder, connector)
