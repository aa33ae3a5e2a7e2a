"""Kills of runs with near checkpoints, of one process and of two nodes: only the steps since the newest are lost."""

from __future__ import annotations

import random
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from faulting.bench import LIMIT, STEPS, Bench
from faulting.jobs import Own, named, started, wrong
from faulting.kills import KILLS, NEVER
from faulting.moments import Moment, of_train
from faulting.trial import Trial, judged
from jaxmm.atomic import read_json

NEAR = "--config.checkpoint.near_every=1"


def train(bench: Bench, rng: random.Random) -> Iterator[Trial]:
    """A life of one process or of two nodes: killed, a node lost or a bit flipped, and at last left alone."""
    nodes = rng.choice((1, 2))
    place, cache = bench.place(), bench.place("cache")
    workdir = place / "run"
    arguments = (NEAR, f"--config.data.cache={cache}", f"--workdir={workdir}")

    def own(number: int) -> Own:
        return Own((f"--config.checkpoint.near_dir={place / f'node{number}'}",))

    moments = []
    newest = 0
    for _ in range(KILLS):
        moment = _moment(rng, workdir, place, cache)
        with started(bench, nodes, arguments, own) as processes:
            is_killed = moment.wait(processes[0], LIMIT * bench.slack)
            for process in rng.sample(processes, nodes) if is_killed else ():
                process.kill()
                time.sleep(rng.uniform(0, 0.3))
        if is_killed:
            moments.append(moment.what + _damage(rng, place, nodes))
        newest = _newest(workdir, place, nodes)
    with started(bench, nodes, arguments, own) as processes:
        every = [process.ended(LIMIT * bench.slack) for process in processes]
    verdict, told = judged(every[0], lambda: wrong(bench, nodes, workdir, every, newest))
    for what in moments or [NEVER]:
        yield Trial("", f"train on {named(nodes)} killed {what}", verdict, told)


def _moment(rng: random.Random, workdir: Path, place: Path, cache: Path) -> Moment:
    """Any moment of a run, that of a near save most of all."""
    if rng.random() < 0.4:
        return of_train(rng, workdir, cache)
    step, half = rng.randrange(2, STEPS), rng.random() < 0.5
    if half:
        return Moment(f"as it saves near step {step}", lambda: any(place.glob(f"node*/*/.{step}.*")), 0)
    return Moment(
        f"once near step {step} is saved", lambda: any(place.glob(f"node*/*/{step}.*")), rng.uniform(0, 0.1)
    )  # fmt: skip


def _damage(rng: random.Random, place: Path, nodes: int) -> str:
    """What becomes of a node meanwhile; of one at most, as the others have what it had."""
    node = place / f"node{rng.randrange(nodes)}"
    if rng.random() < 0.3:
        shutil.rmtree(node, ignore_errors=True)
        return f", {node.name} lost"
    files = [path for path in sorted(node.glob("*/[0-9]*/*")) if path.stat().st_size]
    if not files or rng.random() < 0.5:
        return ""
    newest = max(int(path.parent.name.partition(".")[0]) for path in files)
    path = rng.choice([path for path in files if path.parent.name.startswith(f"{newest}.")])
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return f", a bit of {path.name} on {node.name} flipped"


def _newest(workdir: Path, place: Path, nodes: int) -> int:
    """The step that a start must go on from, at least: that of a shared checkpoint, or of a part that is undamaged."""
    run = read_json(workdir / "near.json").get("run")
    steps = [int(path.parent.name) for path in workdir.glob("checkpoints/[0-9]*/checksums.json")
             if path.parent.name.isdigit()]  # fmt: skip
    if not steps:
        return 0
    for folder in place.glob("node*/*/[0-9]*"):
        if _is_intact(folder) and read_json(folder / "part.json")["head"]["run"] == run:
            steps.append(int(folder.name.partition(".")[0]))
    return max(steps)


def _is_intact(folder: Path) -> bool:
    entries = read_json(folder / "checksums.json").get("files", {})
    return bool(entries) and all(
        (folder / name).is_file() and zlib.crc32((folder / name).read_bytes()) == crc32
        for name, (_, crc32) in entries.items()
    )
