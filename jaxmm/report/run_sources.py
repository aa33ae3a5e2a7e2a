"""A run of hundreds of sources as its page shows it: the largest of them; what is told of the others is left out."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import Any

from jaxmm.report.run_data import RunData, at, figure

MOST = 12  # sources that charts, tables and samples show
BY_SOURCE = (("sources",), ("balance", "sources"), ("gradients", "sources"), ("losses", "sources"),
             ("attention", "sources"))  # fmt: skip


def largest(runs: Sequence[RunData], most: int = MOST) -> tuple[list[RunData], list[str]]:
    """The runs with the ``most`` sources of the most targets, and as many held-out ones; what is left out, a line each.

    Sums over all sources, such as the loss of a run, stay those of all.
    """
    targets: dict[str, float] = collections.defaultdict(float)
    for run in runs:
        for line in run.lines:
            for name in _keys(line, "sources"):
                targets[name] += figure(line, "sources", name, "targets") or 0.0
            for path in BY_SOURCE[1:]:
                for name in _keys(line, *path):
                    targets[name] += 0.0
    held_out = dict.fromkeys(name for run in runs for _, figures in run.evaluations() for name in figures)
    held_out |= dict.fromkeys(str(one.get("source", "")) for run in runs for one in run.samples)
    trained = set(sorted(targets, key=lambda name: -targets[name])[:most])  # ties in the order of the log
    asked = set(sorted(held_out, key=lambda name: -targets.get(name, 0.0))[:most])
    notes = [
        f"the other {len(known) - most:,} of {len(known):,} {told}; metrics.jsonl has all"
        for known, told in ((targets, "sources, which have fewer targets"), (held_out, "held-out sources"))
        if len(known) > most
    ]
    if not notes:
        return list(runs), []
    return [_cut(run, trained, asked) for run in runs], notes


def _keys(line: Any, *path: str) -> Iterable[str]:
    value = at(line, *path)
    return value if isinstance(value, dict) else ()


def _cut(run: RunData, trained: set[str], asked: set[str]) -> RunData:
    return run._replace(
        lines=[_cut_line(line, trained, asked) for line in run.lines],
        samples=[one for one in run.samples if str(one.get("source", "")) in asked],
    )


def _cut_line(line: dict[str, Any], trained: set[str], asked: set[str]) -> dict[str, Any]:
    told = dict(line)
    for path, names in (*((path, trained) for path in BY_SOURCE), (("eval",), asked)):
        if not isinstance(at(told, *path), dict):
            continue
        *above, last = path
        inside = told
        for key in above:
            inside[key] = dict(inside[key])
            inside = inside[key]
        inside[last] = {name: of for name, of in inside[last].items() if name in names}
    return told
