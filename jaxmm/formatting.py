"""Formats numbers, durations and tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def short(value: float) -> str:
    """1234567 -> '1.23M': three digits and a unit."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}" if abs(value) < 999.5 * size else f"{value / size:.0f}{unit}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """75 -> '1m15s'; minutes and seconds, or hours and minutes."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def table(rows: Sequence[Sequence[Any]]) -> str:
    """Aligned plain text; columns that hold numbers to the right, None as '-'. Rows may differ in length."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"
        return "-" if value is None else str(value)

    columns = []
    for index in range(max(map(len, rows), default=0)):
        values = [row[index] if index < len(row) else "" for row in rows]
        align = str.rjust if any(isinstance(value, int | float) for value in values) else str.ljust
        width = max(len(cell(value)) for value in values)
        columns.append([align(cell(value), width) for value in values])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))
