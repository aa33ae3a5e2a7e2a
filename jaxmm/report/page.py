"""One self-contained HTML page of the batches a model gets: rows as bars of documents, figures, and what was left out.

The page loads nothing: style, script and pictures are in it, and its policy forbids the rest. What comes from data is
escaped here or put in by the script as text, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import string
from collections.abc import Iterable, Iterator
from html import escape
from importlib import resources
from typing import Any, NamedTuple

from jaxmm.batch import ImageSpec
from jaxmm.report.charts import Histogram
from jaxmm.report.store import Store
from jaxmm.report.tally import Tally
from jaxmm.report.view import View

HUES = (255, 55, 155, 325, 205, 95, 290, 20)  # of the sources in turn, in degrees of OKLCH


class Source(NamedTuple):
    """What is told of a source beside its sums.

    Attributes:
      documents: in all of it.
      asked: its share of tokens; all sources' sum to 1.
      over: documents over each budget, as of tally.over_budget.
      left_out: documents that preparing left out, by reason.
      columns: name, records that had it, and what became of it, as of report.column_rows.
    """

    name: str
    documents: int
    asked: float
    over: dict[str, int]
    left_out: dict[str, int]
    columns: tuple[tuple[str, int, str], ...] = ()


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


def render(report: Report) -> str:
    """The page as HTML."""
    store = Store()
    rows = "".join(_row(store, row, report) for row in report.rows)
    hues = [_hue(i) for i in range(len(report.sources))]
    files = resources.files("jaxmm.report")
    page, style, script = (files.joinpath(f"page.{end}").read_text("utf-8") for end in ("html", "css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return string.Template(page).substitute(
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        style=style,
        script=script,
        title=escape(report.title),
        about=_about(report),
        budgets="".join(_budgets(report)),
        legend="".join(_legend(report)),
        drawn=_drawn(report),
        rows=rows,
        shares="".join(_shares(report)),
        modalities=_modalities(report),
        charts="".join(chart.svg() for chart in _charts(report)),
        left_out="".join(f"<li>{line}</li>" for line in _left_out(report)),
        config=escape(json.dumps(report.config, indent=2)),
        store=store.json(
            patch=report.image.patch_size, merge=report.image.merge, sources=[s.name for s in report.sources], hues=hues
        ),
    )


def _hue(source: int) -> int:
    return HUES[source % len(HUES)]


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _across(first: int, size: int, whole: int) -> str:
    return f"left:{100 * first / whole:.4g}%;width:{100 * size / whole:.4g}%"


def _row(store: Store, row: DrawnRow, report: Report) -> str:
    """The bar of a row, with a button for each document, whose content goes into the store."""
    budgets = report.tally.budgets
    bars, patches = [], []
    for segment, view in enumerate(row.views, start=1):
        document = store.add(row.batch, row.row, segment, view)
        bars.append(_bar(document, budgets.tokens))
        style = f"--h:{_hue(view.piece.source)}"
        for picture in view.pictures:
            where = _across(picture.patch, picture.rows * picture.columns, budgets.patches)
            patches.append(f'<i class="shade{segment % 2}" style="{style};{where}"></i>')
    used = dict(zip(budgets.names, row.used, strict=True))
    told = (
        f"Batch {row.batch}, row {row.row}: {_plural(len(row.views), 'document')}, {used['tokens']:,} of "
        f"{budgets.tokens:,} tokens, {used['patches']:,} of {budgets.patches:,} patches"
    )
    return (
        f'<li class="row"><span class="name" title="{told}">{row.batch}<i>/</i>{row.row}</span><div class="lanes">'
        f'<div class="lane tokens" role="group" aria-label="{told}">{"".join(bars)}</div>'
        f'<div class="lane patches" aria-hidden="true">{"".join(patches)}</div></div>'
        f'<span class="full" aria-hidden="true">{used["tokens"] / budgets.tokens:.0%}'
        f"<small>{used['patches'] / budgets.patches:.0%}</small></span></li>\n"
    )


def _bar(document: dict[str, Any], budget: int) -> str:
    start, stop = document["place"]
    size = stop - start
    pictures = sum(span[0] == "picture" for span in document["spans"])
    told = f"{size:,} tokens, {document['targets']:,} learnt" + (f", {_plural(pictures, 'image')}" if pictures else "")
    if document["skipped"]:
        told = f"padding, as an image is {document['skipped']}"
    kind = "lost" if document["skipped"] else f"shade{document['segment'] % 2}"
    marks = []
    for name, first, last, content in _marks(document["spans"]):
        number = f' data-picture="{content}"' if name == "picture" else ""
        marks.append(f'<i class="{name}"{number} style="{_across(first - start, last - first, size)}"></i>')
    return (
        f'<button type="button" class="doc {kind}" data-document="{document["number"]}" tabindex="-1" '
        f'style="--h:{_hue(document["source"])};{_across(start, size, budget)}" '
        f'aria-label="{escape(document["name"])}: {told}">{"".join(marks)}</button>'
    )


def _marks(spans: list[list[Any]]) -> Iterator[tuple[str, int, int, Any]]:
    """Pictures, features, and runs of targets that touch each other as one."""
    run: tuple[int, int] | None = None
    for kind, first, last, is_target, content in spans:
        if is_target:
            if run and run[1] != first:
                yield "target", *run, None
                run = None
            run = (run[0] if run else first, last)
            continue
        if run:
            yield "target", *run, None
            run = None
        if kind not in ("text", "special"):
            yield kind, first, last, content
    if run:
        yield "target", *run, None


def _about(report: Report) -> str:
    start, stop = report.batches
    total = report.tally.total
    which = f"batch {start}" if stop - start == 1 else f"batches {start} to {stop - 1}"
    return (
        f"{which[0].upper()}{which[1:]}: {_plural(len(report.tally.used), 'row')}, "
        f"{_plural(total.documents, 'document')}, {_plural(total.tokens, 'token')}, {_plural(total.images, 'image')}. "
        "All of it is read back from the arrays that the model gets."
    )


def _budgets(report: Report) -> Iterator[str]:
    side, group = report.image.patch_size, report.image.merge**2
    told = {
        "tokens": ("Tokens", "text and soft tokens; <code>seq_len</code>"),
        "patches": ("Patches", f"of {side} × {side} pixels; {group} make a soft token"),
        "items": ("Images", "at most in a row"),
        "targets": ("Targets", "tokens the loss predicts"),
        "features": ("Features", f"ready-made vectors; {group} make a soft token"),
    }
    for key, budget in report.tally.budgets._asdict().items():
        if not budget:
            continue  # no source has any
        name, note = told.get(key, (escape(key.capitalize()), "at most in a row"))
        column = report.tally.used_of(key)
        full = float(column.mean()) / budget
        yield (
            f'<div class="tile"><dt>{name} a row</dt><dd><b>{budget:,}</b>'
            f'<span class="meter" aria-hidden="true"><i style="width:{100 * full:.4g}%"></i></span>'
            f"<span>{full:.1%} full <small>{column.min():,} to {column.max():,}</small></span>"
            f"<small>{note}</small></dd></div>"
        )


def _legend(report: Report) -> Iterator[str]:
    for i, source in enumerate(report.sources):
        yield f'<li><i class="key shade0" style="--h:{_hue(i)}"></i>{escape(source.name)}</li>'
    yield '<li><i class="key learnt"></i>learnt</li><li><i class="key image"></i>image</li>'
    yield '<li><i class="key padding"></i>padding</li><li><i class="key patch"></i>patches</li>'
    if report.tally.skipped:
        yield '<li><i class="key lost"></i>became padding</li>'


def _drawn(report: Report) -> str:
    drawn, whole = len(report.rows), len(report.tally.used)
    return "" if drawn == whole else f"The first {drawn:,} of {whole:,} rows are drawn; the figures are of all."


def _shares(report: Report) -> Iterator[str]:
    tokens = max(report.tally.total.tokens, 1)
    for i, (source, sums) in enumerate(zip(report.sources, report.tally.sources, strict=True)):
        share = sums.tokens / tokens
        passes = report.tally.epochs[i]
        yield (
            f'<tr><th scope="row"><i class="key shade0" style="--h:{_hue(i)}"></i>{escape(source.name)}</th>'
            f"<td>{source.asked:.1%}</td><td>{share:.1%}</td>"
            f'<td class="bar"><span class="share" style="--h:{_hue(i)}" aria-hidden="true">'
            f'<i style="width:{100 * share:.4g}%"></i><b style="left:{100 * source.asked:.4g}%"></b></span></td>'
            f"<td>{source.documents:,}</td><td>{passes or '–'}</td><td>{sums.documents:,}</td>"
            f"<td>{sums.text:,}</td><td>{sums.soft:,}</td><td>{sums.targets:,}</td><td>{sums.images:,}</td>"
            f"<td>{sums.patches:,}</td></tr>"
        )


def _modalities(report: Report) -> str:
    """One bar of all text positions, by what stands there."""
    total, positions = report.tally.total, len(report.tally.used) * report.tally.budgets.tokens
    kinds = {
        "learnt": ("text, learnt", total.targets),
        "read": ("text, only read", total.text - total.targets),
        "soft": ("images (soft tokens)", total.soft),
        "empty": ("padding", positions - total.tokens),
    }
    bar = "".join(f'<i class="{name}" style="width:{100 * n / positions:.4g}%"></i>' for name, (_, n) in kinds.items())
    items = "".join(
        f'<li><i class="key {name}"></i>{label} <b>{n / positions:.1%}</b> <small>{n:,}</small></li>'
        for name, (label, n) in kinds.items()
    )
    return f'<div class="modalities" aria-hidden="true">{bar}</div><ul class="legend">{items}</ul>'


def _charts(report: Report) -> Iterator[Histogram]:
    tally, budgets = report.tally, report.tally.budgets
    longest = int(tally.lengths.max(initial=1))
    yield Histogram.of("Documents by length", "tokens", tally.lengths, 0, longest)
    yield Histogram.of("Rows by token fill", "part of the budget", tally.used_of("tokens") / budgets.tokens, 0, 1, 20)
    yield Histogram.of("Rows by patch fill", "part of the budget", tally.used_of("patches") / budgets.patches, 0, 1, 20)
    if tally.total.images:
        images = tally.used_of("items")
        yield Histogram.of("Rows by images", "images", images, 0, int(images.max()))


def _counts(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count:,} {escape(name)}" for name, count in counts if count)


def _left_out(report: Report) -> Iterator[str]:
    """What was cut, left out, or became padding, a line each."""
    fates = {"split": "cut into parts that fit", "truncate": "cut to their first part", "drop": "left out"}
    fate = fates[report.long_documents]
    for source in report.sources:
        over = source.over["any"]
        name = f"<b>{escape(source.name)}</b>"
        if over:
            why = _counts((f"by {budget}", count) for budget, count in source.over.items() if budget != "any")
            yield (
                f"{name}: {_plural(over, 'document')} of {source.documents:,} over a row’s budgets ({why}): {fate} "
                f"(<code>data.long_documents={report.long_documents}</code>)."
            )
        if source.columns:
            told = "; ".join(
                f"<code>{escape(n)}</code> ({count:,}) {escape(what)}" for n, count, what in source.columns
            )
            yield f"{name}: columns of its records: {told}."
        if source.left_out:
            yield (
                f"{name}: {_plural(sum(source.left_out.values()), 'document')} left out when prepared "
                f"({_counts(source.left_out.items())})."
            )
    parts = report.tally.parts
    if parts:
        yield f"These batches hold {_plural(parts.total(), 'part')} of {_plural(len(parts), 'long document')}."
    for skipped in report.tally.skipped:
        yield f"<code>{escape(skipped.origin)}</code> became padding: its image is {escape(skipped.reason)}."
    if not (parts or report.tally.skipped or any(s.over["any"] or s.left_out for s in report.sources)):
        yield "Nothing: every document stands whole in a row."
