"""Kills of a job on Ray: of its processes, of Ray's workers, and of whole machines, which may come back or not.

The cluster is real, though its machines are sets of processes on this one. What is left must go on by itself to the
losses of a run that nothing interrupted. Half of the runs have their workdir in a store, of which each machine has its
own copy.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from faulting.bench import Bench, metrics
from faulting.process import TICK, Process, working_folder
from faulting.trial import Trial, judged
from jaxmm.atomic import read_lines

STEPS, EVERY = 1200, 40  # of a run, and between two of its saves
KILLS = 4  # of a life, where it does not end before
TRIES = 3
LIMIT = 240.0  # seconds from a kill to the next process
CLOSE = 1e-3  # of the largest loss: sums of one device and of two differ by roundings, which grow from step to step


class Job(NamedTuple):
    """A process of the job and Ray's worker that keeps it, by their numbers."""

    process: int
    worker: int


class Cluster:
    """A Ray cluster of two machines with a CPU each, and a head without one; a context manager."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self._machines = bench, list[Process]()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        temporary = bench.place("ray")
        self.environment = bench.environment | {
            "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(temporary), "RAY_DEDUP_LOGS": "0",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
        }  # fmt: skip

    def __enter__(self) -> Cluster:
        self.start("--head", f"--port={self.address.rpartition(':')[2]}", "--num-cpus=0")
        for _ in range(2):
            self.add()
        return self

    def __exit__(self, *_: object) -> None:
        for machine in reversed(self._machines):
            machine.kill()

    def start(self, *argv: str) -> None:
        """Starts a machine, one after the other: those that start at once take each other's names."""
        folder = self._bench.place()
        script = "from ray.scripts.scripts import main; main()"
        argv = ("-c", script, "start", *argv, "--block", "--disable-usage-stats")
        environment = self.environment | {"JAXMM_SPOOL": str(folder / "spool")}
        for _ in range(TRIES):
            machine = Process(argv, folder / "said.txt", environment, working_folder(folder))
            end = time.monotonic() + LIMIT
            while machine.is_running() and time.monotonic() < end:
                if "Ray runtime started" in machine.said():
                    self._machines.append(machine)
                    return
                time.sleep(10 * TICK)
            machine.kill()
        raise RuntimeError(f"Ray does not start a machine:\n{machine.said()}")

    def add(self) -> None:
        self.start(f"--address={self.address}", "--num-cpus=1")

    def kill(self, number: int) -> None:
        """Kills a machine with all that runs on it; 0 and on, the head is none of them."""
        machine = self._machines.pop(1 + number)
        family = [machine.pid, *descendants(machine.pid)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        machine.kill()

    def machines(self) -> int:
        return len(self._machines) - 1

    def train(self, *argv: str) -> Process:
        folder = self._bench.place()
        environment = self.environment | {"RAY_ADDRESS": self.address}
        return Process(("-m", "jaxmm.train_on_ray", *argv), folder / "said.txt", environment, working_folder(folder))


def trials(bench: Bench, rng: random.Random) -> Iterator[Trial]:
    """A life on a cluster: something of it is killed, again and again, and Ray alone starts it again."""
    more = (
        "--config.mesh.data=1",
        "--config.mesh.fsdp=-1",
        f"--config.steps={STEPS}",
        f"--config.checkpoint.every={EVERY}",
    )
    whole = bench.folder / "ray-whole" / "run"
    if not whole.exists():
        ended = bench.train(whole, *more)
        if ended.status:
            raise RuntimeError(f"a run without a fault failed:\n{ended.output}")
    workdir, killed = bench.place() / "run", []
    named = rng.choice(("", "file://")) + str(workdir)  # a store of files has the names of a folder
    with Cluster(bench) as cluster, cluster.train(
        *bench.train_arguments(named, *more), "--workers=1:2", "--failures=-1"
    ) as driver:  # fmt: skip
        jobs: set[Job] = set()
        for _ in range(KILLS):
            if not (jobs := fresh(workdir, jobs, driver)) or not moment(rng, workdir, driver):
                break
            jobs = jobs_of(workdir) or jobs
            step, began = last_step(workdir), time.monotonic()
            what = kill(rng, cluster, jobs)
            if alive(jobs):
                killed.append(f"{what}, with nothing of it, killed after step {step}")
                continue
            count = len(fresh(workdir, jobs, driver))
            killed.append(
                f"{what} killed after step {step}, started again after {time.monotonic() - began:.0f} s on {count}"
            )
        ended = driver.ended(2 * LIMIT * bench.slack)
    verdict, told = judged(ended._replace(output=ours(ended.output)), lambda: differs(workdir, whole))
    where = " (in a store)" if named != str(workdir) else ""
    for what in killed or ["nothing was killed, as it ended before"]:
        yield Trial("", what + where, verdict, told)


def moment(rng: random.Random, workdir: Path, driver: Process) -> bool:
    """Waits for a moment to kill: in a start, or after a step. False where the driver ended before."""
    if rng.random() < 1 / 3:
        time.sleep(rng.uniform(0, 8))
    else:
        step, end = last_step(workdir), time.monotonic() + LIMIT
        while driver.is_running() and last_step(workdir) <= step and time.monotonic() < end:
            time.sleep(10 * TICK)
        time.sleep(rng.uniform(0, 3))
    return driver.is_running()


def kill(rng: random.Random, cluster: Cluster, jobs: set[Job]) -> str:
    """Kills something of the job, and says what."""
    what = rng.choice(("a process", "a worker", "a machine", "a machine for good"))
    if what.startswith("a machine") and (what == "a machine" or cluster.machines() > 1):
        cluster.kill(rng.randrange(cluster.machines()))
        if what == "a machine":
            cluster.add()
        return what
    victim = rng.choice(sorted(jobs))
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim.worker if what == "a worker" else victim.process, signal.SIGKILL)
    return what if what == "a worker" else "a process"


