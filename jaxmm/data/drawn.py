"""Sources of documents that are drawn, each by its number, with nothing on disk: those of the demos."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxmm.data.documents import Document, Source, Unit


def drawn_source(name: str, entry: Mapping[str, Any], unit: int, draw: Callable[[int, str], Document]) -> Source:
    """A source of as many documents as ``entry["examples"]`` says.

    Args:
      entry: all that decides what they are, for the fingerprint.
      unit: how many of them are drawn and prepared as one shard.
      draw: ``draw(number, origin)``, a pure function that pickles.
    """
    return Source(
        name=name,
        files=(),
        entry=json.dumps(entry, sort_keys=True, separators=(",", ":")),
        units=functools.partial(_units, entry["examples"], unit),
        read=functools.partial(_read, name, draw),
    )


def _units(examples: int, unit: int) -> list[Unit]:
    return [Unit("", at, min(at + unit, examples), at) for at in range(0, examples, unit)]


def _read(name: str, draw: Callable[[int, str], Document], unit: Unit) -> Iterator[Document]:
    for number in range(unit.start, unit.stop):
        yield draw(number, f"{name}, document {number}")
