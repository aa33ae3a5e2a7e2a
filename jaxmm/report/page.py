"""One self-contained HTML page of the batches a model gets: rows as bars of documents, figures, and what was left out.

The page loads nothing: style, script and pictures are in it, and its policy forbids the rest. What comes from data is
escaped here or put in by the script as text, never as markup.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

from jaxmm.report import shell, tables
from jaxmm.report.content import DrawnRow, Report
from jaxmm.report.store import Store
from jaxmm.report.words import hue, plural

MARKED = {"picture": "image", "video": "video", "audio": "recording"}  # spans with a picture of their own


def render(report: Report) -> str:
    """The page as HTML."""
    store = Store([view for row in report.rows for view in row.views])
    rows = "".join(_row(store, row, report) for row in report.rows)
    hues = [hue(i) for i in range(len(report.sources))]
    return shell.page(
        "page",
        styles=("base", "page", "clips"),
        scripts=("base", "clips", "page"),
        title=f"{escape(report.title)} – what the model will see",
        heading=escape(report.title),
        about=_about(report),
        budgets="".join(tables.budgets(report)),
        legend="".join(_legend(report)),
        drawn=_drawn(report),
        rows=rows,
        shares="".join(tables.shares(report)),
        modalities=tables.modalities(report),
        clips=tables.clip_table(report),
        charts="".join(chart.svg() for chart in tables.charts(report)),
        left_out="".join(f"<li>{line}</li>" for line in tables.left_out(report)),
        config=escape(json.dumps(report.config, indent=2)),
        store=store.json(
            patch=report.image.patch_size, merge=report.image.merge, sources=[s.name for s in report.sources], hues=hues
        ),
    )


def _across(first: int, size: int, whole: int) -> str:
    return f"left:{100 * first / whole:.4g}%;width:{100 * size / whole:.4g}%"


def _row(store: Store, row: DrawnRow, report: Report) -> str:
    """The bar of a row, with a button for each document, whose content goes into the store."""
    budgets = report.tally.budgets
    bars, patches, frames = [], [], []
    for segment, view in enumerate(row.views, start=1):
        document = store.add(row.batch, row.row, segment, view)
        bars.append(_bar(document, budgets.tokens))
        style = f"--h:{hue(view.piece.source)}"
        shade = f'<i class="shade{segment % 2}" style="{style};'
        tiles = [(picture.patch, picture) for picture in view.pictures]
        tiles += [(film.shots[0].picture.patch, film.shots[-1].picture) for film in view.films]
        for first, last in tiles:
            size = last.patch + last.rows * last.columns - first
            patches.append(f'{shade}{_across(first, size, budgets.patches)}"></i>')
        for sound in view.sounds:
            frames.append(f'{shade}{_across(sound.unit, len(sound.frames_FM), budgets.get("audio"))}"></i>')
    used = dict(zip(budgets.names, row.used, strict=True))
    told = (
        f"Batch {row.batch}, row {row.row}: {plural(len(row.views), 'document')}, {used['tokens']:,} of "
        f"{budgets.tokens:,} tokens, {used['patches']:,} of {budgets.patches:,} patches"
    )
    lanes = [f'<div class="lane patches" aria-hidden="true">{"".join(patches)}</div>']
    full = [f"{used['patches'] / budgets.patches:.0%}"]
    if audio := budgets.get("audio"):
        told += f", {used['audio']:,} of {audio:,} log-mel frames"
        lanes.append(f'<div class="lane frames" aria-hidden="true">{"".join(frames)}</div>')
        full.append(f"{used['audio'] / audio:.0%}")
    return (
        f'<li class="row"><span class="name" title="{told}">{row.batch}<i>/</i>{row.row}</span><div class="lanes">'
        f'<div class="lane tokens" role="group" aria-label="{told}">{"".join(bars)}</div>'
        f"{''.join(lanes)}</div>"
        f'<span class="full" aria-hidden="true">{used["tokens"] / budgets.tokens:.0%}'
        f"<small>{'</small><small>'.join(full)}</small></span></li>\n"
    )


def _bar(document: dict[str, Any], budget: int) -> str:
    start, stop = document["place"]
    size = stop - start
    told = f"{size:,} tokens, {document['targets']:,} learnt"
    for name, noun in MARKED.items():
        if count := sum(span[0] == name for span in document["spans"]):
            told += f", {plural(count, noun)}"
    if document["skipped"]:
        told = f"padding, as {document['lost']} is {document['skipped']}"
    kind = "lost" if document["skipped"] else f"shade{document['segment'] % 2}"
    marks = []
    for name, first, last, content in _marks(document["spans"]):
        number = f' data-{name}="{content}"' if name in MARKED else ""
        marks.append(f'<i class="{name}"{number} style="{_across(first - start, last - first, size)}"></i>')
    return (
        f'<button type="button" class="doc {kind}" data-document="{document["number"]}" tabindex="-1" '
        f'style="--h:{hue(document["source"])};{_across(start, size, budget)}" '
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
    media = tables.clip_counts(report)
    if total.images or not media:
        media.insert(0, plural(total.images, "image"))
    which = f"batch {start}" if stop - start == 1 else f"batches {start} to {stop - 1}"
    return (
        f"{which[0].upper()}{which[1:]}: {plural(len(report.tally.used), 'row')}, "
        f"{plural(total.documents, 'document')}, {plural(total.tokens, 'token')}, {', '.join(media)}. "
        "All of it is read back from the arrays that the model gets."
    )


def _legend(report: Report) -> Iterator[str]:
    for i, source in enumerate(report.sources):
        yield f'<li><i class="key shade0" style="--h:{hue(i)}"></i>{escape(source.name)}</li>'
    yield '<li><i class="key learnt"></i>learnt</li>'
    if report.tally.total.images or not tables.clips(report):
        yield '<li><i class="key image"></i>image</li>'
    for name in tables.clips(report):
        yield f'<li><i class="key {name}"></i>{MARKED[name]}</li>'
    yield '<li><i class="key padding"></i>padding</li><li><i class="key patch"></i>patches</li>'
    if report.tally.budgets.get("audio"):
        yield '<li><i class="key frames"></i>log-mel frames</li>'
    if report.tally.skipped:
        yield '<li><i class="key lost"></i>became padding</li>'


def _drawn(report: Report) -> str:
    drawn, whole = len(report.rows), len(report.tally.used)
    return "" if drawn == whole else f"The first {drawn:,} of {whole:,} rows are drawn; the figures are of all."
