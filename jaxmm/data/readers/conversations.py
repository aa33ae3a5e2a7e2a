"""Conversations: sharegpt, openai, LLaVA, and messages of typed parts are one format with different names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from jaxmm.data.documents import Document, Image, Media, Part, Text
from jaxmm.data.readers import weights
from jaxmm.data.readers.columns import (
    FEATURES,
    KNOWN,
    NONE,
    TOKENS,
    counts,
    is_named,
    is_nothing,
    listed,
    looks,
    resolved,
)
from jaxmm.data.readers.parts import NEXT, Content, ReadTurn, SkipRecord, column, document, refuse_later, text
from jaxmm.data.readers.pictures import Pictures
from jaxmm.data.readers.typed import placed, tagged, typed_parts
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
      later: columns that must be empty: they are not read yet.
      learnt: what the dataset's description says about all records.
    """

    messages: str
    role_key: str
    content_key: str
    roles: Mapping[str, str]
    system: str = ""
    tools: str = ""
    images: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    learnt: Learnt = AS_SAID

    version: ClassVar[int] = FORMAT

    @property
    def main(self) -> str:
        return self.messages

    def of(self, record: Mapping[str, Any]) -> Self:
        return self

    def reads(self, keys: tuple[str, ...]) -> frozenset[str]:
        named = (self.messages, self.system, self.tools, *self.later)
        return frozenset((*named, *resolved(keys, self.images)))

    def __call__(self, origin: str, record: Mapping[str, Any], pictures: Pictures) -> Document:
        refuse_later(origin, record, self.later)
        messages = column(origin, record, self.messages)
        if messages is None:
            raise SkipRecord("empty")
        if isinstance(messages, str):
            messages = _from_text(messages)
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise UserError(f"{origin}: '{self.messages}' must be a list of objects, not {messages!r:.40}")
        said = [self._turn(origin, message, pictures) for message in messages]
        self._add_system(origin, record, said)
        told = record.get(self.tools) if self.tools else None
        name, images = find_images(origin, record, self.images, pictures)
        if images and _has_its_own(origin, said, name, images, pictures.placeholder):
            images = []
        in_front = name not in ("images", FEATURES, TOKENS)
        unweighed = document(
            origin, said, images, placeholder=pictures.marks(images), in_front=in_front,
            tools=tools.read_tools(origin, self.tools, told),
        )  # fmt: skip
        return weights.weighed(unweighed, 1.0, self.learnt)

    def _turn(self, origin: str, message: Mapping[str, Any], pictures: Pictures) -> ReadTurn:
        name = column(origin, message, self.role_key)
        role = self.roles.get(name, self.roles.get(name.lower())) if isinstance(name, str) else None
        if role is None:
            known = f"{', '.join(self.roles)}{nearest(str(name), self.roles)}"
            raise UserError(
                f"{origin}: role {name!r:.40} is none of {known}: name it by the tags of a dataset_info.json, as "
                f'"tags": {{"user_tag": ..., "assistant_tag": ...}}'
            )
        calls = tools.read_calls(origin, message["tool_calls"]) if message.get("tool_calls") else ""
        is_silent = calls and message.get(self.content_key) is None
        content = "" if is_silent else self._said(origin, name, message, pictures)
        if role == CALL:
            role = "assistant"
            content, calls = tools.called(content) if isinstance(content, str) else (content, calls)
        if len(message) > 2:
            own = self._own(origin, name, message, pictures)
            content = placed(origin, content, own, pictures.placeholder) if own else content
        thought = next((message[key] for key in THOUGHT if message.get(key)), "") if role == "assistant" else ""
        return ReadTurn(
            role, content, weights.of_message(origin, message), weights.is_trained(message),
            text(origin, "what is thought", thought), calls,
        )  # fmt: skip

    def _said(self, origin: str, name: str, message: Mapping[str, Any], pictures: Pictures) -> Content:
        content = column(origin, message, self.content_key)
        if isinstance(content, dict):
            content = [content]
        if isinstance(content, list):
            return typed_parts(origin, f"what '{name}' says", content, pictures)
        return tagged(origin, text(origin, f"what '{name}' says", content), pictures)

    def _own(self, origin: str, name: str, message: Mapping[str, Any], pictures: Pictures) -> list[Media]:
        """Returns the pictures that a message has beside its content.

        Raises:
          UserError: for a value that looks like a picture under an unknown key.
        """
        others = {key: value for key, value in message.items() if key not in (self.role_key, self.content_key)}
        images = find_images(origin, others, (KNOWN,), pictures)[1]
        odd = next((key for key, value in others.items() if not images and looks(value) in ("file", "bytes")), "")
        if odd and NONE not in self.images:
            raise UserError(
                f"{origin}: a message of '{name}' has a '{odd}' that looks like a picture but is not read: "
                f"call it images"
            )
        return images

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

    version: ClassVar[int] = FORMAT

    @property
    def main(self) -> str:
        return self.completion

    def of(self, record: Mapping[str, Any]) -> Self:
        return self

    def reads(self, keys: tuple[str, ...]) -> frozenset[str]:
        return frozenset((self.prompt, self.completion, self.system, self.tools, *resolved(keys, self.images)))

    def __call__(self, origin: str, record: Mapping[str, Any], pictures: Pictures) -> Document:
        messages: list[Any] = []
        for name, role in ((self.prompt, "user"), (self.completion, "assistant")):
            value = column(origin, record, name)
            messages += value if isinstance(value, list) else [{"role": role, "content": value}]
        form = _of_list("", messages, images=self.images, system=self.system, tools=self.tools)
        is_single = "images" in self.reads(tuple(record)) and len(listed(record.get("images"))) == 1
        if is_single:  # a single picture without a given place stands in front, whatever its column is called
            record = {**{key: value for key, value in record.items() if key != "images"}, "image": record["images"]}
        return form(origin, {**record, "": messages}, pictures)


