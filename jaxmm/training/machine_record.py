"""machine.json: on what a run runs, and how large it is, for those who look at its folder later."""

from __future__ import annotations

import math
import socket
from typing import Any

import jax

import jaxmm
from jaxmm.models.multimodal import Compute, ModelSpec, abstract_params

MACHINE = "machine.json"


def machine_record(
    config_name: str, steps: int, mesh: jax.sharding.Mesh, compute: Compute, model: ModelSpec
) -> dict[str, Any]:
    """What the newest start of a run notes. ``config_name``: of the file that it was started by, or ''."""
    shapes = jax.tree.leaves(abstract_params(model.plain))
    return {
        "config": config_name,
        "steps": steps,
        "versions": {"jaxmm": jaxmm.__version__, "jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "mesh": {str(axis): size for axis, size in mesh.shape.items() if size > 1},
        "host": socket.gethostname(),
        "dtype": str(compute.dtype),
        "attention": compute.attention,
        "parameters": sum(math.prod(leaf.shape) for leaf in shapes),
    }
