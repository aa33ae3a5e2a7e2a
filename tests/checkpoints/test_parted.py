"""Processes that share no disk save and restore one checkpoint, by the store alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_gcs
from small_run import by_variables, environment, free_port

from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.checkpoints.stored import Stored
from jaxmm.workdir.place import Place
from jaxmm.workdir.spool import Spool

SHAPES = {
    "split": (8, 4),
    "whole": (3,),
    "large": (256, 1100),
    "scalar": (),
}  # a whole one that is written in slices by all
SHAPES |= {f"small{number}": (2,) for number in range(24)}  # which threads of two processes read in any order

PROGRAM = """
import os, sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxmm.runtime import startup
startup.join_processes()
from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.workdir.place import Place
from jaxmm.workdir.spool import Spool
import json
url, what = sys.argv[1:]
shapes = json.loads(os.environ["SHAPES"])
mesh = Mesh(np.array(jax.devices()), ("x",))
spool = Spool.make(Place.read("", url))
if jax.process_index():
    spool = spool.for_process(jax.process_index())
else:
    spool.own()

def state(step):
    out = {}
    for name, shape in shapes.items():
        full = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + step
        sharding = NamedSharding(mesh, P("x") if name == "split" else P())
        out[name] = jax.make_array_from_callback(tuple(shape), sharding, lambda index: full[index])
    return out

with Checkpoints(spool.folder / "checkpoints") as checkpoints:
    if what == "restore":
        found = checkpoints.restore(state(0))
        for name, array in state(6).items():
            for mine, theirs in zip(array.addressable_shards, found[name].addressable_shards):
                np.testing.assert_array_equal(mine.data, theirs.data)
    for step in (4, 6) if what == "save" else (8,):
        checkpoints.save(step, state(step), {"position": step})
print("done", jax.process_index(), flush=True)
"""


def run(url: str, what: str, count: int, spools: str) -> None:
    """The program in so many processes, each with two devices."""
    more = {"SHAPES": json.dumps(SHAPES), "JAXMM_SPOOL": spools, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, url, what], env=environment(2, **more, **variables), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for variables in by_variables(count, free_port())
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for number, text in enumerate(said):
        assert f"done {number}" in text, text[-3000:]


@pytest.mark.parametrize("kind", ["file", pytest.param("gs", marks=pytest.mark.slow)])
def test_processes_without_a_shared_disk_save_one_checkpoint_that_any_number_restores(tmp_path, monkeypatch, kind):
    with small_gcs.serving() as server:
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "x")
        monkeypatch.setenv("JAXMM_SPOOL", str(tmp_path / "here"))
        url = {"file": f"file://{tmp_path}/store/run", "gs": "gs://bucket/run"}[kind]
        run(url, "save", 2, str(tmp_path / "a"))
        if kind == "file":
            run(url, "restore", 2, str(tmp_path / "b"))
        spool = Spool.make(Place.read("", url))
        spool.own()
        stored = Stored.of(spool.folder / "checkpoints")
        assert stored
        newest = {"file": 8, "gs": 6}[kind]
        assert stored.steps()[-1] == newest
        assert not [name for name in stored.names(newest) if name.startswith("part")]
        assert {"state/ocdbt.process_0/manifest.ocdbt", "state/ocdbt.process_1/manifest.ocdbt"} < {
            *stored.names(newest)
        }
        with Checkpoints(spool.folder / "checkpoints") as checkpoints:
            found = checkpoints.restore({name: jnp.zeros(shape) for name, shape in SHAPES.items()})
            for name, shape in SHAPES.items():
                want = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + newest
                np.testing.assert_array_equal(jax.device_get(found[name]), want)
