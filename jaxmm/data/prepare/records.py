"""One example as a record of a shard: packed with msgpack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack
import numpy as np

from jaxmm.data.media import table


class Record(NamedTuple):
    """One example's content.

    Attributes:
      tokens: int32 (tokens_E[example],).
      images: its media in order; None for those whose content is in ``tokens``.
    """

    tokens: np.ndarray
    images: list[Any]
    origin: str


def pack_record(record: Record) -> bytes:
    """Returns what a shard stores of an example."""
    images = [table.packed(image) for image in record.images]
    tokens = record.tokens.astype("<i4", copy=False).tobytes()
    return msgpack.packb({"tokens": tokens, "images": images, "origin": record.origin})


def unpack_record(packed: bytes) -> Record:
    content = msgpack.unpackb(packed)
    images = [table.unpacked(image) for image in content["images"]]
    return Record(np.frombuffer(content["tokens"], "<i4"), images, content["origin"])


def stored(found: Sequence[Any]) -> list[Any]:
    """A document's media as a record stores them: None for those whose content is in its tokens."""
    return [None if table.medium_of(part).is_text else part for part in found]
