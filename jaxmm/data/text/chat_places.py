"""Conversations as chat templates receive them, and where their turns stand in the text that a template writes.

While a template is rendered, marks (characters that nobody writes) stand for what is said.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

from jaxmm.data.text.tokenizer import AddedTokens
from jaxmm.errors import UserError

OPEN, CLOSE = "\ue000", "\ue001"  # around a number, which stands for a part: from a private area of Unicode
MARK = re.compile(f"{OPEN}(\\d+){CLOSE}")
_WHOLE = f"{OPEN}{CLOSE}"  # stands for a whole content
Shape = Literal["string", "text", "parts"]


class Message(NamedTuple):
    """A turn as a template is given it.

    Attributes:
      role: of "system", "user", "assistant", "tool".
      pieces: its content, a string a part.
      flags: batch.TARGET and batch.ANSWER of its tokens; may also hold a turn's number, see ``encoded.of_turn``.
      more: other keys: ``reasoning_content``, ``tool_calls``.
    """

    role: str
    pieces: tuple[str, ...]
    flags: int = 0
    more: tuple[tuple[str, Any], ...] = ()


class Layout(NamedTuple):
    """A rendering, and the flags of its characters as runs: (end, flags), in order, the last ending with the text."""

    text: str
    runs: list[tuple[int, int]]


class Renderer(Protocol):
    """The part of a chat template that the places of turns are found with."""

    added: AddedTokens
    as_0_1: bool

    def render(
        self, messages: Sequence[Message], shape: Shape, tools: Sequence[Any] = (), opens: bool = False
    ) -> str: ...

    def refused(self, messages: Sequence[Message], trouble: str) -> UserError: ...


class Places:
    """Where the turns of a conversation stand in its rendering: found by rendering again with a mark as one content."""

    def __init__(self, template: Renderer, messages: Sequence[Message], shape: Shape, tools: Sequence[Any], text: str):
        self.template, self.messages, self.shape, self.tools, self.text = template, messages, shape, tools, text
        self.around = functools.cache(self._around)

    def span(self, n: int) -> tuple[int, int, int] | None:
        """Where turn ``n``'s flags begin, where the first token that ends the turn ends, and where the last one ends;
        None for an empty turn that the template leaves out."""
        message = self.messages[n]
        end = self.content_end(n)
        if end < 0:
            if not "".join(message.pieces).strip() and not message.more:
                return None
            raise self.template.refused(self.messages, f"turn {n + 1} is left out, repeated or moved")
        around = self.around(n, len(self.messages), False)
        is_answer = message.role == "assistant" and not self.template.as_0_1
        start = self._answer_start(n) if is_answer else common(self.text, (around or ("",))[0])
        stop = end + self.ending(n)
        first = next((end + token.end() for token in self.template.added.words(self.text[end:stop])), stop)
        return min(start, end), first, stop

    def content_end(self, n: int) -> int:
        """Where the content of turn ``n`` ends; -1 if it is not found."""
        around = self.around(n, len(self.messages), False)
        return len(self.text) - len(around[1]) if around and self.text.endswith(around[1]) else -1

    def _answer_start(self, n: int) -> int:
        """Where the written answer departs from the generation prompt: usually at the prompt's end."""
        if n:
            written = self.around(n - 1, len(self.messages), False)
            prompt = self.around(n - 1, n, True)
            if written and prompt and self.text.endswith(written[1]):
                return len(self.text) - len(written[1]) + common(written[1], prompt[1])
        try:
            prompt_text = self.template.render(self.messages[:n], self.shape, self.tools, opens=True)
        except UserError:  # no prompt without a question
            prompt_text = (self.around(n, len(self.messages), False) or ("", ""))[0]
        return common(self.text, prompt_text)

    def ending(self, n: int) -> int:
        """How much of what follows an answer ends it: up to the turn's own last special token, or else the next one."""
        tail = self.text[self.content_end(n) :]
        own = self.around(n, n + 1, False)
        tokens = list(self.template.added.words(tail[: common(tail, own[1])] if own else ""))
        if not tokens or self.template.as_0_1:
            tokens = list(self.template.added.words(tail))[:1]
        return tokens[-1].end() if tokens else 0

    def _around(self, n: int, count: int, opens: bool) -> tuple[str, str] | None:
        """What stands before and after the content of turn ``n`` in a rendering of the first ``count`` turns."""
        marked = list(self.messages[:count])
        keys = tuple(pair for pair in marked[n].more if pair[0] in ("name", "tool_call_id"))
        marked[n] = marked[n]._replace(pieces=(_WHOLE,), more=keys)
        try:
            text = self.template.render(marked, self.shape, self.tools, opens)
        except UserError:
            return None
        before, mark, behind = text.partition(_WHOLE)
        return (before, behind) if mark and _WHOLE not in behind else None


def numbered(n: int) -> str:
    return f"{OPEN}{n}{CLOSE}"


def marked(messages: Sequence[Message], first: int = 0) -> list[Message]:
    """A conversation of the same form with marks, numbered from ``first``, in place of what is said.

    In a message with calls, empty pieces stay as they are.
    """
    replaced, count = [], first
    for message in messages:
        pieces = message.pieces if message.more else ("said",) * len(message.pieces)
        marks = tuple(numbered(n) if piece.strip() else piece for n, piece in enumerate(pieces, count))
        replaced.append(message._replace(pieces=marks))
        count += len(marks)
    return replaced


def common(a: str, b: str) -> int:
    """The length of the common prefix of two texts."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
