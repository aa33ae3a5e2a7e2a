"""Trains a vision-language model end to end.

    python -m jaxmm.train --config=configs/base.py --workdir=runs/base --config.KEY=VALUE

If the workdir holds a checkpoint, the run goes on from it. Ctrl-C, SIGTERM and SIGHUP save first.
"""

from __future__ import annotations

if __name__ == "__main__":
    from jaxmm.runtime import startup

    startup.end_on_interrupt()
    startup.use_huge_pages()  # may start this process again, so before large imports
    startup.pause_collection()

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxmm import command
from jaxmm.checkpoints.agreement import check_config
from jaxmm.checkpoints.resume import as_it_was
from jaxmm.checkpoints.stored import Stored
from jaxmm.checks.required import BACKENDS, require_attention
from jaxmm.config.address import parse_address
from jaxmm.corpus import cache_folder
from jaxmm.errors import UserError
from jaxmm.runtime import startup
from jaxmm.runtime.barrier import Barrier
from jaxmm.training import loop, trackers
from jaxmm.training.closing import SUMMARY
from jaxmm.training.goodput import RunTime
from jaxmm.training.prometheus import Endpoint
from jaxmm.training.run import Run, writers_of
from jaxmm.workdir.folder import Claim
from jaxmm.workdir.spool import CHECKPOINTS, Mirror, Spool, name_of
from jaxmm.workdir.store_lock import StoreLock

FLAGS: command.Flags = {
    "workdir": (
        "",
        "folder of the run, on this machine or in a store (gs://BUCKET/FOLDER, s3://BUCKET/FOLDER); default: "
        "runs/<name of the config file>",
    ),
}


def main(argv: list[str], age: float = 0.0) -> int:
    """Trains; ``age``: seconds that the process has been there before, for the run's timeline."""
    run_time = RunTime(age)
    args = command.parse(argv, FLAGS, about=__doc__ or "")
    workdir = Path(args.workdir or f"runs/{args.config_name}")
    command.check_folder("--workdir", workdir)
    startup.join_processes()
    startup.keep_compiled(cache_folder(args.config))
    startup.split_cpu(args.config.mesh, args.config.batch_size // max(args.config.accumulation, 1))
    check_config(args.config)  # asks JAX which process this is, after which it cannot be split
    check_writers(args.config)
    spool = Spool.of(workdir)
    if spool and jax.process_index():
        spool = spool.for_process(jax.process_index())
        workdir = spool.folder
    with claimed(workdir), served(args.config, workdir) as endpoint:
        if spool and jax.process_index():
            spool.empty()
            spool.fetch()
        args.config = as_it_was(args.config, workdir)
        run = Run(args.config, workdir, args.config_name, compile_ahead=True)
        has_closed = Barrier("summary").largest(int((workdir / SUMMARY).exists()), "the end of a run that is done")
        if run.start >= run.steps and not has_closed:
            print(f"{name_of(workdir)}: all steps are done, and the run was ended before it was closed: closing it now")
        elif run.start >= run.steps:
            key = "config.steps" if run.steps == args.config.steps else "config.epochs or data.max_epochs"
            print(
                f"{name_of(workdir)} is finished: {run.start} of {run.steps} steps are done. "
                f"To go on, raise {key}; to start anew, give another --workdir."
            )
            if run.near and not run.is_from_near:
                run.near.clear(run.start)  # what a kill after the last save has left
            return 0
        check_attention(run)
        return loop.train(run, run_time, endpoint)


def check_attention(run: Run) -> None:
    """Ends all processes of a job with a line where a backend that must be proven is not right on one of them."""
    backend = run.recipe.compute.attention
    if backend in BACKENDS:
        run.say(f"attention by '{backend}': looking whether it is right on this machine")
    with Barrier("attention").agreed("config.compute.attention"):
        if line := require_attention(backend, run.recipe.compute.dtype, run.say):
            run.say(line)


def check_writers(config: ConfigDict) -> None:
    """Ends all processes of a job with a line where the first, which logs, cannot write to a tracker."""
    with Barrier("writers").agreed("the trackers of config.log.writers"):
        if jax.process_index() == 0:
            trackers.check(writers_of(config))


@contextlib.contextmanager
def served(config: ConfigDict, workdir: Path) -> Iterator[Endpoint | None]:
    """Serves the figures of process 0, which logs, to Prometheus, if asked to; if it cannot, all processes end."""
    with contextlib.ExitStack() as stack:
        endpoint = None
        with Barrier("prometheus").agreed("config.log.prometheus"):
            if config.log.prometheus and jax.process_index() == 0:
                address = parse_address(config.log.prometheus, "config.log.prometheus")
                endpoint = stack.enter_context(
                    contextlib.closing(Endpoint(*address, name_of(workdir.resolve()).rpartition("/")[2]))
                )
                print(f"figures for Prometheus: {endpoint.url}", file=sys.stderr)
        yield endpoint


@contextlib.contextmanager
def claimed(workdir: Path) -> Iterator[None]:
    """Holds the workdir, by process 0 of the job; if it cannot, all end."""
    refused: UserError | None = None
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            try:
                stack.enter_context(Claim(workdir))
                if spool := Spool.of(workdir):
                    stack.enter_context(_kept_in_store(spool))
            except UserError as error:
                refused = error
        if Barrier("workdir").largest(int(refused is not None), "the workdir"):
            raise refused or UserError(f"process 0 cannot train in {name_of(workdir)}: its log says why")
        yield


@contextlib.contextmanager
def _kept_in_store(spool: Spool) -> Iterator[None]:
    """Holds the workdir in the store too, makes the spool what that has, and sends what is written meanwhile."""
    with StoreLock(spool.objects):
        was_last = spool.own()
        if stored := Stored.of(spool.folder / CHECKPOINTS):
            if was_last:
                stored.send_left()
            stored.note_first_save()
            spool.send()  # before the other processes of the job fetch what is there
        with Mirror(spool):
            yield


if __name__ == "__main__":
    command.run(lambda argv: main(argv, startup.process_age()))
