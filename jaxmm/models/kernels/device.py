"""What attention backends for Hopper GPUs need before anything is traced: the GPU, the dtype, and a package."""

from __future__ import annotations

import importlib.util

import jax

from jaxmm.errors import extra

CAPABILITY = "9.0"  # of H100, H200 and GH200
DTYPES = ("bfloat16", "float16")
LARGEST_HEAD = 128  # the widest that `jaxmm check` tries of them


# Backends, and the module that the extra of their name brings.
PACKAGES = {"hopper": "", "tokamax": "tokamax", "flash3": "dew_flash_attn"}


def require(backend: str, dtype: str = "", head: int = 0) -> None:
    """Raises ValueError where JAX's first device is another GPU, for what none of PACKAGES takes, or what is missing.

    Args:
      dtype: '' is one that is not known yet.
      head: width of a head; 0 is not known yet.
    """
    device = jax.devices()[0]
    has = getattr(device, "compute_capability", CAPABILITY) if device.platform == "gpu" else CAPABILITY
    if has != CAPABILITY:
        raise ValueError(
            f"attention backend '{backend}' runs on GPUs of compute capability {CAPABILITY} (H100, H200), and this "
            f"one, {device.device_kind}, has {has}: use 'fused'"
        )
    if dtype and dtype not in DTYPES:
        raise ValueError(
            f"attention backend '{backend}' computes in {' or '.join(DTYPES)}, not in {dtype}: use 'fused'"
        )
    if head > LARGEST_HEAD:
        raise ValueError(f"attention by '{backend}' takes heads of at most {LARGEST_HEAD}, not {head}: use 'fused'")
    package = PACKAGES[backend]
    if package and importlib.util.find_spec(package) is None:
        raise ValueError(
            f"attention backend '{backend}' needs the package {package}, and Python 3.12 or later: {extra(backend)}"
        )
