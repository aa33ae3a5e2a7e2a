"""The tables of a run's page: balance, evaluations, and documents that were skipped."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from jaxmm.report.run_data import TEXT, RunData, figure, names
from jaxmm.report.run_tiles import key
from jaxmm.report.thinning import spread
from jaxmm.report.words import hue, plural

MOST_EVALUATIONS, MOST_REASONS, EXAMPLES = 40, 30, 3
WORDS = {
    "loss": "loss", "answer_accuracy": "answers right", "answers": "answers", "modalities": "by modality",
    "media_gain": "media gain", "blind": "with other media", "answer_accuracy_by_kind": "right", "targets": "targets",
    "unseen_pair_accuracy": "right, unseen pairs", "answer_accuracy_blind": "right, other media",
    "answer_accuracy_reversed": "right, played backwards", "pairs": "pairs", "preference_accuracy": "preferences right",
    "reference_accuracy": "right by the reference", "preference_accuracy_blind": "preferences right, with other media",
    "chosen_reward": "reward, chosen", "margin": "margin",
    "rejected_reward": "reward, rejected", "chosen_nll": "nats a token, chosen", "kl": "divergence",
}  # fmt: skip

SMALL = ("documents", "left out", "standard error")  # figures of other media that stand behind a fold


def table(label: str, head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls by itself; the first cell of a row is its header. Cells are HTML, the head is text."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return (
        f'<div class="wide" role="region" aria-label="{escape(label)}" tabindex="0"><table class="{kind}"><thead><tr>'
        f"{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def each(runs: Sequence[RunData], of: Any) -> str:
    """What ``of`` says of each run, under the run's name where there are several."""
    told = [(i, run, text) for i, run in enumerate(runs) if (text := of(run))]
    if len(runs) == 1:
        return "".join(text for _, _, text in told)
    return "".join(f"<h3>{key(i)}{escape(run.name)}</h3>{text}" for i, run, text in told)


def balance(run: RunData) -> str:
    """Asked against got by source, and shares by modality: means over the log's lines, by the steps each is of."""
    lines = [line for line in run.lines if isinstance(line.get("balance"), dict)]
    if not lines:
        return ""
    # a line's shares are of the steps since the line with shares before it
    steps = [b - a for a, b in itertools.pairwise([0, *(line["step"] for line in lines)])]
    weights = [max(n, 1) for n in steps]

    def mean(*path: str) -> float | None:
        weighted = [(figure(line, "balance", *path), weight) for line, weight in zip(lines, weights, strict=True)]
        known = [(value, weight) for value, weight in weighted if value is not None]
        return sum(v * w for v, w in known) / sum(w for _, w in known) if known else None

    told = []
    for group, title in (("sources", "source"), ("modalities", "with")):
        columns = ["asked", "tokens", "targets", "loss", "gradient"]
        rows = {name: [mean(group, name, column) for column in columns] for name in names(lines, "balance", group)}
        there = [i for i in range(len(columns)) if any(cells[i] is not None for cells in rows.values())]
        if not rows or (list(rows) == [TEXT] and group == "modalities"):
            continue
        head = [title, *(("got" if columns[i] == "tokens" and 0 in there else columns[i]) for i in there), ""]
        body = []
        for place, (name, cells) in enumerate(rows.items()):
            asked = f'<b style="--at:{100 * cells[0]:.4g}%"></b>' if cells[0] is not None else ""
            bar = (
                f'<span class="share" style="--h:{hue(place)}" aria-hidden="true">'
                f'<i style="width:{100 * (cells[1] or 0):.4g}%"></i>{asked}</span>'
            )
            body.append([f"{square(place)}{escape(name)}", *(percent(cells[i]) for i in there), bar])
        about = "Balance by source" if group == "sources" else "Balance by modality"
        told.append(table(about, head, body, "balance"))
    return "".join(told)


def square(place: int) -> str:
    return f'<i class="key run" style="--h:{hue(place)}"></i>'


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:z.1%}"


def evaluations(runs: Sequence[RunData]) -> str:
    """A table for each source: all its figures, a row for each run and step."""
    sources = list(dict.fromkeys(name for run in runs for _, of in run.evaluations() for name in of))
    told = []
    for source in sources:
        rows: list[tuple[int, int, dict[str, float]]] = []
        left = False
        for i, run in enumerate(runs):
            every = [(step, dict(_flat(of[source]))) for step, of in run.evaluations() if source in of]
            chosen = spread(len(every), max(4, MOST_EVALUATIONS // len(runs)))
            left |= len(chosen) < len(every)
            rows += [(i, *every[n]) for n in chosen]
        columns = list(dict.fromkeys(name for *_, figures in rows for name in figures))
        beside = [name for name in columns if name.rpartition(": ")[2] in SMALL]
        main = [name for name in columns if name not in beside]

        def of(label: str, columns: Sequence[str], rows: Sequence[tuple[int, int, dict[str, float]]] = rows) -> str:
            cells = [
                [*([f"{key(i)}{escape(runs[i].name)}"] if len(runs) > 1 else []), f"{step:,}",
                 *(_told(name, figures.get(name)) for name in columns)]
                for i, step, figures in rows
            ]  # fmt: skip
            return table(label, [*(["run"] if len(runs) > 1 else []), "step", *columns], cells, "evaluated")

        if columns:
            told.append(f"<h3>{escape(source)}</h3>{of(f'Evaluations on {source}', main)}")
            if beside:
                small = of(f"How far the figures of {source} reach", beside)
                told.append(f"<details><summary>Documents and standard errors</summary>{small}</details>")
            if left:
                told.append('<p class="note">Evenly chosen evaluations; metrics.jsonl has all.</p>')
    return "".join(told)


def _flat(figures: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    """Figures as ``(words, number)``, deeper ones with what they lie in."""
    for name in figures if isinstance(figures, Mapping) else ():
        if (value := figure(figures, name)) is not None:
            yield ": ".join([*before, WORDS.get(name, name.replace("_", " "))]), value
        else:
            yield from _flat(figures[name], (*before, WORDS.get(name, name.replace("_", " "))))


def _told(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if "right" in name.partition(":")[0] or name.endswith("right"):
        return percent(value)
    return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1 else f"{value:z.4g}"


def skipped(run: RunData) -> str:
    """Documents that could not be used, by reason, with the first few of each."""
    if not run.skipped:
        return ""
    by_reason: dict[str, list[str]] = collections.defaultdict(list)
    for one in run.skipped:
        by_reason[str(one.get("reason"))[:200]].append(f"{one.get('file')}, record {one.get('record')}"[:200])
    most = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    rows = [
        [escape(reason), f"{len(where):,}", "<br>".join(f"<code>{escape(one)}</code>" for one in where[:EXAMPLES])]
        for reason, where in most[:MOST_REASONS]
    ]
    note = f" The {MOST_REASONS} most frequent of {len(most):,} reasons are listed." if len(most) > MOST_REASONS else ""
    return (
        f'<p class="note">{plural(len(run.skipped), "document")} could not be used; skipped.jsonl names each.{note}</p>'
        + table("Skipped documents", ["reason", "documents", "such as"], rows, "narrow skipped")
    )
