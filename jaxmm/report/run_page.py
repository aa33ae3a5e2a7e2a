"""The page of one run, or of several side by side: one file that loads nothing, and has less than 3 MB.

What comes from a run's folder is escaped here, or put in by the script as text, never as markup.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from jaxmm.atomic import published
from jaxmm.errors import UserError
from jaxmm.report import run_config, run_tables, run_time, shell
from jaxmm.report.run_attention import MEDIA, attention_json
from jaxmm.report.run_chart import charts_json, fewer_points
from jaxmm.report.run_curves import charts
from jaxmm.report.run_data import RunData, read_run
from jaxmm.report.run_samples import samples_json
from jaxmm.report.run_sources import largest
from jaxmm.report.run_tiles import about, key, table_html, tiles_html
from jaxmm.report.words import CLASSES, HUES, plural

NAME = "report.html"
CURVES_JS = ("curve_axes", "curve_legend", "curve_input", "curves")
SCRIPTS = ("base", *CURVES_JS, "overlay", "attention", "sample_card", "samples", "run")
LIMIT = 3_000_000  # bytes of a page
CURVES, ATTENTION, SAMPLES = 1_000_000, 400_000, 1_100_000  # characters of the parts that can be large
SMALLER = (1.0, 0.6, 0.35, 0.2, 0.1, 0.0)  # of these, one after the other, until the page is small enough
MEANT = dict.fromkeys(MEDIA, "to media") | {  # classes of attention in a sentence, in the order of their telling
    "turn": "to the text of the same turn", "earlier": "to earlier text", "separators": "to special tokens",
    "first": "to the first position, where attention rests that has no better place",
}  # fmt: skip
Charts = dict[str, list[dict[str, Any]]]  # by section, as the script draws them


class Section(NamedTuple):
    """A part of the page; ``content`` and ``beside`` (behind its title) are HTML."""

    key: str
    title: str
    content: str
    beside: str = ""

    def html(self) -> str:
        return (
            f'<section aria-labelledby="{self.key}-title" id="{self.key}"><div class="heading">'
            f'<h2 id="{self.key}-title">{self.title}</h2>{self.beside}</div>{self.content}</section>\n'
        )


def write_report(workdir: Path, say: Callable[[str], None], state: str = "") -> bool:
    """Writes ``report.html`` into a run's folder, from what lies there; whether it could, else ``say`` tells why not.

    A run goes on without its page: whatever is wrong with it is told, and raised nowhere.

    Args:
      state: "stopped" of a run that ends before its last step, as its folder is still held; '' takes what that tells.
    """
    try:
        write_page(workdir / NAME, [read_run(workdir, state)])
    except Exception as error:  # of a folder that anybody may write to; and a page is worth no run
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        say(f"warning: {workdir / NAME} was not written: {' '.join(reason.split())}")
        return False
    return True


def write_page(path: Path, runs: Sequence[RunData]) -> None:
    """Writes the page of these runs so that a reader finds the old one or the new one, whole."""
    with published(path) as whole:
        whole.write_text(render(runs), encoding="utf-8")


def render(runs: Sequence[RunData], now: datetime.datetime | None = None) -> str:
    """The page as HTML; ``now`` is when it is written."""
    now = now or datetime.datetime.now().astimezone()
    shown, others = largest(runs)
    drawn = charts_json(charts(shown))
    for part in SMALLER:
        page, sizes = _page(shown, now, drawn, others, part)
        if len(page.encode()) <= LIMIT:
            return page
    left: list[str] = []
    while rest := {name: size for name, size in sizes.items() if name not in left}:
        left.append(max(rest, key=lambda name: rest[name]))
        page, _ = _page(shown, now, drawn, others, 0, left)
        if len(page.encode()) <= LIMIT:
            return page
    raise UserError(f"a page of {plural(len(runs), 'run')} has more than {LIMIT:,} bytes; name fewer of them")


def _page(
    runs: Sequence[RunData], now: datetime.datetime, all_drawn: Charts, others: Sequence[str], part: float,
    without: Sequence[str] = (),
) -> tuple[str, dict[str, int]]:  # fmt: skip
    """The page, and the characters of each of its sections by title.

    Args:
      all_drawn: its charts with all their points.
      others: what is not shown already.
      part: of the room that its large parts have at most.
      without: titles of sections that are left out.
    """
    drawn = fewer_points(all_drawn, int(part * CURVES))
    attention = [attention_json(run, int(part * ATTENTION) // len(runs)) if part else None for run in runs]
    samples, notes = [], list(others)
    for run in runs:
        shown, left = samples_json(run, int(part * SAMPLES) // len(runs))
        samples.append(shown)
        notes += left
    if not part:
        notes.append("the attention monitor is left out, to keep the page small")
    notes += _thinned(drawn)
    notes += [f"{title}: left out, to keep the page small" for title in without]
    made = list(_sections(runs, drawn, attention, any(samples)))
    sizes = {one.title: len(one.html()) + len(shell.script_json(drawn.get(one.key, []))) for one in made}
    sections = [one for one in made if one.title not in without]
    drawn = {key: of for key, of in drawn.items() if key in {one.key for one in sections}}
    sections += _last(runs, notes, attention, samples)
    store = {
        "hues": HUES,
        "charts": drawn,
        "words": CLASSES,
        "runs": [
            {"name": run.name, "attention": of, "samples": own}
            for run, of, own in zip(runs, attention, samples, strict=True)
        ],
    }
    names = ", ".join(run.name for run in runs)
    page = shell.page(
        "run",
        styles=("base", "overlay", "run"),
        scripts=SCRIPTS,
        title=escape(names if len(runs) > 1 else f"{names} – a run of jaxmm"),
        head=_head(runs, now),
        nav=" ".join(f'<a href="#{one.key}">{one.title}</a>' for one in sections),
        figures=table_html(runs) if len(runs) > 1 else tiles_html(runs[0]),
        sections="".join(one.html() for one in sections),
        store=shell.script_json(store),
    )
    return page, sizes


def _head(runs: Sequence[RunData], now: datetime.datetime) -> str:
    if len(runs) == 1:
        (run,) = runs
        return f'<p class="over">{escape(str(run.folder))}</p><h1>{escape(run.name)}</h1>{about(run, now)}'
    items = "".join(
        f'<li><p class="which">{key(i)}<b>{escape(run.name)}</b> <small>{escape(str(run.folder))}</small></p>'
        f"{about(run, now)}</li>"
        for i, run in enumerate(runs)
    )
    return f'<p class="over">side by side</p><h1>{plural(len(runs), "run")}</h1><ul class="runs">{items}</ul>'


def _charts(section: str) -> str:
    return f'<div class="curves" data-charts="{section}"></div>'


def _sections(
    runs: Sequence[RunData], drawn: dict[str, Any], attention: Sequence[dict[str, Any] | None], samples: bool
) -> Iterator[Section]:
    if drawn["curves"]:
        hint = (
            '<div class="tools" id="curve-tools"><p class="hint">Drag across a chart, pinch, or turn the wheel with '
            'Ctrl to zoom: all follow. <span class="keys">On a keyboard, arrows read values, + and − zoom, 0 shows '
            "all.</span></p></div><noscript>Curves need scripts.</noscript>"
        )
        yield Section("curves", "Curves", hint + _charts("curves"))
    if any(attention):
        classes = {MEANT[name] for one in attention if one for name in one["classes"]}
        *to, last = [told for told in dict.fromkeys(MEANT.values()) if told in classes]
        told = f"{', '.join(to)}{' or ' if to else ''}{last}"
        note = (
            f'<p class="note">Of the positions that predict a target, where their attention goes: {told}. Layers and '
            "heads count from 0.</p>"
        )
        yield Section("attention", "Attention", note + '<div id="monitor"></div>' + _charts("attention"))
    if samples:
        note = (
            '<p class="note">Held-out questions with the model’s answers, and where each token of an answer looks. '
            "Choose a token or a head.</p>"
        )
        yield Section("samples", "Samples", f'{note}<div id="answers"></div>')
    if balance := run_tables.each(runs, run_tables.balance):
        of_looks = " Shares of the loss by modality, and of gradients, are those of the batches that were looked at."
        of_looks *= any(run.learns_media or len(run.sources) > 1 for run in runs)
        note = (
            '<p class="note">Shares of the tokens, targets and loss by source that the run has trained on, means over '
            f'its steps.{of_looks} <span class="of-bars">The mark on a bar is what was asked for.</span></p>'
        )
        beside = _charts("balance") if drawn["balance"] else ""
        yield Section("balance", "Balance", f'{note}<div class="pair"><div class="part">{balance}</div>{beside}</div>')
    if time := run_tables.each(runs, run_time.time_spent):
        yield Section("time", "Time", time)
    if evaluations := run_tables.evaluations(runs):
        yield Section("evaluations", "Evaluations", evaluations)
    if skipped := run_tables.each(runs, run_tables.skipped):
        yield Section("skipped", "Skipped documents", skipped)
    between = f"<h3>Between the runs</h3>{run_config.differences(runs)}" if len(runs) > 1 else ""
    yield Section("config", "Config", between + run_tables.each(runs, run_config.config))


def _last(
    runs: Sequence[RunData], notes: Sequence[str], attention: Sequence[Any], samples: Sequence[Any]
) -> Iterator[Section]:
    """What is not shown, and how to have it."""
    lines = [f"{escape(note[:1].upper() + note[1:])}." for note in notes]
    for i, run in enumerate(runs):
        lacking = list(_lacking(run, attention[i], samples[i]))
        name = f"<b>{escape(run.name)}</b>: " if len(runs) > 1 else ""
        lines += [f"{name}{line}" for line in lacking]
    if lines:
        items = "".join(f"<li>{line}</li>" for line in lines)
        yield Section("left", "Not shown", f'<ul class="lines">{items}</ul>')


def _lacking(run: RunData, attention: Any, samples: Any) -> Iterator[str]:
    if not run.lines:
        yield "Curves: the log has no line yet; they are here after the first (<code>config.log.every</code> steps)."
        return
    if not run.evaluations():
        yield "Evaluations: there was none yet; <code>config.eval</code> says of what, and how often."
    elif run.learns_media and not any(
        of.get("media_gain") for _, figures in run.evaluations() for of in figures.values()
    ):
        yield "Media gain: no evaluation has it; those of held-out data with media do, from jaxmm 0.2 on."
    if attention is None and run.last("attention") is None:
        yield "Attention: no line of the log has it; <code>config.monitor.attention_every</code> says when a run looks."
    if run.learns_media and not samples and not run.samples:
        yield (
            "Samples: a run keeps maps of held-out questions about media, unless "
            "<code>config.monitor.heatmaps</code> is 0 or <code>config.monitor.attention_every</code> is -1; its "
            "answers are in <code>samples/</code>."
        )
    if run.last("balance") is None:
        yield "Balance: no line of the log has shares by source and modality; those of jaxmm 0.2 do."
    if run.last("goodput") is None and not run.summary.get("goodput"):
        yield "Time: the log does not tell where it went; that of jaxmm 0.2 does."
    if not run.machine:
        yield "Machine and versions: <code>machine.json</code> is not in the folder; a run of jaxmm 0.2 writes it."


def _thinned(drawn: dict[str, Any]) -> Iterator[str]:
    """Which curves have fewer points than the log."""
    curves = [curve for of in drawn.values() for chart in of for curve in chart["curves"] if "of" in curve]
    if curves:
        most = max(len(curve["x"]) for curve in curves)
        of = max(curve["of"] for curve in curves)
        yield (
            f"curves have up to {most:,} of their {of:,} points: of each stretch of steps the lowest and the highest; "
            "metrics.jsonl has all"
        )
