"""The head of a run's page: what it is, how far, and the figures that are asked for first."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

from jaxmm.formatting import short
from jaxmm.report.run_data import RunData, at, figure
from jaxmm.report.thinning import kept
from jaxmm.report.words import duration, hue, size

SPARK = 80  # points of the small line in a tile
MOST_TOLD = 3  # figures in the note of a tile


class Tile(NamedTuple):
    """A figure: its name, its value in short, how full its meter is (None has none), and what it is of."""

    name: str
    value: str
    part: float | None
    note: str
    line: tuple[float, ...] = ()  # drawn small behind it


def tiles(run: RunData) -> Iterator[Tile]:
    """Those of which the run has logged something."""
    losses = [loss for line in run.lines if (loss := figure(line, "loss")) is not None]
    if losses:
        is_of_pairs = any("preference_accuracy" in line for line in run.lines)
        of = "of a pair, or of a judged answer" if is_of_pairs else "nats a target"
        yield Tile("Loss", f"{losses[-1]:.4g}", None, of, tuple(losses))
    yield from _evaluated(run)
    whole = run.summary if run.state == "finished" else {}
    of = "the whole run" if whole else "since the line before"
    if (rate := _newest(run, whole, "tokens_per_second")) is not None:
        media = [
            f"{value:,.0f} {name}"
            for name in ("images", "videos", "recordings")
            if (value := _newest(run, whole, f"{name}_per_second"))
        ]
        yield Tile("Tokens a second", f"{rate:,.0f}", None, " · ".join([*media, of]))
    if (fill := _newest(run, whole, "token_fill")) is not None:
        patches = _newest(run, whole, "patch_fill")
        yield Tile("Fill", f"{fill:.1%}", fill, "of token budgets" + (f"; patches {patches:.0%}" if patches else ""))
    if (wait := _newest(run, whole, "data_wait_fraction")) is not None:
        yield Tile("Waiting for data", f"{wait:.1%}", wait, "of the steps’ time")
    seconds = goodput(run)
    if total := sum(seconds.values()):
        part = seconds.get("stepping", 0.0) / total
        yield Tile("Goodput", f"{part:.1%}", part, f"of {duration(total)} over all starts")
    if (memory := _newest(run, run.summary, "peak_memory_bytes")) is not None:
        yield Tile("Peak memory", size(memory), None, "of a device, or of the process on CPUs")


def _newest(run: RunData, whole: dict[str, Any], key: str) -> float | None:
    value = figure(whole, key)
    return value if value is not None else figure({key: run.last(key)}, key)


def _evaluated(run: RunData) -> Iterator[Tile]:
    """Of the last evaluation: answers or preferences that are right, and what media are worth."""
    if not (evaluations := run.evaluations()):
        return
    step, figures = evaluations[-1]
    for key, title in (("answer_accuracy", "Answers right"), ("preference_accuracy", "Preferences right")):
        right = {name: value for name in figures if (value := figure(figures, name, key)) is not None}
        if right:
            (name, first), *others = right.items()
            told = _few([f"{name}, step {step:,}", *(f"{other} {value:.1%}" for other, value in others)])
            yield Tile(title, f"{first:.1%}", first, told)
    gains = {
        (source, modality): value
        for source in figures for modality in at(figures, source, "media_gain") or ()
        if (value := figure(figures, source, "media_gain", modality)) is not None
    }  # fmt: skip
    if gains:
        ((source, modality), first), *rest = gains.items()
        beside = [f"{m} {v:z.3g}" if s == source else f"{m} in {s} {v:z.3g}" for (s, m), v in rest]
        told = _few([f"nats, {modality} in {source}", *beside])
        yield Tile("Media gain", f"{first:z.3g}", None, told)


def _few(told: Sequence[str]) -> str:
    return "; ".join([*told[:MOST_TOLD], *([f"{len(told) - MOST_TOLD} more"] if len(told) > MOST_TOLD else [])])


def goodput(run: RunData) -> dict[str, float]:
    """Seconds of the run's life so far by kind; {} where it does not tell."""
    given = at(run.summary, "goodput", "seconds") if run.state == "finished" else None
    given = given if isinstance(given, dict) else run.last("goodput")
    seconds = {kind: figure(given, kind) or 0.0 for kind in given} if isinstance(given, dict) else {}
    return {kind: value for kind, value in seconds.items() if value > 0}


