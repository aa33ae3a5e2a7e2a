"""Adapters of experts, and experts held in fewer bits: against the same model with plain kernels, on any mesh."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE

from jaxmm import sharding
from jaxmm.checkpoints.params import place_params
from jaxmm.data.assemble import empty_batch
from jaxmm.data.packing.limits import Budgets
from jaxmm.models.adapters import FIRST, AdapterSpec, is_factor, merged
from jaxmm.models.compute import Compute
from jaxmm.models.decoder_spec import DecoderSpec
from jaxmm.models.frozen import FrozenSpec
from jaxmm.models.multimodal import ModelSpec, begin_adapters, hold_params, make_model, model_maps, plain_params
from jaxmm.models.routing import ExpertSpec
from jaxmm.models.tree import flat, joined, nested, only

PLAIN = ModelSpec(
    None, None, DecoderSpec(64, 32, 2, 4, 2, 8, 48, experts=ExpertSpec(4, 2, 24, normalised=True), dense_layers=(0,))
)
ROWS, LENGTH = 8, 16


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    empty = empty_batch(ROWS, Budgets(LENGTH, 0, 0, LENGTH), IMAGE)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32)[None, :, None], (ROWS, LENGTH, 1))
    segments = (positions[..., 0] < rng.integers(8, LENGTH, (ROWS, 1))).astype(np.int32)
    values = rng.integers(0, 64, (ROWS, LENGTH), np.int32)
    return empty._replace(text=empty.text._replace(values=values, positions=positions * 1, segments=segments))


def made(kind: str, start: str = ""):
    """A model of adapted experts, and its parameters, none of which is at its initial value."""
    adapter = AdapterSpec(("decoder.blocks.experts",), rank=2, alpha=3.0, start=start)
    spec = dataclasses.replace(PLAIN, adapter=adapter, frozen=FrozenSpec(kind) if kind else None)
    params = hold_params(make_model(PLAIN)[0](jax.random.key(0)), spec.base)
    by_path = flat(begin_adapters(params, spec, jax.random.key(1)))
    for number, (path, x) in enumerate(sorted(by_path.items())):
        if is_factor(path) and path[-1] not in FIRST:
            by_path[path] = x + 0.1 * jax.random.normal(jax.random.key(number), x.shape)
    return spec, nested(by_path)


def slopes(spec: ModelSpec, batch, as_plain: bool = False):
    """The value of a function of the hidden states, and its gradients by the factors.

    Args:
      as_plain: of the model without adapters and with plain kernels that says the same.
    """
    apply = make_model(PLAIN if as_plain else spec)[1]

    def f(factors, fixed):
        params = joined(factors, fixed)
        if as_plain:
            params = nested(merged(flat(plain_params(params, spec)), model_maps(spec)))
        hidden_BTD, _ = apply(params, batch, Compute())
        return jnp.sin(hidden_BTD).sum()

    return jax.jit(jax.value_and_grad(f))


def split(params):
    return only(params, is_factor), only(params, lambda path: not is_factor(path))


def assert_close(found, wanted):
    for one, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * max(1.0, float(np.abs(other).max())))


@pytest.mark.parametrize(("kind", "start"), [("", ""), ("", "pissa"), ("int8", ""), ("nf4", "")])
def test_adapted_experts_say_what_experts_say_that_they_are_merged_into(kind, start, batch):
    spec, params = made(kind, start)
    found, wanted = (slopes(spec, batch, as_plain)(*split(params)) for as_plain in (False, True))
    assert_close(found, wanted)
    assert all(np.abs(x).max() > 1e-3 for path, x in flat(found[1]).items() if path[-1] not in FIRST)


def test_adapters_of_experts_that_begin_change_nothing(batch):
    spec = dataclasses.replace(PLAIN, adapter=AdapterSpec(("decoder.blocks.experts",), rank=2, start="pissa"))
    params = make_model(PLAIN)[0](jax.random.key(0))
    adapted = begin_adapters(params, spec, jax.random.key(1))
    found, wanted = (
        jax.jit(lambda p, of=of: make_model(of)[1](p, batch, Compute())[0])(p)
        for of, p in ((spec, adapted), (PLAIN, params))
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("", {"fsdp": 2, "expert": 2, "tensor": 2}), ("nf4", {"fsdp": 2, "expert": 2, "tensor": 2}),
        pytest.param("int8", {"fsdp": 2, "expert": 2, "tensor": 2}, marks=pytest.mark.slow),
        pytest.param("nf4", {"expert": 4, "fsdp": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)  # fmt: skip
def test_a_mesh_changes_nothing_of_adapted_experts(kind, sizes, batch):
    spec, params = made(kind)
    wanted = slopes(spec, batch)(*split(params))
    mesh = sharding.make_mesh(sizes)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, place_params(spec, params, mesh))
        found = slopes(spec, sharding.place_batch(batch, mesh))(*split(placed))
    assert_close(found, wanted)
