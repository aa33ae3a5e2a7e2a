"""Which GPUs the tasks of a SLURM step drive."""

from __future__ import annotations

import pytest

from jaxmm.runtime.slurm import gpus_of_task

EIGHT = "0,1,2,3,4,5,6,7"


def task(number: int = 0, node: int = 0, tasks: str = "1(x4)", **more: str) -> dict[str, str]:
    step = {"SLURM_STEP_NODELIST": "node[0-3]", "SLURM_LOCALID": str(number), "SLURM_NODEID": str(node)}
    return {**step, "SLURM_STEP_TASKS_PER_NODE": tasks, **more}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (task(CUDA_VISIBLE_DEVICES=EIGHT, SLURM_GPUS_ON_NODE="8"), []),
        (task(node=3), []),
        (task(1, tasks="8(x4)", CUDA_VISIBLE_DEVICES=EIGHT), [1]),
        (task(1, tasks="2(x4)", CUDA_VISIBLE_DEVICES=EIGHT), [4, 5, 6, 7]),
        (task(1, tasks="2(x4)", SLURM_GPUS_ON_NODE="4"), [2, 3]),
        (task(1, node=2, tasks="1(x2),2,1", CUDA_VISIBLE_DEVICES="0,1"), [1]),
        (task(0, node=3, tasks="1(x2),2,1", CUDA_VISIBLE_DEVICES="0,1"), []),
        (task(1, tasks="2(x4)"), [1]),  # no GPU is told of: one each, as JAX has it
    ],
)
def test_a_task_alone_on_its_node_drives_all_gpus_and_several_share_them(env, expected):
    assert gpus_of_task(env) == expected


@pytest.mark.parametrize(
    "bound",
    [
        {"SLURM_GPUS_PER_TASK": "1"},
        {"SLURM_TRES_PER_TASK": "cpu=4,gres/gpu=1"},
        {"SLURM_GPU_BIND": "single:1"},
        {"SLURM_GPUS_ON_NODE": "8"},  # it sees one of them
    ],
)
def test_a_task_that_slurm_shows_its_own_gpus_drives_all_it_sees(bound):
    assert gpus_of_task(task(1, tasks="8(x4)", CUDA_VISIBLE_DEVICES="0", **bound)) == []


def test_outside_of_a_step_nothing_is_said():
    assert gpus_of_task({}) is None
    assert gpus_of_task({"SLURM_LOCALID": "0", "SLURM_TASKS_PER_NODE": "1"}) is None  # a batch script
    assert gpus_of_task(task(node=7)) is None
