"""What is relied on of JAX and XLA without their promise; and what becomes of a run where they change it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm import sharding
from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.runtime import jax_internals


def doubled():
    return jax.jit(lambda x: x * 2).lower(jnp.ones(3))


def test_this_xla_knows_every_option_that_is_given():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in (jax_internals.CPU_STEP, jax_internals.CPU_ONCE, jax_internals.CPU_DRAWN):
            assert jax_internals.compile_lowered(doubled(), options)(jnp.ones(3)).tolist() == [2, 2, 2]


def test_each_platform_has_its_own_options(monkeypatch):
    assert jax_internals.step_options("tpu") == jax_internals.TPU_STEP
    assert jax_internals.step_options("gpu") is None
    monkeypatch.setenv("JAXMM_TPU_TUNING", "0")
    assert jax_internals.step_options("tpu") is None


def test_an_option_that_xla_does_not_know_costs_a_warning_and_not_the_run():
    options = {"xla_of_another_year": True, **jax_internals.CPU_STEP}
    with pytest.warns(UserWarning, match="does not know the option xla_of_another_year"):
        compiled = jax_internals.compile_lowered(doubled(), options)
    assert compiled(jnp.ones(3)).tolist() == [2, 2, 2]
    assert "xla_of_another_year" in options, "the caller's own are left alone"


def test_an_option_that_steps_do_not_depend_on_may_be_gone(monkeypatch):
    monkeypatch.setattr(jax_internals, "MAY_LACK", ("xla_of_another_year",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = jax_internals.compile_lowered(doubled(), {"xla_of_another_year": True, **jax_internals.CPU_ONCE})
    assert compiled(jnp.ones(3)).tolist() == [2, 2, 2]


def test_another_failure_of_compiling_is_none_of_options():
    class Broken:
        def compile(self, options):
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        jax_internals.compile_lowered(Broken(), jax_internals.CPU_STEP)


def test_without_a_job_there_is_no_coordinator_and_no_cluster(monkeypatch):
    for name in ("SLURM_JOB_ID", "TPU_WORKER_HOSTNAMES", "OMPI_MCA_orte_hnp_uri"):
        monkeypatch.delenv(name, raising=False)
    assert jax_internals.coordinator() is None
    assert jax_internals.place_in_cluster(1) is None


def test_processes_are_named_as_the_coordinator_names_them():
    message = (
        "DEADLINE_EXCEEDED: Barrier timed out. Id: jaxmm/step::1. This usually happens because a task triggered the "
        "barrier too early or too slowly. Please look at the task logs.\n# of tasks that reached the barrier: 2/4.\n"
        "The first task at the barrier: /job:jax_worker/replica:0/task:0. Some timed out task names:\n"
        "/job:jax_worker/replica:0/task:3\n/job:jax_worker/replica:0/task:1\n"
    )
    assert jax_internals.is_deadline(message)
    assert jax_internals.absent_processes(message) == [1, 3]
    assert jax_internals.absent_processes("INTERNAL: something else") == []
    assert jax_internals.gone_process("UNAVAILABLE: Task 2 heartbeat timeout") == 2
    assert jax_internals.gone_process(message) is None


def test_all_settings_are_listed_and_a_change_shows():
    before = jax_internals.settings()
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        assert jax_internals.settings() != before
    finally:
        jax.config.update("jax_default_matmul_precision", None)
    assert jax_internals.settings() == before


def test_untuned_the_results_are_the_same_but_for_rounding():
    program = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jaxmm.models.layers import MLP
from jaxmm.models.materialize import materialize
from jaxmm.runtime.jax_internals import step_options
import sys
mlp = MLP(8, 32, "silu", gated=True, bias=True, rngs=nnx.Rngs(0))
graph, state = nnx.split(mlp)
x = jax.random.normal(jax.random.key(1), (4, 8))
loss = lambda state, x: jnp.square(materialize(nnx.merge(graph, state)(x))).sum()
grads = jax.jit(jax.grad(loss)).lower(state, x).compile(step_options())(state, x)
print(step_options() is None, *(float(jnp.abs(g).sum()) for g in jax.tree.leaves(grads)))
"""
    told = []
    for tuning in ("1", "0"):
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAXMM_CPU_TUNING": tuning}
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        told.append(done.stdout.split())
    assert [each[0] for each in told] == ["False", "True"]
    numbers = [[float(number) for number in each[1:]] for each in told]
    assert len(numbers[0]) == 6
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-5)


def test_a_small_replicated_array_is_written_by_one_device_with_the_notes_of_orbax(tmp_path):
    mesh = sharding.make_mesh({"data": 8})
    with jax.set_mesh(mesh):
        x = jax.device_put(np.arange(64, dtype=np.float32), sharding.replicated(mesh))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": x}, {})
        checkpoints.wait()
        np.testing.assert_array_equal(checkpoints.restore({"x": x})["x"], x)
    (notes,) = (tmp_path / "1/state/array_metadatas").iterdir()
    (noted,) = json.loads(notes.read_text())["array_metadatas"]
    assert noted["array_metadata"]["write_shape"] == [64], "an eighth of it, where each device writes a part"
