"""Jobs of one process or of several on this machine, each a node of its own with one device, and what they leave."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from faulting.bench import LIMIT, STEPS, Bench, arrays, metrics
from faulting.process import Process, working_folder
from faulting.trial import Ended

TWO = ("--config.mesh.data=2",)  # each process holds the whole state, on its own row of a batch


class Own(NamedTuple):
    """What one node has for itself: flags, and variables of its environment."""

    flags: tuple[str, ...] = ()
    variables: dict[str, str] = {}  # noqa: RUF012


@contextlib.contextmanager
def started(
    bench: Bench, nodes: int, arguments: Sequence[str], own: Callable[[int], Own] = lambda number: Own()
) -> Iterator[list[Process]]:
    """A run on so many nodes.

    Args:
      arguments: of ``train``, beside those of the bench.
    """
    job = {"JAX_COORDINATOR_ADDRESS": f"localhost:{_free_port()}", "JAX_NUM_PROCESSES": str(nodes)}
    one_device = {"XLA_FLAGS": f"{bench.environment['XLA_FLAGS']} --xla_force_host_platform_device_count=1"}
    with contextlib.ExitStack() as stack:
        processes = []
        for number in range(nodes):
            flags, variables = own(number)
            out = bench.place()
            argv = ["-m", "jaxmm.train", *bench.train_arguments("", *arguments, *(TWO if nodes > 1 else ()), *flags)]
            more = one_device | job | {"JAX_PROCESS_ID": str(number)} if nodes > 1 else {}
            environment = bench.environment | variables | more
            processes.append(stack.enter_context(Process(argv, out / "said.txt", environment, working_folder(out))))
        yield processes


def whole(bench: Bench, nodes: int) -> Path:
    """The workdir of a job of several processes that nothing interrupted."""
    place = bench.folder / f"whole-{nodes}"
    if not place.exists():
        arguments = (f"--workdir={place / 'run'}", f"--config.data.cache={bench.place('cache')}")
        with started(bench, nodes, arguments) as processes:
            every = [process.ended(2 * LIMIT * bench.slack) for process in processes]
        if any(ended.status for ended in every):
            raise RuntimeError(f"a run without a fault failed:\n{every[0].output}")
    return place / "run"


def wrong(bench: Bench, nodes: int, workdir: Path, every: Sequence[Ended], newest: int) -> str:
    """In what a run differs from one that nothing interrupted, or what it has done again, or ''.

    Args:
      every: the ends of its last processes.
      newest: the step that they must have gone on from, at least; 0 for none.
    """
    if failed := [number for number, ended in enumerate(every) if ended.status]:
        return f"process {failed[0]} ended with status {every[failed[0]].status}"
    said = [int(line.split("going on at step ")[1].split()[0]) for line in every[0].output.splitlines()
            if "going on at step " in line]  # fmt: skip
    if newest and newest < STEPS and (not said or said[0] <= newest):
        return f"step {newest} was saved, and it went on at {said}"
    if nodes == 1:
        return bench.wrong_run(workdir)
    undisturbed = whole(bench, nodes)
    if list(metrics(workdir)[0]) != list(metrics(undisturbed)[0]):
        return f"metrics.jsonl has steps {list(metrics(workdir)[0])}"
    found, wanted = (arrays(folder / "checkpoints" / str(STEPS)) for folder in (workdir, undisturbed))
    other = [name for name in wanted if found.get(name) != wanted[name]]
    return f"{len(other)} of {len(wanted)} arrays differ: {other[0]}" if other else ""


def named(nodes: int) -> str:
    return f"{nodes} node{'s' * (nodes > 1)}"


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return int(one.getsockname()[1])
