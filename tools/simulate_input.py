"""Measures the input side of a run that is too large to be had: real code on synthetic columns, and what follows.

    python tools/simulate_input.py --measured=1e7,1e8 --examples=1e10 --processes=4096

It prepares nothing: it writes the columns of an index, without records, opens them as ``train`` does, plans batches,
goes on at a late step, and tells seconds of the processor and memory: what waits for disks comes on top. 100 million
examples take 8 GB of disk and some minutes. What depends on the number of examples is forecast in proportion to it.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module
from benchmarks.row import tell
from simulation.columns import write
from simulation.forecast import SHARD_BYTES, Job, lines, table

from jaxmm import atomic, command
from jaxmm.data.packing.mixture import Position
from jaxmm.data.packing.plan import WINDOW_PIECES
from jaxmm.data.packing.table import Table
from jaxmm.data.prepare.prepared import count_records
from jaxmm.errors import UserError
from jaxmm.measure.machine import machine, versions

TOOLS = Path(__file__).resolve().parent
OPENED = 200  # shards, to time one

FLAGS: command.Flags = {
    "measured": ("1e6,1e7", "numbers of examples that are measured, comma between them"),
    "examples": (1e10, "of the run that is asked about"),
    "processes": (4096, "of its job"),
    "batch_size": (16384, "its rows"),
    "seq_len": (4096, "positions of a row"),
    "step_seconds": (5.0, "of a step"),
    "record_bytes": (100_000, "of a record, its media included"),
    "batches": (8, "that are planned at each size"),
    "late": (50, "a late step, which is planned with and without the table"),
    "folder": ("", "for the columns, kept there; default: a temporary one"),
    "output": ("", "JSON file to write"),
}


def main(argv: list[str]) -> int:
    """Measures, and prints the table."""
    args = command.parse(argv, FLAGS, config="none", about=__doc__ or "")
    job = Job(int(args.examples), args.processes, args.batch_size, args.seq_len, args.step_seconds, args.record_bytes)
    if min(job) <= 0 or args.batches < 1 or args.late < 1:
        raise UserError("every number must be positive")
    try:
        sizes = sorted({int(float(size)) for size in args.measured.split(",")})
    except (ValueError, OverflowError) as error:
        raise UserError(f"--measured={args.measured}: write numbers of examples, as 1e6,1e7") from error
    if sizes[0] < 1000:
        raise UserError(f"--measured={args.measured}: 1,000 examples are the least")
    with tempfile.TemporaryDirectory() as temporary:
        found = [_measured(Path(args.folder or temporary) / str(size), size, job, args) for size in sizes]
    print(table(found, job))
    if args.output:
        report = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": machine(), "versions": versions(), "job": job._asdict(), "measured": found,
            "lines": [line._asdict() for line in lines(found, job)],
        }  # fmt: skip
        atomic.write_json(Path(args.output), report)
    return 0


def _measured(folder: Path, size: int, job: Job, args: Any) -> dict[str, float]:
    """The figures at a size, in two sources."""
    tell(f"{size:,} examples: writing columns")
    per_shard = max(1, SHARD_BYTES // job.record)
    parts = size // 4, size - size // 4
    for i, part in enumerate(parts):
        write(folder / f"made{i}", part, per_shard, i)
    cache = folder / "cache"
    cache.mkdir(exist_ok=True)
    for file in cache.iterdir():
        file.unlink()

    def run(what: str, first: int, count: int) -> dict[str, Any]:
        tell(f"{size:,} examples: {what}")
        command = [sys.executable, "-m", "simulation.process", folder, job.batch_size, job.seq_len, first, count]
        done = subprocess.run([*map(str, command)], cwd=TOOLS, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout)

    cold = run("a first start", 0, args.batches)
    for file in cache.glob("*.npz"):
        file.unlink()
    planned = run(f"step {args.late}, planned anew", args.late, 1)
    warm = run(f"step {args.late}, by the table", args.late, args.batches)
    seconds, first = warm["seconds"], cold["seconds"]
    shards = sum(-(-part // per_shard) for part in parts)
    return {
        **{name: cold[name] for name in ("examples", "column_bytes", "pieces")},
        "length_bytes": warm["length_bytes"],
        "check": first["check columns"][0],
        "count": first["lengths"][0],
        "open": seconds["lengths"][0],
        "choose": seconds["totals"][0] + seconds["budgets"][0] + first["plan"][0],
        "shards": shards * _shard_seconds(folder),
        "first": first["first batch"][0],
        "batch": float(np.median([*first["batch"], *seconds["batch"]])),
        "own_rows": float(np.median([*first["own rows"], *seconds["own rows"]])),
        "late": seconds["first batch"][0],
        "late_planned": planned["seconds"]["first batch"][0],
        "own": warm["own"],
        "mapped": warm["mapped"],
        "table": _table_seconds(folder, size // WINDOW_PIECES + 1, len(parts)),
    }


def _shard_seconds(folder: Path) -> float:
    """Of opening a shard and counting its records, as each process does at its start; the file is in memory."""
    path = folder / "one.array_record"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for _ in range(100):
        writer.write(bytes(100))
    writer.close()
    began = time.process_time()
    for _ in range(OPENED):
        count_records(path)
    return (time.process_time() - began) / OPENED


def _table_seconds(folder: Path, windows: int, sources: int) -> float:
    """Of reading the plan's table of so many windows."""
    file = folder / "windows.npz"
    file.unlink(missing_ok=True)
    made = Table(file, Position((0,) * sources, (0.0,) * sources))
    made.long = ()
    for row in range(windows):
        made.add(row + 1, Position((row,) * sources, (0.5,) * sources), has_ended=False)
    made.save()
    began = time.process_time()
    Table(file, Position((0,) * sources, (0.0,) * sources))
    return time.process_time() - began


if __name__ == "__main__":
    command.run(main)
