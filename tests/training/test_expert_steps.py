"""The step of a model with experts: losses of its routers, and loads, on one device and on eight."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import optax
import pytest
from conftest import IMAGE

from jaxmm import sharding
from jaxmm.batch import Batch
from jaxmm.data.assemble import empty_batch
from jaxmm.data.packing.limits import Budgets
from jaxmm.errors import UserError
from jaxmm.models.compute import Compute
from jaxmm.models.decoder import DecoderSpec
from jaxmm.models.flops import batch_flops
from jaxmm.models.multimodal import ModelSpec, make_model
from jaxmm.models.routing import ExpertSpec
from jaxmm.models.trainable import Trainable
from jaxmm.training.program import weighed
from jaxmm.training.progress import expert_load
from jaxmm.training.step import init_state, make_train_step

EXPERTS = ExpertSpec(4, 2, 24, normalised=True, balance_loss=0.5, z_loss=0.1)
SPEC = ModelSpec(None, None, DecoderSpec(64, 32, 3, 4, 2, 8, 48, experts=EXPERTS, dense_layers=(0,)))
PLAIN = ModelSpec(None, None, DecoderSpec(64, 32, 2, 4, 2, 8, 48))
SIGMOID = dataclasses.replace(
    SPEC, decoder=dataclasses.replace(SPEC.decoder, experts=dataclasses.replace(EXPERTS, gate="sigmoid"))
)
ROWS, LENGTH = 8, 32
# Keeps the gradient as its state and changes nothing.
STAY = optax.GradientTransformation(
    lambda params: (), lambda grads, state, params=None: (jax.tree.map(lambda x: 0 * x, grads), state)
)  # fmt: skip
KEEP = optax.GradientTransformation(
    lambda params: jax.tree.map(np.zeros_like, params),
    lambda grads, state, params=None: (jax.tree.map(lambda x: 0 * x, grads), grads),
)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Rows of two documents and padding, of unequal lengths."""
    rng = np.random.default_rng(0)
    empty = empty_batch(ROWS, Budgets(LENGTH, 0, 0, LENGTH), IMAGE)
    ends = rng.integers(4, LENGTH, (ROWS, 2)).cumsum(1).clip(max=LENGTH - 2)
    place = np.arange(LENGTH)[None]
    segments = np.where(place < ends[:, :1], 1, np.where(place < ends[:, 1:], 2, 0)).astype(np.int32)
    positions = np.where(segments == 2, place - ends[:, :1], place).astype(np.int32)[..., None]
    text = empty.text._replace(
        values=rng.integers(0, 64, (ROWS, LENGTH), np.int32), positions=positions, segments=segments
    )
    weights = ((segments > 0) & (rng.random(segments.shape) < 0.5)).astype(np.float32)
    return empty._replace(text=text, targets_BT=rng.integers(0, 64, (ROWS, LENGTH), np.int32), weights_BT=weights)


@pytest.fixture(scope="module")
def params():
    return jax.jit(make_model(SPEC)[0])(jax.random.key(0))


def stepped(batch, params, experts: ExpertSpec, accumulation: int = 1, **sizes: int):
    """Gradients and loads."""
    apply = make_model(SPEC)[1]
    step = make_train_step(
        lambda *inputs: apply(*inputs[:2], Compute(), inputs[2], method="routed"), KEEP, accumulation=accumulation,
        target_budget=LENGTH, sources=1, experts=experts,
    )  # fmt: skip
    sizes = sizes or {"data": 1}
    mesh = sharding.make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    with jax.set_mesh(mesh):
        state = init_state(jax.device_put(params, sharding.replicated(mesh)), KEEP)
        state, metrics = jax.jit(step)(state, sharding.place_batch(batch, mesh))
    return jax.tree.map(np.asarray, (state.opt_state, metrics.load))


def assert_close(found, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()), found, wanted)


def test_a_mesh_changes_neither_gradients_nor_loads_which_are_of_real_positions(batch, params):
    wanted = stepped(batch, params, EXPERTS)
    assert_close(stepped(batch, params, EXPERTS, fsdp=2, expert=2, tensor=2), wanted)
    chosen_LE = wanted[1].chosen_E
    assert (chosen_LE.sum(1) == EXPERTS.chosen * (batch.text.segments > 0).sum()).all()
    told = expert_load(wanted[1])
    assert told["most"] == pytest.approx((chosen_LE.max(1) / chosen_LE.mean(1)).max())
    assert told["layers"].keys() == {"0", "1"}
    assert told["experts"] == pytest.approx((chosen_LE / chosen_LE.mean(1, keepdims=True)).mean(0), abs=1e-3)
    assert told["least"] == pytest.approx((chosen_LE.min(1) / chosen_LE.mean(1)).min())


def test_accumulation_changes_nothing_but_the_balance_loss(batch, params):
    alone = dataclasses.replace(EXPERTS, balance_loss=0.0)
    assert_close(stepped(batch, params, alone, 4), stepped(batch, params, alone))
    router = [
        stepped(batch, params, EXPERTS, n)[0]["decoder"]["blocks"]["experts"]["router"] for n in (1, 4)
    ]  # fmt: skip
    assert 0 < np.abs(router[0] - router[1]).max() < 0.5 * np.abs(router[0]).max()


BIASED = dataclasses.replace(EXPERTS, gate="sigmoid", balance_loss=0.0, z_loss=0.0, bias_rate=0.01)