def alive(jobs: set[Job]) -> bool:
    """Whether all of them live, a little later."""
    time.sleep(2)
    there = {pid for pid, _, words in processes() if words[0]}
    return all(job.process in there for job in jobs)


def ours(output: str) -> str:
    """What the command itself said: Ray tells of each death with a traceback of its own."""
    return "\n".join(line for line in output.splitlines() if "(Train" not in line and "(RayTrainWorker" not in line)


def differs(workdir: Path, whole: Path) -> str:
    """In what the run differs from one that nothing interrupted, or ''."""
    (lines, broken), (right, _) = metrics(workdir), metrics(whole)
    if broken or list(lines) != list(right):
        return f"metrics.jsonl has {broken} broken lines, and steps {list(lines)}"
    other = [a["step"] for a, b in zip(logged(workdir), logged(whole), strict=True) if rows(a) != rows(b)]
    if other:
        return f"other rows than an undisturbed run's from step {other[0]} on"
    worst = max(abs(lines[step] - right[step]) for step in right) / max(right.values())
    return f"losses differ by {worst:.1e}" if worst > CLOSE else ""


def logged(workdir: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(workdir / "metrics.jsonl") if "loss" in line]


def rows(line: dict[str, Any]) -> list[object]:
    """What tells of a step's rows, to the token."""
    targets = {name: each["targets"] for name, each in line["sources"].items()}
    return [line[name] for name in ("step", "examples_seen", "examples_skipped", "token_fill", "patch_fill")] + [
        targets
    ]


def fresh(workdir: Path, before: set[Job], driver: Process) -> set[Job]:
    """Waits for processes of the job that were not there before; none where the driver ended."""
    end = time.monotonic() + LIMIT
    while driver.is_running() and time.monotonic() < end:
        if (jobs := jobs_of(workdir)) and not jobs & before:
            time.sleep(0.5)  # the others of its start
            return jobs_of(workdir)
        time.sleep(10 * TICK)
    return set()


def jobs_of(workdir: Path) -> set[Job]:
    """The processes of the run in this workdir that Ray's workers keep."""
    running = set()
    for pid, parent, words in processes():
        if "jaxmm.train" in words and {f"--workdir={workdir}", f"--workdir=file://{workdir}"} & set(words):
            running.add(Job(pid, parent))
    return running


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for child, parent, _ in processes():
        children.setdefault(parent, []).append(child)
    below, rest = list[int](), [pid]
    while rest:
        rest += (new := children.get(rest.pop(), []))
        below += new
    return below


def processes() -> Iterator[tuple[int, int, list[str]]]:
    """Number, parent and words of each process of the machine."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                yield int(folder.name), int((folder / "stat").read_text().rpartition(")")[2].split()[1]), words


def last_step(workdir: Path) -> int:
    return max((int(step) for step in metrics(workdir)[0] if step.isdigit()), default=0)
