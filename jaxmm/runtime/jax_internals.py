"""What is relied on of JAX, XLA and Orbax without their promise: private names, compiler options, words of errors.

A release may change any of these. ``tests/runtime/test_jax_internals.py`` says of each what is relied on. Where there
can be a fallback, a change costs a warning and speed, never the run.
"""

from __future__ import annotations

import os
import re
import warnings
from typing import Any

import jax

TUNED = os.environ.get("JAXMM_CPU_TUNING", "1") != "0"  # else nothing is done for XLA:CPU's sake: slower, same results
CPU_STEP = {
    # One operation after the other, in the order that needs least memory. Run beside each other, which is XLA's own
    # choice, they take each other's caches and threads: 1.04 to 1.09 of a step's time.
    "xla_cpu_enable_concurrency_optimized_scheduler": False,
    # Barriers stand until all is fused. XLA's own pass removes them before, and with them what ``models.materialize``
    # and rematerialisation are there for.
    "xla_disable_hlo_passes": "cse_barrier_expander",
}
TPU_STEP = {
    # Kernels are gathered before their matmul, not in rings beside it: in these the matmul's whole output is read and
    # written again for each two chips' parts (MiB of an output from which on XLA makes rings; more than there are).
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
}
CPU_ONCE = {"xla_backend_optimization_level": 0}  # for what runs once: compiling takes longer than running
# Drawing parameters is elementwise: XLA's older generators set up less for each kernel, and give the same bits.
CPU_DRAWN = CPU_ONCE | {"xla_cpu_use_fusion_emitters": False}
MAY_LACK = ("xla_cpu_use_fusion_emitters",)  # options that later XLAs do not have, and that steps do not depend on


# Compiling


def step_options(platform: str | None = None) -> dict[str, Any] | None:
    """XLA's options for what runs again and again, on a platform, or on this process's."""
    platform = platform or jax.default_backend()
    if platform == "tpu" and os.environ.get("JAXMM_TPU_TUNING", "1") != "0":
        return TPU_STEP
    return CPU_STEP if TUNED and platform == "cpu" else None


def compile_lowered(lowered: Any, options: dict[str, Any] | None) -> Any:
    """``lowered.compile(options)``, without those that this XLA does not know, of which it warns but for MAY_LACK."""
    left = dict(options or {})
    while True:
        try:
            return lowered.compile(left or None)
        except Exception as error:
            unknown = next((name for name in left if is_unknown_option(name, str(error))), None)
            if unknown is None:
                raise
            if unknown not in MAY_LACK:
                warnings.warn(f"this XLA does not know the option {unknown}: steps may be slower", stacklevel=2)
            del left[unknown]


def is_unknown_option(name: str, message: str) -> bool:
    """Whether an error of compiling says that XLA does not know an option, or its value."""
    return (
        name in message and re.search(r"[Nn]o such compile option|[Uu]nknown|[Ii]nvalid|not found", message) is not None
    )


# Processes


def coordinator() -> Any:
    """The job's key-value store and barriers, of which JAX has no public name."""
    from jax._src import distributed

    return distributed.global_state.client


def place_in_cluster(seconds: int) -> tuple[str, int, int] | None:
    """Where process 0 of the job is, how many there are, and which this is, as JAX finds it; its public face joins."""
    from jax._src import clusters

    address, count, number = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, seconds
    )[:3]
    return None if address is None or count is None or number is None else (address, count, number)


def gone_process(message: str) -> int | None:
    """The process without a sign of life that an error of a barrier names."""
    gone = re.search(r"Task (\d+) heartbeat timeout", message)
    return int(gone[1]) if gone else None


def is_deadline(message: str) -> bool:
    """Whether an error of a barrier says that somebody did not come in time."""
    return "DEADLINE_EXCEEDED" in message


def failed_collective(message: str) -> str:
    """What an error says of a collective that another process did not come to, or left; '' for another error.

    Gloo, by which XLA:CPU's processes reach each other, gives up after 30 s where it builds the connection and in a
    reduce-scatter, whatever ``xla_cpu_collective_timeout_seconds`` says. NCCL's words are those of ``ncclRemoteError``.
    """
    found = re.search(
        r"Gloo [^\n]*? failed: [^\n]*|NCCL operation [^\n]*? failed: remote process exited[^\n]*", message
    )
    return found[0][:200] if found else ""


def absent_processes(message: str) -> list[int]:
    """The processes that a barrier's error names: a number a line, after a heading. [] where it names none."""
    _, _, names = message.partition("timed out task names:")
    return sorted({int(n) for n in re.findall(r"^(?:\S*task:)?(\d+)$", names, re.MULTILINE)})


# Settings


def setting(name: str) -> Any:
    """One of JAX's settings, as ``jax_platforms``."""
    return getattr(jax.config, name)


def settings() -> list[tuple[str, str]]:
    """All of JAX's settings, which a traced program depends on."""
    return sorted((name, repr(value)) for name, value in jax.config.values.items())


# Checkpoints


def orbax_array_handler(sliced_bytes: int, has_notes: bool = True) -> Any:
    """Orbax's handler of arrays, which writes replicated ones below this size from one device.

    The store of what Orbax notes of each array has no public name; without it the notes are left out, and all that we
    save is read the same.

    Args:
      has_notes: False for processes that share no disk: they would wait for the first to make a folder on it.
    """
    import orbax.checkpoint as ocp

    try:
        from orbax.checkpoint._src.metadata.array_metadata_store import Store
    except ImportError:
        notes = None
    else:
        notes = Store() if has_notes else None
    return ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=sliced_bytes, array_metadata_store=notes)
