"""Conversations: sharegpt, openai, LLaVA, and messages of typed parts are one format with different names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from jaxmm.data.documents import Document, Media
from jaxmm.data.readers import weights
from jaxmm.data.readers.columns import KNOWN, NONE, appears
from jaxmm.data.readers.finding import (
    BY_NAME,
    columns_of,
    find_media,
    held,
    marks_of,
    read_of,
    without_named_twice,
)
from jaxmm.data.readers.kinds import KINDS, Kind
from jaxmm.data.readers.parts import Content, ReadTurn, SkipRecord, column, document, text
from jaxmm.data.readers.pictures import Pictures
from jaxmm.data.readers.typed import Marks, placed, tagged, typed_parts
from jaxmm.data.readers.weights import AS_SAID, Learnt
from jaxmm.data.text import tool_calls as tools
from jaxmm.errors import UserError, nearest
from jaxmm.json_text import parse_json

FORMAT = 3
CALL = "function_call"  # the role of a turn that is a call; in a document it is the assistant's
# The role for each name of a speaker that is seen in data without a description.
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "function_call": CALL,  # the model writes calls,
    "tool": "tool",  # and reads their results
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
    "document": "document",  # a page or a caption, learnt from end to end
}
NAMES = ("messages", "conversations", "conversation")
KEYS = (("role", "content"), ("from", "value"))
THOUGHT = ("reasoning_content", "reasoning", "thinking")  # keys of an assistant's thoughts, beside what it says


@dataclass(frozen=True)
class Conversation:
    """Records with a list of messages.

    Attributes:
      messages: the column that holds them.
      role_key, content_key: the keys of a message.
      roles: our role for each of the data's.
      system, tools: columns, '' for none.
      images: columns that may hold images, or ready-made media; the first one with content counts in each record.
      videos, audios: the same of clips.
      learnt: what the dataset's description says about all records.
    """

    messages: str
    role_key: str
    content_key: str
    roles: Mapping[str, str]
    system: str = ""
    tools: str = ""
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    audios: tuple[str, ...] = ()
    learnt: Learnt = AS_SAID

    version: ClassVar[int] = FORMAT

    @property
    def main(self) -> str:
        return self.messages

    def of(self, record: Mapping[str, Any]) -> Self:
        return self

    def reads(self, keys: tuple[str, ...]) -> frozenset[str]:
        return read_of(self, keys) | {self.messages, self.system, self.tools}

    def __call__(self, origin: str, record: Mapping[str, Any], pictures: Pictures) -> Document:
        return self.read(origin, record, pictures)

    def read(
        self, origin: str, record: Mapping[str, Any], pictures: Pictures, single_in_front: bool = False
    ) -> Document:
        """Returns the document of a record; ``single_in_front`` as in ``finding.held``."""
        messages = column(origin, record, self.messages)
        if messages is None:
            raise SkipRecord("empty")
        if isinstance(messages, str):
            messages = from_text(messages)
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise UserError(f"{origin}: '{self.messages}' must be a list of objects, not {messages!r:.40}")
        media = held(origin, record, self, pictures, single_in_front=single_in_front)
        said = [self._turn(origin, message, pictures, marks_of(media)) for message in messages]
        self._add_system(origin, record, said)
        told = record.get(self.tools) if self.tools else None
        unweighed = document(
            origin, said, without_named_twice(origin, said, media), tools.read_tools(origin, self.tools, told)
        )
        return weights.weighed(unweighed, 1.0, self.learnt)

    def _turn(self, origin: str, message: Mapping[str, Any], pictures: Pictures, marks: Marks) -> ReadTurn:
        name = column(origin, message, self.role_key)
        role = self.roles.get(name, self.roles.get(name.lower())) if isinstance(name, str) else None
        if role is None:
            known = f"{', '.join(self.roles)}{nearest(str(name), self.roles)}"
            raise UserError(
                f"{origin}: role {name!r:.40} is none of {known}: name it by the tags of a dataset_info.json, as "
                f'"tags": {{"user_tag": ..., "assistant_tag": ...}}'
            )
        own = self._own(origin, name, message, pictures) if len(message) > 2 else {}
        if own:
            here = {pictures.mark(kind, media): kind for kind, media in own.items()}
            marks = {mark: kind for mark, kind in {**marks, **here}.items() if mark}
        calls = tools.read_calls(origin, message["tool_calls"]) if message.get("tool_calls") else ""
        is_silent = calls and message.get(self.content_key) is None
        content = "" if is_silent else self._said(origin, name, message, pictures, marks)
        if role == CALL:
            role = "assistant"
            content, calls = tools.called(content) if isinstance(content, str) else (content, calls)
        content = placed(origin, content, own, marks) if own else content
        thought = next((message[key] for key in THOUGHT if message.get(key)), "") if role == "assistant" else ""
        return ReadTurn(
            role, content, weights.of_message(origin, message), weights.is_trained(message),
            text(origin, "what is thought", thought), calls,
        )  # fmt: skip

    def _said(self, origin: str, name: str, message: Mapping[str, Any], pictures: Pictures, marks: Marks) -> Content:
        content = column(origin, message, self.content_key)
        if isinstance(content, dict):
            content = [content]
        if isinstance(content, list):
            return typed_parts(origin, f"what '{name}' says", content, pictures)
        return tagged(origin, text(origin, f"what '{name}' says", content), pictures, marks)

    def _own(self, origin: str, name: str, message: Mapping[str, Any], pictures: Pictures) -> dict[Kind, list[Media]]:
        """Returns the media that a message has beside its content, by kind.

        Raises:
          UserError: for a value that looks like a medium under an unknown key.
        """
        others = {key: value for key, value in message.items() if key not in (self.role_key, self.content_key)}
        by_kind = {kind: find_media(origin, others, (KNOWN,), pictures, kind)[1] for kind in KINDS}
        own = {kind: media for kind, media in by_kind.items() if media}
        for key, value in others.items():
            kind, how = appears(key, value)
            if how in ("file", "bytes") and kind not in own and NONE not in columns_of(self, kind):
                raise UserError(
                    f"{origin}: a message of '{name}' has a '{key}' that looks like a {kind.noun} but is not read: "
                    f"call it {kind.many}"
                )
        return own

    def _add_system(self, origin: str, record: Mapping[str, Any], said: list[ReadTurn]) -> None:
        """Puts the system column first, unless the conversation has its own."""
        system = record.get(self.system) if self.system else None
        if said and said[0].role != "system" and system:
            said.insert(0, ReadTurn("system", text(origin, f"'{self.system}'", system)))


@dataclass(frozen=True)
class Exchange:
    """Records with two lists of messages, the prompt and the completion; either may be a text instead.

    Attributes:
      prompt, completion: the columns.
      The others are as in Conversation.
    """

    prompt: str
    completion: str
    system: str = ""
    tools: str = ""
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    audios: tuple[str, ...] = ()

    version: ClassVar[int] = FORMAT

    @property
    def main(self) -> str:
        return self.completion

    def of(self, record: Mapping[str, Any]) -> Self:
        return self

    def reads(self, keys: tuple[str, ...]) -> frozenset[str]:
        return read_of(self, keys) | {self.prompt, self.completion, self.system, self.tools}

    def __call__(self, origin: str, record: Mapping[str, Any], pictures: Pictures) -> Document:
        messages: list[Any] = []
        for name, role in ((self.prompt, "user"), (self.completion, "assistant")):
            value = column(origin, record, name)
            messages += value if isinstance(value, list) else [{"role": role, "content": value}]
        media = {kind.many: columns_of(self, kind) for kind in KINDS}
        form = of_list("", messages, **media, system=self.system, tools=self.tools)
        return form.read(origin, {**record, "": messages}, pictures, single_in_front=True)


def recognise(record: Mapping[str, Any]) -> Conversation | Exchange | None:
    """Returns the format of a record that has messages, or None."""
    for name in NAMES:
        messages = from_text(record.get(name))
        if isinstance(messages, list) and all(isinstance(m, dict) for m in messages):
            return of_list(name, messages)
    if all(_is_said(record.get(name)) for name in ("prompt", "completion")):
        return Exchange("prompt", "completion", "system", "tools", **BY_NAME)
    return None


def of_messages(record: Mapping[str, Any], name: str) -> Conversation | None:
    """Returns the format of records whose messages are in column ``name``; None if this record has none there."""
    messages = from_text(record.get(name))
    return of_list(name, messages) if isinstance(messages, list) else None


def of_list(name: str, messages: Sequence[Any], **more: Any) -> Conversation:
    """Returns the format of messages such as these, in column ``name``; ``more`` replaces other columns."""
    first = messages[0] if messages and isinstance(messages[0], dict) else {}
    role_key, content_key = next((keys for keys in KEYS if keys[0] in first), KEYS[0])
    return Conversation(name, role_key, content_key, ROLES, **{"system": "system", "tools": "tools", **BY_NAME, **more})


def _is_said(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


def from_text(value: Any) -> Any:
    """Parses messages that are written as JSON text, as in a table that has only text columns."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            return parse_json(value)
        except ValueError:
            return value
    return value
