"""Conversations as a tokenizer folder's own chat template writes them, and which parts of them are learnt.

The rendered text is cut at special tokens. Each piece between them (the template's text, people's text and the markup
around images, joined) is tokenized as a whole, as it is when the model is served. Special tokens in people's text stay
text: while the template is rendered, marks stand for them, and for images.
"""

from __future__ import annotations

import bisect
import collections
import functools
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmm.batch import ANSWER, TARGET
from jaxmm.data.documents import FILMED, HEARD, READY_MADE, Image, Part, Text, Turn
from jaxmm.data.text.chat_places import CLOSE, MARK, OPEN, Layout, Message, Shape, marked, numbered
from jaxmm.data.text.chat_template import MOST_FORMS, ChatTemplate, with_thinking_masked, without_thinking
from jaxmm.data.text.encoded import of_turn
from jaxmm.data.text.special_tokens import SpecialTokens
from jaxmm.data.text.tokenizer import AddedTokens, needs_context
from jaxmm.data.text.tool_calls import in_words
from jaxmm.errors import UserError


class Special(NamedTuple):
    """A special token."""

    token: int
    flags: int


class Chunk(NamedTuple):
    """Text between special tokens and media, which is tokenized as a whole.

    Attributes:
      spans: (end, flags) of its stretches, in order.
      is_first: whether nothing comes before it.
    """

    text: str
    spans: list[tuple[int, int]]
    is_first: bool


class Medium(NamedTuple):
    """A part that is no text; the markup around it is in steps of its own."""

    part: Part
    flags: int


class Markup(NamedTuple):
    """The text before and after the soft tokens of an image, or of another medium; special tokens in it count as such.

    ``{number}`` in ``before`` is the medium's number among those of its kind in the conversation, from 1. ``begins``:
    whether a conversation starts with the begin token that every text of the tokenizer starts with, where its template
    does not write it. ``joins``: whether the template writes no space before a turn that begins with the medium, where
    it writes one before a turn of text (Idefics 3's). ``lead``: what the template writes before a turn's text, and
    behind the media with which the turn begins (LLaVA-OneVision's line end).
    """

    before: str
    after: str
    begins: bool = False
    joins: bool = False
    lead: str = ""

    @property
    def key(self) -> list[str | bool]:
        """Its values for fingerprints: ``joins`` and ``lead`` came later, and are there only where they are set."""
        return [self.before, self.after, self.begins, *[True] * self.joins, *[self.lead] * bool(self.lead)]

    def around(self, number: int) -> tuple[str, str]:
        """What stands before and after medium ``number``."""
        return self.before.replace("{number}", str(number)), self.after


class Markups(NamedTuple):
    """What stands around each kind of media."""

    image: Markup
    audio: Markup
    video: Markup

    def of(self, part: Part | str) -> Markup:
        return self.audio if isinstance(part, HEARD) else self.video if isinstance(part, FILMED) else self.image

    def around(self, part: Part, number: int) -> tuple[str, str]:
        """What stands before and after a medium, ``number`` among those of its kind from 1, its own intro first."""
        before, after = self.of(part).around(number)
        return (part.intro if isinstance(part, Image) else "") + before, after


Step = Special | Chunk | Medium


