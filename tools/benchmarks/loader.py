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
WIDE = (
    "--config.batch_size=2", "--config.data.jitter=0", "--config.decoder.width=384", "--config.decoder.heads=6",
    "--config.decoder.kv_heads=2", "--config.decoder.head_dim=64", "--config.decoder.mlp=1024",
    "--config.vision.width=192", "--config.vision.heads=6", "--config.vision.mlp=768",
)  # fmt: skip
WARM = 6  # steps before those that are timed: what was made ahead while nothing ran is used up


def step_base(settings: Settings) -> Measured:
    """The default config on the demo."""
    return compare([], settings)


def step_wide(settings: Settings) -> Measured:
    """A wider model on documents of several small JPEGs each, decoded in every pass."""
    data = small_images(Path(settings.folder), settings.count(400), settings.seed)
    return compare([f"--config.data.path={data}", "--config.seq_len=1024", *WIDE], settings)


def step_clips(settings: Settings) -> Measured:
    """The wider model, which also listens, on text, JPEGs, films and recordings, decoded in every pass."""
    data = mixed_media(Path(settings.folder), settings.count(200), settings.seed)
    tower = ["--config.audio.width=192", "--config.audio.heads=6", "--config.audio.mlp=768"]
    sizes = ["--config.video.max_frames=16", f"--config.video.max_pixels={16 * 16**2}"]
    return compare([f"--config.data.path={data}", "--config.seq_len=2048", *WIDE, *tower, *sizes], settings)


def small_images(folder: Path, documents: int, seed: int) -> Path:
    """Conversations of 1 to 4 pictures of 48 to 160 pixels a side, lognormal answers; returns the file."""
    rng = np.random.default_rng(seed)
    (folder / "pictures").mkdir()
    path = folder / "small.json"
    path.write_text(json.dumps([asked({"images": pictures(folder, f"{i}", int(rng.integers(1, 5)), rng)}, rng)
                                for i in range(documents)]))  # fmt: skip
    return path


def mixed_media(folder: Path, documents: int, seed: int) -> Path:
    """Conversations with 0 to 4 pictures, 0 or 1 film of 2 to 10 s and 0 to 2 recordings of 1 to 10 s; the file."""
    from benchmarks.clips import FRAME_RATE, GROUPS, SOUND_RATE, film, sound

    rng = np.random.default_rng(seed)
    for name in ("pictures", "films", "sounds"):
        (folder / name).mkdir()
    records = []
    for i in range(documents):
        media = {"images": pictures(folder, f"{i}", int(rng.integers(0, 5)), rng)}
        names = [f"films/{i}.mp4"] * int(rng.integers(0, 2))
        for name in names:
            film(folder / name, int(rng.integers(2, 11)) * FRAME_RATE, GROUPS[i % 2], rng, (144, 192))
        media["videos"] = names
        names = [f"sounds/{i}-{k}.{('wav', 'flac', 'mp3')[(i + k) % 3]}" for k in range(int(rng.integers(0, 3)))]
        for name in names:
            sound(folder / name, int(rng.uniform(1, 10) * SOUND_RATE), rng)
        media["audios"] = names
        records.append(asked(media, rng))
    path = folder / "mixed.json"
    path.write_text(json.dumps(records))
    return path


def pictures(folder: Path, name: str, count: int, rng: np.random.Generator) -> list[str]:
    """Writes JPEGs; returns their paths."""
    paths = [f"pictures/{name}-{k}.jpg" for k in range(count)]
    for path in paths:
        height, width = rng.integers(48, 161, 2).tolist()
        file = io.BytesIO()
        natural(height, width, rng).save(file, "JPEG")
        (folder / path).write_bytes(file.getvalue())
    return paths


def asked(media: dict[str, list[str]], rng: np.random.Generator) -> dict[str, Any]:
    """A record: all its media, a question, and an answer of random letters."""
    answer = bytes(rng.integers(97, 123, int(rng.lognormal(3.5, 0.6)) + 1, dtype=np.uint8)).decode()
    places = "".join(f"<{kind.removesuffix('s')}>" * len(paths) for kind, paths in media.items())
    messages = [
        {"role": "user", "content": places + "What is to be seen and heard?"},
        {"role": "assistant", "content": answer},
    ]
    return {"messages": messages} | media


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
    Row(
        "step_clips",
        "conversations with 0 to 4 such JPEGs, 0 or 1 film of 192 x 144 and 2 to 10 s, 0 to 2 recordings of 1 to 10 s "
        "in WAV, FLAC or MP3; width 384, towers 192, rows of 2,048 tokens",
        {"loader / cached": "<= 1.05"},
        step_clips,
        ("av", "soundfile", "soxr"),
    ),
]
