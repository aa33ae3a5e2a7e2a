"""What a row of the benchmark is: a name, what is needed, and a function that measures; and how things are timed.

Things that are compared run in turns, one after the other and again, so that what else the machine does meets all of
them; of each, the median counts, and the spread is told beside it.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxmm.measure.timing import Figure


class Settings(NamedTuple):
    """How a row is measured.

    Attributes:
      repeats: samples of each figure.
      seed: of what the row's data is drawn from.
      scale: of the data's size; 1 is what the needed numbers are for.
      folder: an empty one, for files.
      config: of --part=step, a ConfigDict.
      profile: of --part=step, the folder for a trace, '' for none.
    """

    repeats: int
    seed: int
    scale: float
    folder: str
    config: Any = None
    profile: str = ""

    def count(self, full: int) -> int:
        """A number of things, ``full`` at scale 1; at least 1."""
        return max(1, round(full * self.scale))


class Measured(NamedTuple):
    """What a row found: its figures by name, and what they must not be read without."""

    figures: Mapping[str, Figure]
    notes: Sequence[str] = ()


class Row(NamedTuple):
    """A row of the benchmark.

    Attributes:
      name: for ``--only``.
      data: what it is measured on, in words; its code draws that from ``Settings.seed``.
      needed: by the name of a figure, ">= 600" or "<= 1.03", in the figure's unit.
      measure: does it.
      packages: that it needs beside those of every installation; without them it is left out.
    """

    name: str
    data: str
    needed: Mapping[str, str]
    measure: Callable[[Settings], Measured]
    packages: Sequence[str] = ()

    def missing(self) -> list[str]:
        """Those of ``packages`` that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


def tell(text: str) -> None:
    """Says on standard error what is measured now, with the time of day: a part takes up to half an hour."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def is_met(need: str, value: float) -> bool:
    """Whether a value is what ``need`` (">= 600") asks for."""
    sign, _, bound = need.partition(" ")
    return {">=": value >= float(bound), "<=": value <= float(bound)}[sign]
