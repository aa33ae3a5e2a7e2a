"""An adapter of a table is that of the merged table, where tokens are embedded and where they are predicted."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE, plain
from jax.sharding import NamedSharding

from jaxmm import sharding
from jaxmm.data.assemble import Assembler
from jaxmm.data.packing.plan import Budgets, Piece
from jaxmm.models.adapters import AdapterSpec, is_factor, merged
from jaxmm.models.decoder import DecoderSpec
from jaxmm.models.flops import batch_flops
from jaxmm.models.multimodal import Compute, ModelSpec, begin_adapters, flat_axes, make_model, model_maps
from jaxmm.models.tables import AdaptedHead, dense
from jaxmm.models.trainable import Trainable
from jaxmm.models.tree import flat, joined, nested
from jaxmm.training.loss import batch_loss, select_targets

DECODER = DecoderSpec(
    vocab_size=392, width=32, layers=1, heads=2, kv_heads=2, head_dim=16, mlp=32, embed_scale=3.0, logit_softcap=20.0
)
COMPUTE = Compute("float32", "none")
BOTH = ("decoder.embedding", "decoder.head")
TIED = pytest.param(True, id="tied")
APART = pytest.param(False, id="apart")


@pytest.fixture(scope="module")
def batch(lengths_of):
    lengths = lengths_of([plain(text * 3) for text in ("what", "is said", "of a table", "and of others")])
    budgets = Budgets(tokens=64, patches=16, items=1, targets=64)
    return Assembler([lengths], budgets, IMAGE)([[Piece(0, e, 0, int(lengths.tokens_E[e]))] for e in range(4)]).batch


def bare(is_tied: bool) -> ModelSpec:
    return ModelSpec(None, None, dataclasses.replace(DECODER, tie_embeddings=is_tied))


def adapted(
    is_tied: bool, targets: tuple[str, ...] = BOTH, moved: float = 0.0, **options: Any
) -> tuple[ModelSpec, Any]:
    """The model with adapters of its tables, and parameters, the factors moved away from where they start."""
    model = dataclasses.replace(bare(is_tied), adapter=AdapterSpec(targets, 3, 6.0, **options))
    base = make_model(bare(is_tied))[0](jax.random.key(1))
    found, rng = flat(begin_adapters(base, model, jax.random.key(0))), np.random.default_rng(1)
    for path, x in found.items():
        if is_factor(path):
            found[path] = x + moved * rng.standard_normal(x.shape, np.float32)
    return model, nested(found)


def loss_of(model: ModelSpec, params: Any, batch: Any) -> jax.Array:
    at = lambda places: make_model(model)[1](params, batch, COMPUTE, places)  # noqa: E731
    return batch_loss(at, batch, 64, 1e-3, model.decoder.logit_softcap)[0]


def said(model: ModelSpec, params: Any, batch: Any) -> tuple[np.ndarray, np.ndarray, float]:
    """What the model says by the dense table, by ``logits``, and by the loss."""

    def ask(params):
        apply = make_model(model)[1]
        hidden_BTD, head = apply(params, batch, COMPUTE)
        return (
            hidden_BTD @ dense(head).T,
            apply(params, hidden_BTD[:, 0], method="logits"),
            loss_of(model, params, batch),
        )

    by_table, by_logits, loss = jax.jit(ask)(params)
    return np.asarray(by_table), np.asarray(by_logits), float(loss)


@pytest.mark.parametrize("is_tied", [TIED, APART])
@pytest.mark.parametrize("start", ["", "gaussian"])
def test_an_adapter_of_a_table_begins_without_a_change_and_can_learn(is_tied, start, batch):
    model, params = adapted(is_tied, start=start)
    assert {path: x.shape for path, x in flat(params).items()} == {p: s for p, (s, _) in flat_axes(model).items()}
    base = nested({path: x for path, x in flat(params).items() if not is_factor(path)})
    for found, wanted in zip(said(model, params, batch), said(bare(is_tied), base, batch), strict=True):
        np.testing.assert_array_equal(found, wanted)
    learnt, fixed = Trainable(adapters=True).split(params)
    slopes = flat(jax.grad(lambda learnt: loss_of(model, joined(learnt, fixed), batch))(learnt))
    for path, slope in slopes.items():
        assert (np.abs(slope).max() > 0) == (path[-1] == "into"), path


@pytest.mark.parametrize(("is_tied", "targets"), [
    pytest.param(True, BOTH[:1], id="tied"), pytest.param(False, BOTH, id="both"),
    pytest.param(False, BOTH[:1], id="embedding", marks=pytest.mark.slow),
    pytest.param(False, BOTH[1:], id="head", marks=pytest.mark.slow),
])  # fmt: skip
def test_adapted_tables_are_the_merged_ones_in_values_and_gradients(is_tied, targets, batch):
    model, params = adapted(is_tied, targets, moved=0.2, ranks=(("decoder.embedding", 2, 1.0),))
    assert [".".join(one.path) for one in model_maps(model)] == list(targets)
    whole = merged(flat(params), model_maps(model))
    assert set(whole) == set(flat_axes(bare(is_tied)))
    found, wanted = said(model, params, batch), said(bare(is_tied), nested(whole), batch)
    assert np.abs(found[0] - said(bare(is_tied), nested({p: flat(params)[p] for p in whole}), batch)[0]).max() > 0.1
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-5 * np.abs(wanted[0]).max())
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-5 * np.abs(wanted[1]).max())
    assert found[2] == pytest.approx(wanted[2], rel=1e-6)

    def through_merged(params: Any) -> jax.Array:
        return loss_of(bare(is_tied), nested(merged(flat(params), model_maps(model))), batch)

    ours = jax.jit(jax.grad(lambda params: loss_of(model, params, batch)))(params)
    for path, slope in flat(jax.jit(jax.grad(through_merged))(params)).items():
        np.testing.assert_allclose(
            flat(ours)[path], slope, atol=2e-5 * np.abs(slope).max(), err_msg=".".join(path)
        )  # fmt: skip


def test_one_table_of_an_adapted_projection_is_not_rounded_as_the_table_beneath_is():
    rng = np.random.default_rng(0)
    table, into, out = (rng.standard_normal(shape, np.float32) for shape in ((9, 4), (9, 2), (2, 4)))
    head = AdaptedHead(jnp.asarray(table, jnp.bfloat16), 1e-4 * jnp.asarray(into), jnp.asarray(out))
    found = dense(head)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found - head.table_VD.astype(jnp.float32), 1e-4 * into @ out, atol=1e-6)


@pytest.mark.parametrize("is_tied", [TIED, APART])
def test_a_mesh_changes_nothing_of_loss_and_gradients(is_tied, batch):
    model, params = adapted(is_tied, BOTH[:1] if is_tied else BOTH, moved=0.2)
    both = jax.jit(jax.value_and_grad(lambda params, batch: loss_of(model, params, batch)))
    wanted = both(params, batch)
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2, "context": 2})
    axes = {path: axes for path, (_, axes) in flat_axes(model).items()}
    with jax.set_mesh(mesh):
        placed = {
            path: jax.device_put(x, NamedSharding(mesh, sharding.partition(axes[path], x.shape, mesh)))
            for path, x in flat(params).items()
        }
        found = both(nested(placed), sharding.place_batch(batch, mesh))
    assert float(found[0]) == pytest.approx(float(wanted[0]), rel=1e-6)
    for path, slope in flat(wanted[1]).items():
        np.testing.assert_allclose(flat(found[1])[path], slope, atol=1e-5 * np.abs(slope).max(), err_msg=".".join(path))


def test_no_gradient_of_a_table_is_made_beside_its_adapter(batch):
    """By FLOPs of compiled programs: what the adapter adds is less than the gradient of the table that it saves."""
    model, params = adapted(False, BOTH[1:])
    learnt, fixed = Trainable(adapters=True).split(params)

    def flops(learnt: Any, fixed: Any, model: ModelSpec) -> float:
        slope = jax.grad(lambda learnt, fixed: loss_of(model, joined(learnt, fixed), batch))
        counted = jax.jit(slope).lower(learnt, fixed).compile().cost_analysis()
        assert counted is not None
        return float(counted["flops"])

    base = {path: x for path, x in flat(params).items() if not is_factor(path)}
    head = ("decoder", "head")
    rest = nested({path: x for path, x in base.items() if path != head})
    targets = select_targets(batch, 64).tokens_BR.size
    of_table = 2 * targets * DECODER.vocab_size * DECODER.width
    saved = flops(nested({head: base[head]}), rest, bare(False)) - flops(learnt, fixed, model)
    assert saved > 0.5 * of_table


def test_flops_of_an_adapted_table_are_those_of_its_factors(batch):
    learning = Trainable(adapters=True)
    targets, positions = float((batch.weights_BT > 0).sum()), float((batch.text.segments > 0).sum())

    def flops(is_tied: bool, *names: str) -> float:
        model, _ = adapted(is_tied, ("decoder.blocks.mlp.up", *names))
        return batch_flops(model, batch, learning)

    looked_up, projected = positions * 3 * 32, targets * 3 * (32 + 392)
    for names, tied, forward in (
        (BOTH[:1], False, looked_up), (BOTH[1:], False, projected), (BOTH[:1], True, looked_up + projected)
    ):  # fmt: skip
        assert flops(tied, *names) - flops(tied) == pytest.approx(3 * 2 * forward)


def test_tables_are_adapted_where_they_are_named_and_not_by_dora_or_pissa():
    assert not AdapterSpec(("decoder", "*")).adapts(("decoder", "embedding"))
    for options in ({"kind": "dora"}, {"start": "pissa"}):
        with pytest.raises(ValueError, match="tables over the vocabulary have no adapters of DoRA"):
            AdapterSpec(BOTH[:1], **options)
