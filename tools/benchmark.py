"""Measures what the documentation promises, beside what is needed, and writes the figures down with the machine.

    python tools/benchmark.py --part=data --output=FILE.json --only=NAME,NAME
    python tools/benchmark.py --part=step --config=configs/base.py --config.KEY=VALUE --profile=FOLDER

Each row runs in a process of its own. Standard error has what is measured now. Figures of a busy machine say little:
look at the load that is written beside them, and at what was measured in the same run.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and "--part=step" in "=".join(sys.argv):  # in one word or in two
    from jaxmm.runtime import startup

    startup.use_huge_pages()  # as train does; may start this process again

import datetime
import importlib
import importlib.metadata
import itertools
import json
import os
import shlex
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.row import Measured, Row, Settings, is_met, tell

from jaxmm import atomic, command, formatting
from jaxmm.errors import UserError, extra, nearest
from jaxmm.measure.machine import machine, versions

# By part, the modules of benchmarks/ whose ROWS it has.
PARTS = {
    "data": ("plan", "media", "clips", "prepare", "loader"),
    "step": ("step",),
    "peer": ("peer",),
    "tuning": ("tuning",),
    "scale": ("scale", "recurrent"),
}

FLAGS: command.Flags = {
    "part": (
        "data",
        "data; step: that of --config; peer: our step beside PyTorch's, tuning: that of adapters beside PEFT's (extra "
        "'parity'); or scale: attention, DeltaNet, packing, the first step, shards",
    ),
    "output": ("", "JSON file to write"),
    "only": ("", "names of rows, comma between them; default: all of the part"),
    "repeats": (7, "samples of each figure"),
    "seed": (0, "of what the rows' data is drawn from"),
    "scale": (1.0, "of the data's size; the needed numbers are for 1"),
    "profile": ("", "of --part=step: folder to write a trace of the counted steps to, for xprof or TensorBoard"),
}


def is_step(argv: list[str]) -> bool:
    """Whether the arguments ask for --part=step, in one word or in two."""
    return "--part=step" in argv or ("--part", "step") in itertools.pairwise(argv)


def rows_of(part: str, only: str = "") -> list[Row]:
    """The rows of a part, or those of them that are named, in the part's order.

    Raises:
      UserError: if there is no such part or row.
    """
    if part not in PARTS:
        raise UserError(f"--part={part} is no part: the parts are {', '.join(PARTS)}{nearest(part, PARTS)}")
    rows: list[Row] = [row for module in PARTS[part] for row in importlib.import_module(f"benchmarks.{module}").ROWS]
    names = [name.strip() for name in only.split(",") if name.strip()]
    known = [row.name for row in rows]
    for name in names:
        if name not in known:
            raise UserError(f"--only: no row '{name}' in {part}: it has {', '.join(known)}{nearest(name, known)}")
    return [row for row in rows if not names or row.name in names]


def with_packages(rows: list[Row]) -> list[Row]:
    """The rows whose packages are installed; tells of the others."""
    for row in rows:
        if row.missing():
            needed = ", ".join(row.missing())
            print(f"row '{row.name}' is left out: it needs {needed}: {extra('media')}", file=sys.stderr)
    return [row for row in rows if not row.missing()]


def described(row: Row, measured: Measured) -> dict[str, Any]:
    """A row with its figures, as JSON has it."""
    for name in row.needed:
        if name not in measured.figures:
            raise ValueError(f"row {row.name} needs a figure '{name}' that it did not measure")
    figures = {}
    for name, figure in measured.figures.items():
        needed = row.needed.get(name, "")
        figures[name] = {
            "median": figure.median,
            "spread": list(figure.spread),
            "samples": list(figure.samples),
            "unit": figure.unit,
            "needed": needed,
            "met": is_met(needed, figure.median) if needed else None,
        }
    return {"row": row.name, "data": row.data, "figures": figures, "notes": list(measured.notes)}


def measure(
    row: Row, repeats: int, seed: int, scale: float, config: Any = None, profile: str = ""
) -> dict[str, Any]:  # fmt: skip
    """Measures a row here."""
    with tempfile.TemporaryDirectory() as folder:
        began, load = time.perf_counter(), os.getloadavg()[0]
        measured = row.measure(Settings(repeats, seed, scale, folder, config, profile))
        seconds = time.perf_counter() - began
        tell(f"{row.name}: done in {formatting.duration(seconds)}")
        took = {"seconds": seconds, "load": [load, os.getloadavg()[0]]}
        return described(row, measured) | took


def measure_apart(row: Row, part: str, repeats: int, seed: int, scale: float) -> dict[str, Any]:
    """Measures a row in a process of its own: what one sets (cores, devices, threads) must not reach the next."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "row.json"
        flags = [f"--part={part}", f"--only={row.name}", f"--output={output}"]
        flags += [f"--repeats={repeats}", f"--seed={seed}", f"--scale={scale}"]
        done = subprocess.run([sys.executable, __file__, *flags], stdout=subprocess.DEVNULL)
        if done.returncode:
            raise UserError(f"row '{row.name}' failed: see above, or run it alone with --only={row.name}")
        return json.loads(output.read_text())["rows"][0]


