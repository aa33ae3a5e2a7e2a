"""Indexes without content, which is all that plans need: random examples, some of them longer than a row."""

from __future__ import annotations

from typing import Any

import numpy as np
from conftest import IMAGE

from jaxmm.batch import TARGET
from jaxmm.data.media import table
from jaxmm.data.media.tokens import TOKENS
from jaxmm.data.packing.plan import Budgets, Lengths, Piece
from jaxmm.data.prepare.index import CLIPS, PREFERENCES, Columns, implied
from jaxmm.data.prepare.records import Record

BUDGETS = Budgets(tokens=64, patches=96, items=4, targets=48)


class Made(Columns):
    """An index of examples given by hand. ``reads`` are the examples that were read."""

    def __init__(self, name: str, tokens: list[int], images: list[list[tuple[int, ...]]], runs: list[list[Any]]):
        """``images``: of each example, (before which token, height, width[, kind]); ``runs``: (start, flags)."""
        pictures = [(*one, 0)[:4] for each in images for one in each]
        self.meta = {"name": name, "labels": [], "fingerprint": f"made {name} {tokens} {images} {runs}"}
        self.tokens_E = np.array(tokens, np.int32)
        self.labels_E = np.zeros(len(tokens), np.uint64)
        self.runs_E1 = np.cumsum([0, *map(len, runs)])
        flat = np.array([one for each in runs for one in each], np.int64).reshape(-1, 2)
        self.run_start_R, self.run_flags_R = flat[:, 0].astype(np.int32), flat[:, 1].astype(np.uint8)
        self.run_weight_R = np.ones(len(flat), np.float32)
        self.images_E1 = np.cumsum([0, *map(len, images)])
        columns = np.array(pictures, np.int32).reshape(-1, 4).T
        self.image_at_I, self.image_height_I, self.image_width_I, self.image_kind_I = columns
        for name in (*CLIPS, *PREFERENCES):
            setattr(self, name, implied(name, self.__dict__))
        self.meta |= table.described(self.image_kind_I)
        for column in (self.tokens_E, self.runs_E1, self.run_start_R, self.run_flags_R, self.images_E1, columns):
            column.setflags(write=False)  # as a mapped file is
        self.reads: list[int] = []

    def read(self, example: int) -> Record:
        self.reads.append(example)
        return Record(np.zeros(0, np.int32), [], f"{self.meta['name']}, record {example}")


def made(seed: int, examples: int = 60, name: str = "made", longest: int = 50, ready: bool = False) -> Lengths:
    """Random examples of a few runs; each image stands between two separators of its own.

    With ``ready``, two of three media are not images but features and discrete tokens.
    """
    rng = np.random.default_rng(seed)
    tokens, images, runs = [], [], []
    for _ in range(examples):
        spaces = rng.integers(1, longest // 2, rng.integers(1, 5))
        at = np.cumsum(spaces[:-1] + 2) - 1  # each image before its end separator
        images.append([(int(a), *map(int, rng.integers(4, 40, 2))) for a in at])
        tokens.append(int(spaces.sum()) + 2 * len(at))
        if ready:
            images[-1] = [_ready(rng, *one) for one in images[-1]]
            drawn = [width if kind == TOKENS else 0 for _, _, width, kind in images[-1]]
            before = np.cumsum([0, *drawn])  # those that stand before each
            images[-1] = [(a + int(n), *one) for (a, *one), n in zip(images[-1], before, strict=False)]
            tokens[-1] += sum(drawn)
        starts = sorted({0, *rng.integers(0, tokens[-1], rng.integers(0, 4)).tolist()})
        runs.append([(start, int(rng.integers(0, 2))) for start in starts])
    return Lengths(Made(name, tokens, images, runs), IMAGE)


def _ready(rng: np.random.Generator, at: int, height: int, width: int) -> tuple[int, int, int, int]:
    """An image, features in a grid or in tower order, or tokens."""
    grid, count = 2 * rng.integers(1, 4, 2), int(rng.integers(1, 9))
    choices = [(height, width, 0), (*grid.tolist(), 16), (4 * count, 1, 16), (1, count, TOKENS)]
    return at, *choices[rng.integers(4)]


def texts(tokens: list[int] | np.ndarray, name: str = "texts", flags: int = TARGET) -> Lengths:
    """Examples of text alone, of so many tokens."""
    return Lengths(Made(name, list(map(int, tokens)), [[] for _ in tokens], [[(0, flags)] for _ in tokens]), IMAGE)


def positions(lengths: Lengths, example: int) -> tuple[list[tuple[str, int]], list[bool]]:
    """What stands at each position of an example, ("text", run) or ("soft", medium), and whether it is a target."""
    index = lengths.prepared
    images = range(*index.images_E1[example : example + 2])
    starts = index.run_start_R[slice(*index.runs_E1[example : example + 2])].tolist()
    flags = index.run_flags_R[slice(*index.runs_E1[example : example + 2])].tolist()
    run_of = np.searchsorted(starts, np.arange(index.tokens_E[example]), side="right") - 1
    kinds: list[tuple[str, int]] = [("text", int(run)) for run in run_of]
    targets = [bool(flags[run] & TARGET) for run in run_of]
    for i in reversed(images):
        at, width = int(index.image_at_I[i]), int(index.image_width_I[i])
        if index.image_kind_I[i] == TOKENS:
            kinds[at : at + width] = [("soft", i)] * width
        else:
            kinds[at:at] = [("soft", i)] * int(lengths.slots(slice(i, i + 1))[0])
            targets[at:at] = [False] * int(lengths.slots(slice(i, i + 1))[0])
    return kinds, targets


def positions_of(lengths: Lengths, i: int) -> int:
    """How many positions a medium takes: soft tokens, or discrete ones."""
    index = lengths.prepared
    return int(index.image_width_I[i] if index.image_kind_I[i] == TOKENS else lengths.slots(slice(i, i + 1))[0])


def needs_of(lengths: Lengths, piece: Piece) -> np.ndarray:
    """What a piece holds, counted position by position from the index; fails where it cuts an image."""
    kinds, targets = positions(lengths, piece.example)
    held = kinds[piece.first : piece.last]
    whole = {i for kind, i in held if kind == "soft"}
    for i in whole:
        assert held.count(("soft", i)) == positions_of(lengths, i), "an image is cut"
        first = kinds.index(("soft", i))
        assert piece.first < first, "an image without its start separator"
        assert first + positions_of(lengths, i) < piece.last, "an image without its end separator"
    units = {i: (int(lengths.prepared.image_kind_I[i]), int(lengths.units_I[i])) for i in whole}
    patches = [count for kind, count in units.values() if kind == 0]
    vectors = [count for kind, count in units.values() if kind > 0]
    return np.array([len(held), sum(patches), len(patches), sum(targets[piece.first : piece.last]), sum(vectors)])


def is_whole(source: Lengths, pieces: list[Piece]) -> bool:
    """Whether the pieces of an example are all of it, without gap or overlap."""
    pieces = sorted(pieces, key=lambda p: p.first)
    ends = [0, *(p.last for p in pieces)]
    return [p.first for p in pieces] == ends[:-1] and ends[-1] == source.tokens_E[pieces[0].example]