def recognise(record: Mapping[str, Any]) -> Conversation | Exchange | None:
    """Returns the format of a record that has messages, or None."""
    for name in NAMES:
        messages = _from_text(record.get(name))
        if isinstance(messages, list) and all(isinstance(m, dict) for m in messages):
            return _of_list(name, messages)
    if all(_is_said(record.get(name)) for name in ("prompt", "completion")):
        return Exchange("prompt", "completion", "system", "tools", (KNOWN, FEATURES, TOKENS))
    return None


def of_messages(record: Mapping[str, Any], name: str) -> Conversation | None:
    """Returns the format of records whose messages are in column ``name``; None if this record has none there."""
    messages = _from_text(record.get(name))
    return _of_list(name, messages) if isinstance(messages, list) else None


def _of_list(name: str, messages: Sequence[Any], **more: Any) -> Conversation:
    first = messages[0] if messages and isinstance(messages[0], dict) else {}
    role_key, content_key = next((keys for keys in KEYS if keys[0] in first), KEYS[0])
    more = {"system": "system", "tools": "tools", "images": (KNOWN, FEATURES, TOKENS), **more}
    return Conversation(
        name, role_key, content_key, ROLES, **more, later=("videos", "video", "audios", "audio")
    )  # fmt: skip


def _is_said(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


def _from_text(value: Any) -> Any:
    """Parses messages that are written as JSON text, as in a table that has only text columns."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            return parse_json(value)
        except ValueError:
            return value
    return value


def find_images(
    origin: str, record: Mapping[str, Any], columns: Sequence[str], pictures: Pictures
) -> tuple[str, list[Media]]:
    """Returns the first of the columns that has content, and its images: those of a list, or a single one.

    A column ``features`` (.npy files) or ``image_tokens`` (lists of ids) holds ready-made media. ('', []) if none has.

    Raises:
      UserError: for a value that is no image.
    """
    for name in resolved(tuple(record), tuple(columns)):
        value = record[name]
        if counts(name, value, columns):
            try:
                return name, [pictures.medium(name, v) for v in listed(value) if not is_nothing(v)]
            except ValueError as error:
                raise UserError(f"{origin}: '{name}': {error}") from error
    return "", []


def may_hold_images(record: Mapping[str, Any], columns: Sequence[str]) -> bool:
    """Whether a record has one of the columns, even if it is null."""
    return any(
        is_named(name) or counts(name, record[name], columns) for name in resolved(tuple(record), tuple(columns))
    )


def _has_its_own(origin: str, said: Sequence[ReadTurn], name: str, images: Sequence[Media], placeholder: str) -> bool:
    """Whether the messages' parts name the pictures of the column themselves, so that it must not give them again.

    Raises:
      UserError: if parts and column name different pictures.
    """
    contents = [one.content for one in said]
    own = [p for c in contents if not isinstance(c, str) for p in c if p is not NEXT and not isinstance(p, Text)]
    if not own or any(NEXT in c if not isinstance(c, str) else placeholder and placeholder in c for c in contents):
        return False
    if len(own) == len(images) and all(_may_be_one(*pair) for pair in zip(own, images, strict=True)):
        return True
    raise UserError(
        f"{origin}: its parts name {len(own)} pictures, and '{name}' {len(images)} others: keep them in one place"
    )


def _may_be_one(one: Part, other: Part) -> bool:
    if isinstance(one, Image) and isinstance(other, Image) and one.path and other.path:
        return one.path == other.path or os.path.basename(one.path) == os.path.basename(other.path)
    return type(one) is type(other)
