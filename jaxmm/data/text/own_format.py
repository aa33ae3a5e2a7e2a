"""Our own format of conversations: its special tokens, and how a chat template is known as an export of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxmm.data.text.chat import Markup

IMAGE = "<image>"  # the placeholder of a soft token for transformers' processor
IMAGE_START, IMAGE_END, END = "<|image_start|>", "<|image_end|>", "<|end|>"
ROLE_MARKERS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
OURS_MARK = "{#- jaxmm -#}"  # begins the chat template of an export in our own format
# Exports of version 0.1 have no such mark: they are known by this part, which no other template has.
_ROLES_0_1 = "".join(
    f"{{% {'elif' if n else 'if'} message['role'] == '{role}' %}}{marker}"
    for n, (role, marker) in enumerate(ROLE_MARKERS.items())
)
SPECIAL_TOKENS = (IMAGE_START, IMAGE_END, *ROLE_MARKERS.values(), END)
OURS = Markup(IMAGE_START, IMAGE_END)


class Thought(NamedTuple):
    """A part of a turn in our own format: text that is read but not learnt."""

    text: str


class Symbol(NamedTuple):
    """A part of a turn in our own format: a special token that the data wrote."""

    token: int


def has_chat_template(tokenizer: Any) -> bool:
    """Whether conversations use the tokenizer's own template; false if that template is an export of ours."""
    written = getattr(tokenizer, "chat_template", None) or ""
    return bool(written) and not (isinstance(written, str) and (OURS_MARK in written or _ROLES_0_1 in written))
