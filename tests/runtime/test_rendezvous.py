"""Real processes that join a job, or end with one line that says who is missing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from jaxmm.errors import UserError
from jaxmm.runtime import rendezvous

PROGRAM = """
from jaxmm import command
from jaxmm.runtime import startup

def main(argv):
    startup.join_processes()
    import jax
    print(jax.config.values["jax_cuda_visible_devices"], jax.process_index(), jax.device_count())

command.run(main)
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start(**variables: str) -> subprocess.Popen:
    ours = ("SLURM_", "JAX_COORDINATOR", "JAX_NUM", "JAX_PROCESS", "JAX_LOCAL", "JAXMM_", "CUDA_", "XLA_FLAGS")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(ours)} | {"JAXMM_JOIN_SECONDS": "60"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=clean | variables, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)  # fmt: skip


def joined(port: int, count: int, number: int, **more: str) -> subprocess.Popen:
    place = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count)}
    return start(**place, JAX_PROCESS_ID=str(number), **more)


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    return [(process.returncode, output.strip()) for process, output in zip(processes, outputs, strict=True)]


def in_step(nodes: int, tasks: int, port: int, **more: str) -> list[dict[str, str]]:
    """The variables of all tasks of a SLURM step; its nodes are this machine. JAX makes a port of the job's number."""
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(nodes * tasks),
            "SLURM_STEP_TASKS_PER_NODE": f"{tasks}(x{nodes})", "JAX_COORDINATOR_PORT": str(port)}  # fmt: skip
    place = [{"SLURM_NODEID": str(i // tasks), "SLURM_LOCALID": str(i % tasks)} for i in range(nodes * tasks)]
    return [{**step, **mine, "SLURM_PROCID": str(i), **more} for i, mine in enumerate(place)]


@pytest.mark.parametrize(
    ("nodes", "tasks", "more", "expected"),
    [
        (2, 1, {}, ["all", "all"]),
        (2, 2, {}, ["0,1,2,3", "4,5,6,7"] * 2),
        (2, 1, {"JAX_LOCAL_DEVICE_IDS": "3"}, ["3", "3"]),
    ],
)
def test_a_slurm_task_sees_the_gpus_that_are_its_own(nodes, tasks, more, expected):
    visible = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7", **more}
    found = ended([start(**variables) for variables in in_step(nodes, tasks, free_port(), **visible)])
    count = nodes * tasks
    assert found == [(0, f"{gpus} {number} {count}") for number, gpus in enumerate(expected)]


def test_the_three_variables_within_a_slurm_step_leave_all_gpus_to_a_task_alone_on_its_node():
    port = free_port()
    steps = in_step(2, 1, 1, CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,7")
    found = ended([joined(port, 2, number, **steps[number]) for number in range(2)])
    assert found == [(0, "all 0 2"), (0, "all 1 2")]


def test_processes_that_do_not_come_are_named_by_all_that_did():
    port = free_port()
    for status, output in ended([joined(port, 4, number, JAXMM_JOIN_SECONDS="6") for number in (0, 2)]):
        assert status == 1
        assert output.startswith("error: processes 1, 3 of 4 did not come within 6 s:")
        assert "\n" not in output


def test_without_its_first_process_a_job_ends_with_the_address_it_was_looked_for_at():
    port = free_port()
    ((status, output),) = ended([joined(port, 2, 1, JAXMM_JOIN_SECONDS="2")])
    assert status == 1
    assert output.startswith(f"error: process 1 of 2 did not find process 0 at localhost:{port} within 2 s (Connection")
    assert "\n" not in output


def hello(port: int, line: str) -> socket.socket:
    end = time.monotonic() + 60
    while True:
        try:
            peer = socket.create_connection(("localhost", port))
        except ConnectionRefusedError:
            assert time.monotonic() < end
            time.sleep(0.05)
            continue
        peer.sendall(line.encode())
        return peer


@pytest.mark.slow
def test_a_process_that_ends_between_meeting_and_joining_ends_the_others_with_one_line():
    port = free_port()
    waits = joined(port, 2, 0, JAXMM_JOIN_SECONDS="6")
    with hello(port, "jaxmm 2 1\n") as peer:
        assert peer.recv(100) == b"go\n"
    ((status, output),) = ended([waits])
    assert status == 1
    assert output.startswith(f"error: the processes met at localhost:{port}, but JAX's coordinator there did not join")
    assert "\n" not in output


@pytest.mark.slow
def test_strangers_and_processes_of_other_jobs_do_not_count():
    port = free_port()
    waits = joined(port, 3, 0, JAXMM_JOIN_SECONDS="10")
    with hello(port, "GET / HTTP/1.1\r\n\r\n") as stranger:
        assert stranger.recv(100) == b""
    with hello(port, "jaxmm 2 1\n") as other:
        assert other.recv(100) == b"end: process 0 is of a job of 3 processes, this one of a job of 2\n"
    with hello(port, "jaxmm 3 1\n"):
        time.sleep(0.5)  # it is taken, and not gone yet, when the next comes
        with hello(port, "jaxmm 3 1\n") as twin:
            assert twin.recv(100).startswith(b"end: there is a process 1 of 3 already")
    ((status, output),) = ended([waits])  # the first 1 has ended since
    assert status == 1
    assert output.startswith("error: processes 1, 2 of 3 did not come")


def test_a_port_that_is_taken_and_an_address_without_one_are_one_line():
    with socket.create_server(("", 0)) as taken, pytest.raises(UserError, match="process 0 cannot listen at port"):
        rendezvous.meet(f"localhost:{taken.getsockname()[1]}", 2, 0, 1, f"0.0.0.0:{taken.getsockname()[1]}")
    with pytest.raises(UserError, match="'here' is no address: give host:port"):
        rendezvous.meet("here", 2, 1, 1)
