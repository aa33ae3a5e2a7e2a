"""The embedded demo corpus: pictures of coloured shapes and texts about them, drawn from a seed.

It lets a fresh machine train and evaluate a model with nothing to download. A model learns it in minutes. It is honest:
answers are balanced, a question never reveals its own answer, and the test asks about colour-shape pairs (``HELD_OUT``)
that no training picture or text shows.
"""

from __future__ import annotations

import bisect
import collections
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmm.data.demo_pictures import COLOURS, SHAPES, Object, Pair, Scene, draw, encode
from jaxmm.data.documents import Document, Image, Source, Text, Turn
from jaxmm.data.drawn import drawn_source

GENERATOR = 3  # part of the fingerprint: raise it with any change to what a seed draws
TRAINING, TEST = 0, 1  # splits: the second word of a document's seed

ANSWERS = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "count": ("1", "2", "3", "4"),
    "relation": tuple(COLOURS),
}
KINDS = tuple(ANSWERS)
OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}

# Each shape once, each in a different colour, so that every colour and every shape stays frequent in training.
HELD_OUT: tuple[Pair, ...] = (
    ("green", "circle"),
    ("blue", "triangle"),
    ("yellow", "square"),
    ("purple", "ring"),
    ("orange", "plus"),
)
SEEN: tuple[Pair, ...] = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT)

UNIT = 1000  # documents that are drawn and prepared as one shard
CELL = 16  # pixels; boxes of shapes stand on this grid, which is that of the base model's soft tokens
SIDES = (48, 64, 80)  # pixels: the sides of a picture, drawn independently
BOXES = (1, 2)  # cells: the sides of a shape's box
MARGIN = 1  # pixels that a shape keeps from the edge of its box
TEXTURES = ("plain", "stripes", "dots", "noise")

# Per hundred training documents; the rest is text only.
CONVERSATIONS, CAPTIONS, INTERLEAVED = 70, 20, 5
# How often a picture has 1, 2, 3, 4 shapes. Mostly few: there a model learns to name colours and shapes before it has
# to find them. Rarer counts are asked for more often, so that the answers to the count are balanced.
SHAPE_COUNTS = (0.5, 0.3, 0.12, 0.08)
TURNS = (1, 2)  # questions of a conversation: few, so that the picture is a large part of the context of its answers
ASK_COUNT = 0.6  # how often a picture with the rarest number of shapes is asked for that number
ALL_DIFFERENT = 0.75  # how often no two shapes of a picture may share their colour or their form
# How often the other turns ask a question of each kind, while some of that kind are left.
KIND_WEIGHTS = {"colour": 0.28, "shape": 0.32, "relation": 0.4}
BLOCK = 120  # test documents: in each block every kind and every answer has its exact share, in random order

FACTS = (
    "A circle is round and full.",
    "A ring is round with a hole.",
    "A square has 4 sides.",
    "A triangle has 3 sides.",
    "A plus has 4 arms.",
    "A shape is a circle, a square, a triangle, a plus or a ring.",
    "A colour is red, green, blue, yellow, purple or orange.",
    "Left is the opposite of right.",
    "Above is the opposite of below.",
    "1 shape and 1 shape make 2 shapes.",
    "2 shapes and 1 shape make 3 shapes.",
    "2 shapes and 2 shapes make 4 shapes.",
)


class Question(NamedTuple):
    kind: str
    text: str
    answer: str
    about: tuple[Object, ...]  # the objects that it names or asks for; () for a count


class Draft(NamedTuple):
    """A document before drawing: turns of (role, parts), with a Scene where the picture will stand."""

    turns: tuple[tuple[str, tuple[str | Scene, ...]], ...]
    labels: tuple[str, ...] = ()


def training_source(seed: int = 0, examples: int = 9000) -> Source:
    """Returns the demo's training split: ``examples`` documents, of four kinds."""
    return _source("demo", TRAINING, seed, examples)


def test_source(seed: int = 0, examples: int = 600) -> Source:  # noqa: PT028  (no pytest test, for all its name)
    """Returns the held-out questions, one a picture, labelled (kind,) or (kind, "unseen")."""
    return _source("demo_test", TEST, seed, examples)


def _source(name: str, split: int, seed: int, examples: int) -> Source:
    entry = {"examples": examples, "generator": GENERATOR, "seed": seed, "split": split}
    return drawn_source(name, entry, UNIT, functools.partial(_document, seed, split))


def _document(seed: int, split: int, index: int, origin: str) -> Document:
    turns, labels = draft(seed, split, index)
    return Document(
        turns=tuple(
            Turn(role, tuple(_part(part) for part in parts), target=role in ("document", "assistant"))
            for role, parts in turns
        ),
        origin=origin,
        labels=labels,
    )


