"""Where the time of a run went: one bar of its life, its starts, stragglers and slow steps."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxmm.report.run_data import RunData, at, figure
from jaxmm.report.run_tables import table
from jaxmm.report.run_tiles import goodput
from jaxmm.report.words import duration, plural

KINDS = {
    "stepping": "steps, and what lies between them",
    "data": "waiting for a batch while no step runs",
    "compiling": "waiting for the compiled step",
    "evaluating": "evaluations, samples and curves",
    "saving": "waiting for a checkpoint",
    "starting": "until the loop begins: imports, preparing data, restoring",
    "lost": "steps that were done again after a kill",
    "down": "between the end of one start and the next start",
}
OF_STEPS = "data", "stepping"  # kinds that a start can lose
MOST_SLOW, MOST_STARTS = 20, 20
TOLD = 1e-6  # seconds: less is what is left of a sum


def time_spent(run: RunData) -> str:
    """One bar of the run's whole life, with its seconds; beside them its starts, stragglers and slow steps."""
    bar, left = _life(goodput(run))
    if right := _starts(run) + _stragglers(run) + _slow(run):
        left = f'<div class="pair"><div class="part">{left}</div><div class="part">{right}</div></div>'
    return bar + left


def _life(seconds: Mapping[str, float]) -> tuple[str, str]:
    """The bar, and its table."""
    if not (total := sum(seconds.values())):
        return "", ""
    order = [kind for kind in dict.fromkeys((*KINDS, *seconds)) if kind in seconds]
    parts = {kind: seconds[kind] / total for kind in order}
    bar = "".join(f'<i class="{_css(kind)}" style="width:{100 * part:.4g}%"></i>' for kind, part in parts.items())
    rows = [
        [f'<i class="key {_css(kind)}"></i>{escape(kind)}', f"{part:.1%}", duration(seconds[kind]), KINDS.get(kind, "")]
        for kind, part in parts.items()
    ]
    inside = table("Where the time went", ["", "part", "time", ""], rows, "kinds")
    return f'<div class="time" aria-hidden="true">{bar}</div>', inside


def _css(kind: str) -> str:
    return f"t-{kind}" if kind in KINDS else "t-other"


class _Start:
    """One start of a timeline: its steps, its seconds by kind, and what ended it."""

    def __init__(self, step: int, down: float):
        self.step = self.last = step
        self.why = ""
        self.seconds: dict[str, float] = collections.defaultdict(float, down=down)


def _starts_of(timeline: Sequence[dict[str, Any]]) -> list[_Start]:
    """The starts, each with the time for which the run was down before it.

    Seconds of steps that a later start did again are lost, as they are in the sums of the log.
    """
    starts: list[_Start] = []
    counted: list[tuple[_Start, int, int, dict[str, float]]] = []  # steps (first, last] and seconds that may be lost
    before: float | None = None
    for line in timeline:
        step, now = line.get("step"), figure(line, "time")
        if not isinstance(step, int):
            continue
        if line.get("event") == "start":
            while counted and counted[-1][2] > step:
                start, first, last, seconds = counted.pop()
                part = 1.0 if first >= step else (last - step) / (last - first)
                for kind, value in seconds.items():
                    start.seconds[kind] -= part * value
                    start.seconds["lost"] += part * value
                if part < 1:
                    left = {kind: value - part * value for kind, value in seconds.items()}
                    counted.append((start, first, step, left))
            down = max(0.0, now - before) if now is not None and before is not None else 0.0
            starts.append(_Start(step, down))
        elif starts:
            start = starts[-1]
            by_kind = {kind: figure(line, "seconds", kind) or 0.0 for kind in at(line, "seconds") or ()}
            for kind, value in by_kind.items():
                start.seconds[kind] += value
            counted.append((start, start.last, step, {kind: by_kind.get(kind, 0.0) for kind in OF_STEPS}))
            start.last, start.why = step, str(line.get("why", ""))
        before = now if now is not None else before
    return starts


def _starts(run: RunData) -> str:
    """A row for each start of the timeline, where there were several."""
    starts = _starts_of(run.timeline)
    if len(starts) < 2:
        return ""
    kinds = [kind for kind in KINDS if any(start.seconds[kind] > TOLD for start in starts)]
    rows = [
        [f"{number:,}", f"{_int(start.step)} to {_int(start.last)}",
         *(duration(start.seconds[kind]) if start.seconds[kind] > TOLD else "–" for kind in kinds),
         escape(start.why or "killed, or still there")]
        for number, start in enumerate(starts, 1)
    ][-MOST_STARTS:]  # fmt: skip
    told = "Lost are the steps of a start that a later one did again; down is the time before it."
    told += f" The last {MOST_STARTS} are listed." if len(starts) > MOST_STARTS else ""
    head = ["start", "steps", *kinds, "ended by"]
    rows_html = table("Starts", head, rows, "narrow")
    return f'<h3>{plural(len(starts), "start")}</h3><p class="note">{told}</p>{rows_html}'


def _int(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "–"


def _stragglers(run: RunData) -> str:
    newest = run.last("stragglers")
    if not isinstance(newest, dict):
        return ""
    seconds = {name: of for name, of in (at(newest, "seconds") or {}).items() if isinstance(of, list)}
    slowest, cost = newest.get("process"), figure(newest, "cost")
    line = f"At the last line of the log the others waited for process {_int(slowest)}"
    line += f", by its {escape(str(newest['cause']))}" if newest.get("cause") else ""
    line += f": {cost:.1%} of their time" if cost is not None else ""
    count = max((len(of) for of in seconds.values()), default=0)
    rows = [
        [f"<b>{i}</b>" if i == slowest else f"{i}", *(_seconds(of, i) for of in seconds.values())] for i in range(count)
    ]
    inside = table("Seconds of each process", ["process", *seconds], rows[:64], "narrow") if rows else ""
    more = f'<p class="note">The first 64 of {count:,} processes.</p>' if count > 64 else ""
    return f'<h3>Stragglers</h3><p class="note">{line}.</p>{inside}{more}'


def _seconds(values: list[Any], i: int) -> str:
    return f"{values[i]:.3g} s" if i < len(values) and isinstance(values[i], int | float) else "–"


def _slow(run: RunData) -> str:
    if not run.slow_steps:
        return ""
    rows = []
    for one in run.slow_steps[-MOST_SLOW:]:
        seconds, median = figure(one, "seconds"), figure(one, "median")
        held = one.get("rows")
        listed = escape(str(held)[:4000]) if held else ""
        rows.append([
            _int(one.get("step")), f"{seconds:.3g} s" if seconds is not None else "–",
            f"{seconds / median:.1f} ×" if seconds and median else "–", _int(one.get("batch")),
            f"<details><summary>{plural(len(held), 'row') if isinstance(held, list) else 'rows'}</summary>"
            f"<code>{listed}</code></details>" if listed else "–",
        ])  # fmt: skip
    count = len(run.slow_steps)
    note = f"The last {MOST_SLOW} of {count:,}." if count > MOST_SLOW else f"{plural(count, 'step')}."
    return f'<h3>Slow steps</h3><p class="note">Steps that took three times the median or more. {note}</p>' + table(
        "Slow steps", ["step", "took", "of the median", "batch", "what it held"], rows, "narrow slow"
    )