class _Marks:
    """What marks stand for while a conversation is rendered: media, and strings that must stay text."""

    def __init__(self, added: AddedTokens, allowed: SpecialTokens | None):
        self._added, self._allowed = added, allowed
        self.stand_for: list[Part | str] = []
        self.begin_turns = set[int]()  # the marks of media with which a turn begins
        self.before_text = set[int]()  # those of the last ones before the text of such a turn

    def of(self, part: Part | str) -> str:
        """Returns a new mark for a part."""
        self.stand_for.append(part)
        return numbered(len(self.stand_for) - 1)

    def text(self, text: str, role: str = "") -> str:
        """Returns the text with marks in place of special tokens, except those that turns of the role may hold."""
        if not (self._added.special and self._added.special.search(text)):
            return text

        def kept(match: re.Match[str]) -> str:
            is_allowed = self._allowed and self._allowed.may_hold(role) and match[0] in self._allowed.names
            return match[0] if is_allowed else self.of(match[0])

        return self._added.special.sub(kept, text)

    def inside(self, value: Any) -> Any:
        """Returns JSON with marks in place of special tokens in its strings."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.inside(item) for item in value]
        return {self.inside(k): self.inside(v) for k, v in value.items()} if isinstance(value, dict) else value


class ChatFormat:
    """A tokenizer's chat template. It pickles with its tokenizer.

    Attributes:
      template: the folder's, as the tokenizer has it now.
      lead: the text with which the template begins every answer; it is no part of what is said.
      stop_ids: tokens that end an answer.
    """

    def __init__(
        self, tokenizer: Any, markup: Markup, thinking: str = "learn", allowed: SpecialTokens | None = None,
        as_0_1: bool = False, audio: Markup | None = None, video: Markup | None = None,
    ):  # fmt: skip
        """
        Args:
          markup: around images; its special tokens are in the tokenizer's vocabulary.
          thinking: as in ``ChatTemplate``; "off" drops it from the data too.
          as_0_1: as in ``ChatTemplate``.
          allowed: special tokens that count as such in what is said.
          audio, video: around recordings and videos, where that is another one.

        Raises:
          UserError: if the tokenizer gives no offsets, or its template does not show what is said.
        """
        self.tokenizer, self._allowed = tokenizer, allowed
        self.markups = Markups(markup, audio or markup, video or markup)
        self._drops_thinking, self._masks_thinking = thinking == "off", thinking == "mask"
        if not tokenizer.is_fast:
            raise UserError(
                f"{getattr(tokenizer, 'name_or_path', '') or 'the tokenizer'} has a chat template, but its tokenizer "
                f"is not of the tokenizers library: save it with a tokenizer.json"
            )
        self._added = AddedTokens(tokenizer, OPEN + CLOSE)
        self.template = ChatTemplate(tokenizer, self._added, thinking, as_0_1)
        begins = markup.begins and tokenizer.bos_token_id in tokenizer.encode("")
        self._start = [Special(tokenizer.bos_token_id, 0)] if begins else []
        self._forms: dict[tuple[tuple[str, int, int], ...], Layout] = {}
        # Decoded, as a reader sees it: a decoder leaves special tokens out.
        lead = tokenizer.encode(self.template.lead, add_special_tokens=False)
        self.lead = tokenizer.decode(lead, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ends = {self._added.ids[end] for end in self.template.ends}
        self.stop_ids = tuple(sorted(ends | ({tokenizer.eos_token_id} - {None})))

    def steps(self, turns: Sequence[Turn], is_open: bool = False, tools: str = "") -> list[Step]:
        """A conversation as special tokens, chunks of text and media.

        Args:
          is_open: stop where the model writes: after the opening of the assistant's turn, or within the last one.
          tools: as in ``Document``.

        Raises:
          UserError: if the template refuses the conversation, or leaves out a part of it.
        """
        takes_calls = self.template.takes_calls or not any(turn.calls or turn.role == "tool" for turn in turns)
        takes_tools = not tools or self.template.takes_tools
        count = len(turns)
        if not (takes_calls and takes_tools):
            turns, tools = in_words(turns, "" if takes_tools else tools), tools if takes_tools else ""
        marks = _Marks(self._added, self._allowed)
        # Turns keep their numbers when tools are described in an added turn in front of them.
        messages = [self._message(turn, number, marks) for number, turn in enumerate(turns, count - len(turns))]
        given = marks.inside(json.loads(tools)) if tools else []
        shape = self.template.shape(messages, given)
        if not is_open:
            layout = self._layout(messages, shape, given)
            layout = with_thinking_masked(layout) if self._masks_thinking else layout
        else:
            goes_on = messages[-1].role == "assistant"
            text = self.template.render(messages, shape, given, opens=not goes_on)
            end = self.template.content_end(messages, shape, given, text) if goes_on else len(text)
            layout = Layout(text[:end], [(end, 0)])
        steps = self._cut(layout, marks)
        # Added last, as a tokenizer does: for it, the text after this token is still the first.
        return steps if steps[:1] == self._start else [*self._start, *steps]

    def _message(self, turn: Turn, number: int, marks: _Marks) -> Message:
        is_model = turn.role == "assistant"
        pieces: list[str] = []
        before: Part = Text("")
        for part in turn.parts:
            if not isinstance(part, Text):
                if not pieces:
                    marks.begin_turns.add(len(marks.stand_for))
                pieces.append(marks.of(part))
            else:
                # The template's newline after an image stands for one that the data has written itself.
                ends_line = not isinstance(before, Text) and self.markups.of(before).after.endswith("\n")
                if pieces and not any(isinstance(one, Text) for one in turn.parts[: len(pieces)]):
                    marks.before_text.add(len(marks.stand_for) - 1)
                    ends_line = ends_line or self.markups.of(before).lead == "\n"
                text = part.text.removeprefix("\n") if ends_line else part.text
                if is_model and self._drops_thinking and not pieces:
                    text = without_thinking(text)
                pieces.append(marks.text(text, turn.role))
            before = part
        more: list[tuple[str, Any]] = []
        if turn.thinking and not self._drops_thinking:
            if not self.template.takes_reasoning:
                raise UserError(
                    f"the chat template of {self.template.name} leaves out what is thought before an answer "
                    f"(reasoning_content): write it into the answer, or leave it out by config.data.thinking=off"
                )
            more.append(("reasoning_content", marks.text(turn.thinking, turn.role)))
        if turn.calls:
            more.append(("tool_calls", marks.inside(json.loads(turn.calls))))
        flags = of_turn(TARGET * (turn.target and turn.weight > 0) | ANSWER * is_model, number, turn.weight)
        return Message(turn.role, tuple(pieces), flags, tuple(more))

    def _layout(self, messages: Sequence[Message], shape: Shape, tools: Sequence[Any] = ()) -> Layout:
        """The template's layout. It is cached by form, as long as the template does not depend on what is said."""
        if tools or any(message.more for message in messages):
            return self.template.layout(messages, shape, tools)
        form = tuple((m.role, len(m.pieces), m.flags) for m in messages)
        if form not in self._forms:
            if len(self._forms) > MOST_FORMS:
                self._forms.clear()
            self._forms[form] = self.template.layout(marked(messages), shape)
        guess = _filled(self._forms[form], [piece for message in messages for piece in message.pieces])
        is_right = guess.text == self.template.render(messages, shape)
        return guess if is_right else self.template.layout(messages, shape)

    def _cut(self, layout: Layout, marks: _Marks) -> list[Step]:
        """Cuts a rendering at special tokens and media."""
        whole, runs = self._with_markup(layout, marks)
        ends = [end for end, _ in runs]
        steps: list[Step] = []
        text, spans, at = "", list[tuple[int, int]](), 0

        def flags_at(place: int) -> int:
            return runs[bisect.bisect_right(ends, place)][1]

        def literal(piece: str, flags: int) -> None:
            nonlocal text
            text += piece
            spans.append((len(text), flags))

        def step(one: Step) -> None:
            flush()
            steps.append(one)

        def flush() -> None:
            nonlocal text, spans
            if text:
                steps.append(Chunk(text, spans, not steps))
            text, spans = "", []

        for match in (*self._marks_or_added.finditer(whole), None):
            stop = match.start() if match else len(whole)
            while at < stop:
                n = bisect.bisect_right(ends, at)
                piece_end = min(stop, ends[n])
                literal(whole[at:piece_end], runs[n][1])
                at = piece_end
            if match is None:
                break
            at = match.end()
            if not match[1]:  # a special token has the flags of its last character
                step(Special(self._added.id_of(match), flags_at(stop + len(match[0].rstrip()) - 1)))
            elif isinstance(part := marks.stand_for[int(match[1])], str):
                literal(part, flags_at(stop))
            else:
                step(Medium(part, flags_at(stop)))
        flush()
        return steps

    def _with_markup(self, layout: Layout, marks: _Marks) -> Layout:
        """Adds the markup around media, which is never learnt."""
        if all(isinstance(part, str) for part in marks.stand_for):
            return layout
        fill, seen = [("", "")] * len(marks.stand_for), collections.Counter[type]()
        for n, part in enumerate(marks.stand_for):
            if not isinstance(part, str):
                kind = READY_MADE.get(type(part), type(part))
                seen[kind] += 1
                fill[n] = self.markups.around(part, seen[kind])
        text, runs, at = "", list[tuple[int, int]](), 0

        for end, flags in layout.runs:
            for match in MARK.finditer(layout.text, at, end):
                text += layout.text[at : match.start()]
                if int(match[1]) in marks.begin_turns and self.markups.of(marks.stand_for[int(match[1])]).joins:
                    text = text.removesuffix(" ")
                    runs = [(min(before_it, len(text)), of_it) for before_it, of_it in runs]
                lead = self.markups.of(marks.stand_for[int(match[1])]).lead
                if int(match[1]) in marks.begin_turns and lead:
                    text = text.removesuffix(lead)
                    runs = [(min(before_it, len(text)), of_it) for before_it, of_it in runs]
                if isinstance(marks.stand_for[int(match[1])], str):
                    text += match[0]
                else:
                    before, after = fill[int(match[1])]
                    runs.append((len(text), flags))
                    runs += [(len(text) + len(before), 0), (len(text) + len(before) + len(match[0]), flags)]
                    text += f"{before}{match[0]}{after}"
                    text += lead if int(match[1]) in marks.before_text else ""
                    runs.append((len(text), 0))
                at = match.end()
            text += layout.text[at:end]
            runs.append((len(text), flags))
            at = end
        return Layout(text, runs)

    @functools.cached_property
    def _marks_or_added(self) -> re.Pattern[str]:
        return re.compile("|".join(filter(None, [MARK.pattern, self._added.pattern and self._added.pattern.pattern])))

    @functools.cached_property
    def _needs_context(self) -> bool:
        return needs_context(self.tokenizer)

    def encode(self, chunks: Sequence[Chunk]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids, flags) of each chunk, int32 (n,) each."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        by_chunk: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros(0, np.int32), np.zeros(0, np.int32))] * len(chunks)
        in_context = [
            n for n, chunk in enumerate(chunks)
            if self._needs_context and not chunk.is_first and not self._added.is_in(chunk.text)
        ]  # fmt: skip
        alone = sorted(set(range(len(chunks))) - set(in_context))
        before = next(iter(self.tokenizer.get_added_vocab()), "")
        for numbers, splits, prefix in ((alone, True, ""), (in_context, False, before)):
            if not numbers:
                continue
            backend.encode_special_tokens = splits
            encoded = backend.encode_batch([prefix + chunks[n].text for n in numbers], add_special_tokens=False)
            for n, one in zip(numbers, encoded, strict=True):
                skip = bool(prefix)
                ends = np.array([end for _, end in one.offsets[skip:]], np.int64) - len(prefix)
                stops, flags = (np.array(column) for column in zip(*chunks[n].spans, strict=True))
                # A token belongs to the stretch of its last character.
                where = np.minimum(np.searchsorted(stops, np.maximum(ends, 1)), len(stops) - 1)
                by_chunk[n] = np.array(one.ids[skip:], np.int32), flags[where].astype(np.int32)
        backend.encode_special_tokens = True
        return by_chunk


def _filled(layout: Layout, pieces: Sequence[str]) -> Layout:
    """A layout with its marks replaced by what they stand for; marks inside that are other ones."""
    text, runs, at = "", list[tuple[int, int]](), 0
    for end, flags in layout.runs:
        for match in MARK.finditer(layout.text, at, end):
            text += layout.text[at : match.start()] + pieces[int(match[1])]
            at = match.end()
        text += layout.text[at:end]
        runs.append((len(text), flags))
        at = end
    return Layout(text, runs)
