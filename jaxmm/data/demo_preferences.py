"""The embedded demo of preferences: which of two true answers is better is seen in the picture, and nowhere else.

A question about the colour of a shape has two answers, "It is red." and "Red it is.": of the same letters, both true.
The first one is better if the shape is round (a circle or a ring), the second one if it has corners. Neither question
nor answers name the shape. Round and cornered ones are asked for equally often, overall and of each colour, so that
form, length and colour tell nothing. A model that knows the demo's pictures has no reason to prefer either.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from jaxmm.data.demo import GENERATOR, HELD_OUT, SEEN, UNIT, questions, scene
from jaxmm.data.demo_pictures import COLOURS, Pair, Scene, draw, encode
from jaxmm.data.documents import Document, Image, Source, Text, Turn
from jaxmm.data.drawn import drawn_source

VERSION = 1  # part of the fingerprint, beside the demo's: raise it with any change to what a seed draws
TRAINING, TEST = 2, 3  # splits: the second word of a document's seed, where the demo has 0 and 1
KINDS = ("pairs", "judged")  # as ``reading.PREFERENCES``

ROUND = ("circle", "ring")
FORMS = ("It is {}.", "{} it is.")  # for round shapes, and for the others: of one length
BLOCK = 24  # documents: each has a colour, a shape that is round or not, and one of the forms; all are there once
SEVERAL = 0.5  # how often a picture shows two or three shapes; the others show one
# How often a test question about a round shape, or another one, is about a pair that no training picture shows, where
# its colour has one: two colours have a round one, three another one, so that both kinds are as frequent there.
UNSEEN = {True: 0.6, False: 0.4}


class Preference(NamedTuple):
    """A document before drawing.

    Attributes:
      is_round: whether the shape is that the question is about: then the first of ``answers`` is better, or else the
        second.
      answers: by FORMS.
      says_first: which of the two is judged, where answers are judged one by one.
    """

    picture: Scene
    question: str
    is_round: bool
    answers: tuple[str, str]
    says_first: bool
    labels: tuple[str, ...]

    @property
    def better(self) -> str:
        return self.answers[0 if self.is_round else 1]

    @property
    def worse(self) -> str:
        return self.answers[1 if self.is_round else 0]

    @property
    def judged(self) -> str:
        return self.answers[0 if self.says_first else 1]


def training_source(kind: str, seed: int = 0, examples: int = 4800) -> Source:
    """Returns the training split.

    Args:
      kind: one of KINDS: pairs of answers, or single ones that are wanted or unwanted.
    """
    return _source("demo_preferences", kind, TRAINING, seed, examples)


def test_source(kind: str, seed: int = 0, examples: int = 600) -> Source:  # noqa: PT028  (no pytest test)
    """Returns the held-out split; documents about a pair of HELD_OUT are labelled "unseen"."""
    return _source("demo_preferences_test", kind, TEST, seed, examples)


def _source(name: str, kind: str, split: int, seed: int, examples: int) -> Source:
    if kind not in KINDS:
        raise ValueError(f"preferences {kind!r} are none of {KINDS}")
    versions = {"generator": GENERATOR, "version": VERSION}
    entry = {"examples": examples, "preferences": kind, "seed": seed, "split": split, **versions}
    return drawn_source(name, entry, UNIT, functools.partial(_document, kind, seed, split))


def _document(kind: str, seed: int, split: int, index: int, origin: str) -> Document:
    one = draft(seed, split, index)
    if kind == "pairs":
        answer, verdict, other = one.better, "better", one.worse
    else:  # beside the answer to the question next to it: blocks and units are of even length
        verdict = "wanted" if one.judged == one.better else "unwanted"
        answer, other = one.judged, draft(seed, split, index ^ 1).judged
    asked = Turn("user", (Image(data=encode(draw(one.picture), one.picture.grain)), Text(one.question)), False)
    return Document(
        turns=(asked, Turn("assistant", (Text(answer),), True)),
        origin=origin,
        labels=one.labels,
        verdict=verdict,
        other=(asked, Turn("assistant", (Text(other),), True)),
    )


def draft(seed: int, split: int, index: int) -> Preference:
    """Returns document ``index`` of a split, a pure function of the three numbers."""
    rng = np.random.default_rng([seed, split, index])
    block, place = divmod(index, BLOCK)
    number = int(_order(seed, split, block)[place])
    colour, is_round, says_first = tuple(COLOURS)[number % 6], number // 6 % 2 == 0, number < BLOCK // 2
    new, seen = ([p for p in pairs if p[0] == colour and (p[1] in ROUND) == is_round] for pairs in (HELD_OUT, SEEN))
    unseen = split == TEST and bool(new) and rng.random() < UNSEEN[is_round]
    pool = new if unseen else seen
    asked = pool[rng.integers(len(pool))]
    others = [pair for pair in SEEN if pair != asked]
    count = 1 + int(rng.integers(1, 3)) if rng.random() < SEVERAL else 1
    while True:
        pairs: list[Pair] = [asked, *(others[k] for k in rng.permutation(len(others))[: count - 1])]
        picture = scene(rng, pairs)
        # Questions that name a shape would tell which answer is better.
        kind = "colour" if count == 1 else "relation"
        fitting = [q for q in questions(picture) if q.kind == kind and q.about == picture.objects[:1]]
        if fitting:
            question = fitting[rng.integers(len(fitting))].text
            return Preference(
                picture, question, is_round, _answers(colour), says_first, ("unseen",) if unseen else ()
            )  # fmt: skip


def _answers(colour: str) -> tuple[str, str]:
    first, second = FORMS
    return first.format(colour), second.format(colour.capitalize())


@functools.lru_cache(maxsize=16)
def _order(seed: int, split: int, block: int) -> np.ndarray:
    return np.random.default_rng([seed, split, block, BLOCK]).permutation(BLOCK)