@pytest.fixture(scope="module")
def biased_step():
    spec = dataclasses.replace(SPEC, decoder=dataclasses.replace(SPEC.decoder, experts=BIASED))
    init, apply = make_model(spec)

    def step(accumulation: int):
        return make_train_step(
            lambda *inputs: apply(*inputs[:2], Compute(), inputs[2], method="routed"), STAY, accumulation=accumulation,
            target_budget=LENGTH, sources=1, experts=BIASED,
        )  # fmt: skip

    return jax.jit(init)(jax.random.key(0)), step


def bias_of(state) -> np.ndarray:
    return np.asarray(state.params["decoder"]["blocks"]["experts"]["choice_bias"])


def test_a_bias_moves_by_the_loads_of_the_whole_batch_on_any_mesh_and_nothing_else_does(batch, biased_step):
    params, step = biased_step
    seen = []
    for accumulation, sizes in ((1, {"data": 1}), (2, {"data": 2, "fsdp": 2, "expert": 2})):
        mesh = sharding.make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
        with jax.set_mesh(mesh):
            state = init_state(jax.device_put(params, sharding.replicated(mesh)), STAY)
            state, metrics = jax.jit(step(accumulation))(state, sharding.place_batch(batch, mesh))
        chosen_LE = np.asarray(metrics.load.chosen_E)
        wanted_LE = BIASED.bias_rate * np.sign(chosen_LE.mean(1, keepdims=True) - chosen_LE)
        np.testing.assert_allclose(bias_of(state), wanted_LE, atol=1e-7)
        assert np.abs(wanted_LE).max() > 0
        seen.append(state.params)
        after, before = (dict(tree["decoder"]["blocks"]["experts"]) for tree in (state.params, params))
        jax.tree.map(np.testing.assert_array_equal, after | {"choice_bias": 0}, before | {"choice_bias": 0})
    jax.tree.map(np.testing.assert_array_equal, *seen)


def test_loads_even_out_by_the_bias_alone(batch, biased_step):
    params, step = biased_step
    run, state, most = jax.jit(step(1)), init_state(params, STAY), []
    for _ in range(40):
        state, metrics = run(state, batch)
        most.append(expert_load(jax.device_get(metrics.load))["most"])
    assert most[0] > 1.3, "the first loads are to be uneven"
    assert np.mean(most[-5:]) < 1 + 0.3 * (most[0] - 1)
    assert bias_of(state).dtype == np.float32


def test_a_step_whose_loss_is_not_finite_moves_no_bias(batch, biased_step):
    params, step = biased_step
    broken = jax.tree.map(lambda x: x, params)
    broken["decoder"]["norm"]["scale"] = np.full_like(broken["decoder"]["norm"]["scale"], np.nan)
    state, _ = jax.jit(step(1))(init_state(broken, STAY), batch)
    assert not bias_of(state).any()


def test_flops_count_the_experts_that_a_position_goes_through(batch):
    def flops(**changes: int) -> float:
        experts = dataclasses.replace(EXPERTS, **changes)
        return batch_flops(dataclasses.replace(SPEC, decoder=dataclasses.replace(SPEC.decoder, experts=experts)), batch)

    positions = (batch.text.segments > 0).sum()
    layers = len(SPEC.decoder.layers_of("experts"))
    of_one = 6 * positions * layers * SPEC.decoder.width * 3 * EXPERTS.mlp
    assert flops(chosen=3) - flops() == pytest.approx(of_one)
    assert flops(shared_mlp=EXPERTS.mlp) - flops() == pytest.approx(of_one)
    assert flops(count=5) - flops() == pytest.approx(6 * positions * layers * SPEC.decoder.width)
    one_dense = dataclasses.replace(SPEC.decoder, dense_layers=(0, 1))
    more = 3 * SPEC.decoder.mlp - 3 * EXPERTS.chosen * EXPERTS.mlp - EXPERTS.count
    found = batch_flops(dataclasses.replace(SPEC, decoder=one_dense), batch) - flops()
    assert found == pytest.approx(6 * positions * SPEC.decoder.width * more)


@pytest.mark.parametrize(
    ("asked", "model", "objective", "found"),
    [
        ((-1, -1), SPEC, "", (0.5, 0.1)), ((0.0, -1), SPEC, "", (0.0, 0.1)), ((0.2, 0.3), SPEC, "", (0.2, 0.3)),
        ((-1, -1), SPEC, "dpo", None), ((-1, -1), PLAIN, "", None), ((0.0, 0.0), PLAIN, "", None),
        ((-1, -1, 0.1), PLAIN, "", "the model has none"), ((-1, -1, 0.1), SPEC, "", "softmax.* choose without a bias"),
        ((-1, -1, 0.1), SIGMOID, "frozen", "is frozen here"), ((-1, -1, 0.1), SIGMOID, "", (0.5, 0.1)),
        ((0.2, -1), PLAIN, "", "the model has none"), ((-1, 0.2), SPEC, "dpo", "config.objective=dpo has no such loss"),
    ],
)  # fmt: skip
def test_weights_of_the_routers_losses_are_the_models_own_unless_they_are_given(asked, model, objective, found):
    options = SimpleNamespace(balance_loss=asked[0], router_z_loss=asked[1], router_bias_rate=sum(asked[2:]))
    config: Any = SimpleNamespace(optimizer=options, objective=objective)
    trainable = Trainable(("decoder.blocks.experts",) if objective == "frozen" else ())
    recipe: Any = SimpleNamespace(
        model=model, preference=objective if objective == "dpo" else None, trainable=trainable
    )
    if isinstance(found, str):
        with pytest.raises(UserError, match=found):
            weighed(config, recipe)
        return
    experts = weighed(config, recipe)
    assert (experts and (experts.balance_loss, experts.z_loss)) == found
