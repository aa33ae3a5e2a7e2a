"""What stands at the text positions of loaded rows: media, separators, text; in which turn; which media came before.

All of it comes from the plan's index and the batch's own tokens. No record is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmm.batch import ANSWER
from jaxmm.data.assemble import Loaded
from jaxmm.data.media.table import medium_of_kind
from jaxmm.data.packing.lengths import expanded
from jaxmm.data.packing.plan import Lengths, Piece
from jaxmm.data.text.template import Template

MODALITIES = ("image", "video", "audio")  # that attention is told by
CLASS_OF = {name: n for n, name in enumerate(MODALITIES)} | {"image_tokens": 0}  # as images stand there, too
# What stands at a position, as a number: first the modalities, by their place in MODALITIES.
SEPARATOR, FIRST, TEXT = range(len(MODALITIES), len(MODALITIES) + 3)


class Standing(NamedTuple):
    """All int32 (B, T). What they are on padding, that of documents that could not be used among it, means nothing.

    Attributes:
      classes_BT: a modality's number at its soft tokens, and at discrete tokens of images; SEPARATOR at special tokens;
        FIRST at the first position of a document, or of a part of a long one, whatever stands there; else TEXT, also
        that inside a video.
      turns_BT: the turn, counted in the document: an answer is one, and so is all that stands between two answers.
      seen_BT: bit m is set where modality m stands at or before the position, in its document.
    """

    classes_BT: np.ndarray
    turns_BT: np.ndarray
    seen_BT: np.ndarray


def standing(loaded: Loaded, lengths: Sequence[Lengths], template: Template) -> Standing:
    """What stands at the positions of the rows that this process has loaded."""
    shape = loaded.batch.slots_BT.shape
    of_all = Standing(*(np.zeros(shape, np.int32) for _ in Standing._fields))
    for b, row in enumerate(loaded.rows):
        at = 0
        for piece in row:
            here = slice(at, at + piece.last - piece.first)
            at = here.stop
            tokens, slots = loaded.batch.text.values[b, here], loaded.batch.slots_BT[b, here]
            of_piece = _of_piece(lengths[piece.source], piece, tokens, slots, template)
            for whole, part in zip(of_all, of_piece, strict=True):
                whole[b, here] = part
    return of_all


def _of_piece(
    lengths: Lengths, piece: Piece, tokens: np.ndarray, slots: np.ndarray, template: Template
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes, turns and seen modalities of a piece's positions."""
    prepared = lengths.prepared
    media = slice(*(int(i) for i in prepared.images_E1[piece.example : piece.example + 2]))
    spans = lengths.spans(media)
    token_at, flags, _, slot_at, second = expanded(prepared, piece.example, spans)
    kinds = np.asarray(prepared.image_kind_I[media])
    if second:  # both halves have all media
        spans, kinds = np.tile(spans, 2), np.tile(kinds, 2)
    size, cut = len(flags) + int(spans.sum()), slice(piece.first, piece.last)

    token_of = np.full(size, -1, np.int64)  # of each position, the last token at or before it
    token_of[token_at] = np.arange(len(flags))
    token_of = np.maximum.accumulate(token_of)
    is_answer = np.append(flags & ANSWER > 0, False)[token_of]
    turns = np.concatenate([[0], np.cumsum(np.diff(is_answer.astype(np.int8)) != 0)])[cut]

    is_image = (tokens >= template.codebook.offset) & (tokens < template.vocab_size)
    classes = np.where(np.isin(tokens, template.special_ids), SEPARATOR, TEXT)
    classes[is_image] = MODALITIES.index("image")
    own = np.full(size, -1, np.int64)  # the modality inside whose medium a position lies
    for at, span, kind in zip(slot_at, spans, kinds, strict=True):
        own[at : at + span] = CLASS_OF[medium_of_kind(int(kind)).modality]
    own = own[cut]
    classes = np.where(slots >= 0, own, classes)
    here = np.where((slots >= 0) | is_image, 1 << classes, 0)
    for first in {0, second}:
        classes[first : first + 1] = FIRST
    seen = [np.bitwise_or.accumulate(half) for half in np.split(here, [second])]
    return classes, turns, np.concatenate(seen)
