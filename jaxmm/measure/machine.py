"""What figures were measured on: the machine, and the versions of what ran."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from jaxmm.machine import cores

PACKAGES = ("jaxmm", "numpy", "pillow", "jax", "jaxlib", "flax", "transformers", "torch", "torchvision")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = ""
    if os.path.exists("/proc/cpuinfo"):
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
        model = next((value.strip() for key, _, value in lines if key.strip() == "model name"), "")
    return {
        "processor": model or platform.processor() or platform.machine(),
        "cores": cores(),
        "system": platform.platform(),
        "load": list(os.getloadavg()),
    }


def versions() -> dict[str, str]:
    by_package = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            by_package[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return by_package
