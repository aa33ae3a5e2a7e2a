"""Pairs of answers to one prompt, of which one is better (DPO's data): two documents of any conversation's format.

The format that would read the prompt with one answer reads it twice, once with each. So all that holds of
conversations (roles, media, tools, thinking) holds here. What the two readings share is the prompt. An answer may be
several turns: calls of tools, their results, and what the assistant makes of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from jaxmm.data.documents import Document, Text, Turn
from jaxmm.data.readers import conversations, marks, weights
from jaxmm.data.readers.alpaca import Alpaca
from jaxmm.data.readers.columns import is_nothing
from jaxmm.data.readers.conversations import CALL, ROLES, Conversation, Exchange, from_text, of_list
from jaxmm.data.readers.finding import BY_NAME
from jaxmm.data.readers.kinds import KINDS
from jaxmm.data.readers.parts import SkipRecord, column, listed
from jaxmm.data.readers.pictures import Pictures
from jaxmm.data.reading import OBJECTIVES
from jaxmm.errors import UserError

FORMAT = 1  # of pairs and of judged answers; raised when the same records make other documents
# Names of the columns of a chosen and a rejected answer: TRL's, LLaMA-Factory v1's and OpenAI's.
NAMES = (("chosen", "rejected"), ("chosen_messages", "rejected_messages"), ("preferred_output", "non_preferred_output"))
# Columns of a rejected answer whose chosen one ends a conversation, as in ms-swift.
BESIDE = ("rejected_messages", "rejected_response")
REJECTED_MEDIA = tuple(f"rejected_{name}" for kind in KINDS for name in (kind.many, kind.name))
INSIDE = "input"  # OpenAI's object of the prompt
IN_INPUT = ("messages", "tools", "parallel_tool_calls")
A_PROMPT = "a prompt is needed"
OF_ANSWER = {"assistant", "tool"}  # roles of its turns
NEEDS = {
    "pairs": "needs a chosen and a rejected answer to each prompt: name other columns with "
    "config.data.columns=prompt=COLUMN,chosen=COLUMN,rejected=COLUMN",
    "judged": "needs a label beside each answer, true or false: name another column with "
    "config.data.columns=label=COLUMN",
}


@dataclass(frozen=True)
class Compared:
    """Records with two answers to a prompt.

    Attributes:
      form: reads the prompt with an answer.
      chosen, rejected: columns of the better answer and of the other one. If ``chosen`` is also the column of the
        form's messages, it holds the prompt too; so may ``rejected``.
      inside: column of an object that holds the form's columns; '' if the record does.
    """

    form: Conversation | Alpaca | Exchange
    chosen: str
    rejected: str
    inside: str = ""

    @property
    def version(self) -> int:
        return self.form.version

    @property
    def main(self) -> str:
        if isinstance(self.form, Exchange):
            return self.form.prompt
        return self.inside or self.form.main

    @property
    def images(self) -> tuple[str, ...]:
        return self.form.images

    @property
    def videos(self) -> tuple[str, ...]:
        return self.form.videos

    @property
    def audios(self) -> tuple[str, ...]:
        return self.form.audios

    def of(self, record: Mapping[str, Any]) -> Self:
        return self

    def reads(self, keys: tuple[str, ...]) -> frozenset[str]:
        return self.form.reads(keys) | {self.chosen, self.rejected, self.inside, *weights.OF_EXAMPLE}

    def __call__(self, origin: str, record: Mapping[str, Any], pictures: Pictures) -> Document:
        self._check(origin, record)
        if self.inside:
            record = self._opened(origin, record)
        better = self._with(origin, record, self.chosen, pictures)
        parted(origin, better, self.chosen)  # what is wrong with it alone is told first
        other = self._with(origin, record, self.rejected, pictures)
        at = _answers_at(better.turns, other.turns)
        prompt, chosen = parted(origin, better, self.chosen, at)
        if self._is_whole and prompt[0].role == "assistant":
            raise UserError(f"{origin}: '{self.chosen}' begins with an answer: {A_PROMPT}")
        if prompt[-1].role == "assistant":  # most likely the chosen one, which the model would then copy
            raise UserError(f"{origin}: its prompt ends with an answer: a user's turn must come before '{self.chosen}'")
        _, rejected = parted(origin, other, self.rejected, at)
        for name, answer in ((self.chosen, chosen), (self.rejected, rejected)):
            if is_empty(answer[-1]):
                raise SkipRecord("no pair", f"its '{name}' is empty")
        weights.check_unweighed(origin, record, *chosen, *rejected)
        if not all(answer[0].role == "assistant" and set(_roles(answer)) <= OF_ANSWER for answer in (chosen, rejected)):
            raise UserError(
                f"{origin}: '{self.chosen}' and '{self.rejected}' differ in turn {at + 1} of {len(better.turns)} and "
                f"{len(other.turns)}: they may differ in their answers alone, turns of the assistant at the end, with "
                f"the results of its calls between them"
            )
        if chosen == rejected:
            raise SkipRecord("equal answers")
        marks.check_none(origin, record, (*prompt, *chosen, *rejected), pictures.has_boxes)
        return better._replace(turns=(*prompt, *chosen), verdict="better", other=(*prompt, *rejected))

    def _check(self, origin: str, record: Mapping[str, Any]) -> None:
        """Raises UserError for a record without the columns of a pair, SkipRecord for one without a value in them."""
        for name in (self.chosen, self.rejected):
            if name not in record:
                raise UserError(without(origin, record, "pairs", f"'{name}'"))
        for name in REJECTED_MEDIA:
            if name not in (self.chosen, self.rejected) and not is_nothing(record.get(name)):
                raise UserError(
                    f"{origin} has '{name}': both answers of a pair are to one prompt, and pictures and clips stand in "
                    f"the prompt alone: leave such records out"
                )
        for name in (self.chosen, self.rejected):
            if is_nothing(record[name]):
                raise SkipRecord("no pair", f"its '{name}' is empty")

    @property
    def _is_whole(self) -> bool:
        """Whether the column of the chosen answer holds the prompt too."""
        return isinstance(self.form, Conversation) and self.chosen == self.form.messages

    def _opened(self, origin: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a record with the prompt's columns beside the answers."""
        prompt = column(origin, record, self.inside)
        if not isinstance(prompt, Mapping):
            raise UserError(f"{origin}: '{self.inside}' must be an object with messages, not {prompt!r:.40}")
        if unknown := [key for key in prompt if key not in IN_INPUT and not is_nothing(prompt[key])]:
            raise UserError(f"{origin}: '{self.inside}' has '{unknown[0]}', which is none of {', '.join(IN_INPUT)}")
        return {**{key: value for key, value in record.items() if key != self.inside}, **prompt}

    def _with(self, origin: str, record: Mapping[str, Any], name: str, pictures: Pictures) -> Document:
        """Returns the document of the prompt and the answer in a column."""
        form, value = self.form, record[name]
        if isinstance(form, Alpaca):
            return dataclasses.replace(form, response=name)(origin, record, pictures)
        if isinstance(form, Exchange):
            answer = value if isinstance(value, str) else _answer(origin, name, value)
            return dataclasses.replace(form, completion=name)(origin, {**record, name: answer}, pictures)
        if name == form.messages:
            return form(origin, record, pictures)
        if self._is_whole and _is_conversation(from_text(value)):
            return dataclasses.replace(form, messages=name)(origin, record, pictures)
        messages = from_text(column(origin, record, form.messages))
        if messages is None:
            raise SkipRecord("empty", f"its '{form.messages}' is empty")
        if not isinstance(messages, list):
            raise UserError(f"{origin}: '{form.messages}' must be a list of objects, not {messages!r:.40}")
        if isinstance(value, str):
            role = next(name for name, ours in form.roles.items() if ours == "assistant")
            value = {form.role_key: role, form.content_key: value}
        before = messages[:-1] if self._is_whole else messages
        return form(origin, {**record, form.messages: [*before, *_answer(origin, name, value)]}, pictures)


