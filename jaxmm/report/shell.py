"""Puts a page together: one file that loads nothing, with the hash of its own script as the only one that may run."""

from __future__ import annotations

import base64
import hashlib
import json
import string
from collections.abc import Sequence
from importlib import resources
from typing import Any


def page(name: str, styles: Sequence[str], scripts: Sequence[str], **parts: str) -> str:
    """The page of a template: ``name`` is that of an .html file here, whose ``$``-names ``parts`` fill as HTML.

    Args:
      styles, scripts: names of .css and .js files here, in their order.
    """
    files = resources.files("jaxmm.report")
    style, script = (
        "".join(files.joinpath(f"{one}.{end}").read_text("utf-8") for one in names)
        for end, names in (("css", styles), ("js", scripts))
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return string.Template(files.joinpath(f"{name}.html").read_text("utf-8")).substitute(
        policy=f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'",
        style=style,
        script=script,
        **parts,
    )


def script_json(value: Any) -> str:
    """JSON that may stand in a script element: no ``<`` ends it early."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
