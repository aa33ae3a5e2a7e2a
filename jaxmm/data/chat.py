"""Conversations as a tokenizer folder's own chat template writes them, with what of it is learnt.

The template is rendered with marks in place of what people say, once for each form of conversation (roles and numbers
of parts), and once more to see what it trims. What it writes between marks is cut at special tokens; each piece between
them, template's text, people's text and what stands around images joined, is tokenized as a whole, as it is when the
model is served. In people's text special tokens stay text.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmm.batch import ANSWER, TARGET
from jaxmm.data import template_limits
from jaxmm.data.documents import Part, Text, Turn
from jaxmm.data.tokenizer import added_tokens, needs_context
from jaxmm.errors import UserError

_OPEN, _CLOSE = "\ue000", "\ue001"  # around the number of a part: from a private area of Unicode
_MARK = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_BLANK = "\u2003"  # around a mark: what a template trims, and no template writes


class Special(NamedTuple):
    """A special token that the template writes."""

    token: int
    flags: int


class Literal(NamedTuple):
    """Text that the template writes."""

    text: str
    flags: int


class Said(NamedTuple):
    """Where a part of a turn stands: its number in the conversation, and its turn's flags.

    ``trims``: whether blanks at its beginning, and at its end, are left out.
    """

    part: int
    flags: int
    trims: tuple[bool, bool] = (False, False)

    def of(self, text: str) -> str:
        """What is written of a text."""
        text = text.lstrip() if self.trims[0] else text
        return text.rstrip() if self.trims[1] else text


Item = Special | Literal | Said
Form = tuple[tuple[str, int, bool], ...]  # of each turn: role, number of parts, whether it is learnt


class Chunk(NamedTuple):
    """Text between special tokens and media: what is tokenized as a whole.

    ``spans``: (end, flags) of its stretches, in order. ``is_first``: nothing comes before it.
    """

    text: str
    spans: list[tuple[int, int]]
    is_first: bool


class Medium(NamedTuple):
    """A part that is no text; what stands around it are steps of their own."""

    part: Part
    flags: int


class Markup(NamedTuple):
    """What stands before and after the soft tokens of an image: text in which special tokens count as such.

    ``begins``: whether a conversation begins as every text of the tokenizer does, where its template does not say it.
    """

    before: str
    after: str
    begins: bool = False


Step = Special | Chunk | Medium


class ChatFormat:
    """A tokenizer's chat template. It pickles with its tokenizer."""

    def __init__(self, tokenizer: Any, markup: Markup):
        """
        Args:
          markup: around images; its special tokens are in the tokenizer's vocabulary.

        Raises:
          UserError: if the tokenizer gives no offsets, or its template does not show what is said.
        """
        self.tokenizer, self.name = tokenizer, getattr(tokenizer, "name_or_path", "") or "the tokenizer"
        if not tokenizer.is_fast:
            raise UserError(
                f"{self.name} has a chat template, but its tokenizer is not of the tokenizers library: "
                f"save it with a tokenizer.json"
            )
        self._added = added_tokens(tokenizer)
        self._before, self._after = self._template_items(markup.before, 0), self._template_items(markup.after, 0)
        self._ends_line = markup.after.endswith("\n")
        begins = markup.begins and tokenizer.bos_token_id in tokenizer.encode("")
        self._start = [Special(tokenizer.bos_token_id, 0)] if begins else []
        self._forms: dict[tuple[Form, bool], tuple[Item, ...]] = {}
        items = self.items((("user", 1, False), ("assistant", 1, True)), False)
        ends = {item.token for item in items if isinstance(item, Special) and item.flags}
        self.stop_ids = tuple(sorted(ends | ({tokenizer.eos_token_id} - {None})))
        if not self.stop_ids:
            raise UserError(f"{self.name}: its chat template ends an answer with no special token, and it has no eos")

    def steps(self, turns: Sequence[Turn], is_open: bool = False) -> list[Step]:
        """A conversation as special tokens, chunks of text and media.

        Args:
          is_open: up to where the model writes: after the opening of the assistant's turn, or within the last one.
        """
        parts = [part for turn in turns for part in turn.parts]
        form = tuple((turn.role, len(turn.parts), turn.target) for turn in turns)
        steps: list[Step] = []
        text, spans = "", list[tuple[int, int]]()

        def flush() -> None:
            nonlocal text, spans
            if text:
                steps.append(Chunk(text, spans, not steps))
            text, spans = "", []

        for item in self._with_media(self.items(form, is_open), parts):
            if isinstance(item, Literal):
                text += item.text
                spans.append((len(text), item.flags))
            else:
                flush()
                steps.append(item)
        flush()
        # Last, as a tokenizer does it: to it, the text behind this token is still the first.
        return steps if steps[:1] == self._start else [*self._start, *steps]

    def _with_media(self, items: Sequence[Item], parts: Sequence[Part]) -> Iterator[Special | Literal | Medium]:
        """Items with what is said in its place, and what stands around media."""
        ends_line = False  # what stands after the medium before does
        for item in items:
            if not isinstance(item, Said):
                yield item
            elif isinstance(part := parts[item.part], Text):
                # Data that breaks the line after an image itself means the same break.
                yield Literal(item.of(part.text.removeprefix("\n") if ends_line else part.text), item.flags)
            else:
                yield from (*self._before, Medium(part, item.flags), *self._after)
            ends_line = self._ends_line and isinstance(item, Said) and not isinstance(parts[item.part], Text)

    def items(self, form: Form, is_open: bool) -> tuple[Item, ...]:
        """What the template writes for a form of conversation; rendered once."""
        key = form, is_open
        if key not in self._forms:
            if len(self._forms) > 4096:
                self._forms.clear()
            self._forms[key] = self._rendered(form, is_open)
        return self._forms[key]

    def _rendered(self, form: Form, is_open: bool) -> tuple[Item, ...]:
        marks, messages, flags = 0, [], []
        lasts = {}  # the last part of a turn, and its flags
        for role, count, is_learnt in form:
            own = TARGET * is_learnt | ANSWER * (role == "assistant")
            said = "".join(f"{_OPEN}{n}{_CLOSE}" for n in range(marks, marks + count))
            marks += count
            flags += [own] * count
            if count and role == "assistant":
                lasts[marks - 1] = own
            messages.append({"role": role, "content": said})
        goes_on = is_open and form[-1][0] == "assistant"
        text = self._render(messages, marks, is_open and not goes_on)
        trims = self._trims(form, marks)
        found: list[Item] = []
        at, ending = 0, 0  # ``ending``: the flags of what ends an answer
        for mark in _MARK.finditer(text):
            found += self._template_items(text[at : mark.start()], ending)
            number = int(mark[1])
            found.append(Said(number, flags[number], trims[number]))
            at, ending = mark.end(), lasts.get(number, 0)
        if not goes_on:
            found += self._template_items(text[at:], ending)
        return tuple(found)

    def _render(self, messages: list[dict[str, str]], marks: int, opens: bool) -> str:
        """The template's text; contents are given as strings, or, where it takes no strings, as lists of one part."""
        template_limits.install()  # here, as a worker process gets this object and renders too
        as_lists = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        trouble = ""
        for form in (messages, as_lists):
            try:
                text = self.tokenizer.apply_chat_template(form, tokenize=False, add_generation_prompt=opens)
            except Exception as error:  # what templates raise is their own affair
                trouble = " ".join(str(error).split())[:200] or type(error).__name__
                continue
            if [int(mark[1]) for mark in _MARK.finditer(text)] == list(range(marks)):
                return text
            trouble = trouble or "it leaves out, repeats or reorders what is said"
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(f"{self.name}: its chat template does not write a conversation of {roles}: {trouble}")

    def _trims(self, form: Form, marks: int) -> list[tuple[bool, bool]]:
        """Of each part, whether the template trims its beginning and its end.

        A template that takes lists is shown each part by itself, as a processor shows it; another one turns as wholes.
        """
        numbers = iter(range(marks))
        said = [[f"{_BLANK}{_OPEN}{n}{_CLOSE}{_BLANK}" for n in itertools.islice(numbers, turn[1])] for turn in form]
        lists = [[{"type": "text", "text": text} for text in texts] for texts in said]
        for contents in (lists, ["".join(texts) for texts in said]):
            messages = [{"role": turn[0], "content": content} for turn, content in zip(form, contents, strict=True)]
            try:
                text = self.tokenizer.apply_chat_template(messages, tokenize=False)
            except Exception:  # it takes no lists, or shows them as Python would
                continue
            found = list(_MARK.finditer(text))
            if [int(mark[1]) for mark in found] == list(range(marks)):
                return [(not text[: m.start()].endswith(_BLANK), not text.startswith(_BLANK, m.end())) for m in found]
        return [(False, False)] * marks

    def _template_items(self, text: str, ending: int) -> list[Special | Literal]:
        """Text of the template, cut at special tokens; up to the first of them it ends an answer, if one was there."""
        items: list[Special | Literal] = []
        at = 0
        for found in self._added.finditer(text) if self._added else ():
            if found.start() > at:
                items.append(Literal(text[at : found.start()], ending))
            items.append(Special(self.tokenizer.convert_tokens_to_ids(found[0]), ending))
            at, ending = found.end(), 0
        if at < len(text):
            # Text alone ends no answer where a special token could still come; a line's end after it is the template's.
            items.append(Literal(text[at:], 0))
        return items

    @functools.cached_property
    def _needs_context(self) -> bool:
        return needs_context(self.tokenizer)

    def encode(self, chunks: Sequence[Chunk]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids, flags) of each chunk."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        found: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros(0, np.int32), np.zeros(0, np.uint8))] * len(chunks)
        in_context = [
            n for n, chunk in enumerate(chunks)
            if self._needs_context and not chunk.is_first and not (self._added and self._added.search(chunk.text))
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
                # A token belongs to the stretch that its last character is in.
                where = np.minimum(np.searchsorted(stops, np.maximum(ends, 1)), len(stops) - 1)
                found[n] = np.array(one.ids[skip:], np.int32), flags[where].astype(np.uint8)
        backend.encode_special_tokens = True
        return found
