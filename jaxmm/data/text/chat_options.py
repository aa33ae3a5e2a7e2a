"""Which parts of conversations are learnt, and which special tokens they may hold: options of ``config.data``."""

from __future__ import annotations

from typing import NamedTuple

from jaxmm.data.documents import Turn
from jaxmm.data.text.chat_template import THINKING
from jaxmm.errors import UserError, nearest

LEARN = ("all", "last", "prompt")


class ChatOptions(NamedTuple):
    """The options that a template has beside its objective.

    Attributes:
      learn: "all" answers, the "last" one of each conversation, or "prompt": all answers and the prompts too.
      thinking: "learn" it, "mask" it (it is read but not learnt), or "off": it is left out of data and prompts.
      special_tokens, special_tokens_in: as in ``SpecialTokens``.
    """

    learn: str = "all"
    thinking: str = "learn"
    special_tokens: str = ""
    special_tokens_in: str = "assistant,document"

    def check(self) -> None:
        """Raises UserError for a value that is not allowed."""
        for key, value, known in (("learn", self.learn, LEARN), ("thinking", self.thinking, THINKING)):
            if value not in known:
                raise UserError(f"config.data.{key} '{value}' is not one of {', '.join(known)}{nearest(value, known)}")

    def learnt(self, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        """Sets which turns of a conversation are targets, unless the data itself says otherwise."""
        if self.learn == "all" or any(turn.role == "document" for turn in turns):
            return turns
        if self.learn == "prompt":
            return tuple(turn._replace(target=turn.target or turn.role != "assistant") for turn in turns)
        last = max((n for n, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
        return tuple(turn._replace(target=turn.target and n == last) for n, turn in enumerate(turns))