def table(rows: list[dict[str, Any]]) -> str:
    """The figures for people: what, needed, measured, and the samples' range."""
    lines = [("row", "what", "needed", "measured", "smallest to largest", "")]
    for row in rows:
        for name, figure in row["figures"].items():
            low, high = (formatting.short(value) for value in figure["spread"])
            met = {None: "", True: "met", False: "NOT MET"}[figure["met"]]
            measured = f"{formatting.short(figure['median'])} {figure['unit']}".strip()
            lines.append((row["row"], name, figure["needed"], measured, f"{low} to {high}", met))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    notes = [f"{row['row']}: {note}" for row in rows for note in (row["data"], *row["notes"])]
    return "\n".join([*text, "", *notes])


def main(argv: list[str]) -> int:
    """Measures the rows, prints a table, and writes the JSON; of a job of several processes the first one does."""
    of_step = is_step(argv)
    args = command.parse(argv, FLAGS, config="file" if of_step else "none", about=__doc__ or "")
    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}: it must be 0 or above")
    if args.repeats < 1 or args.scale <= 0:
        raise UserError("--repeats and --scale must be positive")
    rows = with_packages(rows_of(args.part, args.only))
    if args.output and not Path(args.output).absolute().parent.is_dir():
        raise UserError(f"--output={args.output}: there is no folder {Path(args.output).absolute().parent}")
    if of_step:
        from jaxmm.corpus import cache_folder
        from jaxmm.runtime import startup

        startup.join_processes()
        startup.keep_compiled(cache_folder(args.config))
        startup.split_cpu(args.config.mesh, args.config.batch_size // max(args.config.accumulation, 1))
    elif args.profile:
        raise UserError("--profile is of --part=step: the other parts write no trace")
    report: dict[str, Any] = {
        "part": args.part,
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "repeats": args.repeats,
        "seed": args.seed,
        "scale": args.scale,
        **({"config": command.to_json(args.config)} if of_step else {}),
        "rows": [],
    }
    is_first = True  # all processes of a job measure its step, and one tells
    for number, row in enumerate(rows, 1):
        if len(rows) > 1:
            tell(f"row {number} of {len(rows)}: {row.name}")
        how = args.repeats, args.seed, args.scale
        if len(rows) > 1:
            found = measure_apart(row, args.part, *how)
        else:
            found = measure(row, *how, getattr(args, "config", None), args.profile)
        report["rows"].append(found)
        if of_step:
            import jax

            is_first = jax.process_index() == 0
        if args.output and is_first:
            atomic.write_json(Path(args.output), report)
    if is_first:
        print(table(report["rows"]))
    return 0


if __name__ == "__main__":
    command.run(main)
