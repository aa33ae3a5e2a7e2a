"""A document as token ids with flags, and how it is put together."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxmm.data.tokenizer import Ids


class Encoded(NamedTuple):
    """A document as text tokens; the soft tokens of its images are counted when the vision tower is known.

    Attributes:
      tokens: int32 (n,) with separators and turn markers, without the positions of soft tokens.
      run_starts: int32 (r,) where runs of tokens with equal flags start; the first is 0, and the last ends at n.
      run_flags: uint8 (r,) of batch.TARGET and batch.ANSWER, by run.
      image_at: int32 (media,): the soft tokens of medium k stand before token ``image_at[k]``, its ``<|image_end|>``,
        and after its ``<|image_start|>``; of discrete image tokens it is the first.
    """

    tokens: np.ndarray
    run_starts: np.ndarray
    run_flags: np.ndarray
    image_at: np.ndarray


class Writer:
    """Collects the tokens of a document, runs of equal flags merged."""

    def __init__(self) -> None:
        self._chunks: list[Ids] = []
        self._starts: list[int] = []
        self._flags: list[int] = []
        self._image_at: list[int] = []
        self._count = 0

    def add(self, ids: Ids, flags: int) -> None:
        if not len(ids):
            return
        if not self._flags or self._flags[-1] != flags:
            self._starts.append(self._count)
            self._flags.append(flags)
        self._chunks.append(ids)
        self._count += len(ids)

    def add_image(self) -> None:
        self._image_at.append(self._count)

    def encoded(self) -> Encoded:
        tokens = np.empty(self._count, np.int32)
        at = 0
        for ids in self._chunks:
            tokens[at : at + len(ids)] = ids
            at += len(ids)
        return Encoded(
            tokens=tokens,
            run_starts=np.array(self._starts, np.int32),
            run_flags=np.array(self._flags, np.uint8),
            image_at=np.array(self._image_at, np.int32),
        )
