"""Special tokens that data may write: grounding marks and tokens that a user added, where its text has their names.

All others stay text: what people type must not structure a sequence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from jaxmm.batch import ROLES
from jaxmm.data.documents import Text, Turn
from jaxmm.errors import UserError, nearest

GROUNDING = "grounding"
# Tokens that grounding models were trained with; a tokenizer has those of its family.
_GROUNDING = re.compile(
    r"<\|(object_ref|box|quad|point|ref|det|grounding|obj)(_start|_end)?\|>|<\|/(ref|det|box|quad|point)\|>"
    r"|</?(ref|box|quad|point|loc|seg|delim|object)>|<(loc|seg)_?\d+>"
)


class SpecialTokens:
    """The tokens that ``config.data.special_tokens`` names.

    Attributes:
      names: in the tokenizer's order.
      pattern: matches one, the longest first; None if there are none.
      roles: the turns that may hold them.
    """

    def __init__(self, text: str, roles: str, tokenizer: Any):
        """
        Args:
          text: names separated by commas, ``/a regular expression/``, or GROUNDING; '' for none.
          roles: of batch.ROLES, separated by commas.

        Raises:
          UserError: for a name that is no added token of the tokenizer, a pattern that no token matches, or an unknown
            role.
        """
        self.roles = frozenset(role.strip() for role in roles.split(",") if role.strip())
        for role in sorted(self.roles - set(ROLES)):
            raise UserError(
                f"config.data.special_tokens_in '{roles}': no role '{role}': there are {', '.join(ROLES)}"
                f"{nearest(role, ROLES)}"
            )
        vocabulary = tokenizer.get_added_vocab()
        self.names = sorted(_named(text, vocabulary), key=vocabulary.__getitem__)
        longest = sorted(self.names, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest))) if longest else None
        special = _special_names(tokenizer)
        self._any = re.compile("|".join(map(re.escape, sorted({*special, *self.names}, key=len, reverse=True))))

    def may_hold(self, role: str) -> bool:
        """Whether a turn of a role may hold them."""
        return self.pattern is not None and role in self.roles

    def said(self, turns: Iterable[Turn]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Returns the names of special tokens in what is said: those that stay text, and those that become tokens."""
        letters, symbols = list[str](), list[str]()
        for turn in turns:
            may_hold = self.may_hold(turn.role)
            for part in turn.parts:
                for match in self._any.finditer(part.text) if isinstance(part, Text) else ():
                    (symbols if may_hold and match[0] in self.names else letters).append(match[0])
        return tuple(letters), tuple(symbols)

    def cut(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yields the pieces of a text, and whether each is a token."""
        at = 0
        for match in self.pattern.finditer(text) if self.pattern else ():
            if match.start() > at:
                yield text[at : match.start()], False
            yield match[0], True
            at = match.end()
        if at < len(text):
            yield text[at:], False


def _special_names(tokenizer: Any) -> list[str]:
    """The tokens that a text must not write: those that the tokenizer itself calls special."""
    if not tokenizer.is_fast:
        return list(tokenizer.get_added_vocab())
    return [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]


def _named(text: str, vocabulary: dict[str, int]) -> list[str]:
    key = f"config.data.special_tokens '{text}'"
    if not text.strip():
        return []
    if text == GROUNDING or (text.startswith("/") and text.endswith("/") and len(text) > 2):
        try:
            pattern = _GROUNDING if text == GROUNDING else re.compile(text[1:-1])
        except re.error as error:
            raise UserError(f"{key} is no regular expression: {error}") from error
        matching = [name for name in vocabulary if pattern.fullmatch(name)]
        if not matching:
            raise UserError(f"{key}: the tokenizer has no such token; its added ones are {_some(vocabulary)}")
        return matching
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in vocabulary:
            guess = nearest(name, vocabulary) or f"; its added ones are {_some(vocabulary)}"
            raise UserError(f"{key}: '{name}' is no added token of the tokenizer{guess}")
    return names


def _some(vocabulary: dict[str, int]) -> str:
    names = sorted(vocabulary, key=vocabulary.__getitem__)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "none"
