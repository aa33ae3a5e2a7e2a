"""A document as token ids with flags, and how it is assembled."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmm.batch import ANSWER, TARGET
from jaxmm.data.documents import READY_MADE, VERDICTS
from jaxmm.data.text.tokenizer import Ids


class Encoded(NamedTuple):
    """A document as text tokens; the soft tokens of its images are counted when the vision tower is known.

    Attributes:
      tokens: int32 (n,) with separators and turn markers, without the positions of soft tokens.
      run_starts: int32 (r,) where runs of tokens with equal flags start; the first is 0, and the last ends at n.
      run_flags: uint8 (r,) of batch.TARGET and batch.ANSWER, by run.
      run_weights: float32 (r,), what a token of a run weighs in the loss; 1 if it is no target.
      letters, symbols: names of special tokens in its text: those that stayed text, and those that are tokens.
      image_at: int32 (media,): the soft tokens of medium k stand before token ``image_at[k]``, which is its
        ``<|image_end|>``, and after its ``<|image_start|>``; for discrete image tokens it is the first of them.
      second: of a preference, the token where the other answer begins, its prompt before it: ``tokens`` holds both one
        after the other, and the media stand at the same places of each. 0 is of all else.
      verdict: its place in ``documents.VERDICTS``.
    """

    tokens: np.ndarray
    run_starts: np.ndarray
    run_flags: np.ndarray
    image_at: np.ndarray
    run_weights: np.ndarray
    letters: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    second: int = 0
    verdict: int = 0

    def beside(self, other: Encoded, verdict: str) -> Encoded:
        """With the answer that this one is compared with behind it; names of special tokens are this one's alone.

        Raises:
          ValueError: if media stand at other places there, or one of the two has nothing to learn.
        """
        if not np.array_equal(self.image_at, other.image_at):
            raise ValueError("the prompts of its two answers are not the same: their media stand at other places")
        if not all((one.run_flags & TARGET).any() for one in (self, other)):
            raise ValueError("one of its answers has nothing to learn")
        return self._replace(
            tokens=np.concatenate([self.tokens, other.tokens]),
            run_starts=np.concatenate([self.run_starts, other.run_starts + np.int32(len(self.tokens))]),
            run_flags=np.concatenate([self.run_flags, other.run_flags]),
            run_weights=np.concatenate([self.run_weights, other.run_weights]),
            second=len(self.tokens),
            verdict=VERDICTS.index(verdict),
        )

    def answered(self, ids: Ids) -> Encoded:
        """With an answer's tokens behind the others; all of them are targets."""
        if not len(ids):
            return self
        return self._replace(
            tokens=np.append(self.tokens, np.array(ids, np.int32)),
            run_starts=np.append(self.run_starts, np.int32(len(self.tokens))),
            run_flags=np.append(self.run_flags, np.uint8(TARGET | ANSWER)),
            run_weights=np.append(self.run_weights, np.float32(1)),
        )


_TURN = 2  # the bits below it are flags; the bits from it on are the number of a turn, from 1
_FLAGS = (1 << _TURN) - 1


def of_turn(flags: int, turn: int, weight: float) -> int:
    """Adds the number of a turn, from 0, to flags if the turn has a weight other than 0 and 1."""
    return flags if weight in (0, 1) else flags | (turn + 1) << _TURN


class Writer:
    """Collects the tokens of a document; neighbouring runs of equal flags and weights are merged.

    Flags may carry the number of a turn (``of_turn``): a target then has that turn's weight.
    """

    def __init__(self, weights: Sequence[float] = ()) -> None:
        """``weights``: of the document's turns."""
        self._weights = weights
        self._chunks: list[Ids] = []
        self._starts: list[int] = []
        self._runs: list[tuple[int, float]] = []
        self._image_at: list[int] = []
        self._count = 0
        self._media: collections.Counter[type] = collections.Counter()

    def add(self, ids: Ids, flags: int) -> None:
        if not len(ids):
            return
        turn = flags >> _TURN
        run = flags & _FLAGS, self._weights[turn - 1] if turn and flags & TARGET else 1.0
        if not self._runs or self._runs[-1] != run:
            self._starts.append(self._count)
            self._runs.append(run)
        self._chunks.append(ids)
        self._count += len(ids)

    def number_of(self, part: Any) -> int:
        """Counts a medium that is to be written: its number among those of its kind, from 1."""
        kind = READY_MADE.get(type(part), type(part))
        self._media[kind] += 1
        return self._media[kind]

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
            run_flags=np.array([flags for flags, _ in self._runs], np.uint8),
            image_at=np.array(self._image_at, np.int32),
            run_weights=np.array([weight for _, weight in self._runs], np.float32),
        )
