"""Files that a test writes, and how it looks at what was read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from jaxmm.data.documents import Document, Skip, Source, Text, Tokens, Video
from jaxmm.data.reading import Reading
from jaxmm.data.sources import read_sources
from jaxmm.errors import UserError


class Folder:
    """A folder with a dataset_info.json that grows."""

    def __init__(self, path: Path):
        self.path = path
        self.entries: dict[str, dict] = {}
        self.info = str(path / "dataset_info.json")

    def write(self, name: str, content: Any) -> str:
        """Writes text and bytes as they are, .jsonl as lines, and anything else as JSON."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        if name.endswith(".jsonl") and not isinstance(content, str | bytes):
            content = "".join(json.dumps(record) + "\n" for record in content)
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def dataset(self, name: str, content: Any, **entry: Any) -> Source:
        """Adds an entry and its file, and opens it; without content, the file is there already."""
        entry.setdefault("file_name", f"{name}.json")
        if content is not None:
            self.write(entry["file_name"], content)
        self.entries[name] = entry
        self.write("dataset_info.json", self.entries)
        return read_sources(self.info, [name])[0]

    def source(self, records: Any, name: str = "data.json", **options: Any) -> Source:
        """Opens a data file of its own."""
        return read_sources(self.write(name, records), [], Reading(**options))[0]


def said(document: Document | Skip) -> list[tuple[str, str]]:
    """(role, text) of each turn, a medium shown as [its file, its URL or its bytes], frames as [those of each]."""
    assert isinstance(document, Document), document
    return [(turn.role, "".join(map(_shown, turn.parts))) for turn in document.turns]


def _shown(part: Any) -> str:
    if isinstance(part, Text):
        return part.text
    if isinstance(part, Tokens):
        return f"[{' '.join(map(str, part.ids))}]"
    if isinstance(part, Video) and part.frames:
        return f"[{''.join(map(_shown, part.frames))}]"
    if part.data:
        return f"[{part.data.decode()}]"
    return f"[{part.path if '://' in part.path else os.path.basename(part.path)}]"


def only(source: Source) -> Document:
    (document,) = source.documents()
    assert isinstance(document, Document)
    return document


def refused(source: Source) -> str:
    with pytest.raises(UserError) as caught:
        list(source.documents())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def skipped(source: Source) -> list[tuple[str, str]]:
    """(origin, reason) of what was left out."""
    return [(found.origin, found.reason) for found in source.documents() if isinstance(found, Skip)]


def openai(*turns: tuple[str, str], **more: Any) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


OPENAI = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
