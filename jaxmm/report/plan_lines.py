"""The plan of a batch as JSON: which documents its rows hold, and how much of each budget they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmm.data.packing.limits import FIRST
from jaxmm.data.packing.plan import Lengths, Piece, Row
from jaxmm.report.view import example_id


def piece_needs(lengths: Lengths, piece: Piece, budget: str = "patches") -> int:
    """What the media in a piece take of a budget, from the index alone."""
    if budget not in lengths.columns:
        return 0
    if piece.first == 0 and piece.last == lengths.tokens_E[piece.example]:
        return int(lengths.of(budget)[piece.example])
    columns = lengths.prepared
    images = slice(*(int(i) for i in columns.images_E1[piece.example : piece.example + 2]))
    before = np.concatenate([[0], np.cumsum(lengths.spans(images))[:-1]])  # what stands inside those before it
    first = np.asarray(columns.image_at_I[images], np.int64) + before[: images.stop - images.start]
    needs = lengths.media_needs(images).get(budget, np.zeros(len(first), np.int64))
    return int(needs[(first >= piece.first) & (first < piece.last)].sum())


def rows_of(rows: Sequence[Row], lengths: Sequence[Lengths]) -> list[list[list[Any]]]:
    """The pieces of each row, as [example id, first token, last token)."""
    return [[[example_id(lengths[p.source], p.example), p.first, p.last] for p in row] for row in rows]


def plan_line(k: int, rows: Sequence[Row], lengths: Sequence[Lengths]) -> dict[str, Any]:
    """Global batch ``k`` as JSON: rows of [example id, first token, last token), and what they hold together."""
    pieces = [piece for row in rows for piece in row]
    counted = ["patches", *dict.fromkeys(name for source in lengths for name in source.columns[len(FIRST) :])]
    return {
        "batch": k,
        "rows": rows_of(rows, lengths),
        "tokens": sum(piece.last - piece.first for piece in pieces),
        **{name: sum(piece_needs(lengths[piece.source], piece, name) for piece in pieces) for name in counted},
    }
