"""The part of ``jaxmm check`` that says what there is: devices, their memory, drivers, versions."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Iterator

import jaxmm
from jaxmm.checks.row import FAILED, MEASURED, Row, tried
from jaxmm.errors import extra
from jaxmm.training import throughput

# Beside what tools/benchmark.py lists: what JAX drives devices with.
PLUGINS = r"(jax-.*(plugin|pjrt)|libtpu|nvidia-(cudnn|nccl|cublas).*)"
SMI = ("name", "driver_version", "memory.total", "memory.used", "clocks.sm", "power.draw")


def rows() -> Iterator[Row]:
    from jaxmm.measure.machine import machine, versions

    packages = {"jaxmm": jaxmm.__version__, **versions()}
    yield Row("versions", MEASURED, told(packages), packages)
    if plugins := plugin_versions():
        yield Row("plugins", MEASURED, told(plugins), plugins)
    host = machine()
    yield Row("host", MEASURED, f"{host['processor']}, {host['cores']} cores, load {host['load'][0]:.1f}", host)
    cards = driver()
    if cards:
        yield Row("driver", MEASURED, "; ".join(cards), {"nvidia-smi": cards})
    yield tried("devices", lambda: devices(bool(cards)))


def devices(has_card: bool) -> Row:
    """What JAX runs on; FAILED where it leaves a card alone that nobody told it to."""
    import jax

    all_devices = jax.devices()
    kind, platform = all_devices[0].device_kind, jax.default_backend()
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
    peak = throughput.peak_flops(kind)
    figures = {
        "platform": platform, "kind": kind, "count": len(all_devices), "bytes_limit": min(limits), "peak_flops": peak
    }  # fmt: skip
    text = [f"{len(all_devices)} x {kind}, platform '{platform}'"]
    if min(limits):
        text.append(f"{min(limits) / 2**30:.1f} GiB that JAX may use of each")
    text.append(f"peak {peak / 1e12:.0f} TFLOP/s in bfloat16" if peak else "peak not known: no MFU")
    if platform == "cpu" and has_card and "cpu" not in os.environ.get("JAX_PLATFORMS", ""):
        told = f"nvidia-smi sees a GPU, but JAX runs on the CPU: {extra('cuda')}"
        return Row("devices", FAILED, told, figures)
    return Row("devices", MEASURED, ", ".join(text), figures)


def driver() -> list[str]:
    """A line a card, as nvidia-smi has it; [] where there is none."""
    if not shutil.which("nvidia-smi"):
        return []
    try:
        asked = ["nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line.split(", ") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return [", ".join(f"{name} {value}" for name, value in zip(SMI, line, strict=False)) for line in lines]


def plugin_versions() -> dict[str, str]:
    names = {each.metadata["Name"] or "": each.version for each in importlib.metadata.distributions()}
    return {name: version for name, version in sorted(names.items()) if re.fullmatch(PLUGINS, name)}


def told(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
