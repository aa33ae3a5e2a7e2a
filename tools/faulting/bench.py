"""Where the trials of ``tools/faults.py`` run: a folder with a small dataset, a run that nothing interrupted, and ways
to start commands.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import PIL.Image
import tensorstore

from faulting.process import ROOT, Process, environment, working_folder
from faulting.trial import Ended
from faulting.worker import Worker

STEPS, SAVED = 9, (3, 6, 9)
DOCUMENTS = 24
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 80, 220)}
SMALL = (
    "--config.batch_size=2", "--config.seq_len=96", "--config.mesh.data=1", "--config.mesh.fsdp=1",
    "--config.image.min_pixels=256", "--config.image.max_pixels=1024",
    "--config.vision.width=16", "--config.vision.layers=1", "--config.vision.heads=2", "--config.vision.mlp=32",
    "--config.connector.mlp=32", "--config.decoder.width=32", "--config.decoder.layers=1", "--config.decoder.heads=2",
    "--config.decoder.head_dim=16", "--config.decoder.mlp=64", "--config.optimizer.name=adamw",
    "--config.optimizer.warmup=2", "--config.log.every=1", "--config.log.tensorboard=False", "--config.eval.every=0",
    f"--config.steps={STEPS}", f"--config.checkpoint.every={SAVED[0]}", f"--config.checkpoint.keep={len(SAVED)}",
)  # fmt: skip
LIMIT = 90.0  # seconds of a process, many times what it takes


class Bench:
    """A folder and what trials share in it; a context manager.

    Attributes:
      data: a file of ``DOCUMENTS`` questions about pictures beside it.
      slack: multiplies all limits.
    """

    def __init__(self, folder: Path, slack: float = 1.0) -> None:
        self.folder, self.slack = folder, slack
        self.environment = environment(folder)
        self._places = itertools.count()
        self.data = make_data(self.place("data"))

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        if "worker" in self.__dict__:
            self.worker.__exit__()

    @functools.cached_property
    def worker(self) -> Worker:
        return Worker(self.folder, self.environment)

    def place(self, name: str = "trial") -> Path:
        """A new folder."""
        folder = self.folder / f"{name}-{next(self._places)}"
        folder.mkdir(parents=True)
        return folder

    def clear(self) -> None:
        """Deletes what a trial left."""
        for folder in self.folder.glob("trial-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def copied(self, folder: Path) -> Path:
        return Path(shutil.copytree(folder, self.place() / folder.name, symlinks=True))

    def start(self, *argv: str) -> Process:
        """A command, as a user starts it."""
        folder = self.place()
        return Process(argv, folder / "said.txt", self.environment, working_folder(folder))

    def run(self, module: str, argv: Sequence[str], limit: float = LIMIT, file_bytes: int = 0) -> Ended:
        """A command in a fork of the worker."""
        return self.worker.run(module, argv, limit * self.slack, file_bytes)

    def train(self, workdir: Path, *more: str, limit: float = LIMIT, file_bytes: int = 0) -> Ended:
        return self.run("jaxmm.train", self.train_arguments(workdir, *more), limit, file_bytes)

    def train_arguments(self, workdir: Path | str, *more: str) -> list[str]:
        """Of the run that ``whole`` is. What ``more`` gives counts."""
        return once([
            f"--config={ROOT / 'configs/base.py'}", *SMALL, f"--config.data.path={self.data}",
            f"--config.data.cache={self.folder / 'cache'}", f"--workdir={workdir}", *more,
        ])  # fmt: skip

    @functools.cached_property
    def whole(self) -> Path:
        """The workdir of a run that nothing interrupted."""
        workdir = self.place("whole") / "run"
        ended = self.train(workdir, limit=5 * LIMIT)
        if ended.status:
            raise RuntimeError(f"a run without a fault failed:\n{ended.output}")
        return workdir

    @functools.cached_property
    def _arrays(self) -> dict[str, str]:
        return arrays(self.whole / "checkpoints" / str(STEPS))

    def wrong_run(self, workdir: Path) -> str:
        """In what a run differs from ``whole``, or ''."""
        steps, broken = metrics(workdir)
        if broken:
            return f"metrics.jsonl has {broken} lines that are no metrics"
        if list(steps) != list(metrics(self.whole)[0]):
            return f"metrics.jsonl has steps {list(steps)}"
        if not (workdir / "summary.json").exists():
            return "there is no summary.json"
        arrays_now = arrays(workdir / "checkpoints" / str(STEPS))
        other = [name for name in self._arrays if arrays_now.get(name) != self._arrays[name]]
        return f"{len(other)} of {len(self._arrays)} arrays differ: {other[0]}" if other else ""


def once(argv: Sequence[str]) -> list[str]:
    """The arguments, of each flag the last one."""
    return list({word.partition("=")[0]: word for word in argv}.values())


def make_data(folder: Path, documents: int = DOCUMENTS) -> Path:
    """Pictures of one colour with one-word answers."""
    names = list(COLOURS)
    records = []
    for number in range(documents):
        name = names[number % len(names)]
        PIL.Image.new("RGB", (32, 24), COLOURS[name]).save(folder / f"{number}.png")
        records.append(record(f"{number}.png", number, name))
    file = folder / "colours.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in records))
    return file


def record(image: str, number: int, answer: str) -> dict[str, object]:
    turns = [{"role": "user", "content": f"<image>Colour {number}?"}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "images": [image]}


def metrics(workdir: Path) -> tuple[dict[str, float], int]:
    """The losses by step, in the order of the file (a step that comes again is "4 again"), and the broken lines."""
    losses: dict[str, float] = {}
    broken = 0
    file = workdir / "metrics.jsonl"
    for line in file.read_text(errors="replace").splitlines() if file.exists() else ():
        try:
            one = json.loads(line)
            step = str(one["step"])
        except (ValueError, LookupError, TypeError):
            broken += 1
            continue
        if "loss" in one:
            losses[step if step not in losses else f"{step} again"] = one["loss"]
    return losses, broken


def arrays(checkpoint: Path) -> dict[str, str]:
    """A hash of each array of a checkpoint, by name; none where there is no checkpoint."""
    state = checkpoint / "state"
    if not state.is_dir():
        return {}
    base = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{state}/"}}
    keys = [key.decode() for key in tensorstore.KvStore.open(base).result().list().result()]
    checksums = {}
    for name in sorted(key.removesuffix("/.zarray") for key in keys if key.endswith("/.zarray")):
        store = tensorstore.open({"driver": "zarr", "kvstore": {**base, "path": f"{name}/"}}).result()
        array = store.read().result()
        checksums[name] = hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()
    return checksums


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