def _answer(origin: str, name: str, value: Any) -> list[Mapping[str, Any]]:
    """Returns the messages of an answer."""
    messages = value if isinstance(value, list) else [value]
    if not messages or not all(isinstance(message, Mapping) for message in messages):
        raise UserError(
            f"{origin}: '{name}' must be an answer, a text, a message or a list of messages, not {value!r:.40}"
        )
    return messages


def _answers_at(turns: Sequence[Turn], others: Sequence[Turn]) -> int:
    """Where the answers of two conversations begin: the first turn in which they differ, or the call before it if that
    is a result. If there is none, the last turn of the shorter one."""
    pairs = [[*map(_unlearnt, both)] for both in zip(turns, others, strict=False)]
    at = next((n for n, (one, other) in enumerate(pairs) if one != other), max(len(pairs) - 1, 0))
    while at > 0 and "tool" in _roles(pairs[at]) and pairs[at - 1][0].role in OF_ANSWER:
        at -= 1
    return at


def _roles(turns: Sequence[Turn]) -> list[str]:
    return [turn.role for turn in turns]


def parted(origin: str, document: Document, name: str, at: int = -1) -> tuple[tuple[Turn, ...], tuple[Turn, ...]]:
    """Returns the turns of a prompt, none of which is learnt, and those of the answer, of which the assistant's are.

    Args:
      name: the column of the answer, for messages.
      at: the turn with which the answer begins; it goes to the end.

    Raises:
      UserError: if there is no prompt, the last turn is no assistant's, or the answer has media.
    """
    prompt, answer = document.turns[:at], document.turns[at:]
    if answer[-1].role != "assistant":
        raise UserError(f"{origin}: '{name}' ends with a turn of '{answer[-1].role}': it must end with an answer")
    if not prompt:
        raise UserError(f"{origin}: '{name}' has no turn before its answer: {A_PROMPT}")
    if not all(isinstance(part, Text) for turn in answer for part in turn.parts):
        raise UserError(f"{origin}: '{name}' has a picture or a clip in its answer: pictures stand in the prompt alone")
    learnt = (turn if turn.role == "assistant" else _unlearnt(turn) for turn in answer)
    return tuple(map(_unlearnt, prompt)), tuple(learnt)


