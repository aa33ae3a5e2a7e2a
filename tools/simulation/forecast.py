"""What was measured at some sizes, and what follows for a run that is larger: a table for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxmm import formatting
from jaxmm.data.packing.plan import WINDOW_PIECES

SHARD_BYTES = 256 << 20  # of input: ``LARGE_SHARD_BYTES`` of preparing
GROWS = 1.15  # of an exponent of growth: above, it is told
LEAST = 0.1  # seconds: of shorter ones the growth is chance


def short(value: float) -> str:
    """As ``formatting.short``, with thousands of billions and above."""
    for unit, size in (("P", 1e15), ("T", 1e12)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return formatting.short(value)


class Job(NamedTuple):
    """The run that is asked about.

    Attributes:
      examples: of its data.
      step: seconds of a step.
      record: bytes of a record, its media included.
    """

    examples: int
    processes: int
    batch_size: int
    seq_len: int
    step: float
    record: int


class Line(NamedTuple):
    """A figure: measured, by size, and forecast; ``growth`` is the exponent between the two largest sizes."""

    name: str
    unit: str
    measured: Sequence[float]
    forecast: float
    growth: float | None


def _exponent(sizes: Sequence[int], values: Sequence[float]) -> float | None:
    if len(sizes) < 2 or min(values[-2:]) < LEAST:
        return None
    return math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])


def lines(found: Sequence[Mapping[str, Any]], job: Job) -> list[Line]:
    """The figures that depend on the number of examples, forecast in proportion to it from the largest measured one;
    those of a batch, which do not depend on it, as they are there."""
    sizes = [int(one["examples"]) for one in found]

    def line(name: str, unit: str, key: str, is_whole: bool = True) -> Line:
        values = [float(one[key]) for one in found]
        scale = job.examples / sizes[-1] if is_whole else 1.0
        return Line(name, unit, values, values[-1] * scale, _exponent(sizes, values) if is_whole else None)

    return [
        line("columns of the index, on disk", "B", "column_bytes"),
        line("counted lengths, on disk", "B", "length_bytes"),
        line("first start: columns checked", "s", "check"),
        line("first start: lengths counted", "s", "count"),
        line("later start: lengths checked", "s", "open"),
        line("start: budgets picked, long documents counted", "s", "choose"),
        line("start: shards opened, of a local folder", "s", "shards"),
        line("first batch", "s", "first", False),
        line("a batch", "s", "batch", False),
        line("own rows of it, as lists", "s", "own_rows", False),
        line("late step, table on disk", "s", "late", False),
        line("late step, without the table", "s", "late_planned", False),
        line("memory of a process", "B", "own", False),
        line("mapped pages it touched", "B", "mapped"),
        line("table of a whole pass, read", "s", "table"),
    ]


def job_lines(found: Mapping[str, Any], job: Job) -> list[tuple[str, str]]:
    """What follows for the whole job, in words."""
    documents = found["pieces"]
    each = documents / job.processes
    per_second = documents / job.step
    batches = job.examples / documents
    whole = each * SHARD_BYTES / job.step
    return [
        ("documents of a batch", f"{short(documents)}: {short(each)} for each process"),
        ("batches of a pass", f"{short(batches)}, {batches * job.step / 86400:.1f} days"),
        ("record reads, or requests where each is one", f"{short(per_second)}/s, {short(each / job.step)}/s a process"),
        ("bytes of these", f"{short(per_second * job.record)}B/s, {short(each / job.step * job.record)}B/s a process"),
        ("shards copied whole from a URL, at first", f"{short(whole)}B/s a process, {short(whole * job.processes)}B/s"),
        ("data, which each machine would come to hold", f"{short(float(job.examples) * job.record)}B"),
        ("index entries looked up at random", f"{short(per_second)}/s in every process: each plans the whole batch"),
        ("windows of the plan in a pass", f"{short(job.examples / WINDOW_PIECES)}"),
    ]  # fmt: skip


def table(found: Sequence[Mapping[str, Any]], job: Job) -> str:
    """All of it, for people."""
    heads = ["", *(f"{short(one['examples'])} examples" for one in found), "growth", f"forecast, {short(job.examples)}"]
    rows = [heads]
    for one in lines(found, job):
        cells = [f"{short(value)} {one.unit}" for value in one.measured]
        growth = "" if one.growth is None else f"^{one.growth:.2f}" + (" !" if one.growth > GROWS else "")
        rows.append([one.name, *cells, growth, f"{short(one.forecast)} {one.unit}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    what = f"{job.processes} processes, {job.batch_size} rows of {job.seq_len}, a step each {job.step:g} s:"
    return "\n".join([*text, "", what, *(f"  {name}: {value}" for name, value in job_lines(found[-1], job))])
