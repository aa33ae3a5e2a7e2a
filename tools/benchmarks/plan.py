"""Rows of the benchmark: how full rows are, how fast they are planned, and how soon a batch far on is there."""

from __future__ import annotations

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

from benchmarks.row import Measured, Row, Settings
from jaxmm.batch import TARGET
from jaxmm.data.assemble import Assembler
from jaxmm.data.packing.pack import assign
from jaxmm.data.packing.plan import WINDOW_PIECES, Budgets, Lengths, Plan, choose_budgets
from jaxmm.data.prepare.index import CLIPS, PREFERENCES, Columns, implied
from jaxmm.data.prepare.records import Record
from jaxmm.image_spec import ImageSpec
from jaxmm.measure.timing import Figure

IMAGE = ImageSpec(patch_size=16, merge=2, min_pixels=64 * 16**2, max_pixels=2304 * 16**2)
SEPARATORS = 2  # tokens around an image
BATCH = 256
EXAMPLES = 10_000_000


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
            while (place := bisect.bisect_right(left, room) - 1) >= 0:
                room -= left.pop(place)
    return rows


def fill_of_one_budget(settings: Settings) -> Measured:
    """Rows of text, packed by windows as the plan has them, and by the greedy knapsack; each sample draws its own."""
    row, count = 2048, settings.count(200_000)
    fill: dict[str, list[float]] = {"fill": [], "greedy knapsack": []}
    rate: dict[str, list[float]] = {"packed": [], "greedy knapsack packed": []}
    for i in range(settings.repeats):
        lengths = text_lengths(count, 0.8, 298, settings.seed + i, row)
        began = time.perf_counter()
        ours = sum(int(assign(part[:, None], [row]).max()) + 1 for part in windows(lengths))
        middle = time.perf_counter()
        theirs = greedy_knapsack(lengths.tolist(), row)
        ended = time.perf_counter()
        total = int(lengths.sum())
        for name, rows in zip(fill, (ours, theirs), strict=True):
            fill[name].append(total / (rows * row))
        for name, seconds in zip(rate, (middle - began, ended - middle), strict=True):
            rate[name].append(count / seconds)
    figures = {name: Figure(samples, "") for name, samples in fill.items()}
    return Measured(figures | {name: Figure(samples, "examples/s") for name, samples in rate.items()})


def fill_of_two_budgets(settings: Settings) -> Measured:
    """Rows of text and images, where tokens bind, where patches do, and where both do; each sample draws its own."""
    fills: dict[str, list[float]] = {}
    notes = []
    # Of the patches that rows full of tokens need.
    for name, ratio in {"tokens bind": 1.2, "patches bind": 0.8, "both bind": 1.0}.items():
        for i in range(settings.repeats):
            limits, needs = text_and_images(ratio, settings.count(1 << 17), settings.seed + i)
            rows = sum(int(assign(part, limits).max()) + 1 for part in windows(needs))
            tokens, patches = needs[:, :2].sum(0).tolist()
            fills.setdefault(f"{name}: token fill", []).append(tokens / (rows * limits.tokens))
            fills.setdefault(f"{name}: patch fill", []).append(patches / (rows * limits.patches))
        notes.append(f"{name}: rows of {limits.tokens} tokens and {limits.patches} patches")
    return Measured({name: Figure(samples, "") for name, samples in fills.items()}, notes)


