"""The step is compiled once, ahead of the first batch; a batch of another shape says what changed."""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import ROOT

from jaxmm import command, corpus, sharding
from jaxmm.corpus import foreseen_budgets
from jaxmm.data import demo
from jaxmm.training import run as run_module
from jaxmm.training.compiled_step import CompiledStep
from jaxmm.training.run import Run


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


def config_of(*flags: str):
    return command.parse([f"--config={ROOT / 'configs/base.py'}", *flags], {}).config


def test_the_step_of_the_demo_is_begun_before_its_pictures_are_drawn(monkeypatch, tmp_path):
    begun = []

    class Recorded(CompiledStep):
        def __init__(self, *args):
            begun.append("step")
            super().__init__(*args)

        def _compile(self, batch):
            return None

    def read(*args):
        begun.append("data")
        return train_corpus(*args)

    train_corpus = run_module.train_corpus
    monkeypatch.setattr(run_module, "CompiledStep", Recorded)
    monkeypatch.setattr(run_module, "train_corpus", read)
    for source in ("training_source", "test_source"):
        monkeypatch.setattr(demo, source, functools.partial(getattr(demo, source), examples=60))
    config = config_of(f"--config.data.cache={tmp_path}")
    run = Run(config, tmp_path / "run", compile_ahead=True)
    assert begun == ["step", "data"]
    assert run.budgets != corpus.DEMO_BUDGETS  # those of 60 documents
    assert run.compiled_step().is_of(run.program, run.abstract_batch())
    assert begun == ["step", "data", "step"]

    monkeypatch.setattr(corpus, "DEMO_BUDGETS", run.budgets)
    run = Run(config, tmp_path / "run", compile_ahead=True)
    assert run.compiled_step().is_of(run.program, run.abstract_batch())
    assert begun[3:] == ["step", "data"]


@pytest.mark.parametrize(
    ("flag", "is_foreseen"),
    [
        ("steps=9", True), ("data.threads=2", True), ("decoder.width=64", True), ("data.demo=video", False),
        ("seq_len=256", False), ("image.merge=1", False), ("target_budget=64", False), ("mesh.context=2", False),
        ("data.path=pages.jsonl", False),
    ],
)  # fmt: skip
def test_budgets_are_foreseen_of_the_demo_under_the_default_config_alone(flag, is_foreseen):
    assert foreseen_budgets(config_of(f"--config.{flag}")) == (corpus.DEMO_BUDGETS if is_foreseen else None)
