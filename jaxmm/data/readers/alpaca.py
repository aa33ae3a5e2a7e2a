"""Questions with answers in columns (alpaca), and plain text or captions, which are an alpaca without an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from jaxmm.data.documents import Document
from jaxmm.data.readers import weights
from jaxmm.data.readers.finding import BY_NAME, held, marks_of, read_of
from jaxmm.data.readers.kinds import IMAGE
from jaxmm.data.readers.parts import Content, SkipRecord, column, document, text
from jaxmm.data.readers.pictures import Pictures
from jaxmm.data.readers.typed import tagged
from jaxmm.data.readers.weights import AS_SAID, Learnt
from jaxmm.data.text import tool_calls as tools
from jaxmm.errors import UserError

FORMAT = 3
TEXTS = ("text", "caption", "captions", "content")


@dataclass(frozen=True)
class Alpaca:
    """Records with a question and an answer, and possibly earlier questions and answers.

    Attributes: names of columns, '' for none; those of media are as in ``Conversation``.
    """

    prompt: str
    query: str
    response: str
    history: str = ""
    system: str = ""
    tools: str = ""
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    audios: tuple[str, ...] = ()
    learnt: Learnt = AS_SAID

    version: ClassVar[int] = FORMAT

    @property
    def main(self) -> str:
        return self.prompt

    def of(self, record: Mapping[str, Any]) -> Self:
        return self

    def reads(self, keys: tuple[str, ...]) -> frozenset[str]:
        named = {self.prompt, self.query, self.response, self.history, self.system, self.tools}
        return read_of(self, keys) | named

    def __call__(self, origin: str, record: Mapping[str, Any], pictures: Pictures) -> Document:
        def value(name: str) -> str:
            content = record.get(name) if name else None
            return "" if content is None else text(origin, f"'{name}'", content)

        column(origin, record, self.prompt)
        prompt = "\n".join(filter(None, (value(self.prompt), value(self.query))))
        told = record.get(self.tools) if self.tools else None
        system = value(self.system)
        said: list[tuple[str, Content]] = [("system", system)] if system else []
        earlier = (record.get(self.history) if self.history else None) or []
        for pair in earlier if isinstance(earlier, list) else [earlier]:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise UserError(f"{origin}: '{self.history}' must be a list of [question, answer]")
            said += [("user", text(origin, "history", pair[0])), ("assistant", text(origin, "history", pair[1]))]
        media = held(origin, record, self, pictures)
        said.append(("user", tagged(origin, prompt, pictures, marks_of(media))))
        if column(origin, record, self.response) is not None:
            said.append(("assistant", value(self.response)))
        unweighed = document(origin, said, media, tools.read_tools(origin, self.tools, told))
        return weights.weighed(unweighed, 1.0, self.learnt)


@dataclass(frozen=True)
class Plain:
    """Records of one text each, with media at its placeholders, or a single one before it: a caption.

    Attributes:
      texts: columns, joined by a newline.
      images: columns that may hold images. In a record that has none of them, ``<image>`` is text.
      videos, audios: the same of clips.
    """

    texts: tuple[str, ...]
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    audios: tuple[str, ...] = ()

    version: ClassVar[int] = FORMAT

    @property
    def main(self) -> str:
        return self.texts[0]

    def of(self, record: Mapping[str, Any]) -> Self:
        return self

    def reads(self, keys: tuple[str, ...]) -> frozenset[str]:
        return read_of(self, keys) | {*self.texts}

    def __call__(self, origin: str, record: Mapping[str, Any], pictures: Pictures) -> Document:
        column(origin, record, self.texts[0])
        texts = (text(origin, f"'{name}'", record[name]) for name in self.texts if record.get(name) is not None)
        said = "\n".join(filter(None, texts))
        media = held(origin, record, self, pictures, is_page=True)
        if not said and any(one.media for one in media):
            raise SkipRecord("empty")  # nothing is learnt from a picture alone
        has_images = any(one.media for one in media if one.kind is IMAGE)
        content = said if has_images else tagged(origin, said, pictures, marks_of(media), links=False)
        return document(origin, [("document", content)], media)


def recognise(record: Mapping[str, Any]) -> Alpaca | Plain | None:
    """Returns the format of a record that has a question and an answer, or a text, or None."""
    if "instruction" in record and "output" in record:
        return Alpaca("instruction", "input", "output", "history", "system", "tools", **BY_NAME)
    for name in TEXTS:
        if isinstance(record.get(name), str):
            return Plain((name,), **BY_NAME)
    return None
