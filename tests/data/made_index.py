"""Indexes without content, which is all that plans need: random examples, some of them longer than a row."""

from __future__ import annotations

from typing import Any

import numpy as np
from conftest import IMAGE

from jaxmm.batch import TARGET
from jaxmm.data.plan import Budgets, Lengths, Piece
from jaxmm.data.prepared import Columns, Record

BUDGETS = Budgets(tokens=64, patches=96, items=4, targets=48)


class Made(Columns):
    """An index of examples given by hand. ``reads`` are the examples that were read."""

    def __init__(self, name: str, tokens: list[int], images: list[list[tuple[int, int, int]]], runs: list[list[Any]]):
        """``images``: of each example, (before which token, height, width); ``runs``: of each, (start, flags)."""
        pictures = [one for each in images for one in each]
        self.meta = {"name": name, "labels": [], "fingerprint": f"made {name} {tokens} {images} {runs}"}
        self.tokens_E = np.array(tokens, np.int32)
        self.labels_E = np.zeros(len(tokens), np.uint64)
        self.runs_E1 = np.cumsum([0, *map(len, runs)])
        flat = np.array([one for each in runs for one in each], np.int64).reshape(-1, 2)
        self.run_start_R, self.run_flags_R = flat[:, 0].astype(np.int32), flat[:, 1].astype(np.uint8)
        self.images_E1 = np.cumsum([0, *map(len, images)])
        columns = np.array(pictures, np.int32).reshape(-1, 3).T
        self.image_at_I, self.image_height_I, self.image_width_I = columns
        for column in (self.tokens_E, self.runs_E1, self.run_start_R, self.run_flags_R, self.images_E1, columns):
            column.setflags(write=False)  # as a mapped file is
        self.reads: list[int] = []

    def read(self, example: int) -> Record:
        self.reads.append(example)
        return Record(np.zeros(0, np.int32), [], f"{self.meta['name']}, record {example}")


def made(seed: int, examples: int = 60, name: str = "made", longest: int = 50) -> Lengths:
    """Random examples of a few runs; each image stands between two separators of its own."""
    rng = np.random.default_rng(seed)
    tokens, images, runs = [], [], []
    for _ in range(examples):
        spaces = rng.integers(1, longest // 2, rng.integers(1, 5))
        at = np.cumsum(spaces[:-1] + 2) - 1  # each image before its end separator
        images.append([(int(a), *map(int, rng.integers(4, 40, 2))) for a in at])
        tokens.append(int(spaces.sum()) + 2 * len(at))
        starts = sorted({0, *rng.integers(0, tokens[-1], rng.integers(0, 4)).tolist()})
        runs.append([(start, int(rng.integers(0, 2))) for start in starts])
    return Lengths(Made(name, tokens, images, runs), IMAGE)


def texts(tokens: list[int] | np.ndarray, name: str = "texts", flags: int = TARGET) -> Lengths:
    """Examples of text alone, of so many tokens."""
    return Lengths(Made(name, list(map(int, tokens)), [[] for _ in tokens], [[(0, flags)] for _ in tokens]), IMAGE)


def positions(lengths: Lengths, example: int) -> tuple[list[tuple[str, int]], list[bool]]:
    """What stands at each position of an example, ("text", run) or ("soft", image), and whether it is a target."""
    index = lengths.prepared
    starts = index.run_start_R[slice(*index.runs_E1[example : example + 2])].tolist()
    flags = index.run_flags_R[slice(*index.runs_E1[example : example + 2])].tolist()
    run_of = np.searchsorted(starts, np.arange(index.tokens_E[example]), side="right") - 1
    kinds: list[tuple[str, int]] = [("text", int(run)) for run in run_of]
    for i in reversed(range(*index.images_E1[example : example + 2])):
        kinds[index.image_at_I[i] : index.image_at_I[i]] = [("soft", i)] * int(lengths.slots_I[i])
    return kinds, [kind == "text" and bool(flags[n] & TARGET) for kind, n in kinds]


def needs_of(lengths: Lengths, piece: Piece) -> np.ndarray:
    """What a piece holds, counted position by position from the index; fails where it cuts an image."""
    kinds, targets = positions(lengths, piece.example)
    held = kinds[piece.first : piece.last]
    whole = {i for kind, i in held if kind == "soft"}
    for i in whole:
        assert held.count(("soft", i)) == lengths.slots_I[i], "an image is cut"
        first = kinds.index(("soft", i))
        assert piece.first < first, "an image without its start separator"
        assert first + lengths.slots_I[i] < piece.last, "an image without its end separator"
    patches = sum(int(lengths.patches_I[i]) for i in whole)
    return np.array([len(held), patches, len(whole), sum(targets[piece.first : piece.last])])


def is_whole(source: Lengths, pieces: list[Piece]) -> bool:
    """Whether the pieces of an example are all of it, without gap or overlap."""
    pieces = sorted(pieces, key=lambda p: p.first)
    ends = [0, *(p.last for p in pieces)]
    return [p.first for p in pieces] == ends[:-1] and ends[-1] == source.tokens_E[pieces[0].example]
