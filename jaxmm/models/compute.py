"""Compute settings that change no parameter: dtype, attention backend, rematerialisation, unrolling."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a model is computed.

    Attributes:
      dtype: of activations.
      remat: what layers keep for the backward pass, a key of ``layers.REMAT``.
      unroll: layers that one iteration of the scan over them runs.
      attention: what ``attention.choose_backend`` gives; '' is "blocks".
      tile: patch positions of an image, where all images have as many: "blocks" then cuts the tower's positions at the
        edges of images, and no logit of theirs is masked. 0 is any number.
    """

    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1
    attention: str = ""
    tile: int = 0
