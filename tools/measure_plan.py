"""Measures the plan: how full rows are, how fast they are planned, and how soon a batch far on is there.

    python tools/measure_plan.py                    the fills, as JSON
    python tools/measure_plan.py --examples=10000000 --cache=FOLDER    planning so many examples, then again from disk

The distributions are here, with their seeds.
"""

from __future__ import annotations

import argparse
import bisect
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmm.batch import TARGET, ImageSpec
from jaxmm.data.pack import assign
from jaxmm.data.plan import Budgets, Lengths, Plan, choose_budgets
from jaxmm.data.prepared import Columns, Record

IMAGE = ImageSpec(patch_size=16, merge=2, min_pixels=64 * 16**2, max_pixels=2304 * 16**2)
SEPARATORS = 2  # tokens around an image
BATCH = 256


def text_lengths(count: int, sigma: float, mean: float, seed: int, longest: int) -> np.ndarray:
    """int64 (count,): lognormal, rounded, within [1, longest]."""
    drawn = np.random.default_rng(seed).lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    return np.clip(np.rint(drawn), 1, longest).astype(np.int64)


def image_patches(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each of ``count`` documents: 0 to 4 images, and the patches of each, 64 to 2304, (count, 4) with zeros."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 5, count)
    patches = rng.integers(64 // 4, 2304 // 4 + 1, (count, 4)) * 4
    return images, np.where(np.arange(4) < images[:, None], patches, 0)


def greedy_knapsack(lengths: Sequence[int], row: int, group: int = 1000) -> int:
    """Rows by LLaMA-Factory's way: within groups, each row takes the largest that fits, again and again."""
    rows = 0
    for start in range(0, len(lengths), group):
        left = sorted(lengths[start : start + group])
        while left:
            rows, room = rows + 1, row
            while (found := bisect.bisect_right(left, room) - 1) >= 0:
                room -= left.pop(found)
    return rows


def fill_of_one_budget(count: int = 200_000, row: int = 2048, window: int = 1 << 15) -> dict[str, float]:
    """Fills of rows of text, packed by windows of so many examples, and by the greedy knapsack."""
    lengths = text_lengths(count, 0.8, 298, 0, row)
    began = time.perf_counter()
    ours = sum(int(assign(part[:, None], [row]).max()) + 1 for part in np.split(lengths, range(window, count, window)))
    middle = time.perf_counter()
    theirs = greedy_knapsack(lengths.tolist(), row)
    ended = time.perf_counter()
    return {
        "fill": float(lengths.sum() / (ours * row)),
        "examples_per_second": count / (middle - began),
        "knapsack_fill": float(lengths.sum() / (theirs * row)),
        "knapsack_examples_per_second": count / (ended - middle),
    }


def fill_of_two_budgets(ratio: float, count: int = 1 << 17, row: int = 8192, window: int = 1 << 15) -> dict[str, float]:
    """Fills of rows of text and images whose patch budget is ``ratio`` times what a row full of tokens needs.

    Above 1 tokens bind, below 1 patches do.
    """
    images, patches_D4 = image_patches(count, 1)
    patches = patches_D4.sum(1)
    tokens = text_lengths(count, 0.9, 298, 2, row // 2) + patches // IMAGE.merge**2 + SEPARATORS * images
    budget = int(patches.sum() / tokens.sum() * row * ratio) // 64 * 64
    limits = Budgets(row, budget, 64, row)
    needs = np.stack([tokens, patches, images, tokens // 2], 1)
    needs = needs[(needs <= np.array(limits)).all(1)]
    rows = sum(int(assign(part, limits).max()) + 1 for part in np.split(needs, range(window, len(needs), window)))
    totals = needs.sum(0)
    return {
        "patch_budget": budget,
        "token_fill": float(totals[0] / (rows * row)),
        "patch_fill": float(totals[1] / (rows * budget)),
    }


class MadeIndex(Columns):
    """An index of text documents of so many lengths, each a target, that counts what is read of it."""

    def __init__(self, name: str, lengths: np.ndarray):
        count = len(lengths)
        self.meta = {"name": name, "labels": [], "fingerprint": f"made {name} {count}"}
        self.tokens_E = lengths.astype(np.int32)
        self.labels_E = np.zeros(0, np.uint64)
        self.runs_E1 = np.arange(count + 1)
        self.run_start_R = np.zeros(count, np.int32)
        self.run_flags_R = np.full(count, TARGET, np.uint8)
        self.images_E1 = np.zeros(count + 1, np.int64)
        self.image_at_I = self.image_height_I = self.image_width_I = self.image_kind_I = np.zeros(0, np.int32)
        self.reads: list[int] = []

    def read(self, example: int) -> Record:
        self.reads.append(example)
        return Record(np.zeros(int(self.tokens_E[example]), np.int32), [], f"{self.meta['name']}, record {example}")


def made_sources(examples: int, cache: Path | None) -> list[Lengths]:
    """Two sources, a quarter and three quarters of the examples; some documents are longer than a row."""
    sizes = (examples // 4, examples - examples // 4)
    folder = cache / f"made-{examples}" if cache else None
    sources = []
    for i, size in enumerate(sizes):
        file = folder / f"{i}.npy" if folder else None
        if file and file.is_file():
            tokens = np.load(file, mmap_mode="r")
        else:
            tokens = text_lengths(size, 0.8, 298, i, 1 << 15).astype(np.int32)
            if file:
                file.parent.mkdir(parents=True, exist_ok=True)
                np.save(file, tokens)
        sources.append(Lengths(MadeIndex(f"made{i}", tokens), IMAGE, cache))
    return sources


def made_plan(examples: int, cache: Path | None) -> Plan:
    sources = made_sources(examples, cache)
    budgets = choose_budgets(sources, [0.25, 0.75], 2048, 0, 0, IMAGE.merge)
    return Plan(sources, [0.25, 0.75], budgets, BATCH, 0, table=cache)


def planning(examples: int, cache: Path | None = None) -> dict[str, float]:
    """Plans as many batches as hold ``examples``: shuffle, mixture, packing and order."""
    began = time.perf_counter()
    plan = made_plan(examples, cache)
    opened, cpu = time.perf_counter(), time.process_time()
    tokens = pieces = k = 0
    step = 16  # batches at a time
    while sum(plan.seen(k)) < examples:
        rows = plan.batch_arrays(k, k + step)
        tokens += int((rows.pieces.last - rows.pieces.first).sum())
        pieces += len(rows.pieces.source)
        k += step
    plan.save()
    ended, cpu = time.perf_counter(), time.process_time() - cpu
    seen = sum(plan.seen(k))
    return {
        "examples": seen,
        "batches": k,
        "fill": tokens / (k * BATCH * plan.budgets.tokens),
        "open_seconds": opened - began,
        "examples_per_second": seen / (ended - opened),
        "examples_per_cpu_second": seen / cpu,  # what a core does that has nothing else to do
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def far_batch(examples: int, cache: Path, batch: int) -> dict[str, float]:
    """One batch far on, in this process, with the plan's table on disk, and its records read."""
    began = time.perf_counter()
    plan = made_plan(examples, cache)
    rows = plan.batch(batch)
    seconds = time.perf_counter() - began
    wanted = {(p.source, p.example) for row in rows for p in row}
    for source, example in wanted:
        plan.lengths[source].prepared.read(example)
    reads = sum(len(source.prepared.reads) for source in plan.lengths)  # type: ignore[attr-defined, misc]
    return {"seconds": seconds, "reads": reads, "records_of_the_batch": len(wanted)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--batch", type=int, default=-1)
    args = parser.parse_args()
    if not args.examples:
        found: dict[str, Any] = {
            "one budget": fill_of_one_budget(),
            **{f"two budgets, {ratio} of the patches needed": fill_of_two_budgets(ratio) for ratio in (0.8, 1.2)},
        }
    elif args.batch >= 0:
        found = far_batch(args.examples, args.cache, args.batch)
    else:
        found = planning(args.examples, args.cache)
        if args.cache:  # in a new process, as a run that resumes
            again = [sys.executable, __file__, f"--examples={args.examples}", f"--cache={args.cache}"]
            began = time.perf_counter()
            out = subprocess.run([*again, f"--batch={int(found['batches']) - 1}"], check=True, capture_output=True)
            found["again"] = json.loads(out.stdout) | {"process_seconds": time.perf_counter() - began}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
