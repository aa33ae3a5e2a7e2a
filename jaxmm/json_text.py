"""JSON as other people's files have it: whatever is no JSON is a ValueError, too deep nesting included."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """What ``json.loads`` gives.

    Raises:
      ValueError: if it is no valid JSON, or nested deeper than Python follows.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
