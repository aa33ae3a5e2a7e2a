"""Programs kept as they were lowered: the same results, traced by the first process alone."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import ROOT

from jaxmm import sharding
from jaxmm.runtime import program_cache


class State(NamedTuple):
    weights: jax.Array
    seen: dict[str, jax.Array]


@pytest.fixture
def mesh():
    mesh = sharding.make_mesh({"data": -1})
    with jax.set_mesh(mesh):
        yield mesh


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(program_cache, "_folder", lambda: tmp_path / "lowered")
    return tmp_path / "lowered"


class Program:
    """A step, how often it was traced, and its arguments."""

    def __init__(self, mesh: jax.sharding.Mesh, rows: int = 8):
        self.mesh, self.traced = mesh, 0
        self.where = State(sharding.row_sharding(mesh), {"rows": sharding.replicated(mesh)})
        state = State(jnp.arange(rows * 3.0).reshape(rows, 3), {"rows": jnp.int32(0)})
        self.args = (jax.device_put(state, self.where), sharding.place_batch(np.ones((rows, 3), np.float32), mesh))

    def step(self, state: State, batch: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        self.traced += 1
        after = State(state.weights + batch, {"rows": state.seen["rows"] + batch.shape[0]})
        return after, {"sum": after.weights.sum()}

    def run(self, key: str = "a", donate: tuple[int, ...] = (0,)) -> tuple[State, dict[str, jax.Array]]:
        found = program_cache.lower(
            self.step, self.args, key=key, out_shardings=(self.where, sharding.replicated(self.mesh)),
            donate_argnums=donate,
        )  # fmt: skip
        return found.compile()(*self.args)


def test_a_kept_program_is_the_traced_one(mesh, folder):
    expected, metrics = jax.jit(Program(mesh).step)(*Program(mesh).args)
    for traced in (1, 0):  # the second is as another process would have it
        program = Program(mesh)
        state, found = program.run()
        assert program.traced == traced
        assert isinstance(state, State)
        jax.tree.map(np.testing.assert_array_equal, (state, found), (expected, metrics))
        assert jax.tree.map(lambda x: x.sharding, state) == program.where
        assert [program.args[0].weights.is_deleted(), program.args[1].is_deleted()] == [True, False]


def test_what_a_trace_depends_on_is_traced_again(mesh, folder, monkeypatch):
    Program(mesh).run()
    for change in ("key", "rows", "mesh", "settings", "sources", "results", "donated"):
        program, key = Program(mesh, rows=16 if change == "rows" else 8), "b" if change == "key" else "a"
        with monkeypatch.context() as patch:
            if change == "mesh":
                other = sharding.make_mesh({"data": 4, "fsdp": 2})
                with jax.set_mesh(other):
                    program = Program(other)
                    program.run()
            elif change == "settings":
                with jax.default_matmul_precision("highest"):
                    program.run()
            else:
                if change == "sources":
                    patch.setattr(program_cache, "CODE", "another")
                if change == "results":
                    program.where = program.where._replace(weights=sharding.replicated(mesh))
                program.run(key, donate=() if change == "donated" else (0,))
        assert program.traced == 1, change


NAMED = """
import jax
from jaxmm import sharding
from jaxmm.runtime import program_cache
mesh = sharding.make_mesh({"data": -1})
args = {name: jax.ShapeDtypeStruct((8, 3), "float32", sharding=sharding.row_sharding(mesh)) for name in "abc"}
with jax.set_mesh(mesh):
    print(program_cache._name("key", (args,), (sharding.replicated(mesh),), (0,)))
"""


def test_a_program_has_one_name_whatever_the_seed_of_python_s_hashes():
    environments = [{**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed} for seed in "12"]
    run = [subprocess.Popen([sys.executable, "-c", NAMED], env=e, stdout=subprocess.PIPE) for e in environments]
    names = [process.communicate(timeout=120)[0] for process in run]
    assert [process.returncode for process in run] == [0, 0]
    assert len(names[0].strip()) == 64
    assert names[0] == names[1]


def test_what_runs_a_program_does_not_keep_it_as_it_was_lowered(mesh, folder):
    program = Program(mesh)
    found = program_cache.lower(
        program.step, program.args, key="a", out_shardings=(program.where, sharding.replicated(mesh))
    )  # fmt: skip
    gone = weakref.ref(found.lowered)
    run = found.compile()
    del found
    gc.collect()
    assert gone() is None
    state, _ = run(*program.args)
    np.testing.assert_array_equal(state.weights, program.args[0].weights + 1)


def test_a_damaged_file_is_made_again(mesh, folder):
    first, _ = Program(mesh).run()
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:10], whole[:40] + b"x" + whole[41:], b""):
        path.write_bytes(damaged)
        program = Program(mesh)
        again, _ = program.run()
        assert program.traced == 1
        np.testing.assert_array_equal(first.weights, again.weights)
        assert [p.name for p in folder.iterdir()] == [path.name]


def test_what_another_user_could_have_written_is_not_read(mesh, folder, monkeypatch):
    first, _ = Program(mesh).run()
    (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    for change in (
        lambda: path.chmod(0o666),
        lambda: monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1),
    ):
        change()
        program = Program(mesh)
        again, _ = program.run()
        assert program.traced == 1
        np.testing.assert_array_equal(first.weights, again.weights)


def test_a_folder_that_cannot_be_written_to_is_a_warning(mesh, folder):
    folder.write_text("not a folder")
    with pytest.warns(UserWarning, match="not kept in .*lowered"):
        state, _ = Program(mesh).run()
    np.testing.assert_array_equal(state.weights, jax.jit(Program(mesh).step)(*Program(mesh).args)[0].weights)


def test_the_oldest_files_go(mesh, folder, monkeypatch):
    monkeypatch.setattr(program_cache, "KEPT", 2)
    for key in "abc":
        Program(mesh).run(key)
    assert len(list(folder.iterdir())) == 2
    program = Program(mesh)
    program.run("c")
    assert program.traced == 0


def test_programs_are_kept_where_compiled_ones_are(monkeypatch, tmp_path):
    assert program_cache._folder().name == "lowered"
    enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        assert program_cache._folder() is None
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
    for patched in ("jax.process_count", "jaxmm.runtime.program_cache._code"):
        with monkeypatch.context() as patch:
            patch.setattr(patched, lambda: 2)
            assert program_cache._folder() is None
    cache = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", "gs://bucket/cache")
    try:
        assert program_cache._folder() is None
    finally:
        jax.config.update("jax_compilation_cache_dir", cache)


class Pair(NamedTuple):
    first: Any
    second: Any


def test_the_structure_of_a_result_is_kept_as_text():
    tree = Pair({"a": (1, 2), "b": {}}, Pair(3, ()))
    described = json.loads(json.dumps(program_cache._described(jax.tree.structure(tree))))
    assert jax.tree.structure(program_cache._rebuilt(described, (Pair,))) == jax.tree.structure(tree)
    with pytest.raises(TypeError, match="a result holds a list"):
        program_cache._described(jax.tree.structure(Pair([1], 2)))
