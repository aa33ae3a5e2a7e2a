"""A tokenizer folder's own chat template: what it writes of a conversation, and which part of that the model writes.

It is rendered as ``transformers`` renders it, on what was really said, because templates look into contents: for
thinking, for blanks, for tool calls. A server leaves to the model everything that follows the rendering with
``add_generation_prompt=True``; that part is found by comparing renderings.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any

import jinja2.meta
import jinja2.sandbox

from jaxmm.batch import ANSWER, TARGET
from jaxmm.data.text import template_limits
from jaxmm.data.text.chat_places import MARK, Layout, Message, Places, Shape, marked, numbered
from jaxmm.data.text.tokenizer import AddedTokens
from jaxmm.errors import UserError

THINKING = ("learn", "mask", "off")
_THOUGHT = re.compile(r"<think>(?!\s*</think>).*?</think>\s*", re.DOTALL)  # an empty block is written by the template
_FAR = 1 << 20  # above the numbers of a conversation's own marks
MOST_FORMS = 4096  # forms of conversations that are cached
_TOOL = {
    "type": "function",
    "function": {
        "name": "made_tool",
        "description": "made",
        "parameters": {"type": "object", "properties": {"x": {"type": "string"}}, "required": []},
    },
}
_SWITCHES = ("enable_thinking", "thinking")  # the variables with which templates turn it off
# Put before a template that ends no answer: it adds the tokenizer's end token to each answer's last text.
_ENDS_ANSWERS = (
    "{%- set ended = namespace(messages=[]) %}{%- for message in messages %}"
    "{%- if message.role == 'assistant' and message.content is string %}"
    "{%- set message = dict(message, content=message.content + eos_token) %}"
    "{%- elif message.role == 'assistant' and message.content %}"
    "{%- set last = message.content[-1] %}"
    "{%- set last = dict(last, text=last.text + eos_token) if last.type == 'text' else last %}"
    "{%- set message = dict(message, content=message.content[:-1] + [last]) %}"
    "{%- endif %}{%- set ended.messages = ended.messages + [message] %}{%- endfor %}"
    "{%- set messages = ended.messages %}"
)

SHAPES: tuple[Shape, ...] = ("string", "text", "parts")


class ChatTemplate:
    """A tokenizer's template. It may change the tokenizer's template, for training, asking and export alike.

    Attributes:
      name: of the folder, for messages.
      notes: lines for people: what was changed, and what does not fit.
      lead: the text between the generation prompt and an answer, which is learnt: an empty block of thinking, a blank.
      ends: the tokens that follow an answer, as text.
    """

    def __init__(self, tokenizer: Any, added: AddedTokens, thinking: str = "learn", as_0_1: bool = False):
        """
        Args:
          thinking: one of THINKING; "off" sets the variables with which the template leaves it out.
          as_0_1: whether answers are learnt as in version 0.1: only what is said and the next special token.

        Raises:
          UserError: if the template does not show what is said, or thinking is "off" and it cannot leave it out.
        """
        self.tokenizer, self.added, self.as_0_1 = tokenizer, added, as_0_1
        self.name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
        self.notes: list[str] = []
        if not isinstance(tokenizer.chat_template, str):
            self._choose(tokenizer.chat_template)
        if thinking == "off":
            self._switch_thinking_off()
        question, answer = Message("user", (numbered(0),)), Message("assistant", (numbered(1),), TARGET)
        one = [question, answer]
        two = [*one, Message("user", (numbered(2),)), Message("assistant", (numbered(3),), TARGET)]
        self._shapes: dict[tuple[tuple[str, int], ...], Shape] = {}
        if as_0_1:
            self.ends, self.lead = self._ends(one), ""
            self.notes.append("answers are learnt as version 0.1 learnt them, with which this run began")
            return
        if not self._ends(one) and not self._ends(two):
            self._end_answers(one)
        self.ends = self._ends(one) or self._ends(two)
        if not self._ends(one):
            self.notes.append(
                f"the chat template writes nothing after the last answer: that {self.ends[0]} follows is learnt "
                f"from conversations of several answers alone"
            )
        self.lead = self._lead(one)

    # What it writes

    def render(self, messages: Sequence[Message], shape: Shape, tools: Sequence[Any] = (), opens: bool = False) -> str:
        """The text of a conversation; ``opens``: with the generation prompt after it.

        Raises:
          UserError: with the message of whatever the template raised.
        """
        template_limits.install()  # here, as a worker process renders too
        given = [{"role": m.role, "content": _content(m.pieces, shape), **dict(m.more)} for m in messages]
        try:
            return self.tokenizer.apply_chat_template(
                given, tools=list(tools) or None, tokenize=False, add_generation_prompt=opens
            )
        except Exception as error:  # templates raise whatever they like
            trouble = " ".join(str(error).split())[:200] or type(error).__name__
            raise self.refused(messages, trouble) from error

    def shape(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> Shape:
        """How the template takes contents: as a string, as a list of one text, or, with media, as a list of parts.

        To find out, a conversation of the same form is rendered with marks in place of what is said; each mark must
        appear once, in order. "parts" is used only where it gives the same text: some templates write something after
        each part.
        """
        if tools or any(m.more for m in messages):
            return self._shape(marked(messages, _FAR), tools)
        form = tuple((m.role, len(m.pieces)) for m in messages)
        if form not in self._shapes:
            if len(self._shapes) > MOST_FORMS:
                self._shapes.clear()
            self._shapes[form] = self._shape(marked(messages))
        return self._shapes[form]

    def _shape(self, marks: Sequence[Message], tools: Sequence[Any] = ()) -> Shape:
        wanted = [int(match[1]) for m in marks for match in MARK.finditer("".join(m.pieces))]
        texts: dict[Shape, str] = {}
        troubles = []
        for shape in SHAPES:
            try:
                text = self.render(marks, shape, tools)
            except UserError as error:
                troubles.append(error)
                continue
            if [n for match in MARK.finditer(text) if (n := int(match[1])) in wanted] == wanted:
                texts[shape] = text
        if not texts:
            raise troubles[0] if troubles else self.refused(marks, "it leaves out, repeats or reorders what is said")
        first = next(iter(texts))
        return "parts" if len(wanted) > len(marks) and texts.get("parts") == texts[first] else first

    def layout(self, messages: Sequence[Message], shape: Shape, tools: Sequence[Any] = ()) -> Layout:
        """Renders a conversation and flags its parts. An answer has flags from the end of the generation prompt to the
        last special token that the template writes after it; another turn, on what is said and what ends it. Where
        several tokens end an answer, generation stops at the first: the later ones are learnt, but no part of it."""
        text = self.render(messages, shape, tools)
        find = Places(self, messages, shape, tools, text)
        runs: list[tuple[int, int]] = []
        for n, message in enumerate(messages):
            if message.flags and (span := find.span(n)):
                start, said, stop = (max(at, runs[-1][0] if runs else 0) for at in span)
                runs += [(start, 0), (said, message.flags), (stop, message.flags & ~ANSWER)]
        runs.append((len(text), 0))
        return Layout(text, [run for run, before in zip(runs, [(0, 0), *runs], strict=False) if run[0] > before[0]])

    @functools.cached_property
    def takes_tools(self) -> bool:
        """Whether the template writes the tools that it receives."""
        return self._shows(["made_tool"], [Message("user", ("q",))], [_TOOL])

    @functools.cached_property
    def takes_calls(self) -> bool:
        """Whether it writes tool calls, and their results."""
        call = {"type": "function", "id": "made00001", "function": {"name": "made_tool", "arguments": {"x": "made_x"}}}
        result = Message("tool", ("made_result",), more=(("name", "made_tool"), ("tool_call_id", "made00001")))
        said = [Message("user", ("q",)), Message("assistant", (), more=(("tool_calls", [call]),)), result]
        return self._shows(["made_tool", "made_x", "made_result"], [*said, Message("assistant", ("a",))], [])

    @functools.cached_property
    def takes_reasoning(self) -> bool:
        """Whether it writes the ``reasoning_content`` of the last answer."""
        answer = Message("assistant", ("a",), more=(("reasoning_content", "made_thought"),))
        return self._shows(["made_thought"], [Message("user", ("q",)), answer], [])

    def _shows(self, words: Sequence[str], messages: Sequence[Message], tools: Sequence[Any]) -> bool:
        shape = self.shape([Message("user", ("q",))])
        try:
            text = self.render(messages, "text" if shape == "parts" else shape, tools)
        except UserError:
            return False
        return all(word in text for word in words)

    def content_end(self, messages: Sequence[Message], shape: Shape, tools: Sequence[Any], text: str) -> int:
        """Where the last content ends in a rendering."""
        end = Places(self, messages, shape, tools, text).content_end(len(messages) - 1)
        if end < 0:
            raise self.refused(messages, "the last turn is left out, repeated or moved")
        return end

    # What it is

    def _choose(self, named: Any) -> None:
        """Takes the one of several templates that is used for all conversations."""
        if "default" not in named:
            raise UserError(
                f"{self.name}: none of its chat templates ({', '.join(named)}) is called default: leave one"
            )
        self.tokenizer.chat_template = named["default"]
        others = ", ".join(name for name in named if name != "default")
        self.notes.append(f"of the folder's chat templates the default one is used and exported, without {others}")

    def _switch_thinking_off(self) -> None:
        written = self.tokenizer.chat_template
        switches = [name for name in _SWITCHES if name in _variables(written)]
        if not switches:
            if "<think>" in written:
                raise UserError(
                    f"config.data.thinking=off: the chat template of {self.name} writes <think> and has no variable "
                    f"({' or '.join(_SWITCHES)}) that leaves it out; take 'mask'"
                )
            return
        settings = "".join(f"{{%- set {name} = false %}}" for name in switches)
        self.tokenizer.chat_template = settings + written.removeprefix(settings)

    def _end_answers(self, one: Sequence[Message]) -> None:
        eos = self.tokenizer.eos_token
        if not eos:
            raise UserError(f"{self.name}: its chat template ends an answer with no special token, and it has no eos")
        self.tokenizer.chat_template = _ENDS_ANSWERS + self.tokenizer.chat_template
        self._shapes.clear()
        if self._ends(one) != (eos,):
            raise UserError(f"{self.name}: its chat template ends an answer with no special token, and takes no {eos}")
        self.notes.append(f"the chat template does not end an answer: {eos} is written after it, learnt and exported")

    def _ends(self, messages: Sequence[Message]) -> tuple[str, ...]:
        """The special tokens with which answers end."""
        text, ends = self.layout(messages, self.shape(messages)).text, []
        for n, message in enumerate(messages):
            if message.role == "assistant":
                find = Places(self, messages, self.shape(messages), (), text)
                end = find.content_end(n)
                ends += [token[0].strip() for token in self.added.words(text[end : end + find.ending(n)])]
        return tuple(dict.fromkeys(ends))

    def _lead(self, one: Sequence[Message]) -> str:
        layout = self.layout(one, self.shape(one))
        start = layout.runs[0][0]
        prompt = self.render(one[:1], self.shape(one[:1]), opens=True)
        if start < len(prompt):
            differs = repr(prompt[start:])
            self.notes.append(f"the chat template's generation prompt ends in {differs}, which it does not write "
                              f"before the data's answers: they are learnt from where the two differ")  # fmt: skip
        return layout.text[start : layout.text.index(numbered(1))]

    def refused(self, messages: Sequence[Message], trouble: str) -> UserError:
        roles = ", ".join(message.role for message in messages)
        return UserError(f"{self.name}: its chat template does not write a conversation of {roles}: {trouble}")


def without_thinking(text: str) -> str:
    """An answer without its leading block of thinking."""
    return re.sub(r"^\s*<think>.*?</think>\s*", "", text, count=1, flags=re.DOTALL)


def _content(pieces: Sequence[str], shape: Shape) -> str | list[dict[str, str]]:
    if shape == "string":
        return "".join(pieces)
    return [{"type": "text", "text": text} for text in (pieces if shape == "parts" else ["".join(pieces)])]


def with_thinking_masked(layout: Layout) -> Layout:
    """A layout in which no thinking is a target."""
    spans = [thought.span() for thought in _THOUGHT.finditer(layout.text)]
    ends = [end for end, _ in layout.runs]
    cuts = sorted({*ends, *(at for span in spans for at in span if at > 0)})
    runs = []
    for before, end in itertools.pairwise([0, *cuts]):
        flags = layout.runs[bisect.bisect_left(ends, end)][1]
        is_thought = any(first <= before and end <= last for first, last in spans)
        runs.append((end, flags & ~TARGET if is_thought else flags))
    return Layout(layout.text, runs)


def _variables(written: str) -> set[str]:
    """The variables that a template reads and does not set."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    written = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", written)  # a tag of transformers' own
    return jinja2.meta.find_undeclared_variables(environment.parse(written))
