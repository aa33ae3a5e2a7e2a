"""Histograms as SVG, each with its numbers in a table for those who do not see it."""

from __future__ import annotations

import html
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT, FOOT, TOP = 320, 150, 24, 18  # of the drawing, in its own units


class Histogram(NamedTuple):
    """Counts of values between edges, of which there is one more."""

    title: str
    unit: str
    counts: list[int]
    edges: list[float]

    @classmethod
    def of(cls, title: str, unit: str, values: np.ndarray, low: float, high: float, bins: int = 24) -> Histogram:
        """Counts values, which all lie in [low, high], in bins of one width; a few integers get a bin each."""
        if np.issubdtype(values.dtype, np.integer) and high - low < bins:
            high += 1
            bins = int(high - low)
        counts, edges = np.histogram(values, bins, (low, max(high, low + 1e-9)))
        return cls(title, unit, counts.tolist(), edges.tolist())

    def svg(self) -> str:
        """A figure: bars, an axis with three numbers, and the table behind "numbers"."""
        most = max([*self.counts, 1])
        floor, step = HEIGHT - FOOT, WIDTH / len(self.counts)
        bars = []
        for i, count in enumerate(self.counts):
            tall = (floor - TOP) * count / most
            if count:
                tall = max(tall, 1.5)
                told = f"{self._between(i)}: {count:,}"
                bars.append(
                    f'<rect x="{i * step + 0.75:.2f}" y="{floor - tall:.2f}" width="{step - 1.5:.2f}" '
                    f'height="{tall:.2f}" rx="1.5"><title>{html.escape(told)}</title></rect>'
                )
        labels = "".join(
            f'<text x="{x:.2f}" y="{HEIGHT - 7}" text-anchor="{anchor}">{value}</text>'
            for x, anchor, value in self._labels(step)
        )
        rows = "".join(
            f"<tr><td>{html.escape(self._between(i))}</td><td>{count:,}</td></tr>"
            for i, count in enumerate(self.counts)
            if count
        )
        title, unit = html.escape(self.title), html.escape(self.unit)
        return (
            f'<figure class="chart"><figcaption>{title} <small>{unit}</small></figcaption>'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Histogram: {title}">'
            f'<text x="0" y="10">{most:,}</text>'
            f'<line x1="0" x2="{WIDTH}" y1="{TOP}" y2="{TOP}" class="grid"/>{"".join(bars)}'
            f'<line x1="0" x2="{WIDTH}" y1="{floor}" y2="{floor}"/>{labels}</svg>'
            f"<details><summary>Numbers</summary><table><thead><tr><th>{unit}</th><th>count</th></tr></thead>"
            f"<tbody>{rows}</tbody></table></details></figure>"
        )

    def _labels(self, step: float) -> list[tuple[float, str, str]]:
        """(x, anchor, text): under its bar where a bar is one number, else the ends and the middle of the axis."""
        if self._is_single:
            few = range(0, len(self.counts), -(-len(self.counts) // 12))
            return [((i + 0.5) * step, "middle", self._between(i)) for i in few]
        low, high = self.edges[0], self.edges[-1]
        ends = (0.0, "start", self._number(low)), (float(WIDTH), "end", self._number(high))
        return [ends[0], (WIDTH / 2, "middle", self._number((low + high) / 2)), ends[1]]

    def _number(self, value: float) -> str:
        if self._is_part:
            return f"{value:.0%}"
        return f"{value:,.0f}" if self.edges[1] - self.edges[0] >= 0.5 else f"{value:,.2g}"

    @property
    def _is_part(self) -> bool:
        return self.unit.startswith("part")

    @property
    def _is_single(self) -> bool:
        return not self._is_part and self.edges[1] - self.edges[0] == 1

    def _between(self, i: int) -> str:
        if self._is_single:
            return self._number(self.edges[i])
        return f"{self._number(self.edges[i])} to {self._number(self.edges[i + 1])}"
