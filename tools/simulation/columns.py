"""Prepared folders of any number of examples, with the columns that plans are made from and no records."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from jaxmm.batch import ANSWER, TARGET
from jaxmm.data.prepare import meta as metadata
from jaxmm.data.prepare.index import COLUMNS, IMPLIED
from jaxmm.data.prepare.prepared import Prepared, file_checksum

TEXT, SIGMA = 298, 0.8  # tokens of a document: the mean, and the spread of their logarithm; lognormal
LONGEST = 1 << 15
SIDE = 128, 1280  # pixels of a side of an image, drawn evenly
PART = 1 << 20  # examples drawn at a time


class Columned(Prepared):
    """A folder of ``write``: opened and checked as any other, but for its shards, of which there are none."""

    def _check_shard(self, shard: dict[str, object]) -> None:
        """The record of a shard stands in meta.json alone."""


def write(folder: Path, examples: int, shard_examples: int, seed: int) -> None:
    """Writes a folder: a prompt and an answer each, every second example with an image; nothing where it is there."""
    if (folder / metadata.NAME).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    images = examples // 2
    sizes = {"E": examples, "R": 2 * examples, "I": images, "E1": examples + 1}
    names = [name for name in COLUMNS if name not in IMPLIED or name == "run_weight_R"]
    columns = {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=COLUMNS[name], shape=(sizes[name.rpartition("_")[2]],)
        )
        for name in names
    }
    tokens = 0
    for start in range(0, examples, PART):
        stop = min(start + PART, examples)
        rng = np.random.default_rng((seed, start))
        length = np.clip(rng.lognormal(np.log(TEXT) - SIGMA**2 / 2, SIGMA, stop - start), 2, LONGEST).astype(np.int32)
        tokens += int(length.sum(dtype=np.int64))
        here, runs, media = slice(start, stop), slice(2 * start, 2 * stop), slice(start // 2, stop // 2)
        columns["tokens_E"][here] = length
        columns["runs_E1"][start : stop + 1] = 2 * np.arange(start, stop + 1)
        columns["images_E1"][start : stop + 1] = np.arange(start, stop + 1) // 2
        columns["run_start_R"][runs] = np.stack([np.zeros_like(length), length // 2], 1).ravel()
        columns["run_flags_R"][runs] = np.tile(np.array([0, TARGET | ANSWER], np.uint8), stop - start)
        columns["run_weight_R"][runs] = 1
        columns["image_at_I"][media] = 1
        for name in ("image_height_I", "image_width_I"):
            columns[name][media] = rng.integers(*SIDE, media.stop - media.start)
    for column in columns.values():
        column.flush()
    shards = [
        {"file": f"shard-{i:05d}.array_record", "records": min(shard_examples, examples - at), "bytes": 0}
        for i, at in enumerate(range(0, examples, shard_examples))
    ]
    files = {name: folder / f"{name}.npy" for name in names}
    meta = {
        "format": metadata.FORMAT, "name": folder.name, "fingerprint": f"{examples:08x}{seed:08x}", "template": "made",
        "examples": examples, "tokens": tokens, "images": images, "feature_widths": [], "labels": [], "shards": shards,
        "skipped": 0,
        "columns": {n: {"bytes": f.stat().st_size, "crc32": file_checksum(f)} for n, f in files.items()},
    }  # fmt: skip
    (folder / metadata.NAME).write_text(json.dumps(metadata.sealed(meta)))
