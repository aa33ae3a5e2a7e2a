"""All that a report page shows, as it is gathered."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxmm.image_spec import ImageSpec
from jaxmm.report.tally import Tally
from jaxmm.report.view import View


class Source(NamedTuple):
    """What is told of a source beside its sums.

    Attributes:
      documents: in all of it.
      asked: its share of tokens; all sources' sum to 1.
      over: documents over each budget, as of tally.over_budget.
      left_out: documents that preparing left out, by reason.
      columns: name, records that had it, and what became of it, as of report.column_rows.
      cut_short: what is told of clips that are not taken whole, a line each.
      preferences: which ones it has, as of ``Lengths.preferences``.
    """

    name: str
    documents: int
    asked: float
    over: dict[str, int]
    left_out: dict[str, int]
    columns: tuple[tuple[str, int, str], ...] = ()
    cut_short: tuple[str, ...] = ()
    preferences: str = ""


class DrawnRow(NamedTuple):
    """A row that is drawn: its batch, its number there, its documents, and what it holds of each budget."""

    batch: int
    row: int
    views: list[View]
    used: tuple[int, ...]


class Report(NamedTuple):
    """All that a page shows. ``batches`` are [start, stop); ``config`` is JSON."""

    title: str
    config: dict[str, Any]
    batches: tuple[int, int]
    image: ImageSpec
    long_documents: str
    sources: list[Source]
    tally: Tally
    rows: list[DrawnRow]
