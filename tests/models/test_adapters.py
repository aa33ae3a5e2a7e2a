"""An adapted map is the map of its merged kernel, changes nothing at first, and costs no gradient of what is frozen."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE, Tiny, random_documents, rows_of

from jaxmm.data.assemble import Assembler
from jaxmm.data.packing.plan import Budgets
from jaxmm.models.adapters import AdapterSpec, is_factor, merged, noise
from jaxmm.models.multimodal import ModelSpec, abstract_params, begin_adapters, flat_axes, make_model, model_maps
from jaxmm.models.trainable import Trainable
from jaxmm.models.tree import flat, joined, nested

KINDS = ("lora", pytest.param("rslora", marks=pytest.mark.slow), "dora")
EVERY_MAP = ("vision", "connector", "decoder")


@pytest.fixture(scope="module")
def batch(lengths_of):
    lengths = lengths_of(random_documents(6, 3))
    budgets = Budgets(tokens=128, patches=128, items=8, targets=128)
    return Assembler([lengths], budgets, IMAGE)(rows_of(lengths, *([e] for e in range(4)))).batch


def adapted(tiny: Tiny, **options: Any) -> ModelSpec:
    spec = AdapterSpec(**({"targets": EVERY_MAP, "rank": 3, "alpha": 6.0} | options))
    return dataclasses.replace(tiny.spec, adapter=spec)


def started(tiny: Tiny, model: ModelSpec, moved: float = 0.0) -> dict:
    """The tiny model's parameters with adapters, moved away from where they start by noise of this size."""
    found = flat(begin_adapters(tiny.params, model, jax.random.key(0)))
    rng = np.random.default_rng(1)
    for path, x in found.items():
        if is_factor(path) and moved:
            found[path] = x + moved * rng.standard_normal(x.shape, np.float32)
    return nested(found)


def said(tiny: Tiny, model: ModelSpec, params: Any, batch: Any) -> np.ndarray:
    hidden_BTD, head_VD = jax.jit(lambda p: make_model(model)[1](p, batch, tiny.compute))(params)
    return np.asarray(hidden_BTD @ head_VD.T)[np.asarray(batch.text.segments) > 0]


@pytest.mark.parametrize(("kind", "start"), [("lora", ""), ("rslora", "gaussian"), ("dora", "pissa")])
def test_an_adapter_that_begins_changes_nothing(kind, start, tiny, batch):
    model = adapted(tiny, kind=kind, start=start)
    params = started(tiny, model)
    assert {path: x.shape for path, x in flat(params).items()} == {p: s for p, (s, _) in flat_axes(model).items()}
    np.testing.assert_allclose(said(tiny, model, params, batch), said(tiny, tiny.spec, tiny.params, batch), atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapted_model_is_that_of_the_merged_kernels(kind, tiny, batch):
    model = adapted(tiny, kind=kind, ranks=(("decoder.blocks.mlp", 5, 3.0),))
    params = started(tiny, model, moved=0.1)
    found, plain = said(tiny, model, params, batch), said(tiny, tiny.spec, tiny.params, batch)
    assert np.abs(found - plain).max() > 0.1, "it does change something"
    whole = merged(flat(params), model_maps(model))
    assert set(whole) == set(flat_axes(tiny.spec))
    np.testing.assert_allclose(found, said(tiny, tiny.spec, nested(whole), batch), atol=1e-5 * np.abs(found).max())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_factors_are_those_through_the_merged_kernel(kind, tiny, batch):
    """Of DoRA the norms count as constants: so they do here, in the merged kernel."""
    model = adapted(tiny, kind=kind)
    params = started(tiny, model, moved=0.2)
    learnt, fixed = Trainable(adapters=True).split(params)
    assert all(map(is_factor, flat(learnt)))

    def loss(learnt: Any, through: Any) -> jax.Array:
        hidden_BTD, head_VD = through(joined(learnt, fixed))
        return ((hidden_BTD @ head_VD.T) ** 2).mean()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    found = gradient(learnt, lambda p: make_model(model)[1](p, batch, tiny.compute))
    wanted = gradient(
        learnt, lambda p: make_model(tiny.spec)[1](nested(merged(flat(p), model_maps(model))), batch, tiny.compute)
    )  # fmt: skip
    for path, value in flat(wanted).items():
        np.testing.assert_allclose(flat(found)[path], value, atol=2e-5 * np.abs(value).max(), err_msg=".".join(path))


def test_dropout_drops_what_goes_into_the_factors_alone_and_a_key_says_what(tiny, batch):
    model = adapted(tiny, targets=("decoder",))
    params, dropping = started(tiny, model, moved=0.3), adapted(tiny, targets=("decoder",), dropout=0.5)
    maps, shapes = model_maps(model), {p: s for p, (s, _) in flat_axes(model).items()}

    def dropped(seed: int, params: Any = params) -> np.ndarray:
        keys = noise(maps, shapes, jax.random.key(seed))
        return said(tiny, dropping, joined(params, keys), batch)

    np.testing.assert_array_equal(dropped(1), dropped(1))
    assert np.abs(dropped(1) - dropped(2)).max() > 0.1
    at_rest = said(tiny, model, params, batch)
    assert np.abs(dropped(1) - at_rest).max() > 0.1
    begun = started(tiny, model)
    np.testing.assert_allclose(dropped(1, begun), said(tiny, tiny.spec, tiny.params, batch), atol=2e-5)


def test_convolutions_have_no_adapter_and_the_last_of_several_ranks_counts():
    spec = AdapterSpec(("vision",), 4, 8.0, ranks=(("*.mlp", 8, 8.0), ("*.mlp.up", 2, 8.0)))
    assert not spec.adapts(("vision", "patch_embedding"))
    assert spec.adapts(("vision", "blocks", "mlp", "up"))
    maps = ("mlp", "up"), ("mlp", "down"), ("attention", "out")
    assert [spec.sizes(("vision", "blocks", *one)) for one in maps] == [(2, 4.0), (8, 1.0), (4, 2.0)]
    assert AdapterSpec(("vision",), 16, 32.0, "rslora").sizes(("vision", "x")) == (16, 8.0)
    with pytest.raises(ValueError, match="adapter kind 'lara' is not one of lora, rslora, dora"):
        AdapterSpec((), kind="lara")


def test_parameters_are_declared_without_being_made(tiny):
    shapes = {path: x.shape for path, x in flat(abstract_params(adapted(tiny))).items()}
    into, out = shapes["decoder", "blocks", "attention", "out", "lora", "into"], ("connector", "down", "lora", "out")
    heads = tiny.spec.decoder
    assert into == (heads.layers, heads.heads, heads.head_dim, 3), "a layer, then as the kernel that it adapts"
    assert shapes[out] == (3, heads.width)
    assert jnp.float32 == jax.tree.leaves(abstract_params(adapted(tiny)))[0].dtype
