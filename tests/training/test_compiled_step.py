"""The step is compiled once, ahead of the first batch; a batch of another shape says what changed."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np

from jaxmm import sharding
from jaxmm.training.compiled_step import CompiledStep


def made(rows: int) -> dict[str, np.ndarray]:
    return {"text": np.ones((rows, 4), np.float32), "grids": np.zeros((rows, 2), np.int32)}


def test_another_shape_is_compiled_anew_and_told(monkeypatch):
    # Else an earlier run of the tests may have traced it.
    monkeypatch.setattr("jaxmm.runtime.program_cache._folder", lambda: None)
    mesh = sharding.make_mesh({"data": -1})
    traced = []

    def step(state, batch):
        traced.append(batch["text"].shape)
        return state + batch["text"].sum(), batch["grids"].sum()

    program = types.SimpleNamespace(
        step=step,
        key="",
        shardings=sharding.replicated,
        abstract_state=lambda mesh: jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh)),
    )
    lines = []
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.row_sharding(mesh)), made(8)
    )
    run = CompiledStep(program, mesh, abstract, lines.append)
    state = jax.device_put(jnp.float32(0), sharding.replicated(mesh))
    for rows in (8, 8, 16):
        state, _ = run(state, sharding.place_batch(made(rows), mesh))
    assert float(state) == 4 * (8 + 8 + 16)
    assert traced == [(8, 4), (16, 4)]
    assert lines == [
        "the step is compiled again, for a batch of another shape: "
        "grids int32[8, 2] -> int32[16, 2]; text float32[8, 4] -> float32[16, 4]"
    ]
