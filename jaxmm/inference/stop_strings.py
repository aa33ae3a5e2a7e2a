"""Incremental decoding: where an answer stops, and the prefix of it that is safe to stream."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence


class Reply:
    """One answer. Its text is the same however many tokens come at a time.

    Attributes:
      tokens: up to the stop token, which is not among them.
      text: up to the stop string that is complete first, without it.
      done: a stop token or a stop string has come.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stop_ids: Collection[int], stops: Sequence[str] = (),
        lead: str = "",
    ) -> None:  # fmt: skip
        """
        Args:
          decode: from tokens to text.
          stops: strings that end the answer.
          lead: what the template writes before each answer; where it comes first, it is no part of the text.
        """
        self.tokens: list[int] = []
        self.text, self.done = "", False
        self._decode, self._stop_ids, self._stops = decode, frozenset(stop_ids), tuple(stops)
        self._lead = lead

    def add(self, tokens: Iterable[int]) -> None:
        """Takes the next tokens; those behind the end are dropped."""
        if self.done:
            return
        for token in tokens:
            if int(token) in self._stop_ids:
                self.done = True
                break
            self.tokens.append(int(token))
        # As a whole, always: the text of a token depends on those around it.
        self.text = self._decode(self.tokens)
        if not self.done and self._lead.startswith(self.text):
            self.text = ""  # it may become the lead, or not
        self.text = self.text.removeprefix(self._lead)
        ends = [(at + len(stop), at) for stop in self._stops if (at := self.text.find(stop)) >= 0]
        if ends:
            self.text, self.done = self.text[: min(ends)[1]], True

    def sure(self) -> str:
        """What of the text stays as it is: no half characters, and nothing that a stop string may begin with."""
        if self.done:
            return self.text
        text = self.text.rstrip("\ufffd")  # what decoders make of the first bytes of a character
        starts = (stop[:size] for stop in self._stops for size in range(1, len(stop)))
        return text[: len(text) - max((len(start) for start in starts if text.endswith(start)), default=0)]
