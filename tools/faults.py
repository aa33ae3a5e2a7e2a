"""Breaks jaxmm in all ways it can think of, and says what became of each: kills, flips, full disks, bad input.

    python tools/faults.py --output=faults.json
    python tools/faults.py --part=kills,images --seed=7
    python tools/faults.py --part=data --seed=7 --first=41 --trials=1      # one trial again

A trial ends in one line (an error that says what to do, exit status 1), or is handled (exit status 0 and all as it
should be: a killed run goes on to the same bits, a broken checkpoint gives way to the one before). Three ends are
faults of jaxmm's: a traceback, a hang, and silence: exit status 0 although the damage mattered. Without --seed the
trials are those of the day, whose seed is printed. Exit status 1 if there is a fault.
"""

from __future__ import annotations

import datetime
import importlib.util
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from faulting import configs as faults_configs
from faulting import data as faults_data
from faulting import disk as faults_disk
from faulting import flips as faults_flips
from faulting import folders as faults_folders
from faulting import images as faults_images
from faulting import kills as faults_kills
from faulting import near_kills as faults_near
from faulting import prompts as faults_prompts
from faulting import ray_kills as faults_ray
from faulting import signals as faults_signals
from faulting import stores as faults_stores
from faulting import twins as faults_twins
from faulting.bench import Bench
from faulting.trial import VERDICTS, Trial, counted

from jaxmm import atomic, command
from jaxmm.errors import UserError, extra, nearest, printable

FLAGS: command.Flags = {
    "part": ("", "parts, or beginnings of their names, comma between them; default: all"),
    "seed": (0, "of all that is drawn; 0 is that of the day"),
    "trials": (0, "of each part; 0 is as many as the part has by default"),
    "first": (0, "number of the first trial"),
    "limit": (1.0, "multiplies the limits of time"),
    "output": ("", "JSON file, written after every trial"),
    "folder": ("", "where it works, which must be empty, and stays; default: a temporary one"),
}


class Part(NamedTuple):
    """A kind of fault. ``run`` makes the trial, or several, that a generator of numbers stands for.

    ``extra`` of ``pyproject.toml``, of the same name as its package, is what it needs.
    """

    name: str
    run: Callable[[Bench, random.Random], Iterator[Trial]]
    trials: int
    extra: str = ""

    def is_possible(self) -> bool:
        return not self.extra or importlib.util.find_spec(self.extra) is not None


PARTS = (
    Part("kills-train", faults_kills.train, 12),
    Part("kills-prepare", faults_kills.prepare, 5),
    Part("ray", faults_ray.trials, 5, extra="ray"),
    Part("kills-store", faults_stores.train, 6),
    Part("kills-near", faults_near.train, 8),
    Part("signals", faults_signals.trials, 20),
    Part("twins", faults_twins.trials, 4),
    Part("checkpoints", faults_flips.checkpoints, 40),
    Part("prepared", faults_flips.prepared, 40),
    Part("disk", faults_disk.trials, 20),
    Part("config-values", faults_configs.values, 150),
    Part("config-files", faults_configs.files, 40),
    Part("data", faults_data.trials, 100),
    Part("images", faults_images.trials, 60),
    Part("models", faults_folders.models, 60),
    Part("tokenizers", faults_folders.tokenizers, 40),
    Part("templates", faults_folders.templates, 40),
    Part("prompts", faults_prompts.trials, 30),
)


