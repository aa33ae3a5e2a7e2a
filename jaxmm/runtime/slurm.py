"""Which GPUs of its node a SLURM task drives, from the step's environment variables."""

from __future__ import annotations

import re
from collections.abc import Mapping


def gpus_of_task(env: Mapping[str, str]) -> list[int] | None:
    """The GPUs that this task drives, as numbers among those it sees.

    JAX by itself gives every task one. A task alone on its node drives all of them, and so does one that SLURM shows
    a share of the node's (``--gpus-per-task``, ``--gpu-bind``). Tasks that all see the same GPUs get equal parts.

    Returns:
      An empty list for all that it sees; None outside of a step, or where SLURM does not say how many tasks a node has.
    """
    if not {"SLURM_STEP_NODELIST", "SLURM_LOCALID"} <= env.keys():
        return None
    tasks = _tasks_on_node(env)
    if tasks is None:
        return None
    on_node = _number(env.get("SLURM_GPUS_ON_NODE", ""))
    visible = env.get("CUDA_VISIBLE_DEVICES")
    seen = on_node if visible is None else len([name for name in visible.split(",") if name])
    is_bound = env.get("SLURM_GPUS_PER_TASK") or "gpu" in env.get("SLURM_TRES_PER_TASK", "")
    is_bound = is_bound or env.get("SLURM_GPU_BIND", "none") != "none" or seen < on_node
    if tasks == 1 or is_bound:
        return []
    share = max(seen // tasks, 1)
    first = int(env["SLURM_LOCALID"]) * share
    return list(range(first, first + share))


def _tasks_on_node(env: Mapping[str, str]) -> int | None:
    """Tasks of the step on this node, from such as ``2(x3),1``: three nodes of two and one of one."""
    listed = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE", "")
    counts = [
        int(tasks) for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", listed) for _ in range(int(times or 1))
    ]
    node = _number(env.get("SLURM_NODEID", ""))
    return counts[node] if node < len(counts) else None


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
