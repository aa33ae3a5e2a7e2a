"""What a new run on CPUs computes in where its config leaves that open: bfloat16 where it is the faster one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxmm.runtime.barrier import Barrier

CPUINFO = Path("/proc/cpuinfo")
UNITS = ("amx_bf16", "avx512_bf16")  # flags of processors that multiply bfloat16
SINCE = (0, 12)  # the JAX whose XLA uses them; that of 0.10 multiplies no faster than in float32


def bfloat16_units(cpuinfo: str, jax_version: str) -> str:
    """The flag of what XLA multiplies bfloat16 with, faster than float32; '' where there is none.

    Args:
      cpuinfo: what Linux says of the processors, each of which must have it; '' on other systems.
    """
    if tuple(int(number) for number in jax_version.split(".")[:2]) < SINCE:
        return ""
    named = (line.partition(":") for line in cpuinfo.splitlines())
    flags = [set(values.split()) for name, _, values in named if name.strip() == "flags"]
    return next((unit for unit in UNITS if flags and all(unit in of_one for of_one in flags)), "")


def units_here() -> str:
    """The same of this machine."""
    return bfloat16_units(CPUINFO.read_text() if CPUINFO.exists() else "", jax.__version__)


def settle(config: ConfigDict, before: Mapping[str, Any] | None = None) -> str:
    """Writes bfloat16 into a config that leaves ``compute.dtype`` open, where this is a CPU that is faster in it.

    Every process of a job must ask, once: bfloat16 is chosen only where all of their processors have it.

    Args:
      before: the config of the run that goes on, which keeps what it began with; None for one that begins.

    Returns:
      A line that says why; '' where the config says what it is, or it is float32 as on most CPUs.
    """
    if config.compute.dtype:
        return ""
    if before is not None:
        config.compute.dtype = before.get("compute", {}).get("dtype", "")
    if jax.default_backend() != "cpu":
        return ""
    units = units_here()
    if before is not None:
        kept = config.compute.dtype
        is_narrow, faster = kept == "bfloat16", "bfloat16" if units else "float32"
        told = f"compute.dtype: {kept}, as the run began" if kept else "compute.dtype: float32, as on CPUs before"
        return (told if is_narrow else "") if is_narrow == bool(units) else f"{told}; {faster} would be faster here"
    if Barrier("dtype").largest(int(not units), "the choice of compute.dtype"):
        return ""
    config.compute.dtype = "bfloat16"
    return (
        f"compute.dtype: bfloat16, which this processor multiplies faster ({units}, jax {jax.__version__}); "
        f"config.compute.dtype=float32 computes as other CPUs do"
    )
