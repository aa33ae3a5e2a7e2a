"""What a part of ``jaxmm check`` tells, row by row, and how a row travels from the part's process to the parent."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

MARK = "check-row "  # libraries print too: what begins with this is a row
TOLD = 300  # letters of a failure that are told

RIGHT, WRONG, MEASURED, NOT_HERE, FAILED = "right", "WRONG", "measured", "not here", "FAILED"
BAD = (WRONG, FAILED)


class Row(NamedTuple):
    """One thing that was tried.

    Attributes:
      what: it is.
      verdict: RIGHT or WRONG, beside float64; MEASURED, which is neither; NOT_HERE, which cannot run on this platform;
        or FAILED, which ended in an error.
      told: the figures for people, or why.
      figures: the same for programs.
    """

    what: str
    verdict: str
    told: str
    figures: Mapping[str, Any] = {}


def tried(what: str, run: Callable[[], Row]) -> Row:
    """The row of ``run``, or of the error it ended in, which costs no other row."""
    try:
        return run()
    except Exception as error:
        return Row(what, FAILED, one_line(f"{type(error).__name__}: {error}"))


def compared(what: str, apart: Mapping[str, float], tolerances: Mapping[str, float]) -> Row:
    """RIGHT if each difference, over the largest value of what it is of, is within its tolerance; NaN is not."""
    is_right = all(each <= tolerances[name] for name, each in apart.items())
    groups = itertools.groupby(apart, lambda name: tolerances[name])
    told = [f"{', '.join(f'{name} {apart[name]:.1e}' for name in names)} (limit {limit:g})" for limit, names in groups]
    figures = {"apart": dict(apart), "tolerances": {name: tolerances[name] for name in apart}}
    return Row(what, RIGHT if is_right else WRONG, ", ".join(told), figures)


def one_line(text: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= TOLD else f"{line[: TOLD - 4]} ..."


def written(row: Row) -> str:
    """A row as a line of the part's standard output."""
    return MARK + json.dumps(row._asdict())


def read(line: str) -> Row | None:
    """The row that a line holds, or None."""
    return Row(**json.loads(line.removeprefix(MARK))) if line.startswith(MARK) else None
