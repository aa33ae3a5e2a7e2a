"""Rows of the benchmark: a training step fed by the loader, against the same step on batches that lie on the device."""

from __future__ import annotations

import io
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks.row import Measured, Row, Settings
from jaxmm import command
from jaxmm.measure.pictures import natural
from jaxmm.measure.timing import Figure

ROOT = Path(__file__).resolve().parents[2]
CACHED = 8  # batches that lie on the device: one alone may be faster or slower than the mean
WARM = 6  # steps before those that are timed: what was made ahead while nothing ran is used up


def step_base(settings: Settings) -> Measured:
    """The default config on the demo."""
    return compare([], settings)


def step_wide(settings: Settings) -> Measured:
    """A wider model on documents of several small JPEGs each, decoded in every pass."""
    data = small_images(Path(settings.folder), settings.count(400), settings.seed)
    return compare(
        [
            f"--config.data.path={data}", "--config.batch_size=2", "--config.seq_len=1024", "--config.data.jitter=0",
            "--config.decoder.width=384", "--config.decoder.heads=6", "--config.decoder.kv_heads=2",
            "--config.decoder.head_dim=64", "--config.decoder.mlp=1024", "--config.vision.width=192",
            "--config.vision.heads=6", "--config.vision.mlp=768",
        ],
        settings,
    )  # fmt: skip


def small_images(folder: Path, documents: int, seed: int) -> Path:
    """Conversations of 1 to 4 pictures of 48 to 160 pixels a side, lognormal answers; returns the file."""
    rng = np.random.default_rng(seed)
    pictures = folder / "pictures"
    pictures.mkdir()
    records = []
    for i in range(documents):
        count = int(rng.integers(1, 5))
        for k in range(count):
            height, width = rng.integers(48, 161, 2).tolist()
            file = io.BytesIO()
            natural(height, width, rng).save(file, "JPEG")
            (pictures / f"{i}-{k}.jpg").write_bytes(file.getvalue())
        answer = bytes(rng.integers(97, 123, int(rng.lognormal(3.5, 0.6)) + 1, dtype=np.uint8)).decode()
        messages = [
            {"role": "user", "content": "<image>" * count + "What is to be seen?"},
            {"role": "assistant", "content": answer},
        ]
        records.append({"messages": messages, "images": [f"pictures/{i}-{k}.jpg" for k in range(count)]})
    path = folder / "small.json"
    path.write_text(json.dumps(records))
    return path


def compare(changes: list[str], settings: Settings) -> Measured:
    """Seconds a step, as ``train`` runs it, from the loader and from the device, in turns."""
    from jaxmm.runtime import startup

    cache = Path(settings.folder) / "cache"
    config = command.parse(
        [f"--config={ROOT / 'configs/base.py'}", f"--config.data.cache={cache}", "--config.eval.examples=8", *changes],
        {},
    ).config
    startup.split_cpu(config.mesh, config.batch_size)
    bench = Bench(config, Path(settings.folder) / "run")
    steps, warm = settings.count(12), settings.count(WARM)
    seconds: dict[str, list[float]] = {"loader": [], "cached": []}
    for _ in range(settings.repeats):
        for name in seconds:
            seconds[name].append(bench.seconds(name, steps, warm))
    ratio = [a / b for a, b in zip(seconds["loader"], seconds["cached"], strict=True)]
    return Measured(
        {
            "loader / cached": Figure(ratio, ""),
            "loader": Figure([1000 * s for s in seconds["loader"]], "ms"),
            "cached": Figure([1000 * s for s in seconds["cached"]], "ms"),
            "batch made, one thread": Figure([1000 * s for s in bench.making(settings.repeats)], "ms"),
        },
        [bench.told()],
    )


class Bench:
    """A run that is only stepped."""

    def __init__(self, config: ConfigDict, workdir: Path):
        import jax

        from jaxmm import sharding
        from jaxmm.runtime.jax_internals import step_options
        from jaxmm.training.run import Run

        self.config = config
        self.run = Run(config, workdir)
        self.assemble = self.run.assemble
        self.place = lambda batch: sharding.place_batch(batch, self.run.mesh)
        with jax.set_mesh(self.run.mesh):
            self.state = self.run.initial_state()
            self.cached = [(None, self.place(self.assemble(self.run.plan.batch(k)).batch)) for k in range(CACHED)]
            lowered = self.run.program.jitted(self.run.mesh).lower(self.state, self.cached[0][1])
            self.compiled = lowered.compile(step_options())

    def source(self, name: str, steps: int) -> Iterator[tuple[Any, Any]]:
        from jaxmm.data.loader import batches
        from jaxmm.training.loop import prefetch

        if name == "cached":
            return itertools.cycle(self.cached)
        made = batches(
            self.run.plan, self.assemble, 0, steps, threads=self.config.data.threads, workers=self.config.data.workers
        )
        return prefetch(made, self.place)

    def seconds(self, name: str, steps: int, warm: int) -> float:
        """Seconds a step; like ``train``, it reads a step's metrics while the next one runs."""
        import jax

        with jax.set_mesh(self.run.mesh):
            # Twice as many as are taken, so that batches are made ahead to the end, as in a long run.
            source = self.source(name, 2 * (warm + steps))
            pending, began = None, 0.0
            for step in range(warm + steps):
                if step == warm:
                    jax.device_get(pending)
                    pending, began = None, time.perf_counter()
                _, batch = next(source)
                self.state, metrics = self.compiled(self.state, batch)
                if pending is not None:
                    jax.device_get(pending)
                pending = metrics
            jax.device_get(pending)
            return (time.perf_counter() - began) / steps

    def making(self, repeats: int) -> list[float]:
        """Seconds to plan and make a batch, with nothing beside it."""
        found = []
        for k in range(repeats):
            began = time.perf_counter()
            self.assemble(self.run.plan.batch(k))
            found.append(time.perf_counter() - began)
        return found

    def told(self) -> str:
        batches = [batch for _, batch in self.cached]
        documents = sum(int(np.asarray(b.text.segments).max(1).sum()) for b in batches) / CACHED
        images = sum(int((np.asarray(b.grids_BM3)[..., 0] > 0).sum()) for b in batches) / CACHED
        return (
            f"a batch of {self.config.batch_size} rows of {self.config.seq_len} tokens: {documents:.0f} documents, "
            f"{images:.0f} images"
        )


ROWS = [
    Row("step_base", "the demo, configs/base.py as it is", {"loader / cached": "<= 1.03"}, step_base),
    Row(
        "step_wide",
        "conversations with 1 to 4 JPEGs of 48 to 160 pixels a side, answers lognormal (mean 40 bytes, sigma 0.6); "
        "width 384, tower 192",
        {"loader / cached": "<= 1.03"},
        step_wide,
    ),
]
