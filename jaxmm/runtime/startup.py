"""Process setup before JAX initialises: huge pages, multi-process join, number of CPU devices.

Nothing of JAX is imported at the top, so that a command can call ``use_huge_pages`` before its own imports.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import importlib.util
import math
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmm.errors import UserError
from jaxmm.machine import cores
from jaxmm.runtime import rendezvous, slurm
from jaxmm.runtime.patience import seconds_of

TUNABLE = "glibc.malloc.hugetlb=1"
JOB = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def end_on_interrupt() -> None:
    """Makes Ctrl-C end the process with a line while it imports; ``command.run`` hands on to the command."""

    def end(number: int, frame: Any) -> None:
        del number, frame
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, end)


def use_huge_pages() -> None:
    """Starts this process again with glibc's allocator on huge pages, which XLA's temporaries on CPU gain from.

    XLA frees its temporaries at every step, and pays for their pages anew at the next. glibc reads the setting only
    when a process starts. ``JAXMM_HUGE_PAGES=0`` turns this off; where the kernel has no such pages to give, or
    GLIBC_TUNABLES names them already, nothing happens.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # it was held back while the process started again
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if os.environ.get("JAXMM_HUGE_PAGES", "1") == "0" or "glibc.malloc.hugetlb" in tunables:
        return
    if platform.libc_ver()[0] != "glibc" or not _offered():
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, TUNABLE)))
    sys.stdout.flush()
    signal.pthread_sigmask(
        signal.SIG_BLOCK, [signal.SIGINT]
    )  # until we are here again: Python itself would print a traceback
    os.execv(sys.executable, sys.orig_argv)


def pause_collection() -> None:
    """No garbage collection during large imports, which make little: ``command.run`` goes on with it."""
    gc.disable()


def process_age() -> float:
    """Seconds since this process was started, imports and a start anew by ``use_huge_pages`` included.

    Linux tells; elsewhere it is 0, and the time of the imports is nobody's.
    """
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def give_back_memory() -> None:
    """Has glibc's allocator give freed memory back to the system: compiling leaves hundreds of megabytes behind."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _offered() -> bool:
    try:
        return "[never]" not in _THP.read_text()
    except OSError:
        return False


def split_cpu(mesh: Mapping[str, int], rows: int) -> None:
    """Makes the host's CPU several JAX devices, one a core, where the mesh can deal ``rows`` over them.

    A step on one CPU device leaves cores idle between its small operations; rows split over devices do not wait for
    each other. Only a mesh with a free axis is filled. XLA_FLAGS or JAX_NUM_CPU_DEVICES with a number of devices wins;
    other platforms are left as they are. Must come before anything asks JAX for its devices.
    """
    import jax

    from jaxmm.runtime.jax_internals import setting

    flags = os.environ.get("XLA_FLAGS", "")
    given = "xla_force_host_platform_device_count" in flags or setting("jax_num_cpu_devices") > 0
    given = given or jax.distributed.is_initialized()  # processes of one job must have equal numbers of devices
    free = [axis for axis, size in mesh.items() if size == -1]
    if given or len(free) != 1 or free[0] not in ("data", "fsdp", "expert"):
        return
    fixed = math.prod(size for size in mesh.values() if size > 0)
    rows_over = math.prod(size for axis, size in mesh.items() if axis in ("data", "fsdp", "expert") and size > 0)
    for devices in range(cores(), 1, -1):
        if devices % fixed == 0 and rows % (rows_over * devices // fixed) == 0:
            jax.config.update("jax_num_cpu_devices", devices)
            return


def keep_compiled(cache: Path) -> None:
    """Keeps compiled programs in ``cache``, for the next process that needs them.

    JAX's own settings win: JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=0 turns it off.
    Code for CPUs is kept apart by what the processor can do: a cache may be shared by machines of several kinds.
    """
    import jax

    from jaxmm.runtime.jax_internals import setting

    if setting("jax_compilation_cache_dir") is None:
        kind = hashlib.sha256(_processor().encode()).hexdigest()[:12]
        folder = cache / "compiled" / kind
        if line := _not_ours(cache / "compiled") or _not_ours(folder):
            print(line, file=sys.stderr)
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _not_ours(folder: Path) -> str:
    """Makes a folder that others cannot write to; or a line where it is theirs, as what is kept in it is run."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid == os.getuid():
            if status.st_mode & 0o022:
                folder.chmod(status.st_mode & ~0o022)
            return ""
        reason = "it belongs to another user, who could have programs of theirs run"
    except OSError as error:
        reason = str(error.strerror)
    return f"compiled programs are not kept in {folder}: {reason}; set config.data.cache or JAX_COMPILATION_CACHE_DIR"


