"""The processes of a training job as workers of Ray Train, which starts them again where one has died.

Each worker keeps ``python -m jaxmm.train`` as a process of its own, joined to the others by JAX's three variables: it
starts, logs and ends as one that is started by hand. Ray watches the workers; where one goes, Ray ends the others and
starts all again, with those that the cluster has then. The run goes on from its newest checkpoint.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxmm.errors import UserError, extra
from jaxmm.runtime.startup import JOB

PASSED = (  # beginnings of names
    "JAX_", "JAXMM_", "XLA_", "NCCL_", "LIBTPU_", "HF_", "WANDB_", "AWS_", "GOOGLE_", "TENSORSTORE_", "GLIBC_TUNABLES",
    "PYTHONPATH",
)  # fmt: skip
LOOK = 1.0  # seconds between two looks at a process
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux' prctl


class Workers(NamedTuple):
    """What a job asks of the cluster.

    Attributes:
      least, most: numbers of workers, one process each. The job begins, and goes on, with as many as there are.
      cpus, gpus: that Ray keeps for each.
      tpu: a slice as Ray names it, ``("TPU-V6E", "4x4")``; None without TPUs.
      failures: deaths after which the job is given up; -1 is never.
      grow_every: seconds from one look for machines for more workers to the next.
    """

    least: int
    most: int
    cpus: int = 1
    gpus: int = 0
    tpu: tuple[str, str] | None = None
    failures: int = 20
    grow_every: int = 600


def run(argv: Sequence[str], workers: Workers, name: str, storage: str) -> None:
    """Runs ``jaxmm.train`` with these arguments to its end, on the cluster at RAY_ADDRESS or a new one here.

    Args:
      argv: the command's arguments. All machines must see the files that it names.
      name: of the job, for Ray.
      storage: the folder where Ray notes what it does.

    Raises:
      UserError: if Ray is missing, its own cluster here is too small, or it gave up.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.train
        from ray.train.v2.jax import JaxConfig, JaxTrainer
    except ImportError as error:
        raise UserError(f"a job on Ray needs Ray Train ({error}): {extra('ray')}") from error
    is_ours = not (os.environ.get("RAY_ADDRESS") or ray.is_initialized())
    ray.init(ignore_reinit_error=True)
    _check_cluster(ray, workers, is_ours)
    slice_ = {} if workers.tpu is None else {"accelerator_type": workers.tpu[0], "topology": workers.tpu[1]}
    # Else Ray packs as many onto a machine as it has room for. Not onto each one: fewer machines must hold them too.
    spread = {} if workers.tpu else {"placement_strategy": "SPREAD"}
    chips = {} if workers.tpu else {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}
    given = {"argv": list(argv), "folder": os.getcwd(), "env": passed(os.environ)}

    def each() -> None:  # not by ``train_loop_config``: Ray's dashboard shows that, and there may be keys among these
        process(given)

    trainer = JaxTrainer(
        each,
        jax_config=JaxConfig(),  # a worker itself uses no JAX: its process does
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.most if workers.least == workers.most else (workers.least, workers.most),
            use_gpu=workers.gpus > 0, use_tpu=workers.tpu is not None,
            resources_per_worker=chips or None,
            elastic_resize_monitor_interval_s=float(workers.grow_every), **spread, **slice_,
        ),
        run_config=ray.train.RunConfig(
            name=name, storage_path=storage, failure_config=ray.train.FailureConfig(max_failures=workers.failures)
        ),
    )  # fmt: skip
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        last = [line for line in str(error).splitlines() if line.strip()][-1:]
        raise UserError(
            f"Ray gave up: {''.join(last).strip()[:300]}; the lines of the processes are above, and what was saved "
            f"stays: the same command goes on"
        ) from error
    finally:
        ray.shutdown()


def passed(env: Mapping[str, str]) -> dict[str, str]:
    """Of the command's environment what its processes get, wherever they are: settings, and not which one it is."""
    return {key: value for key, value in env.items() if key.startswith(PASSED) and key not in JOB}


def _check_cluster(ray: Any, workers: Workers, is_ours: bool) -> None:
    """Tells where the cluster cannot hold the fewest workers. Ray waits for more machines, which asks for them.

    Raises:
      UserError: if no machine can come, as the cluster is this process's own.
    """
    there = ray.cluster_resources()
    for what, each in (("CPU", workers.cpus), ("GPU", workers.gpus)):
        if workers.tpu is None and workers.least * each > there.get(what, 0):
            line = (
                f"the Ray cluster has {there.get(what, 0):g} {what}s, and --workers={workers.least} with "
                f"--{what.lower()}s={each} needs {workers.least * each}"
            )
            if is_ours:
                raise UserError(f"{line}: give less, or the address of a larger cluster in RAY_ADDRESS")
            print(f"{line}: waiting for machines", file=sys.stderr, flush=True)


# In a worker


def process(given: dict[str, Any]) -> None:
    """Ray's training function: this worker's process of the job, from its start to its end.

    Raises:
      RuntimeError: if the process did not end well; Ray then starts the job again.
    """
    import ray
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    context = ray.train.get_context()
    number, count = context.get_world_rank(), context.get_world_size()
    address = broadcast_from_rank_zero(f"{ray.util.get_node_ip_address()}:{_free_port()}" if number == 0 else None)
    env = os.environ | given["env"] | dict(zip(JOB, (address, str(count), str(number)), strict=True))
    folder = given["folder"] if os.path.isdir(given["folder"]) else None
    if folder is None:
        print(f"worker {number}: there is no {given['folder']} here, so names are looked for in {os.getcwd()}")
    train = subprocess.Popen([sys.executable, "-m", __name__, str(os.getpid()), *given["argv"]], env=env, cwd=folder)
    is_told = False
    # All workers go round together: what Ray says of a machine that is taken away is said to all at once.
    while not broadcast_from_rank_zero(_has_ended(train) if number == 0 else None):
        if not is_told and ray.train.get_preemption_info() is not None:
            train.send_signal(signal.SIGTERM)  # all save the same step
            is_told = True
        if _has_ended(train) and train.returncode:
            break
        time.sleep(LOOK)
    if status := train.wait():
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        raise RuntimeError(f"process {number} of {count} ended with {how}")


def _has_ended(train: subprocess.Popen[bytes]) -> bool:
    return train.poll() is not None


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def _become_train(parent: int, argv: Sequence[str]) -> None:
    """Turns this process into ``jaxmm.train``, which the kernel ends when its worker does, however that ended."""
    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # the worker has gone since
        sys.exit(1)
    os.execv(sys.executable, [sys.executable, "-m", "jaxmm.train", *argv])


if __name__ == "__main__":
    _become_train(int(sys.argv[1]), sys.argv[2:])