def parts_of(names: str) -> list[Part]:
    """All that can be run here, or those that are named.

    Raises:
      UserError: for a name that begins no part's, or whose part needs what is not installed.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if not any(part.name.startswith(name) for part in PARTS):
            known = [part.name for part in PARTS]
            raise UserError(f"--part={name} is no part: the parts are {', '.join(known)}{nearest(name, known)}")
    named = [part for part in PARTS if any(part.name.startswith(name) for name in wanted)]
    for part in named if wanted else PARTS:
        if not part.is_possible():
            line = f"the part '{part.name}' needs {extra(part.extra)}"
            if wanted:
                raise UserError(line)
            print(f"left out: {line}", file=sys.stderr)
    return named if wanted else [part for part in PARTS if part.is_possible()]


def run_part(part: Part, bench: Bench, seed: int, first: int = 0, trials: int = 0) -> Iterator[Trial]:
    """The trials of a part: each is drawn by the seed and its own number alone."""
    for number in range(first, first + (trials or part.trials)):
        again = f"python tools/faults.py --part={part.name} --seed={seed} --first={number} --trials=1"
        for trial in part.run(bench, random.Random(f"{part.name} {seed} {number}")):
            yield trial._replace(part=part.name, again=again if trial.is_bad else "")
        bench.clear()


def table(trials: Sequence[Trial]) -> str:
    """Numbers of verdicts, a line a part."""
    numbers = counted(trials)
    rows: list[tuple[object, ...]] = [("part", "trials", *VERDICTS)]
    rows += [(part, sum(each.values()), *each.values()) for part, each in numbers.items()]
    if len(numbers) > 1:
        rows.append(("all", len(trials), *(sum(each[verdict] for each in numbers.values()) for verdict in VERDICTS)))
    width = max(len(str(row[0])) for row in rows)
    return "\n".join(f"{row[0]:{width}}" + "".join(f"  {cell:>9}" for cell in row[1:]) for row in rows)


def line(trial: Trial) -> str:
    """What is printed of a trial."""
    said = ": ".join(filter(None, (trial.what, trial.told)))
    return f"{trial.part:13}  {trial.verdict:9}  {said}" + (f"  [{trial.again}]" if trial.again else "")


def summary(trials: Sequence[Trial]) -> str:
    """What held, in a line."""

    def held(*parts: str) -> str:
        ours = [trial for trial in trials if trial.part.startswith(parts)]
        return f"{sum(not trial.is_bad for trial in ours)} of {len(ours)}"

    inputs = ("config", "data", "images", "models", "tokenizers", "templates", "prompts")
    told = {
        "kills survived": held("kills"), "kills under Ray survived": held("ray"),
        "flips and cuts found or harmless": held("checkpoints", "prepared"),
        "signals, twins and full disks ended well": held("signals", "twins", "disk"),
        "bad inputs ended in a line or were handled": held(*inputs),
    }  # fmt: skip
    return "; ".join(f"{what}: {number}" for what, number in told.items() if not number.endswith(" 0"))


def main(argv: list[str]) -> int:
    args = command.parse(argv, FLAGS, config="none", about=__doc__ or "")
    parts = parts_of(args.part)
    if args.limit <= 0 or min(args.seed, args.trials, args.first) < 0:
        raise UserError("--limit must be positive, and --seed, --trials and --first 0 or more")
    seed = args.seed or int(f"{datetime.date.today():%Y%m%d}")
    output = Path(args.output) if args.output else None
    if output and not output.absolute().parent.is_dir():
        raise UserError(f"--output={output}: there is no folder {output.absolute().parent}")
    folder = _empty(args.folder) if args.folder else None
    print(f"seed {seed}", flush=True)
    report: dict[str, Any] = {"seed": seed, "table": {}, "seconds": {}, "trials": []}
    found: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="jaxmm-faults-") as made, Bench(folder or Path(made), args.limit) as bench:
        for part in parts:
            began = time.monotonic()
            for trial in run_part(part, bench, seed, args.first, args.trials):
                found.append(trial)
                print(printable(line(trial)), flush=True)
                report["trials"].append(trial._asdict())
                report["table"] = counted(found)
                if output:
                    atomic.write_json(output, report)
            report["seconds"][part.name] = round(time.monotonic() - began, 1)
    if output:
        atomic.write_json(output, report)
    print(f"\n{table(found)}\n\n{summary(found)}; seed {seed}", flush=True)
    return int(any(trial.is_bad for trial in found))


def _empty(name: str) -> Path:
    folder = Path(name).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--folder={name} exists: give another folder, or delete it")
    return folder


if __name__ == "__main__":
    command.run(main)
