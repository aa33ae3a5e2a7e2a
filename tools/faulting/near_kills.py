"""Kills of runs with near checkpoints, of one process and of two nodes: only the steps since the newest are lost."""

from __future__ import annotations

import contextlib
import functools
import random
import shutil
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from faulting.bench import LIMIT, STEPS, Bench, arrays, metrics
from faulting.kills import KILLS, NEVER
from faulting.moments import Moment, of_train
from faulting.process import Process, working_folder
from faulting.trial import Ended, Trial, judged
from jaxmm.atomic import read_json

NEAR = ("--config.checkpoint.near_every=1",)
TWO = ("--config.mesh.data=2",)  # each process holds the whole state, on its own row of a batch


def train(bench: Bench, rng: random.Random) -> Iterator[Trial]:
    """A life of one process or of two nodes: killed, a node lost or a bit flipped, and at last left alone."""
    nodes = rng.choice((1, 2))
    place, cache = bench.place(), bench.place("cache")
    workdir = place / "run"
    start = functools.partial(_start, bench, nodes, place, cache)
    moments = []
    newest = 0
    for _ in range(KILLS):
        moment = _moment(rng, workdir, place, cache)
        with start(workdir) as processes:
            is_killed = moment.wait(processes[0], LIMIT * bench.slack)
            for process in rng.sample(processes, nodes) if is_killed else ():
                process.kill()
                time.sleep(rng.uniform(0, 0.3))
        if is_killed:
            moments.append(moment.what + _damage(rng, place, nodes))
        newest = _newest(workdir, place, nodes)
    with start(workdir) as processes:
        every = [process.ended(LIMIT * bench.slack) for process in processes]
    verdict, told = judged(every[0], lambda: _wrong(bench, nodes, workdir, every[0], newest))
    for what in moments or [NEVER]:
        yield Trial("", f"train on {nodes} node{'s' * (nodes > 1)} killed {what}", verdict, told)


@contextlib.contextmanager
def _start(bench: Bench, nodes: int, place: Path, cache: Path, workdir: Path) -> Iterator[list[Process]]:
    """The run on so many nodes, each a process with a folder of its own."""
    flags = [*NEAR, f"--config.data.cache={cache}", *(TWO if nodes > 1 else ())]
    job = {"JAX_COORDINATOR_ADDRESS": f"localhost:{_free_port()}", "JAX_NUM_PROCESSES": str(nodes)}
    with contextlib.ExitStack() as stack:
        processes = []
        for number in range(nodes):
            near = f"--config.checkpoint.near_dir={place / f'node{number}'}"
            more = {**job, "JAX_PROCESS_ID": str(number)} if nodes > 1 else {}
            one_device = {"XLA_FLAGS": f"{bench.environment['XLA_FLAGS']} --xla_force_host_platform_device_count=1"}
            out = bench.place()
            argv = ["-m", "jaxmm.train", *bench.train_arguments(workdir, *flags, near)]
            environment = bench.environment | (one_device if nodes > 1 else {}) | more
            processes.append(stack.enter_context(Process(argv, out / "said.txt", environment, working_folder(out))))
        yield processes


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


def _wrong(bench: Bench, nodes: int, workdir: Path, ended: Ended, newest: int) -> str:
    """In what the run differs from one that nothing interrupted, or what it has done again, or ''."""
    said = [int(line.split("going on at step ")[1].split()[0]) for line in ended.output.splitlines()
            if "going on at step " in line]  # fmt: skip
    if newest and newest < STEPS and (not said or said[0] <= newest):
        return f"step {newest} was saved, and it went on at {said}"
    if nodes == 1:
        return bench.wrong_run(workdir)
    whole = _whole(bench, nodes)
    if list(metrics(workdir)[0]) != list(metrics(whole)[0]):
        return f"metrics.jsonl has steps {list(metrics(workdir)[0])}"
    found, wanted = (arrays(folder / "checkpoints" / str(STEPS)) for folder in (workdir, whole))
    other = [name for name in wanted if found.get(name) != wanted[name]]
    return f"{len(other)} of {len(wanted)} arrays differ: {other[0]}" if other else ""


def _whole(bench: Bench, nodes: int) -> Path:
    """The workdir of a job of so many processes that nothing interrupted."""
    place = bench.folder / f"whole-{nodes}"
    if not place.exists():
        with _start(bench, nodes, place, bench.place("cache"), place / "run") as processes:
            every = [process.ended(2 * LIMIT * bench.slack) for process in processes]
        if any(ended.status for ended in every):
            raise RuntimeError(f"a run without a fault failed:\n{every[0].output}")
    return place / "run"


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return int(one.getsockname()[1])
