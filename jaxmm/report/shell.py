"""Puts a page together: one file that loads nothing, with the hash of its own script as the only one that may run."""

from __future__ import annotations

import base64
import hashlib
import json
import string
from collections.abc import Sequence
from importlib import resources
from typing import Any


def page(
    name: str, styles: Sequence[str], scripts: Sequence[str], *, title: str, store: str, package: str = "jaxmm.report",
    allowed: str = "", **parts: str,
) -> str:  # fmt: skip
    """The page of a template: ``name`` is that of an .html file, the body, whose ``$``-names ``parts`` fill as HTML.

    Args:
      styles, scripts: names of .css and .js files, in their order.
      title: of the window, as HTML.
      store: what scripts read, of ``script_json``.
      package: where files are; those that it has not are taken from here.
      allowed: directives of the page's policy that allow more than to show what is in it.
    """

    def read(file: str) -> str:
        places = [resources.files(one).joinpath(file) for one in (package, "jaxmm.report")]
        return next((place for place in places if place.is_file()), places[-1]).read_text("utf-8")

    style, script = (
        "".join(read(f"{one}.{end}") for one in names) for end, names in (("css", styles), ("js", scripts))
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'", "img-src data:", "media-src data:", "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'", *filter(None, [allowed]),
    )  # fmt: skip
    body = string.Template(read(f"{name}.html")).substitute(parts)
    return string.Template(read("shell.html")).substitute(
        policy="; ".join(policy), title=title, style=style, body=body, store=store, script=script
    )


def script_json(value: Any) -> str:
    """JSON that may stand in a script element: no ``<`` ends it early."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
