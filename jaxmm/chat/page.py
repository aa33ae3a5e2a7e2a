"""The page: style and script are in it, and its policy forbids all others. It asks nothing but its own server."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from jaxmm.chat.speaker import MOST_TOKENS, Speaker
from jaxmm.report import shell
from jaxmm.report.words import CLASSES

PURPOSE = (
    "For looking at a model in training, one question at a time. To serve a model, export it and use a server that "
    "is made for many."
)


def facts(speaker: Speaker) -> dict[str, Any]:
    """What the page tells of a model."""
    return {"name": speaker.name, "folder": str(speaker.folder), "step": speaker.step, "takes": speaker.takes()}


def render(speakers: Sequence[Speaker], defaults: dict[str, Any]) -> str:
    """The page as HTML.

    Args:
      defaults: options that it begins with.
    """
    return shell.page(
        "page", ["base", "overlay", "page"], ["base", "overlay", "looks", "media", "page"], package="jaxmm.chat",
        allowed="connect-src 'self'; base-uri 'none'; form-action 'none'",
        title=escape(f"{' and '.join(speaker.name for speaker in speakers)} – ask the model"),
        purpose=escape(PURPOSE),
        most_tokens=str(MOST_TOKENS),
        store=shell.script_json({
            "models": [facts(one) for one in speakers], "defaults": defaults, "words": CLASSES,
        }),
    )  # fmt: skip
