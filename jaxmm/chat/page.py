"""The page: style and script are in it, and its policy forbids all others. It asks nothing but its own server."""

from __future__ import annotations

import base64
import hashlib
import string
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

from jaxmm.chat.speaker import MOST_TOKENS, Speaker
from jaxmm.report.shell import script_json

PURPOSE = (
    "For looking at a model in training, one question at a time. To serve a model, export it and use a server that "
    "is made for many."
)


def facts(speaker: Speaker) -> dict[str, Any]:
    """What the page tells of a model."""
    return {"name": speaker.name, "folder": str(speaker.folder), "step": speaker.step, "takes": speaker.takes()}


def render(speakers: Sequence[Speaker], defaults: dict[str, Any]) -> tuple[str, str]:
    """The page as HTML, and its content security policy.

    Args:
      defaults: options that it begins with.
    """
    ours, shared = resources.files("jaxmm.chat"), resources.files("jaxmm.report")
    style = shared.joinpath("base.css").read_text("utf-8") + ours.joinpath("page.css").read_text("utf-8")
    script = "".join(
        where.joinpath(f"{name}.js").read_text("utf-8")
        for where, name in ((shared, "base"), (ours, "looks"), (ours, "page"))
    )
    html = string.Template(ours.joinpath("page.html").read_text("utf-8")).substitute(
        title=escape(" and ".join(speaker.name for speaker in speakers)),
        style=style,
        script=script,
        purpose=escape(PURPOSE),
        most_tokens=MOST_TOKENS,
        store=script_json({"models": [facts(one) for one in speakers], "defaults": defaults}),
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; connect-src 'self'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy
