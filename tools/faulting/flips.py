"""Flipped bits, cuts and lost files in checkpoints and in prepared data: found by checksum, and never trained on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from faulting.bench import STEPS, Bench
from faulting.damage import cut, flipped
from faulting.trial import Trial, judged


def checkpoints(bench: Bench, rng: random.Random) -> Iterator[Trial]:
    """The newest checkpoint of a finished run is damaged: the one before must be gone on with, to the same bits."""
    workdir = bench.copied(bench.whole)
    what = _damage(rng, workdir / "checkpoints" / str(STEPS))
    if rng.random() < 0.25:
        ended = bench.run("jaxmm.export", [f"--workdir={workdir}", f"--output={workdir}/exported"])
        verdict, told = judged(ended, lambda: "" if "ignoring" in ended.output else "exported without a word")
        yield Trial("", f"checkpoint, exported: {what}", verdict, told)
        return
    (workdir / "summary.json").unlink()  # a run that goes on writes it anew
    verdict, told = judged(bench.train(workdir), lambda: bench.wrong_run(workdir))
    yield Trial("", f"checkpoint: {what}", verdict, told)


def prepared(bench: Bench, rng: random.Random) -> Iterator[Trial]:
    """Prepared data is damaged: the run ends with the same bits, or in a line."""
    if not any((bench.folder / "prepared").glob("*")):
        ended = bench.run("jaxmm.prepare", [f"--input={bench.data}", f"--output={bench.folder / 'prepared'}"])
        if ended.status:
            raise RuntimeError(f"a preparation without a fault failed:\n{ended.output}")
    data = bench.copied(bench.folder / "prepared")
    (folder,) = data.iterdir()
    what, workdir = _damage(rng, folder), bench.place() / "run"
    ended = bench.train(workdir, f"--config.data.path={data}")
    verdict, told = judged(ended, lambda: bench.wrong_run(workdir))
    yield Trial("", f"prepared: {what}", verdict, told)


def _damage(rng: random.Random, folder: Path) -> str:
    """Damages one file of the folder: every second time one of its largest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    (file,) = rng.choices(files, sizes) if rng.random() < 0.5 else (rng.choice(files),)
    kind = rng.choice(("flip", "flip", "flip", "cut", "lost"))
    name = file.relative_to(folder)
    if kind == "lost":
        file.unlink()
        return f"{name} deleted"
    what, data = (flipped if kind == "flip" or not file.stat().st_size else cut)(rng, file.read_bytes())
    file.write_bytes(data)
    return f"{name}, {what}"
