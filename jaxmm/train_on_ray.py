"""Trains on a Ray cluster, whose machines may die: Ray Train starts the job again with those that there are.

    python -m jaxmm.train_on_ray --workers=2:4 --gpus=8 --config=configs/siglip2_qwen3.py --workdir=/shared/runs/mine

All that `jaxmm train` takes goes on to it. All machines must see the data and the workdir, a shared folder or one in an
object store. The run goes on from its newest checkpoint, with the rows that it would have had.
"""

from __future__ import annotations

from pathlib import Path

from jaxmm import command
from jaxmm.errors import UserError, extra
from jaxmm.runtime.ray_job import Workers, run
from jaxmm.workdir.spool import Spool

FLAGS: command.Flags = {
    "workdir": (
        "",
        "folder of the run that all machines see, or one in a store (gs://, s3://); default: runs/<name of the config>",
    ),
    "workers": ("1", "processes: a number, or LEAST:MOST, with which the job goes on as machines go"),
    "cpus": (1, "CPUs that Ray keeps for each; more than half of a machine's make it one process a machine"),
    "gpus": (0, "GPUs of each; all that a machine has make it one process a machine"),
    "tpu": ("", "a slice instead, such as v6e:4x4; its machines are the workers"),
    "failures": (20, "deaths of workers after which the job is given up; -1: never"),
    "grow_every": (600, "with LEAST:MOST, seconds between two looks for machines for more; to take them is a restart"),
}
OWN = ("workers", "cpus", "gpus", "tpu", "failures", "grow_every")  # flags that train has not


def main(argv: list[str]) -> int:
    """Checks the arguments here, so that a mistake in them is told once; then Ray's processes get them."""
    args = command.parse(argv, FLAGS, about=__doc__ or "")
    workdir = Path(args.workdir or f"runs/{args.config_name}").absolute()
    command.check_folder("--workdir", workdir)
    storage, named = workdir / "ray", str(workdir)
    if spool := Spool.of(workdir):  # each machine makes its own: Ray's notes stay on them
        storage, named = workdir.with_name(f"{workdir.name}.ray"), spool.url
    own = [(name, text) for name, text in command.split(argv, FLAGS) if name not in (*OWN, "workdir")]
    rest = [f"--{name}" if text is None else f"--{name}={text}" for name, text in own]
    run([*rest, f"--workdir={named}"], workers_of(args), name=workdir.name, storage=str(storage))
    return 0


def workers_of(args) -> Workers:
    """What the flags ask of the cluster. Raises UserError where they cannot be meant."""
    least, _, most = args.workers.partition(":")
    if not (least.isdecimal() and (most or least).isdecimal() and 1 <= int(least) <= int(most or least)):
        raise UserError(f"--workers={args.workers}: give a number, or the least and the most, such as 2:8")
    if args.cpus < 1 or args.gpus < 0:
        raise UserError(f"--cpus={args.cpus} --gpus={args.gpus}: give 1 or more CPUs, and 0 or more GPUs")
    if args.failures < -1:
        raise UserError(f"--failures={args.failures}: give 0 or more, or -1 for never")
    if args.grow_every < 1:
        raise UserError(f"--grow_every={args.grow_every}: give seconds, 1 or more")
    if not args.tpu:
        return Workers(int(least), int(most or least), args.cpus, args.gpus, None, args.failures, args.grow_every)
    version, _, topology = args.tpu.lower().removeprefix("tpu:").partition(":")
    kind = "TPU-V5LITEPOD" if version == "v5e" else f"TPU-{version.upper()}"
    if args.gpus or args.workers != "1":
        raise UserError("--tpu has the machines of one slice as its workers: leave out --workers and --gpus")
    hosts = _hosts(kind, topology)
    return Workers(hosts, hosts, args.cpus, 0, (kind, topology), args.failures, args.grow_every)


def _hosts(kind: str, topology: str) -> int:
    """Machines of a slice, by Ray's own table."""
    try:
        from ray.util.tpu import get_tpu_worker_resources
    except ImportError as error:
        raise UserError(f"a job on Ray needs Ray Train ({error}): {extra('ray')}") from error
    try:
        return get_tpu_worker_resources(topology, kind)[0]
    except (ValueError, KeyError, AssertionError) as error:
        raise UserError(f"--tpu={kind}:{topology}: {error}; give one such as v6e:4x4") from error


if __name__ == "__main__":
    command.run(main)