def _processor() -> str:
    """Architecture and instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {flags}"


def join_processes() -> None:
    """Joins the processes of one job, where the environment says that there are several.

    JAX finds SLURM's steps and TPU pods by itself; it is asked to where SLURM_STEP_NODELIST is there with more than one
    of SLURM_NTASKS, TPU_WORKER_HOSTNAMES names several hosts, or JAXMM_DISTRIBUTED=1. Anything else says where its
    first process is by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. A process drives all devices of
    its host, but where several tasks of a SLURM step share a node; JAX_LOCAL_DEVICE_IDS wins. Must come before anything
    asks JAX for its devices.

    Raises:
      UserError: if only some of these variables are there, or the processes do not find each other within
        JAXMM_JOIN_SECONDS.
    """
    env = os.environ
    named = [name for name in JOB if env.get(name)]
    in_steps = "SLURM_STEP_NODELIST" in env and (env.get("SLURM_NTASKS") or "1") != "1"
    on_a_pod = "," in env.get("TPU_WORKER_HOSTNAMES", "")
    if not (named or in_steps or on_a_pod or env.get("JAXMM_DISTRIBUTED") == "1"):
        return
    import jax

    seconds = seconds_of("JAXMM_JOIN_SECONDS", 300)
    try:
        address, count, number = _place_in_job(named, seconds)
        rendezvous.meet(address, count, number, seconds, env.get("JAX_COORDINATOR_BIND_ADDRESS", ""))
        # JAX ends the process itself at its own limit, with an abort.
        with rendezvous.limit(seconds, f"the processes met at {address}, but JAX's coordinator there did not join them "
                                     f"within {seconds} s: one may have ended since, as its log says"):  # fmt: skip
            jax.distributed.initialize(
                address, count, number, initialization_timeout=10 * seconds + 600,
                local_device_ids=None if env.get("JAX_LOCAL_DEVICE_IDS") else slurm.gpus_of_task(env),
            )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of this job did not find each other: {' '.join(str(error).split())}") from error
    _fix_cpu_threads(count)


def _place_in_job(named: list[str], seconds: int) -> tuple[str, int, int]:
    """Where process 0 of the job is, how many there are, and the number of this one; ``named``: those of JOB set."""
    if named:
        if len(named) < len(JOB):
            raise UserError(f"{named[0]} is set but not {min(set(JOB) - set(named))}: set {', '.join(JOB)}, or none")
        address, count, number = (os.environ[name] for name in JOB)
        if not (count.isdigit() and number.isdigit() and int(number) < int(count)):
            raise UserError(f"JAX_PROCESS_ID={number} of JAX_NUM_PROCESSES={count}: they are counted from 0")
        return address, int(count), int(number)
    from jaxmm.runtime.jax_internals import place_in_cluster

    place = place_in_cluster(seconds)
    if place is None:
        raise UserError(f"JAX finds no cluster that this process is of: set {', '.join(JOB)}")
    return place


def _fix_cpu_threads(processes: int) -> None:
    """Makes the number of threads that XLA shares a CPU's work among depend on the job's devices, not its processes.

    It is the larger of cores and devices of the process, and a matmul's sum is cut by it: a job of 2 processes with 4
    devices each would not give the bits of one of 4 with 2. NPROC or PJRT_NPROC, where XLA reads it, wins. Nothing is
    set where JAX may find another device than the CPU.
    """

    from jaxmm.runtime.jax_internals import setting

    platforms = setting("jax_platforms") or ""
    may_be_other = any(importlib.util.find_spec(plugin) for plugin in ("libtpu", "jax_plugins"))
    if "PJRT_NPROC" in os.environ or (platforms.split(",")[0] != "cpu" if platforms else may_be_other):
        return
    given = re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    devices = int(given[1]) if given else max(setting("jax_num_cpu_devices"), 1)
    os.environ.setdefault("NPROC", str(max(cores(), processes * devices)))
