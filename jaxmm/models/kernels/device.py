"""What attention backends for Hopper GPUs need before anything is traced: the GPU, the dtype, and a package."""

from __future__ import annotations

import importlib

import jax

from jaxmm.errors import extra

CAPABILITY = "9.0"  # of H100, H200 and GH200
DTYPES = ("bfloat16", "float16")
LARGEST_HEAD = 128  # the widest that `jaxmm check` tries of them


# Backends, and the module that they are of; the extra of their name brings it.
PACKAGES = {"hopper": "jax", "tokamax": "tokamax", "flash3": "dew_flash_attn"}


def require(backend: str, dtype: str = "", head: int = 0) -> None:
    """Raises ValueError for what none of PACKAGES takes; on GPUs also where the first is another, or what is missing.

    Elsewhere it is another machine's that is asked for, as by ``jaxmm estimate``.

    Args:
      dtype: '' is one that is not known yet.
      head: width of a head; 0 is not known yet.
    """
    if dtype and dtype not in DTYPES:
        raise ValueError(
            f"attention backend '{backend}' computes in {' or '.join(DTYPES)}, not in {dtype}: use 'fused'"
        )
    if head > LARGEST_HEAD:
        raise ValueError(f"attention by '{backend}' takes heads of at most {LARGEST_HEAD}, not {head}: use 'fused'")
    device = jax.devices()[0]
    if device.platform != "gpu":
        return
    if (has := device.compute_capability) != CAPABILITY:
        raise ValueError(
            f"attention backend '{backend}' runs on GPUs of compute capability {CAPABILITY} (H100, H200), and this "
            f"one, {device.device_kind}, has {has}: use 'fused'"
        )
    try:
        importlib.import_module(PACKAGES[backend])
    except ModuleNotFoundError as error:
        raise ValueError(
            f"attention backend '{backend}' needs the package {error.name}, and Python 3.12 or later: {extra(backend)}"
        ) from error
    except (ImportError, OSError) as error:  # its library, or what that needs of CUDA
        raise ValueError(f"attention backend '{backend}': {PACKAGES[backend]} does not load ({error})") from error
