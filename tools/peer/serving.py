"""What all sides of a comparison do: each reads its case, and steps when it is asked to.

Its folder has ``case.json`` and, after ``--side=make``, the model. A line "N" on standard input runs N steps and
answers with a line of JSON: seconds of each, their losses, the process's peak memory, and sums of what else they count.
"""

from __future__ import annotations

import collections
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from jaxmm import command
from jaxmm.errors import UserError

Case = TypeVar("Case")


class Stepped(NamedTuple):
    """What a step had: its loss, and counts by name."""

    loss: float
    counts: Mapping[str, float] = {}


def serve(step: Callable[[], Stepped]) -> None:
    """Steps, and answers, until standard input ends."""
    for line in sys.stdin:
        seconds: list[float] = []
        losses: list[float] = []
        counts: collections.defaultdict[str, float] = collections.defaultdict(float)
        for _ in range(int(line)):
            began = time.perf_counter()
            found = step()
            seconds.append(time.perf_counter() - began)
            losses.append(found.loss)
            for name, count in found.counts.items():
                counts[name] += count
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "losses": losses, "peak": peak, **counts}), flush=True)


def run_side(
    argv: list[str],
    about: str,
    sides: Sequence[str],
    load: Callable[[Path], Case],
    make: Callable[[Case, Path, int], None],
    begin: Callable[[str, Case, Path, int], Callable[[], Stepped]],
) -> int:
    """The command of a side: ``--side``, ``--folder`` and ``--seed``.

    Args:
      sides: their names; that of jaxmm runs without PyTorch.
      load: reads ``case.json``.
      make: writes what all sides start from: the case, the folder, the seed.
      begin: makes the step of a side: its name, the case, the folder, the seed.

    Raises:
      UserError: for a side that is none of these.
    """
    flags: command.Flags = {
        "side": ("jaxmm", f"{', '.join(sides)}, or make: saves the model that all start from"),
        "folder": ("", "with case.json, and the model"),
        "seed": (0, "of weights and data"),
    }
    args = command.parse(argv, flags, config="none", about=about)
    if args.side not in (*sides, "make"):
        raise UserError(f"--side={args.side} is not one of {', '.join(sides)}, make")
    folder = Path(args.folder)
    case = load(folder / "case.json")
    if args.side != "jaxmm":
        from parities.models import let_torchvision_import

        let_torchvision_import()
    if args.side == "make":
        make(case, folder, args.seed)
    else:
        serve(begin(args.side, case, folder, args.seed))
    return 0