def _part(part: str | Scene) -> Text | Image:
    return Text(part) if isinstance(part, str) else Image(data=encode(draw(part), part.grain))


def draft(seed: int, split: int, index: int) -> Draft:
    """Returns document ``index`` of a split, a pure function of the three numbers."""
    rng = np.random.default_rng([seed, split, index])
    if split == TEST:
        return _test(rng, *_test_case(seed, index))
    lot = rng.integers(100)
    if lot < CONVERSATIONS:
        return _conversation(rng)
    if lot < CONVERSATIONS + CAPTIONS:
        picture = scene(rng, _pairs(rng, _count(rng)))
        return Draft((("document", (picture, caption(rng, picture))),))
    if lot < CONVERSATIONS + CAPTIONS + INTERLEAVED:
        return _interleaved(rng)
    return _text_only(rng)


# --- Scenes, and questions about them


def scene(rng: np.random.Generator, pairs: Sequence[Pair]) -> Scene:
    """Returns a picture that shows ``pairs`` (one to four) at random places, apart from each other."""
    # The sides don't depend on how many shapes there are: the size of a picture tells nothing.
    width, height = (SIDES[k] for k in rng.integers(len(SIDES), size=2).tolist())
    objects: list[Object] = []
    while len(objects) < len(pairs):
        objects, taken = [], np.zeros((height // CELL, width // CELL), bool)
        boxes = [BOXES[k] for k in rng.integers(len(BOXES), size=len(pairs)).tolist()]
        for (colour, shape), box in zip(pairs, boxes, strict=True):
            for across, down in rng.random((8, 2)).tolist():
                left, top = int(across * (taken.shape[1] - box + 1)), int(down * (taken.shape[0] - box + 1))
                if not taken[top : top + box, left : left + box].any():
                    taken[top : top + box, left : left + box] = True
                    x, y = ((2 * at + box) * CELL // 2 for at in (left, top))
                    objects.append(Object(colour, shape, x, y, box * CELL - 2 * MARGIN))
                    break
    grey, red, green, blue = (rng.integers((172, -14, -14, -14), (226, 15, 15, 15))).tolist()
    return Scene(
        width=width,
        height=height,
        ground=(grey + red, grey + green, grey + blue),
        texture=TEXTURES[rng.integers(len(TEXTURES))],
        grain=int(rng.integers(2**32)),
        objects=tuple(objects),
    )


def from_left(picture: Scene) -> list[Object]:
    """Returns the shapes from left to right, those in one column from top to bottom."""
    return sorted(picture.objects, key=lambda o: (o.x, o.y))


def questions(picture: Scene) -> list[Question]:
    """Returns every question that has one answer in the picture."""
    objects = picture.objects
    asked = [Question("count", "How many shapes?", str(len(objects)), ())]
    if len(objects) == 1:
        (o,) = objects
        return [
            *asked,
            Question("colour", "What colour is it?", o.colour, (o,)),
            Question("shape", "What shape is it?", o.shape, (o,)),
        ]
    colours = collections.Counter(o.colour for o in objects)
    shapes = collections.Counter(o.shape for o in objects)
    for o in objects:
        if shapes[o.shape] == 1:
            asked.append(Question("colour", f"What colour is the {o.shape}?", o.colour, (o,)))
        if colours[o.colour] == 1:
            asked.append(Question("shape", f"What shape is {o.colour}?", o.shape, (o,)))
    across = from_left(picture)
    for side, (first, second) in {"left": across[:2], "right": across[:-3:-1]}.items():
        if abs(first.x - second.x) >= CELL:
            asked.append(Question("relation", f"What colour is on the {side}?", first.colour, (first,)))
    return asked


def caption(rng: np.random.Generator, picture: Scene) -> str:
    """Returns a line that names every shape from left to right, each with its colour first or its form first.

    After reading one of the two, a model can predict the other, and the next shape, only by finding it in the picture.
    """
    form = ("{0.colour} {0.shape}", "{0.shape} in {0.colour}")[rng.integers(2)]
    return ", ".join(form.format(o) for o in from_left(picture)) + "."


# --- Documents


def _count(rng: np.random.Generator, least: int = 1) -> int:
    """Returns how many shapes a picture has."""
    return least + _weighted(rng, SHAPE_COUNTS[least - 1 :])


def _weighted(rng: np.random.Generator, weights: tuple[float, ...]) -> int:
    """Returns the place of one of the weights, each as often as it says."""
    sums = tuple(itertools.accumulate(weights))
    return bisect.bisect_right(sums, rng.random() * sums[-1])


def _pairs(rng: np.random.Generator, count: int) -> list[Pair]:
    """Returns ``count`` different colour-shape pairs that training may show."""
    all_different = rng.random() < ALL_DIFFERENT
    while True:
        pairs = [SEEN[k] for k in rng.permutation(len(SEEN))[:count]]
        if not all_different or all(len(set(names)) == count for names in zip(*pairs, strict=True)):
            return pairs


def _conversation(rng: np.random.Generator) -> Draft:
    """One or two questions about one picture, none answered by an earlier turn."""
    count = _count(rng)
    picture = scene(rng, _pairs(rng, count))
    how_many, *left = questions(picture)
    ask_count = rng.random() < ASK_COUNT * min(SHAPE_COUNTS) / SHAPE_COUNTS[count - 1]
    wanted = int(rng.integers(TURNS[0], TURNS[1] + 1)) - ask_count
    asked: list[Question] = []
    while left and len(asked) < wanted:
        kinds = [k for k in KIND_WEIGHTS if any(q.kind == k for q in left)]
        kind = kinds[_weighted(rng, tuple(KIND_WEIGHTS[k] for k in kinds))]
        choice = [q for q in left if q.kind == kind]
        question = choice[rng.integers(len(choice))]
        asked.append(question)
        left = [q for q in left if not _given_away(q, question)]
    if ask_count or not asked:
        asked.insert(int(rng.integers(len(asked) + 1)), how_many)
    return _dialogue(picture, asked)


def _given_away(question: Question, earlier: Question) -> bool:
    """Whether an earlier question and its answer may reveal the answer to this one."""
    return question.about[0] in earlier.about


def _dialogue(picture: Scene, asked: Sequence[Question], labels: tuple[str, ...] = ()) -> Draft:
    turns: list[tuple[str, tuple[str | Scene, ...]]] = []
    for question in asked:
        turns.append(("user", (question.text,) if turns else (picture, question.text)))
        turns.append(("assistant", (question.answer,)))
    return Draft(tuple(turns), labels)


def _interleaved(rng: np.random.Generator) -> Draft:
    """Two or three captioned pictures in one text, which ends by comparing them."""
    parts: list[str | Scene] = []
    counts = (rng.permutation(4)[: rng.integers(2, 4)] + 1).tolist()
    for number, count in enumerate(counts, 1):
        picture = scene(rng, _pairs(rng, count))
        parts += [f"{' ' if parts else ''}Picture {number}: ", picture, caption(rng, picture)]
    parts.append(f" Picture {counts.index(max(counts)) + 1} has the most shapes.")
    return Draft((("document", tuple(parts)),))


def _text_only(rng: np.random.Generator) -> Draft:
    if rng.random() < 0.5:
        facts = rng.permutation(len(FACTS))[:3]
        return Draft((("document", (" ".join(FACTS[k] for k in facts),)),))
    a, b = (" ".join(pair) for pair in _pairs(rng, 2))
    side = tuple(OPPOSITES)[rng.integers(4)]
    told = f"The {a} is {side}{' of' if side in ('left', 'right') else ''} the {b}."
    return Draft(
        (("user", (f"{told} Where is the {b} from the {a}?",)), ("assistant", (OPPOSITES[side],))),
    )


@functools.lru_cache(maxsize=16)
def _test_order(seed: int, block: int) -> np.ndarray:
    return np.random.default_rng([seed, TEST, block, BLOCK]).permutation(BLOCK)


def _test_case(seed: int, index: int) -> tuple[str, str]:
    """Returns the kind and the answer of a test question.

    Each has its exact share of a block. The order within a block is random, so that two questions at any fixed distance
    are unrelated (a blind test swaps their pictures).
    """
    block, place = divmod(index, BLOCK)
    number = block * BLOCK + int(_test_order(seed, block)[place])
    kind = KINDS[number % len(KINDS)]
    return kind, ANSWERS[kind][number // len(KINDS) % len(ANSWERS[kind])]


def _test(rng: np.random.Generator, kind: str, answer: str) -> Draft:
    """One question of that kind and answer; a fifth of those about a shape are about a held-out pair."""
    unseen = any(answer in pair for pair in HELD_OUT) and rng.random() < 0.25
    count = int(answer) if kind == "count" else _count(rng, 2 if kind == "relation" else 1)
    while True:
        pairs = _pairs(rng, count)  # the shapes that are not asked about look as in training
        if kind != "count":
            pool = tuple(p for p in (HELD_OUT if unseen else SEEN) if answer in p)
            pairs[0] = pool[rng.integers(len(pool))]
        picture = scene(rng, pairs)
        about = () if kind == "count" else picture.objects[:1]
        fitting = [q for q in questions(picture) if (q.kind, q.answer, q.about) == (kind, answer, about)]
        if fitting:
            labels = (kind, "unseen") if unseen else (kind,)
            return _dialogue(picture, [fitting[rng.integers(len(fitting))]], labels)
