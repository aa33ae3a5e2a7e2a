"""Which modalities a document has, from the index: what figures of a run and of its evaluations are told by."""

from __future__ import annotations

import numpy as np

from jaxmm.data.media import table
from jaxmm.data.media.table import MODALITIES
from jaxmm.data.packing.pieces import ragged
from jaxmm.data.prepare.index import Columns

TEXT = "text"  # a document without media


def modality_codes(index: Columns, examples: np.ndarray) -> np.ndarray:
    """int64 (examples,): a bit for each of MODALITIES that a document has; 0 is text alone."""
    media, starts = ragged(index.images_E1, examples)
    kinds, codes = np.asarray(index.image_kind_I[media]), np.zeros(len(examples), np.int64)
    for medium, which in table.by_medium(kinds):
        held = np.concatenate([[0], np.cumsum(np.ones(len(kinds), bool) if which is None else which)])
        codes |= (held[starts[1:]] > held[starts[:-1]]).astype(np.int64) << MODALITIES.index(medium.modality)
    return codes


def modality_name(code: int) -> str:
    """``text``, ``image``; ``image+audio`` for documents that have both, so that each counts once."""
    return "+".join(name for bit, name in enumerate(MODALITIES) if code >> bit & 1) or TEXT
