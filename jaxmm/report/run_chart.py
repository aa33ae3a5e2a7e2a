"""A chart of curves over a run's steps, as the page's script draws it: names, units, an axis, few points."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxmm.report import thinning

MOST, LEAST = 1500, 60  # points of a line that a page holds


class Curve(NamedTuple):
    """Values of one run over its steps.

    Attributes:
      name: '' where the run's says enough.
      place: the number of its colour among those of its chart; with several runs, of its dashes.
      dots: the values are few and far between, and each is marked.
      dashed: it is what was asked for, beside the curve of the same name.
      key: a class of attention, whose own colour it has.
    """

    name: str
    run: int
    place: int
    steps: list[int]
    values: list[float]
    dots: bool = False
    dashed: bool = False
    key: str = ""


class Chart(NamedTuple):
    """Curves with one axis. ``form``: how its values are written, "plain", "percent", "count" or "bytes"."""

    key: str
    title: str
    unit: str
    curves: list[Curve]
    form: str = "plain"
    is_log: bool = False
    from_0: bool = False

    def json(self) -> dict[str, Any]:
        """For the page, with up to ``MOST`` points of a curve; ``of`` is how many there are of one that is thinned."""
        curves = []
        for curve in self.curves:
            chosen = thinning.kept(curve.values, MOST)
            told: dict[str, Any] = {
                "name": curve.name,
                "run": curve.run,
                "place": curve.place,
                "x": [curve.steps[i] for i in chosen],
                "y": [thinning.digits(curve.values[i]) for i in chosen],
            }
            if len(chosen) < len(curve.values):
                told["of"] = len(curve.values)
            told |= {name: True for name in ("dots", "dashed") if getattr(curve, name)}
            curves.append(told | ({"key": curve.key} if curve.key else {}))
        return {
            "key": self.key, "title": self.title, "unit": self.unit, "form": self.form, "log": self.is_log,
            "from0": self.from_0, "curves": curves,
        }  # fmt: skip


def charts_json(by_section: Mapping[str, Sequence[Chart]]) -> dict[str, list[dict[str, Any]]]:
    """The charts for the page."""
    return {section: [chart.json() for chart in charts] for section, charts in by_section.items()}


def fewer_points(told: dict[str, list[dict[str, Any]]], size: int) -> dict[str, list[dict[str, Any]]]:
    """Those charts in about ``size`` characters: with as many points of each curve as that holds, ``LEAST`` or more."""
    most, fewer = MOST, told
    while most > LEAST and len(json.dumps(fewer, separators=(",", ":"))) > size:
        most = max(LEAST, most * 2 // 3)
        fewer = {
            section: [chart | {"curves": [_fewer(curve, most) for curve in chart["curves"]]} for chart in charts]
            for section, charts in told.items()
        }
    return fewer


def _fewer(curve: dict[str, Any], most: int) -> dict[str, Any]:
    if len(curve["x"]) <= most:
        return curve
    chosen = thinning.kept(curve["y"], most)
    points = {axis: [curve[axis][i] for i in chosen] for axis in "xy"}
    return curve | points | {"of": curve.get("of", len(curve["x"]))}
