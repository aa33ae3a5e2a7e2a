"""Messages as clients send them, in the form of OpenAI's API, to a prompt. Media travel in them as bytes.

No path and no URL of a client's is ever opened: what is not in the message itself is refused.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxmm.data.documents import Audio, Image, Media, Part, Text, Turn, Video
from jaxmm.errors import UserError, printable
from jaxmm.inference.answers import Prompt

MOST_MESSAGES, MOST_MEDIA, MOST_LETTERS = 256, 32, 200_000
MOST_NAME = 100  # characters of a file's name in an error
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_DATA = re.compile(r"data:[^,;]*(?:;[^,;]*)*?;base64,", re.IGNORECASE)
_NAMES = {"image": Image, "video": Video, "audio": Audio}


def read_messages(messages: Any) -> Prompt:
    """The conversation of ``messages``: an assistant's are those it has said, and the last is the user's.

    An error calls a medium by the ``name`` that its client gives beside its ``url`` or ``data``, or by where it stands.

    Raises:
      UserError: for what is no such list, too much of it, or a medium that does not travel in it.
    """
    if not isinstance(messages, list) or not messages:
        raise UserError('messages must be a list such as [{"role": "user", "content": "What is this?"}]')
    if len(messages) > MOST_MESSAGES:
        raise UserError(f"there are {len(messages)} messages: at most {MOST_MESSAGES}")
    turns = tuple(_turn(message, f"messages[{n}]") for n, message in enumerate(messages))
    parts = [part for turn in turns for part in turn.parts]
    if (letters := sum(len(part.text) for part in parts if isinstance(part, Text))) > MOST_LETTERS:
        raise UserError(f"the messages have {letters:,} characters: at most {MOST_LETTERS:,}")
    if (media := sum(not isinstance(part, Text) for part in parts)) > MOST_MEDIA:
        raise UserError(f"the messages have {media} pictures, videos and recordings: at most {MOST_MEDIA}")
    if turns[-1].role != "user":
        raise UserError("the last message must be the user's: the model answers it")
    if not turns[-1].parts:
        raise UserError("nothing to answer: the last message is empty")
    return Prompt.of(turns, tuple(_names(messages)))


def _names(messages: Sequence[Any]) -> Iterator[str]:
    """What errors call the media of messages that have been read."""
    for m, message in enumerate(messages):
        parts = message["content"] if isinstance(message["content"], list) else []
        for n, part in enumerate(parts):
            if part["type"] != "text":
                yield _name(part[part["type"]], f"messages[{m}].content[{n}]")


def _name(value: Any, where: str) -> str:
    name = value.get("name") if isinstance(value, Mapping) else None
    return printable(name)[:MOST_NAME] if isinstance(name, str) and name.strip() else where


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise UserError(f"{where} must be an object with a role and a content")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise UserError(f"{where}: the role is {role!r:.40}, not one of {', '.join(ROLES)}")
    for key in ("tool_calls", "function_call"):
        if message.get(key):
            raise UserError(f"{where}: {key} are not answered here")
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise UserError(f"{where}: the content must be a text or a list of parts")
    parts = [_part(part, f"{where}.content[{n}]") for n, part in enumerate(content)]
    if ROLES[role] != "user" and not all(isinstance(part, Text) for part in parts):
        raise UserError(f"{where}: pictures, videos and recordings are the user's, not the {role}'s")
    return Turn(ROLES[role], tuple(part for part in parts if part != Text("")), False)


def _part(part: Any, where: str) -> Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str) or kind not in READERS:
        raise UserError(f"{where}: the type is {kind!r:.40}, not one of {', '.join(READERS)}")
    return READERS[kind](part.get(kind), _name(part.get(kind), where))


def _text(value: Any, where: str) -> Text:
    if not isinstance(value, str):
        raise UserError(f"{where}: the text is no text")
    if any(0xD800 <= ord(letter) < 0xE000 for letter in value):
        raise UserError(f"{where}: the text has half of a surrogate pair")
    return Text(value)


def _by_url(medium: str) -> Callable[[Any, str], Media]:
    def read(value: Any, where: str) -> Media:
        url = value.get("url") if isinstance(value, Mapping) else value
        if not isinstance(url, str):
            raise UserError(f"{where}: there is no url")
        if not (head := _DATA.match(url[:200])):
            what = f"{url[:20]}..." if len(url) > 20 else url
            raise UserError(f"{where}: only data URIs are read (data:{medium}/...;base64,...), not {what!r}")
        return _NAMES[medium](data=_decoded(url[head.end() :], where))

    return read


def _heard(value: Any, where: str) -> Media:
    data = value.get("data") if isinstance(value, Mapping) else None
    if not isinstance(data, str):
        raise UserError(f"{where}: input_audio has no data, which is the recording's file in base64")
    return Audio(data=_decoded(data, where))


def _decoded(text: str, where: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{where}: this is no base64: {error}") from error
    if not data:
        raise UserError(f"{where}: the file is empty")
    return data


# By the type of a part. OpenAI has no videos: that type is vLLM's.
READERS: dict[str, Callable[[Any, str], Part]] = {
    "text": _text,
    "image_url": _by_url("image"),
    "input_audio": _heard,
    "audio_url": _by_url("audio"),
    "video_url": _by_url("video"),
}