def _unlearnt(turn: Turn) -> Turn:
    return turn._replace(target=False, weight=1.0)


def is_empty(turn: Turn) -> bool:
    """Whether the end of an answer says nothing: no text, no thought and no call."""
    return not turn.parts and not turn.thinking and not turn.calls


def recognise(record: Mapping[str, Any], columns: Mapping[str, str]) -> Compared | None:
    """Returns the format of a record with a pair of answers, or None.

    Args:
      columns: as ``Reading.named`` gives them.
    """
    chosen, rejected = next((pair for pair in NAMES if any(name in record for name in pair)), NAMES[0])
    chosen, rejected = columns.get("chosen", chosen), columns.get("rejected", rejected)
    name = columns.get("messages") or _messages(record)
    if chosen not in record:
        beside = next((key for key in (columns.get("rejected"), *BESIDE) if key and key in record), "")
        return Compared(of_list(name, from_text(record[name])), name, beside) if name in record and beside else None
    inside = record.get(INSIDE)
    if isinstance(inside, Mapping) and isinstance(messages := inside.get("messages"), list):
        return Compared(of_list("messages", messages), chosen, rejected, INSIDE)
    value = from_text(record[chosen])
    is_whole = _is_conversation(value)
    if is_whole and not _begins_with_answer(value):
        return Compared(of_list(chosen, value), chosen, rejected)  # the prompt is in it, and perhaps beside it too
    if form := _of_prompt(record, columns, name, chosen):
        return Compared(form, chosen, rejected)
    return Compared(of_list(chosen, value), chosen, rejected) if is_whole else None


def _of_prompt(
    record: Mapping[str, Any], columns: Mapping[str, str], name: str, chosen: str
) -> Conversation | Alpaca | Exchange | None:
    """Returns the format of a prompt beside its answers, by the columns named or else by name."""
    prompt = columns.get("prompt", "")
    if prompt and {"query", "history"} & columns.keys():
        return Alpaca(prompt, columns.get("query", ""), "", **BY_NAME)
    if not prompt and name:
        return of_list(name, messages) if isinstance(messages := from_text(record.get(name)), list) else None
    if prompt or "prompt" in record:
        return Exchange(prompt or "prompt", chosen, "system", "tools", **BY_NAME)
    if "instruction" in record:
        return Alpaca("instruction", "input", "", "history", "system", "tools", **BY_NAME)
    return None


def _is_conversation(value: Any) -> bool:
    """Whether a value is a list of several messages; a list of calls has no roles."""
    is_list = isinstance(value, list) and len(value) > 1
    return is_list and all(isinstance(m, Mapping) and ("role" in m or "from" in m) for m in value)


def _begins_with_answer(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether messages begin with an assistant's turn: an answer of several, to a prompt beside it."""
    role = str(messages[0].get("role", messages[0].get("from"))).lower()
    return ROLES.get(role) in ("assistant", CALL)


def _messages(record: Mapping[str, Any]) -> str:
    """Returns the column of a record's messages, or ''."""
    return next((name for name in conversations.NAMES if isinstance(from_text(record.get(name)), list)), "")


def found(record: Mapping[str, Any]) -> str:
    """Returns which preferences a record seems to have, by its columns: "pairs", "judged" or ''."""
    if any(name in record for name in (*(name for pair in NAMES for name in pair), *BESIDE)):
        return "pairs"
    return "judged" if any(name in record for name in weights.LABELS) else ""


def without(origin: str, record: Mapping[str, Any], wanted: str, lacking: str = "") -> str:
    """Says that a record does not have the preferences wanted, and what to do about it."""
    if not lacking:
        lacking = "pair of answers" if wanted == "pairs" else "answer with a label"
        if wanted == "pairs" and any(name in record for pair in NAMES for name in pair):
            lacking = f"prompt beside its answers: {A_PROMPT}"
    has = found(record)
    other = f"; {OBJECTIVES[has]} reads such records as these" if has and has != wanted else ""
    return (
        f"{origin} has no {lacking} (it has {listed(record) or 'nothing'}): {OBJECTIVES[wanted]} {NEEDS[wanted]}{other}"
    )
