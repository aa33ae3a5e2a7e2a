"""Reads the page of a run as its script does."""

from __future__ import annotations

import json
import re
from typing import Any


def store_of(page: str) -> dict[str, Any]:
    """All that a page holds for its script."""
    return json.loads(re.search(r'<script type="application/json" id="store">(.*?)</script>', page, re.S)[1])


def curves_of(page: str, key: str) -> dict[str, dict[str, Any]]:
    """The curves of a chart by their names."""
    charts = [chart for of in store_of(page)["charts"].values() for chart in of if chart["key"] == key]
    return {curve["name"]: curve for chart in charts for curve in chart["curves"]}
