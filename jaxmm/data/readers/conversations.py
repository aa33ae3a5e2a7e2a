"""Conversations: sharegpt, openai, LLaVA, and messages of typed parts are one format with other names for things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxmm.data.documents import Document, Media, Part, Text
from jaxmm.data.readers import tools
from jaxmm.data.readers.parts import NEXT, Content, column, document, refuse_later, text
from jaxmm.data.readers.pictures import FEATURES, TOKENS, Pictures, check_size
from jaxmm.errors import UserError, nearest

# Who speaks, by any of the names seen in data without a description.
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "function_call": "assistant",  # what it calls is written by the model,
    "tool": "user",  # and what comes back is read
    "observation": "user",
    "function": "user",
    "ipython": "user",
    "document": "document",  # a page or a caption, learnt from end to end
}
KEYS = (("role", "content"), ("from", "value"))
TEXT_TYPES, IMAGE_TYPES = ("text", "input_text", "output_text"), ("image", "image_url", "input_image")
OWN_KEYS = {FEATURES: ("features", "path", "url", "bytes", "value"), TOKENS: ("ids", "image_tokens", "value")}
IMAGE_KEYS = ("image", "image_url", "url", "path", "bytes", "base64", "data", "source", "value")
TEXT_KEYS = ("text", "value", "content")
BOX_MARKS = ("<bbox>", "<ref-object>")  # ms-swift's: in their places go the record's objects


@dataclass(frozen=True)
class Conversation:
    """Records with a list of messages.

    Attributes:
      messages: the column that holds them.
      role_key, content_key: of a message.
      roles: ours for each of theirs.
      system, tools: columns, '' for none.
      images: columns that may hold images, or ready-made media; of a record, the first that has some.
      later: columns that must be empty, as they are not read yet.
    """

    messages: str
    role_key: str
    content_key: str
    roles: Mapping[str, str]
    system: str = ""
    tools: str = ""
    images: tuple[str, ...] = ()
    later: tuple[str, ...] = ()

    def __call__(self, origin: str, record: Mapping[str, Any], pictures: Pictures) -> Document:
        refuse_later(origin, record, self.later)
        messages = column(origin, record, self.messages)
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise UserError(f"{origin}: '{self.messages}' must be a list of objects, not {messages!r:.40}")
        said = [self._turn(origin, message, pictures) for message in messages]
        if record.get("objects"):
            _refuse_marks(origin, said)
        self._add_system(origin, record, said)
        name, images = find_images(origin, record, self.images, pictures)
        return document(origin, said, images, in_front=name == "image")

    def _turn(self, origin: str, message: Mapping[str, Any], pictures: Pictures) -> tuple[str, Content]:
        name = column(origin, message, self.role_key)
        role = self.roles.get(name) if isinstance(name, str) else None
        if role is None:
            known = f"{', '.join(self.roles)}{nearest(str(name), self.roles)}"
            raise UserError(f"{origin}: role {name!r:.40} is none of {known}")
        if message.get("tool_calls"):
            return role, tools.calls(origin, message.get(self.content_key), message["tool_calls"])
        content = column(origin, message, self.content_key)
        if isinstance(content, list):
            return role, typed_parts(origin, f"what '{name}' says", content, pictures)
        return role, text(origin, f"what '{name}' says", content)

    def _add_system(self, origin: str, record: Mapping[str, Any], said: list[tuple[str, Content]]) -> None:
        """Puts the system column first, unless the conversation has its own; tools go at the end of either."""
        if not said:
            return
        if said[0][0] != "system":
            system = record.get(self.system) if self.system else None
            if system:
                said.insert(0, ("system", text(origin, f"'{self.system}'", system)))
        told = record.get(self.tools) if self.tools else None
        if told:
            own = said[0][1] if said[0][0] == "system" else ""
            content: Content
            if isinstance(own, str):
                content = tools.with_tools(origin, own, self.tools, told)
            else:
                added = tools.with_tools(origin, "", self.tools, told)
                content = [*own, Text(f"\n\n{added}")] if added else own
            if said[0][0] == "system":
                said[0] = ("system", content)
            elif content:
                said.insert(0, ("system", content))


def recognise(record: Mapping[str, Any]) -> Conversation | None:
    """Returns the format of a record that has messages, or None."""
    for name in ("messages", "conversations", "conversation"):
        messages = record.get(name)
        if isinstance(messages, list) and all(isinstance(m, dict) for m in messages):
            first = messages[0] if messages else {}
            role_key, content_key = next((keys for keys in KEYS if keys[0] in first), KEYS[0])
            return Conversation(
                name,
                role_key,
                content_key,
                ROLES,
                system="system",
                tools="tools",
                images=("images", "image", FEATURES, TOKENS),
                later=("videos", "video", "audios", "audio"),
            )
    return None


def find_images(
    origin: str, record: Mapping[str, Any], columns: Sequence[str], pictures: Pictures
) -> tuple[str, list[Media]]:
    """Returns the first of the columns that has something, and its images: of a list, or a single one.

    A column ``features`` of .npy files or ``image_tokens`` of lists holds ready-made media.
    """
    for name in columns:
        value = record.get(name)
        if value and _counts(name, value):
            values = value if isinstance(value, list) else [value]
            try:
                return name, [pictures.medium(name, v) for v in values]
            except ValueError as error:
                raise UserError(f"{origin}: '{name}': {error}") from error
    return "", []


def may_hold_images(record: Mapping[str, Any], columns: Sequence[str]) -> bool:
    """Whether a record has one of the columns, if only as null."""
    return any(name in record and _counts(name, record[name]) for name in columns)


def _counts(name: str, value: Any) -> bool:
    """Whether a column is ours: others have columns with the names of ready-made media that hold something else."""
    values = value if isinstance(value, list) else [value]
    if name == FEATURES:
        return all(isinstance(v, bytes) or (isinstance(v, str) and v.endswith(".npy")) for v in values)
    return name != TOKENS or all(isinstance(v, list) for v in values)


def typed_parts(origin: str, what: str, content: Sequence[Any], pictures: Pictures) -> list[Part | None]:
    """Returns the pieces of a list of parts: ``{"type": "text", "text": ...}``, ``{"type": "image", ...}``.

    Ready-made media are ``{"type": "features", "path": ...}`` and ``{"type": "image_tokens", "ids": [...]}``. A medium
    without a value of its own is the next of the record's. Text is text: no placeholder counts in it. Some write no
    type, and some (a table with one schema for all) write every key, most of them null.
    """
    pieces: list[Part | None] = []
    for part in content:
        kind = _kind(part)
        if kind == "text":
            value = text(origin, what, next((part[k] for k in TEXT_KEYS if part.get(k) is not None), ""))
            if value:
                pieces.append(Text(value))
        elif kind:
            own = next((part[k] for k in OWN_KEYS.get(kind, IMAGE_KEYS) if part.get(k)), None)
            try:
                check_size(part)
                pieces.append(NEXT if own is None else pictures.medium(kind, part))
            except ValueError as error:
                raise UserError(f"{origin}: {what}: {error}") from error
        else:
            raise UserError(f"{origin}: {what} has a part that is neither text nor image: {part!r:.60}")
    return pieces


def _refuse_marks(origin: str, said: Sequence[tuple[str, Content]]) -> None:
    """Raises for texts in which objects of the record should stand: they would be learnt as they are."""
    for _, content in said:
        texts = [content] if isinstance(content, str) else [piece.text for piece in content if isinstance(piece, Text)]
        mark = next((mark for mark in BOX_MARKS if any(mark in one for one in texts)), "")
        if mark:
            raise UserError(
                f"{origin} has {mark} for its 'objects', which are not supported yet: write the boxes into the text as "
                f"the model is to write them for its own image size"
            )


def _kind(part: Any) -> str:
    if not isinstance(part, dict):
        return ""
    kind = part.get("type")
    if kind in TEXT_TYPES:
        return "text"
    if kind in IMAGE_TYPES:
        return "image"
    if kind in OWN_KEYS:
        return kind
    if kind is not None:
        return ""
    return (
        "image" if part.get("image") or part.get("image_url") else "text" if isinstance(part.get("text"), str) else ""
    )
