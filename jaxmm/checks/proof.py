"""The proof that an attention backend is right on this machine: a file that ``jaxmm check`` leaves, and runs look for.

It counts for this code, these versions of JAX, its libraries and a backend's own package, this kind of device and this
driver.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
from pathlib import Path

import jax

from jaxmm import atomic
from jaxmm.data.prepare.remote import default_cache
from jaxmm.models.kernels.device import PACKAGES
from jaxmm.runtime import program_cache

FOLDER = "proofs"  # of the cache


def place(backend: str, dtype: str) -> Path:
    """The file of a proof, by what it counts for."""
    device = jax.local_devices()[0]
    known = backend, dtype, program_cache.CODE, of_package(backend), device.device_kind, device.client.platform_version
    return default_cache() / FOLDER / f"{backend}-{dtype}-{hashlib.sha256(repr(known).encode()).hexdigest()[:16]}.json"


def of_package(backend: str) -> str:
    """The version of the package that a backend of Hopper GPUs leans on; '' for the others."""
    if not (module := PACKAGES.get(backend, "")):
        return ""
    names = importlib.metadata.packages_distributions().get(module, [])
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(names)))


def keep(backend: str, dtype: str) -> None:
    """Notes that a backend was right; where nothing can be written it is held against float64 again each time."""
    with contextlib.suppress(OSError):
        proof = {"backend": backend, "dtype": dtype, "device": jax.local_devices()[0].device_kind}
        atomic.write_json(place(backend, dtype), proof)


def is_kept(backend: str, dtype: str) -> bool:
    """Whether it was right here before."""
    return place(backend, dtype).exists()