def tiles_html(run: RunData) -> str:
    """The tiles of one run."""
    told = []
    for tile in tiles(run):
        under = _spark(tile.line)
        if tile.part is not None:
            width = 100 * min(max(tile.part, 0.0), 1.0)
            under = f'<span class="meter" aria-hidden="true"><i style="width:{width:.4g}%"></i></span>'
        told.append(
            f'<div class="tile"><dt>{escape(tile.name)}</dt><dd><b>{escape(tile.value)}</b>{under}'
            f"<small>{escape(tile.note)}</small></dd></div>"
        )
    return f'<dl class="tiles">{"".join(told)}</dl>' if told else ""


def table_html(runs: Sequence[RunData]) -> str:
    """The same figures of several runs, a row each."""
    told = [{tile.name: tile.value for tile in tiles(run)} for run in runs]
    columns = list(dict.fromkeys(name for one in told for name in one))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("run", "step", "state", *columns))
    rows = []
    for i, (run, of) in enumerate(zip(runs, told, strict=True)):
        cells = "".join(f"<td>{escape(of.get(name, '–'))}</td>" for name in columns)
        rows.append(
            f'<tr><th scope="row">{key(i)}{escape(run.name)}</th><td>{run.step:,}{_of_steps(run)}</td>'
            f"<td>{run.state}</td>{cells}</tr>"
        )
    return (
        '<div class="wide" role="region" aria-label="Figures of the runs" tabindex="0"><table><thead><tr>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def key(run: int) -> str:
    """The colour of a run, as a small square."""
    return f'<i class="key run" style="--h:{hue(run)}"></i>'


def _of_steps(run: RunData) -> str:
    return f" of {run.steps:,}" if run.steps else ""


def about(run: RunData, now: datetime.datetime) -> str:
    """One line of HTML on how far a run is, and one on what it runs."""
    told = f"Step {run.step:,}{_of_steps(run)}" if run.step else "No line of the log yet"
    if run.state in ("running", "waiting"):
        told += f", when this page was written, on {now:%Y-%m-%d at %H:%M}"
    elif run.changed:
        told += f"; its log ends on {run.changed:%Y-%m-%d at %H:%M}"
    part = run.step / run.steps if run.steps else 0.0
    bar = (
        f'<span class="meter way" aria-hidden="true"><i style="width:{100 * min(part, 1.0):.4g}%"></i></span>'
        if run.state in ("running", "stopped") and part
        else ""
    )
    facts = escape(" · ".join(_machine(run)))
    lead = f'<p class="lead"><span class="state {run.state}">{run.state}</span> {escape(told)}.{bar}</p>'
    return lead + (f'<p class="facts">{facts}</p>' if facts else "")


def _machine(run: RunData) -> Iterator[str]:
    """Devices, mesh, versions and size, as far as the run has noted them."""
    machine = run.machine
    if kind := machine.get("device"):
        count = machine.get("devices")
        yield f"{count} × {kind}" if isinstance(count, int) and count > 1 else str(kind)
    if isinstance(processes := machine.get("processes"), int) and processes > 1:
        yield f"{processes} processes"
    if isinstance(mesh := machine.get("mesh"), dict) and mesh:
        yield "mesh " + ", ".join(f"{axis} {n}" for axis, n in mesh.items())
    for name, said in (("dtype", "compute in {}"), ("attention", "attention by {}")):
        if machine.get(name):
            yield said.format(machine[name])
    if (parameters := figure(machine, "parameters")) is not None:
        yield f"{short(parameters)} parameters"
    versions = machine.get("versions")
    if isinstance(versions, dict):
        yield ", ".join(f"{name} {version}" for name, version in versions.items())
    if machine.get("host"):
        yield f"on {machine['host']}"


def _spark(values: Sequence[float]) -> str:
    """The values as a small line without an axis."""
    if len(values) < 3:
        return ""
    chosen = kept(values, SPARK)
    low, high = min(values), max(values)
    points = " ".join(
        f"{100 * i / (len(values) - 1):.1f},{23 - 22 * (values[i] - low) / max(high - low, 1e-12):.1f}" for i in chosen
    )
    return (
        f'<svg class="spark" viewBox="0 0 100 24" preserveAspectRatio="none" aria-hidden="true">'
        f'<polyline points="{points}"/></svg>'
    )