def text_and_images(ratio: float, count: int, seed: int, row: int = 8192) -> tuple[Budgets, np.ndarray]:
    """Budgets whose patches are ``ratio`` times what a row full of tokens needs, and what each needs of them."""
    images, patches_D4 = image_patches(count, seed)
    patches = patches_D4.sum(1)
    tokens = text_lengths(count, 0.9, 298, seed, row // 2) + patches // IMAGE.merge**2 + SEPARATORS * images
    limits = Budgets(row, int(patches.sum() / tokens.sum() * row * ratio) // 64 * 64, 64, row)
    needs = {"tokens": tokens, "patches": patches, "items": images, "targets": tokens // 2}
    return limits, np.stack([needs.get(name, np.zeros_like(tokens)) for name in limits.names], 1)


def windows(items: np.ndarray) -> list[np.ndarray]:
    """Items by windows of as many as a plan's."""
    return np.split(items, range(WINDOW_PIECES, len(items), WINDOW_PIECES))


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
        self.run_weight_R = np.ones(count, np.float32)
        self.images_E1 = np.zeros(count + 1, np.int64)
        self.image_at_I = self.image_height_I = self.image_width_I = self.image_kind_I = np.zeros(0, np.int32)
        for column in (*CLIPS, *PREFERENCES):
            setattr(self, column, implied(column, self.__dict__))
        self.reads: list[int] = []

    def read(self, example: int) -> Record:
        self.reads.append(example)
        return Record(np.zeros(int(self.tokens_E[example]), np.int32), [], f"{self.meta['name']}, record {example}")


def made_plan(examples: int, index: Path) -> Plan:
    """A plan of two sources, a quarter and three quarters of the examples; a few documents are longer than a row."""
    sources = []
    for i, size in enumerate((examples // 4, examples - examples // 4)):
        file = index / f"made-{size}.npy"
        if not file.is_file():
            index.mkdir(parents=True, exist_ok=True)
            np.save(file, text_lengths(size, 0.8, 298, i, 1 << 15).astype(np.int32))
        sources.append(Lengths(MadeIndex(f"made{i}", np.load(file, mmap_mode="r")), IMAGE, index))
    budgets = choose_budgets(sources, [0.25, 0.75], 2048, 0, 0, IMAGE.merge)
    return Plan(sources, [0.25, 0.75], budgets, BATCH, 0, table=index)


def planning(settings: Settings) -> Measured:
    """Shuffle, mixture, packing and order of the rows, each sample in a process of its own."""
    examples, index = settings.count(EXAMPLES), Path(settings.folder) / "index"
    made_plan(examples, index)  # counts the lengths
    planned = [in_new_process("plan", examples, index) for _ in range(max(1, settings.repeats // 2))]
    return Measured(
        {
            "planned": Figure([each["examples"] / each["seconds"] for each in planned], "examples/s"),
            "peak memory": Figure([each["peak_bytes"] / 1e9 for each in planned], "GB"),
            "fill": Figure([each["fill"] for each in planned], ""),
        },
        [f"{planned[0]['examples']} examples in {planned[0]['batches']} batches of {BATCH} rows, on one core"],
    )


def far_batch(settings: Settings) -> Measured:
    """The last batch of a plan whose table is on disk, each sample in a new process, records read and laid out."""
    examples, index = settings.count(EXAMPLES), Path(settings.folder) / "index"
    batch = int(in_new_process("plan", examples, index)["batches"]) - 1
    measured = []
    for _ in range(settings.repeats):
        began = time.perf_counter()
        measured.append(in_new_process("batch", examples, index, batch))
        measured[-1]["whole"] = time.perf_counter() - began
    return Measured(
        {
            "process": Figure([each["whole"] for each in measured], "s"),
            "reads beyond the batch": Figure([each["reads_beyond"] for each in measured], ""),
            "reads": Figure([each["reads"] for each in measured], ""),
            "pieces in the batch": Figure([each["pieces"] for each in measured], ""),
        },
        [f"batch {batch}; process: from its start to its end, imports included"],
    )


TOOLS = Path(__file__).resolve().parents[1]


def in_new_process(what: str, *args: Any) -> dict[str, float]:
    """What one of the functions below finds in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.plan", what, *map(str, args)],
        check=True,
        cwd=TOOLS,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


def plan_all(examples: int, index: Path) -> dict[str, float]:
    """Plans as many batches as hold ``examples``, as if no table were there, and leaves one."""
    for table in index.glob("*.npz"):
        table.unlink()
    began = time.perf_counter()
    plan = made_plan(examples, index)
    tokens, k, step = 0, 0, 64  # batches at a time
    while sum(plan.seen(k)) < examples:
        pieces = plan.batch_arrays(k, k + step).pieces
        tokens += int((pieces.last - pieces.first).sum())
        k += step
    plan.save()
    return {
        "seconds": time.perf_counter() - began,
        "examples": sum(plan.seen(k)),
        "batches": k,
        "fill": tokens / (k * BATCH * plan.budgets.tokens),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def one_batch(examples: int, index: Path, batch: int) -> dict[str, float]:
    """Makes one batch, and counts which records of the sources that reads."""
    plan = made_plan(examples, index)
    loaded = Assembler(plan.lengths, plan.budgets, IMAGE)(plan.batch(batch))
    wanted = {(piece.source, piece.example) for row in loaded.rows for piece in row}
    prepared = [source.prepared for source in plan.lengths]
    reads = [(i, example) for i, made in enumerate(prepared) if isinstance(made, MadeIndex) for example in made.reads]
    return {
        "reads": len(reads),
        "reads_beyond": len(set(reads) - wanted),
        "pieces": sum(len(row) for row in loaded.rows),
    }


def main(what: str, examples: str, index: str, *batch: str) -> None:
    measured = {"plan": plan_all, "batch": one_batch}[what](int(examples), Path(index), *map(int, batch))  # type: ignore[operator]
    print(json.dumps(measured))


MADE = "an index of text lengths, lognormal (mean 298, sigma 0.8), in two sources mixed 1 to 3, rows of 2048 tokens"
ROWS = [
    Row(
        "fill_one_budget",
        "200,000 lengths, lognormal (mean 298, sigma 0.8), rows of 2048 tokens; the greedy knapsack in groups of 1,000",
        {"fill": ">= 0.998"},
        fill_of_one_budget,
    ),
    Row(
        "fill_two_budgets",
        "131,072 documents of lognormal text (mean 298, sigma 0.9) with 0 to 4 images of 64 to 2304 patches, 4 of them "
        "a soft token",
        {"tokens bind: token fill": ">= 0.995", "patches bind: patch fill": ">= 0.995"},
        fill_of_two_budgets,
    ),
    Row("planning", f"10,000,000 examples: {MADE}", {"planned": ">= 1e6", "peak memory": "<= 1"}, planning),
    Row(
        "far_batch",
        f"10,000,000 examples: {MADE}; the plan's table cached on disk",
        {"process": "<= 2", "reads beyond the batch": "<= 0"},
        far_batch,
    ),
]

if __name__ == "__main__":
    main(*sys.argv[1:])
