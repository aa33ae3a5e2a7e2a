"""Writes what no chat template writes: conversations in our own format, prompts that are seen as a whole, and pages."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxmm.batch import ANSWER, TARGET
from jaxmm.data.documents import Part, Text, Turn
from jaxmm.data.text import prefix_format
from jaxmm.data.text.chat import Markups
from jaxmm.data.text.chat_template import without_thinking
from jaxmm.data.text.codebook import Codebook
from jaxmm.data.text.encoded import Writer, of_turn
from jaxmm.data.text.own_format import IMAGE_END, IMAGE_START, ROLE_MARKERS, Symbol, Thought
from jaxmm.data.text.prefix_format import PROMPT
from jaxmm.data.text.special_tokens import SpecialTokens
from jaxmm.data.text.tokenizer import Ids, text_encoder
from jaxmm.data.text.tool_calls import in_words


class OwnTurns:
    """A writer of turns; ``Template`` says what it writes. It pickles with its tokenizer.

    Attributes:
      image_start_id, image_end_id: -1 where the markup around images is another.
      role_ids: of the markers before turns; empty where no turn is marked.
      newline: ids of the end of a line.
    """

    def __init__(
        self, tokenizer: Any, ids: Mapping[str, int], end_id: int, eos_id: int, is_sft: bool, has_prefix: bool,
        thinking: str, special: SpecialTokens, markups: Markups, codebook: Codebook,
    ):  # fmt: skip
        """
        Args:
          ids: by name, of the tokens of our own format that the tokenizer has been given.
          end_id, eos_id: what ends a turn of a conversation, and a document.
          is_sft: whether conversations have markers; without, their turns end with their lines.
          has_prefix: whether conversations are as ``prefix_format.py`` has them.
          thinking: as in ``ChatOptions``.
          special: tokens that count as such in what is said.
        """
        self.image_start_id, self.image_end_id = ids.get(IMAGE_START, -1), ids.get(IMAGE_END, -1)
        self.role_ids = {role: ids[marker] for role, marker in ROLE_MARKERS.items() if marker in ids}
        self._tokenizer, self._ids = tokenizer, text_encoder(tokenizer)
        self._bos_id: int | None = tokenizer.bos_token_id
        self._end_id, self._eos_id, self._is_sft, self._has_prefix = end_id, eos_id, is_sft, has_prefix
        self._thinking, self._special, self._markups, self._codebook = thinking, special, markups, codebook
        (self.newline,) = self._ids(["\n"])

    def of(self, tokenizer: Any) -> OwnTurns:
        """The same with another copy of the tokenizer."""
        other = copy.copy(self)
        other._tokenizer, other._ids = tokenizer, text_encoder(tokenizer)
        return other

    def arranged(self, turns: Sequence[Turn], tools: str, origin: str = "") -> tuple[Turn, ...]:
        """Turns as they are written: tools told in words, thinking at the front of answers, special tokens cut out.

        With prompts, the first turn is the prompt.
        """
        own = tuple(turn._replace(parts=tuple(self._parts(turn)), thinking="") for turn in in_words(turns, tools))
        if not self._has_prefix:
            return own
        return prefix_format.arranged(own, Symbol(self._bos_id or 0), self._is_sft, origin)

    def texts(self, turns: Iterable[Turn]) -> Iterator[Ids]:
        """Yields the ids of each text part of arranged turns, in order."""
        said = [
            (part.text, self._has_markers(turn) or turn.role == PROMPT)
            for turn in turns for part in turn.parts if isinstance(part, Text | Thought)
        ]  # fmt: skip
        alone = iter(self._ids([text for text, is_marked in said if not is_marked]))
        marked = iter(self._ids.after_special([text for text, is_marked in said if is_marked]))
        return (next(marked if is_marked else alone) for _, is_marked in said)

    def write(
        self, writer: Writer, turns: Sequence[Turn], texts: Iterator[Ids], is_open: bool = False, origin: str = ""
    ) -> None:
        """Writes arranged turns; ``texts`` gives the ids of their text parts."""
        if turns and self._bos_id is not None and not self._has_prefix:
            writer.add([self._bos_id], 0)
        for i, turn in enumerate(turns):
            is_last = i == len(turns) - 1
            with_markers = self._has_markers(turn)
            all_targets = not self._is_sft or turn.role == "document"
            is_target = (turn.target or all_targets) and turn.weight > 0
            flags = of_turn(TARGET * is_target | ANSWER * (turn.role == "assistant"), i, turn.weight)
            flags *= turn.role != PROMPT
            if with_markers:
                writer.add([self.role_ids[turn.role]], 0)
            for part in turn.parts:
                if isinstance(part, Text | Thought):
                    writer.add(next(texts), flags if isinstance(part, Text) else flags & ~TARGET)
                    continue
                if isinstance(part, Symbol):
                    writer.add([part.token], flags)
                    continue
                self._write_medium(writer, part, flags, origin)
            if is_last and is_open and turn.role in ("document", "assistant"):
                return
            if turn.role == PROMPT:
                continue
            if with_markers:
                writer.add([self._end_id], flags)
            elif self._is_sft or (is_last and not is_open):
                writer.add([self._eos_id], flags)
            else:
                writer.add(self.newline, flags)
        if is_open and self._is_sft and not self._has_prefix:
            writer.add([self.role_ids["assistant"]], 0)

    def stamp(self, text: str) -> list[int]:
        """Returns the ids of text inside a medium, as a time stamp; names of special tokens in it count as such."""
        names = sorted(self._tokenizer.get_added_vocab(), key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
        ids: list[int] = []
        for n, piece in enumerate(pieces):
            if piece:
                ids += [self._tokenizer.convert_tokens_to_ids(piece)] if n % 2 else map(int, self._ids([piece])[0])
        return ids

    def _has_markers(self, turn: Turn) -> bool:
        return self._is_sft and turn.role != "document" and not self._has_prefix

    def _parts(self, turn: Turn) -> Iterator[Any]:
        parts: list[Any] = list(turn.parts)
        if turn.role == "assistant" and self._thinking != "learn" and parts and isinstance(first := parts[0], Text):
            answer = without_thinking(first.text)
            thought = first.text.removesuffix(answer)
            masked = [Thought(thought)] * bool(thought and self._thinking == "mask")
            parts[0:1] = masked + [Text(answer)] * bool(answer)
        if turn.thinking and self._thinking != "off":
            before = f"<think>\n{turn.thinking.strip()}\n</think>\n\n"
            parts.insert(0, Thought(before) if self._thinking == "mask" else Text(before))
        for part in parts:
            if isinstance(part, Text) and self._special.may_hold(turn.role):
                for piece, is_token in self._special.cut(part.text):
                    yield Symbol(self._tokenizer.convert_tokens_to_ids(piece)) if is_token else Text(piece)
            else:
                yield part

    def _write_medium(self, writer: Writer, part: Part, flags: int, origin: str) -> None:
        around = self._markups.around(part, writer.number_of(part))
        if around == (IMAGE_START, IMAGE_END):
            before, after = [self.image_start_id], [self.image_end_id]
        else:
            before, after = map(self.stamp, around)
        writer.add(before, 0)
        self._codebook.write_place(writer, part, flags, origin)
        writer.add(after, 0)
