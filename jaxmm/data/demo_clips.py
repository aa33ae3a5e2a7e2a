"""What the demos of video and audio have in common: things that come one after another, and questions about them.

The things of a clip come at different times, never two at once. So one moment of it tells what there is, but neither
what came first nor how often it came. As in the demo of pictures, answers are balanced, a question never reveals its
answer, and the test asks about orders that no training clip has.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxmm.data.documents import Audio, Document, Source, Text, Turn, Video
from jaxmm.data.drawn import drawn_source

TRAINING, TEST = 0, 1  # splits: the second word of a document's seed
UNIT = 500  # documents that are drawn and prepared as one shard
BLOCK = 600  # test questions over which kinds and answers are balanced exactly

KINDS = ("order", "identity", "count")
COUNTS = (1, 2, 3)  # how often one thing comes
CHANGES = (2, 3)  # how many different things come

# Per hundred training documents. A caption names what comes, one after another: for its length it teaches most.
CAPTIONS, REPEATS = 25, 60  # REPEATS: of those that ask, and of captions, in which one thing comes again and again
ASK_BOTH = 0.5  # how often a conversation asks two questions, neither of which gives the other's answer away


class Question(NamedTuple):
    kind: str
    text: str
    answer: str


class Draft(NamedTuple):
    """A document before its clip is drawn.

    Attributes:
      things: the names of what comes in the clip, in order.
      asked: questions; () where the document is the clip and ``caption``.
    """

    things: tuple[str, ...]
    asked: tuple[Question, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def caption(self) -> str:
        return ", ".join(self.things) + "."


@dataclasses.dataclass(frozen=True)
class Theme:
    """What a demo's clips are of.

    Attributes:
      name: of its training source; that of the test ends in "_test".
      generator: part of the fingerprint: raised with any change to what a seed draws.
      things: names, no two of which begin with the same letter: one byte tells a byte-level model which it is.
      first, last, identity, count: the texts of the questions.
      clip: draws a clip in which these things come, in this order.
    """

    name: str
    generator: int
    things: tuple[str, ...]
    first: str
    last: str
    identity: str
    count: str
    clip: Callable[[np.random.Generator, tuple[str, ...]], Video | Audio]

    @property
    def answers(self) -> dict[str, tuple[str, ...]]:
        return {"order": self.things, "identity": self.things, "count": tuple(map(str, COUNTS))}

    @property
    def held_out(self) -> tuple[tuple[str, str], ...]:
        """(first, last) of no training clip: each thing is the first of one such pair, and the last of another."""
        return tuple(zip(self.things, self.things[2:] + self.things[:2], strict=True))

    def training_source(self, seed: int, examples: int) -> Source:
        return self._source(self.name, TRAINING, seed, examples)

    def test_source(self, seed: int, examples: int) -> Source:
        return self._source(f"{self.name}_test", TEST, seed, examples)

    def _source(self, name: str, split: int, seed: int, examples: int) -> Source:
        entry = {"demo": self.name, "examples": examples, "generator": self.generator, "seed": seed, "split": split}
        return drawn_source(name, entry, UNIT, functools.partial(_drawn, self, seed, split))


def _drawn(theme: Theme, seed: int, split: int, index: int, origin: str) -> Document:
    rng = np.random.default_rng([seed, split, index])
    one = _draft(theme, rng, seed, split, index)
    return _document(one, theme.clip(rng, one.things), origin)


def draft(theme: Theme, seed: int, split: int, index: int) -> Draft:
    """Returns document ``index`` of a split, a pure function of the three numbers."""
    return _draft(theme, np.random.default_rng([seed, split, index]), seed, split, index)


def _document(one: Draft, clip: Video | Audio, origin: str) -> Document:
    if not one.asked:
        return Document((Turn("document", (clip, Text(one.caption)), target=True),), origin, one.labels)
    turns: list[Turn] = []
    for question in one.asked:
        text = Text(question.text)
        turns.append(Turn("user", (text,) if turns else (clip, text), target=False))
        turns.append(Turn("assistant", (Text(question.answer),), target=True))
    return Document(tuple(turns), origin, one.labels)


def _draft(theme: Theme, rng: np.random.Generator, seed: int, split: int, index: int) -> Draft:
    if split == TEST:
        return _test(theme, rng, *test_case(theme, seed, index))
    is_caption, is_repeat, both = rng.random(3) < (CAPTIONS / 100, REPEATS / 100, ASK_BOTH)
    if is_repeat:
        things = (_one_of(rng, theme.things),) * int(_one_of(rng, COUNTS))
    else:
        things = _changing(theme, rng, *_ends(theme, rng))
    if is_caption:
        return Draft(things)
    asked = questions(theme, things)
    order = rng.integers(2)
    if both:
        return Draft(things, (asked[order], asked[1 - order]))
    return Draft(things, (asked[1 if is_repeat else order],))  # how often it comes is harder than what it is


def questions(theme: Theme, things: tuple[str, ...]) -> tuple[Question, Question]:
    """Returns the two questions that have one answer in a clip of these things."""
    if len(set(things)) == 1:
        return Question("identity", theme.identity, things[0]), Question("count", theme.count, str(len(things)))
    return Question("order", theme.first, things[0]), Question("order", theme.last, things[-1])


def _one_of(rng: np.random.Generator, choice):
    return choice[rng.integers(len(choice))]


def _ends(theme: Theme, rng: np.random.Generator) -> tuple[str, str]:
    """Returns what comes first and what comes last, in a way that training may have it."""
    while True:
        first, last = (theme.things[k] for k in rng.permutation(len(theme.things))[:2])
        if (first, last) not in theme.held_out:
            return first, last


def _changing(theme: Theme, rng: np.random.Generator, first: str, last: str) -> tuple[str, ...]:
    """Returns different things, perhaps another one between the two."""
    between = [name for name in theme.things if name not in (first, last)]
    if _one_of(rng, CHANGES) == 2:
        return first, last
    return first, _one_of(rng, between), last


@functools.lru_cache(maxsize=16)
def _test_order(seed: int, block: int) -> np.ndarray:
    return np.random.default_rng([seed, TEST, block, BLOCK]).permutation(BLOCK)


def test_case(theme: Theme, seed: int, index: int) -> tuple[str, str]:
    """Returns the kind and the answer of a test question.

    Each has its exact share of a block. The order within a block is random, so that two questions at any fixed distance
    are unrelated (a blind test swaps their clips).
    """
    block, place = divmod(index, BLOCK)
    number = block * BLOCK + int(_test_order(seed, block)[place])
    kind = KINDS[number % len(KINDS)]
    answers = theme.answers[kind]
    return kind, answers[number // len(KINDS) % len(answers)]


def _test(theme: Theme, rng: np.random.Generator, kind: str, answer: str) -> Draft:
    """One question of that kind and answer; a quarter of those about an order are about a held-out one."""
    if kind != "order":
        name = answer if kind == "identity" else _one_of(rng, theme.things)
        things = (name,) * (int(answer) if kind == "count" else int(_one_of(rng, COUNTS)))
        return Draft(things, tuple(q for q in questions(theme, things) if q.kind == kind), (kind,))
    unseen, place = rng.random() < 0.25, int(rng.integers(2))  # whether it is asked for the first or the last
    if unseen:
        (ends,) = (pair for pair in theme.held_out if pair[place] == answer)
    else:
        ends = ("", "")
        while ends[place] != answer:
            ends = _ends(theme, rng)
    things = _changing(theme, rng, *ends)
    return Draft(things, (questions(theme, things)[place],), (kind, "unseen") if unseen else (kind,))
