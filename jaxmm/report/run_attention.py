"""What the attention monitor of a run has logged, as the page's script draws it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmm.report.run_data import RunData, at, is_table
from jaxmm.report.thinning import digits, spread
from jaxmm.report.words import CLASSES

MEDIA = ("image", "video", "audio")  # of these classes
NOTHING = 1e-5  # of the attention: less is what is left of rounding
MOST_STEPS = 60  # that one can look at
DIGITS = 3


def classes_of(run: RunData) -> list[str]:
    """The classes that a run has: media that it logs, though nothing may look at them, and what gets some attention."""
    looks = [mass for line in run.lines if isinstance(mass := at(line, "attention", "mass"), dict)]
    return [
        name
        for name in CLASSES
        if any(name in mass if name in MEDIA else _is_something(mass.get(name)) for mass in looks)
    ]


def _is_something(table: Any) -> bool:
    rows = [row for row in table if isinstance(row, list)] if isinstance(table, list) else []
    return any(isinstance(cell, int | float) and cell > NOTHING for row in rows for cell in row)


def attention_json(run: RunData, size: int) -> dict[str, Any] | None:
    """The monitored steps in about ``size`` characters, the last among them; None where there is none.

    ``monitored`` is how many there are. Where not even one step has room by heads, each layer has one number,
    the mean over its heads, and ``heads`` is 1.
    """
    steps = [(line["step"], line["attention"]) for line in run.lines if _is_whole(line.get("attention"))]
    if not steps:
        return None
    layers, heads = steps[-1][1]["layers"], steps[-1][1]["heads"]
    steps = [(step, of) for step, of in steps if (of["layers"], of["heads"]) == (layers, heads)]
    classes = [name for name in classes_of(run) if any(name in of["mass"] for _, of in steps)]
    if not classes:
        return None
    last = _step(*steps[-1], classes)
    is_mean = (each := _size(last)) > size and heads > 1
    if is_mean:
        each = _size(_mean(last))
    told = [_step(*steps[i], classes) for i in spread(len(steps), max(1, min(MOST_STEPS, size // each)))]
    return {
        "classes": classes,
        "layers": layers,
        "heads": 1 if is_mean else heads,
        "monitored": len(steps),
        "steps": [_mean(one) for one in told] if is_mean else told,
    }


def _size(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":")))


def _is_whole(of: Any) -> bool:
    """Whether it is what the contract of the log says: tables of layers and heads."""
    if not isinstance(of, dict) or not all(isinstance(of.get(name), int) for name in ("layers", "heads")):
        return False
    shape = of["layers"], of["heads"]
    mass = of.get("mass")
    return isinstance(mass, dict) and bool(mass) and all(is_table(table, *shape) for table in mass.values())


def _step(step: int, of: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """A look with all of these classes: nothing goes to those that its batch has not."""
    shape = of["layers"], of["heads"]
    none = [[0] * shape[1]] * shape[0]
    told: dict[str, Any] = {"step": step, "queries": of.get("queries"), "mass": {}, "sources": {}, "media": {}}
    told["mass"] = {name: _table(of["mass"].get(name, none)) for name in classes}
    if is_table(of.get("entropy"), *shape):
        told["entropy"] = _table(of["entropy"])
    for name, one in _mapping(of.get("sources")).items():
        mass = {key: _row(row) for key, row in _mapping(_mapping(one).get("mass")).items()
                if key in classes and _is_row(row, shape[0])}  # fmt: skip
        if mass:
            told["sources"][name] = {"queries": one.get("queries"), "mass": mass}
            if _is_row(one.get("entropy"), shape[0]):
                told["sources"][name]["entropy"] = _row(one["entropy"])
    for name, one in _mapping(of.get("media")).items():
        if is_table(_mapping(one).get("mass"), *shape):
            told["media"][name] = {"queries": one.get("queries"), "mass": _table(one["mass"])}
    return told


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_row(row: Any, count: int) -> bool:
    return isinstance(row, list) and len(row) == count and all(isinstance(cell, int | float) for cell in row)


def _row(row: list[float]) -> list[float | int]:
    return [digits(max(cell, 0.0), DIGITS) for cell in row]  # a difference may be less than nothing, by rounding


def _table(table: list[list[float]]) -> list[list[float | int]]:
    return [_row(row) for row in table]


def _mean(step: dict[str, Any]) -> dict[str, Any]:
    """A step with one number a layer in place of one a head."""

    def mean(table: list[list[float]]) -> list[list[float | int]]:
        return [[digits(sum(row) / len(row), DIGITS)] for row in table]

    told = step | {"mass": {name: mean(table) for name, table in step["mass"].items()}}
    told["media"] = {name: one | {"mass": mean(one["mass"])} for name, one in step["media"].items()}
    return told | ({"entropy": mean(step["entropy"])} if "entropy" in step else {})
