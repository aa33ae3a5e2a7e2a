"""A run may stop at any batch on some number of processes and go on with another: the rows and their order stay."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from conftest import IMAGE, random_documents
from elastic_process import BATCH_SIZE, planned

from jaxmm.data.documents import Source, Unit
from jaxmm.data.loader import batches
from jaxmm.data.packing.plan import Budgets
from jaxmm.data.prepare.prepare import prepare

BUDGETS = Budgets(tokens=96, patches=96, items=6, targets=96)
PROCESSES = (1, 2, 4)  # what divides four rows; more than rows means that some hold the same ones


@pytest.fixture(scope="module")
def folder(tmp_path_factory, template) -> Path:
    documents = random_documents(60, 5, longest=120)
    source = Source("disk", (), "{}", lambda: [Unit("", 0, len(documents), 0)], lambda _: iter(documents))
    return prepare(source, template, tmp_path_factory.mktemp("prepared"))


def rows_of(process: int, processes: int) -> list[int]:
    """What a process of so many loads, where ``tensor`` spans those that are more than rows."""
    spanned = max(processes // BATCH_SIZE, 1)
    shards = processes // spanned
    size = BATCH_SIZE // shards
    first = process // spanned * size
    return list(range(first, first + size))


@hypothesis.given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from((*PROCESSES, 8))), min_size=1, max_size=4))
@hypothesis.settings(max_examples=15)
def test_rows_are_the_same_after_any_stop_and_any_change_of_process_count(folder, phases):
    at = 0
    for count, processes in phases:
        parts = []
        for process in range(processes):
            plan, assemble = planned(folder, IMAGE, BUDGETS)  # each process plans for itself
            rows = rows_of(process, processes)
            parts.append((rows, list(batches(plan, assemble, at, at + count, local_rows=rows, threads=1, buffer=1))))
        plan, assemble = planned(folder, IMAGE, BUDGETS)
        for k in range(count):
            whole = assemble(plan.batch(at + k))
            for rows, found in parts:
                part = jax.tree.map(lambda x, rows=rows: x[rows], whole.batch)
                jax.tree.map(np.testing.assert_array_equal, found[k].batch, part)
                assert found[k].rows == [whole.rows[i] for i in rows]
        at += count


def run(folder: Path, mesh: dict[str, int], processes: int, start: int, stop: int) -> list[list[dict]]:
    """Starts the processes, each with one device; returns what each has printed."""
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    settings = json.dumps([mesh, dataclasses.asdict(IMAGE), BUDGETS])
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    program = Path(__file__).parent / "elastic_process.py"
    started = [
        subprocess.Popen(
            [sys.executable, program, address, str(processes), str(i), folder, settings, str(start), str(stop)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for i in range(processes)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, outputs[0][1][-2000:]
    return [[json.loads(line) for line in out.splitlines() if line.startswith("{")] for out, _ in outputs]


def test_four_real_processes_with_tensor_over_two_of_them_stop_and_two_go_on(folder):
    """Processes 0 and 1 hold the same rows, as do 2 and 3: dealing rows by process number would be wrong here."""
    four = run(folder, {"fsdp": 2, "tensor": 2}, 4, 0, 3)
    two = run(folder, {"data": 2}, 2, 3, 5)
    assert [lines[0]["rows"] for lines in four] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [lines[0]["rows"] for lines in two] == [[0, 1], [2, 3]]
    plan, assemble = planned(folder, IMAGE, BUDGETS)
    for k, parts in enumerate([*zip(*four, strict=True), *zip(*two, strict=True)]):
        whole = assemble(plan.batch(k))
        sums = [int(whole.batch.text.values.sum()), int(whole.batch.patches.values.astype(int).sum())]
        for part in parts:
            assert part["batch"] == k
            wanted = [[[p.example, p.first, p.last] for p in whole.rows[i]] for i in part["rows"]]
            assert part["pieces"] == wanted
            assert part["shape"] == list(whole.batch.text.values.shape)
            assert part["sums"] == sums
