"""curves.png: loss, evaluation, learning rate and throughput of a run over its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from jaxmm.atomic import published
from jaxmm.formatting import short

WIDTH, HEIGHT = 640, 360  # of a panel, in pixels
LEFT, RIGHT, TOP, FOOT = 72, 24, 44, 40  # its margins
INK, GREY, GRID = "#1f2933", "#7b8794", "#e4e7eb"
COLOURS = ("#2563eb", "#d9480f", "#2b8a3e", "#7048e8", "#c2255c", "#0c8599")
TICKS = 4  # about so many on an axis
LOG_FROM = 20  # times that the largest loss is the smallest: from here on its axis is logarithmic
SMOOTH = 3  # times larger is what lines are drawn in


class Panel(NamedTuple):
    """One drawing.

    Attributes:
      from_0: its values begin there, however little they change.
      may_be_log: values that differ much are drawn on a logarithmic axis.
    """

    title: str
    lines: list[Line]
    from_0: bool = False
    may_be_log: bool = False


class Line(NamedTuple):
    """Values over steps; ``dots`` where they are few and far between."""

    name: str
    points: list[tuple[int, float]]
    dots: bool = False


def draw(lines: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draws the objects of a metrics.jsonl; whether there was anything to draw."""
    panels = [
        Panel("loss", [_line(lines, "train", "loss"), *_of_sources(lines)], may_be_log=True),
        Panel("evaluation: answers right", _of_sources(lines, "answer_accuracy"), from_0=True),
        Panel("evaluation: preferences right", _of_sources(lines, "preference_accuracy"), from_0=True),
        Panel("learning rate", [_line(lines, "", "learning_rate")], from_0=True),
        Panel("tokens a second", [_line(lines, "", "tokens_per_second")], from_0=True),
    ]
    panels = [
        panel._replace(lines=points) for panel in panels if (points := [line for line in panel.lines if line.points])
    ]
    if not panels:
        return False
    sheet = Image.new("RGB", (2 * WIDTH, -(-len(panels) // 2) * HEIGHT), "white")
    for i, panel in enumerate(panels):
        sheet.paste(_drawn(panel), (i % 2 * WIDTH, i // 2 * HEIGHT))
    with published(path) as whole:
        sheet.save(whole, "PNG", optimize=True)
    return True


def _line(lines: Sequence[Mapping[str, Any]], name: str, key: str) -> Line:
    return Line(name, [(line["step"], float(line[key])) for line in lines if _is_number(line.get(key))])


def _of_sources(lines: Sequence[Mapping[str, Any]], key: str = "loss") -> list[Line]:
    """A line for each source that was evaluated."""
    evaluated = [(line["step"], line["eval"]) for line in lines if isinstance(line.get("eval"), Mapping)]
    names = sorted({name for _, by_source in evaluated for name in by_source})
    return [
        Line(name, [(step, float(figures[name][key])) for step, figures in evaluated
                    if name in figures and _is_number(figures[name].get(key))], dots=True)
        for name in names
    ]  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _drawn(panel: Panel) -> Image.Image:
    steps = [step for line in panel.lines for step, _ in line.points]
    first, last = min(steps), max(max(steps), min(steps) + 1)
    values = [value for line in panel.lines for _, value in line.points]
    low, high = min([0.0, *values] if panel.from_0 else values), max(values)
    is_log = panel.may_be_log and 0 < LOG_FROM * low <= high
    ticks = _log_ticks(low, high) if is_log else _ticks(low, high)
    bottom, top = (math.log10(tick) if is_log else tick for tick in (ticks[0], ticks[-1]))

    def at(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        part = ((math.log10(value) if is_log else value) - bottom) / (top - bottom)
        return x, HEIGHT - FOOT - part * (HEIGHT - TOP - FOOT)

    picture = _curves(panel.lines, [at(first, tick)[1] for tick in ticks], at)
    pen, font, small = ImageDraw.Draw(picture), ImageFont.load_default(17), ImageFont.load_default(13)
    pen.text((LEFT, 12), panel.title + (" (log scale)" if is_log else ""), fill=INK, font=font)
    for tick in ticks:
        pen.text((LEFT - 8, at(first, tick)[1]), short(tick), fill=GREY, font=small, anchor="rm")
    for step in (first, *(tick for tick in _ticks(first, last)[1:-1]), last):
        if step in (first, last) or min(step - first, last - step) > (last - first) / 12:
            pen.text((at(step, ticks[0])[0], HEIGHT - FOOT + 8), f"{step:.0f}", fill=GREY, font=small, anchor="ma")
    _legend(pen, [line.name for line in panel.lines], small)
    return picture


def _curves(lines: Sequence[Line], grid: Sequence[float], at: Callable[[float, float], tuple[float, float]]) -> Any:
    """The lines, drawn larger and made smaller, which smooths them."""
    picture = Image.new("RGB", (SMOOTH * WIDTH, SMOOTH * HEIGHT), "white")
    pen = ImageDraw.Draw(picture)
    for y in grid:
        pen.line([(SMOOTH * LEFT, SMOOTH * y), (SMOOTH * (WIDTH - RIGHT), SMOOTH * y)], fill=GRID, width=SMOOTH)
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        places = [(SMOOTH * x, SMOOTH * y) for x, y in (at(*point) for point in line.points)]
        if len(places) > 1:
            pen.line(places, fill=colour, width=2 * SMOOTH, joint="curve")
        radius = 3.5 * SMOOTH
        for x, y in places if line.dots or len(places) == 1 else ():
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def _legend(pen: ImageDraw.ImageDraw, names: Sequence[str], font: Any) -> None:
    """Names in their colours, from the right; where there is one line without a name, none."""
    x = float(WIDTH - RIGHT)
    for number, name in reversed(list(enumerate(names))):
        if name:
            pen.text((x, 16), name, fill=COLOURS[number % len(COLOURS)], font=font, anchor="ra")
            x -= pen.textlength(name, font) + 14


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, equally far apart, from at or below ``low`` to at or above ``high``."""
    apart = (high - low or abs(high) or 1.0) / TICKS
    power = 10.0 ** math.floor(math.log10(apart))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= apart * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [step * number for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, the powers alone over many, from at or below ``low`` to at or above ``high``."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= TICKS else (1,)
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    start = max(n for n, tick in enumerate(ticks) if tick <= low * (1 + 1e-9))
    end = min(n for n, tick in enumerate(ticks) if tick >= high * (1 - 1e-9))
    return ticks[start : end + 1]
