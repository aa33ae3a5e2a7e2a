"""Devices that are not here: what a step is compiled for, or what its shapes are dealt over."""

from __future__ import annotations

import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

from jaxmm.errors import UserError, extra
from jaxmm.machine import host_memory

GIB = 2**30
TPU_MEMORY = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}  # GiB a chip: cloud.google.com/tpu/docs
GPU_MEMORY = {"a100": 80, "h100": 80, "h200": 141, "b200": 180, "l4": 24, "l40s": 48}  # GB: NVIDIA's data sheets
# libtpu's name of how cores make a device, where it is not its default: the two cores of a v4 are one, as they run.
CORES = {"v4": "megacore"}
GPU_KIND = {"a100": "NVIDIA A100", "h100": "NVIDIA H100", "h200": "NVIDIA H200", "b200": "NVIDIA B200"}


class Target(NamedTuple):
    """Devices to estimate for.

    Attributes:
      platform: "cpu", "tpu" or "gpu".
      devices: stand-ins that a mesh can be made of.
      memory: bytes of one.
      memory_is: whose that is.
      kind: whose peak FLOPs are known.
    """

    platform: str
    devices: list[Any]
    memory: float
    memory_is: str
    kind: str


def read_target(text: str, mesh: Any) -> Target:
    """Raises UserError for a target that is not known, or a package that is missing."""
    platform, _, rest = text.partition(":")
    name, _, size = rest.partition(":")
    if platform == "cpu" and not rest:
        devices = _cpus(math.prod(max(1, size) for size in mesh.values()))
        return Target("cpu", devices, host_memory() / len(devices), "this host's, shared by its devices", "cpu")
    if platform == "gpu" and name in GPU_MEMORY and size.isdigit() and int(size):
        return Target("gpu", _cpus(int(size)), GPU_MEMORY[name] * 1e9, "a GPU's", GPU_KIND.get(name, name))
    slices, _, topology = size.rpartition("*")
    if platform == "tpu" and name in TPU_MEMORY and re.fullmatch(r"([1-9]\d*\*)?\d+(x\d+){1,2}", size):
        devices = _tpus(f"{name}:{topology}", int(slices or 1))
        return Target("tpu", devices, TPU_MEMORY[name] * GIB, "a chip's", devices[0].device_kind)
    raise UserError(
        f"--target={text} is not known: give cpu, tpu:NAME:TOPOLOGY with {', '.join(TPU_MEMORY)} (tpu:v5e:4x4, "
        f"or tpu:v5e:2*4x4 for two slices), or gpu:NAME:COUNT with {', '.join(GPU_MEMORY)} (gpu:h100:8)"
    )


def _cpus(count: int) -> list[Any]:
    import jax

    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX runs already, and has the devices it has
        pass
    devices = jax.devices("cpu")[:count]
    if len(devices) < count:
        raise UserError(f"this process has {len(devices)} CPU devices, and {count} are needed: unset XLA_FLAGS")
    return devices


def _tpus(topology: str, slices: int) -> list[Any]:
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # this machine has none to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nor a TPU that two processes could fight for
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise UserError(f"estimates for TPUs need the package libtpu: {extra('estimate')}") from error
    try:
        # At a flag that it does not know libtpu ends the process: who gave flags sees its word, and its warnings.
        with nullcontext() if os.environ.get("LIBTPU_INIT_ARGS") else errors_of_libraries():
            several: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
            if cores := CORES.get(topology.partition(":")[0]):
                several["chip_config_name"] = cores
            return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **several).devices)
    except Exception as error:  # whatever the plugin raises for a topology that does not exist
        raise UserError(f"--target=tpu:{topology}: {' '.join(str(error).split())[:200]}") from error


@contextmanager
def errors_of_libraries() -> Iterator[list[str]]:
    """Takes what C++ writes to standard error; the list has it as one text at the end."""
    texts: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield texts
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
