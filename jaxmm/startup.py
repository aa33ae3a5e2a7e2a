"""What a process must settle before JAX starts: the allocator's pages and how a CPU is split into devices.

Nothing of JAX is imported at the top, so that a command can call ``use_huge_pages`` before its own imports.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb=1"
_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages() -> None:
    """Starts this process again with glibc's allocator on huge pages, which XLA's temporaries on CPU gain from.

    XLA frees its temporaries at every step, and pays for their pages anew at the next. glibc reads the setting only
    when a process starts. ``JAXMM_HUGE_PAGES=0`` turns this off; where the kernel has no such pages to give, or
    GLIBC_TUNABLES names them already, nothing happens.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if os.environ.get("JAXMM_HUGE_PAGES", "1") == "0" or "glibc.malloc.hugetlb" in tunables:
        return
    if platform.libc_ver()[0] != "glibc" or not _offered():
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, TUNABLE)))
    sys.stdout.flush()
    os.execv(sys.executable, sys.orig_argv)


def _offered() -> bool:
    try:
        return "[never]" not in _THP.read_text()
    except OSError:
        return False


def split_cpu(mesh: Mapping[str, int], rows: int) -> None:
    """Makes the host's CPU several JAX devices, one a core, where the mesh can deal ``rows`` over them.

    A step on one CPU device leaves cores idle between its small operations; rows dealt over devices do not wait for
    each other. Only a mesh with a free axis is filled. XLA_FLAGS or JAX_NUM_CPU_DEVICES with a number of devices wins;
    other platforms are left as they are. Must come before anything asks JAX for its devices.
    """
    import jax

    flags = os.environ.get("XLA_FLAGS", "")
    given = "xla_force_host_platform_device_count" in flags or jax.config.values["jax_num_cpu_devices"] > 0
    free = [axis for axis, size in mesh.items() if size == -1]
    if given or len(free) != 1 or free[0] not in ("data", "fsdp"):
        return
    fixed = math.prod(size for size in mesh.values() if size > 0)
    dealt = math.prod(size for axis, size in mesh.items() if axis in ("data", "fsdp") and size > 0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for devices in range(cores, 1, -1):
        if devices % fixed == 0 and rows % (dealt * devices // fixed) == 0:
            jax.config.update("jax_num_cpu_devices", devices)
            return
