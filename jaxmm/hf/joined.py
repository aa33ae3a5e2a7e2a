"""A tower and a decoder that no folder had together, in the layout of a family, so that ``transformers`` runs it.

A tower of pictures of any shape goes into one family's layout, a tower of one size into another's: the tower says which
pictures it takes (``towers.TOWERS``), the family which of these it joins (``Family.joins``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxmm.errors import UserError
from jaxmm.hf.families.family import Joined
from jaxmm.hf.families.registry import family_that_joins
from jaxmm.hf.towers import TOWERS, joinable, tower_of
from jaxmm.models.connector import ConnectorSpec


def join(vision: Any, text: Any, tied: bool, folder: Path, connector: ConnectorSpec) -> Joined:
    """Joins the two by their configs, as ``transformers`` reads them.

    Args:
      tied: whether the decoder's vocabulary projection is its embedding.
      folder: the tower's.
      connector: as it is asked for, which some layouts leave no choice of.

    Raises:
      UserError: for a tower that no family joins with a decoder.
    """
    kind = vision.model_type
    if kind not in joinable():
        tower_of(vision)  # says so where there is no such tower at all
        raise UserError(
            f"{folder}: a tower '{kind}' runs in its own family alone: start from a whole model, or take a tower of "
            f"{', '.join(joinable())}"
        )
    return family_that_joins(TOWERS[kind].pictures).join(vision, text, tied, folder, connector)
