"""Experts: routing and losses against ``transformers``, grouped matmuls against dense ones, and a mesh's numbers."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from parities.models import let_torchvision_import

from jaxmm import sharding
from jaxmm.models import experts as module
from jaxmm.models.experts import Experts, sort_by_expert
from jaxmm.models.routing import ExpertSpec, Load, choose, router_losses

SPEC = ExpertSpec(8, 3, 24, normalised=True, balance_loss=0.1, z_loss=0.01)
SPECS = {
    "softmax": SPEC,
    "chosen": dataclasses.replace(SPEC, gate="softmax of chosen", normalised=False),
    "sigmoid": dataclasses.replace(
        SPEC, gate="sigmoid", sum_offset=1e-20, scale=2.5, groups=4, chosen_groups=2, shared_mlp=16
    ),
    "shared": dataclasses.replace(SPEC, normalised=False, shared_mlp=16, shared_gate=True),
}
B, T, D = 8, 32, 16
SORT = jax.jit(sort_by_expert, static_argnums=1)


def made(spec: ExpertSpec):
    """``apply(params, x_BTD, is_real_BT)``, parameters and inputs."""
    graph, state = nnx.split(Experts(D, spec, "silu", rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)
    if "choice_bias" in params:
        params["choice_bias"] = 0.2 * jax.random.normal(jax.random.key(2), (spec.count,))

    def apply(params, x_BTD, is_real_BT):
        held = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(held, params)
        return nnx.merge(graph, held)(x_BTD, is_real_BT)

    return (
        apply,
        params,
        jax.random.normal(jax.random.key(1), (B, T, D)),
        jnp.arange(T)[None] < jnp.arange(20, 28)[:, None],
    )


def dense(spec: ExpertSpec, params, x_BTD):
    """Each position through all experts, most of which count nothing."""
    choice = choose(x_BTD @ params["router"], params.get("choice_bias"), spec)
    weights_BTE = (jax.nn.one_hot(choice.experts_BTK, spec.count) * choice.weights_BTK[..., None]).sum(-2)
    gate, up = (jnp.einsum("btd,edf->btef", x_BTD, params[name]["kernel"]) for name in ("gate", "up"))
    y_BTD = jnp.einsum("btef,efd,bte->btd", jax.nn.silu(gate) * up, params["down"]["kernel"], weights_BTE)
    if spec.shared_mlp:
        gate, up = (x_BTD @ params["shared"][name]["kernel"] for name in ("gate", "up"))
        shared = (jax.nn.silu(gate) * up) @ params["shared"]["down"]["kernel"]
        y_BTD += shared * (jax.nn.sigmoid(x_BTD @ params["shared_gate"]["kernel"]) if spec.shared_gate else 1)
    return y_BTD


def slopes(f):
    return jax.jit(jax.value_and_grad(lambda params, x: jnp.sin(f(params, x)).sum(), (0, 1)))


def are_close(found, wanted, tolerance=1e-5):
    for one, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance * max(1, float(np.abs(other).max())))


@pytest.mark.parametrize(
    ("name", "platform"),
    [("softmax", "cpu"), ("softmax", "tpu"), ("chosen", "cpu"), ("sigmoid", "cpu"), ("shared", "cpu")],
)
def test_experts_give_what_all_experts_give_that_the_choice_weighs(name, platform, monkeypatch):
    """In blocks, as on a CPU, and by ``lax.ragged_dot``, as elsewhere; gradients too."""
    monkeypatch.setattr(module.sharding, "platform", lambda: platform)
    apply, params, x_BTD, is_real_BT = made(SPECS[name])
    found = slopes(lambda params, x: apply(params, x, is_real_BT)[0])(params, x_BTD)
    are_close(found, slopes(functools.partial(dense, SPECS[name]))(params, x_BTD))


# (positions, experts, chosen): each is a program of its own.
@settings(max_examples=40, deadline=None)
@given(st.sampled_from([(1, 1, 1), (40, 3, 2), (7, 9, 3), (33, 8, 1)]), st.integers(0, 2**31), st.booleans())
def test_every_choice_has_a_slot_of_its_expert_and_none_is_dropped(sizes, seed, is_skewed):
    positions, count, chosen = sizes
    rng = np.random.default_rng(seed)
    most = chosen if is_skewed else count  # skewed: all to the same experts
    experts_NK = np.stack([rng.permutation(most)[:chosen] for _ in range(positions)])
    places = jax.tree.map(np.asarray, SORT(jnp.asarray(experts_NK), count))
    assert len(np.unique(places.slot_NK)) == experts_NK.size
    np.testing.assert_array_equal(places.choice_S[places.slot_NK].reshape(-1), np.arange(experts_NK.size))
    assert (places.choice_S < experts_NK.size).sum() == experts_NK.size
    block = len(places.choice_S) // len(places.groups.expert_L)
    np.testing.assert_array_equal(places.groups.expert_L[places.slot_NK // block], experts_NK)
    of_slots = np.repeat(np.arange(count), places.groups.size_E)  # as lax.ragged_dot takes them
    np.testing.assert_array_equal(of_slots[places.slot_NK], experts_NK)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def full(*values):
    return pytest.param(*values, marks=[pytest.mark.slow, pytest.mark.full])


@pytest.mark.parametrize(
    ("sizes", "platform"),
    [
        ({"data": 2, "expert": 2, "tensor": 2}, "cpu"),
        ({"expert": 4, "tensor": 2}, "cpu"),  # more devices than a position has experts
        slow({"fsdp": 2, "expert": 2, "tensor": 2}, "tpu"),
        slow({"expert": 8}, "cpu"),
        full({"fsdp": 2, "expert": 4}, "cpu"),
        slow({"fsdp": 2, "expert": 2, "context": 2}, "cpu"),
        full({"fsdp": 2, "tensor": 2, "context": 2}, "cpu"),
        full({"fsdp": 8}, "cpu"),
    ],
    ids=str,
)
def test_a_mesh_changes_nothing(sizes, platform, monkeypatch):
    apply, params, x_BTD, is_real_BT = made(SPECS["sigmoid"])

    def total(params, x_BTD):
        y_BTD, load = apply(params, x_BTD, is_real_BT)
        return jnp.sin(y_BTD).sum() + router_losses(jax.tree.map(lambda x: x[None], load), SPEC), load

    step = jax.value_and_grad(total, (0, 1), has_aux=True)
    wanted = jax.jit(step)(params, x_BTD)
    mesh = sharding.make_mesh(sizes)
    monkeypatch.setattr(module.sharding, "platform", lambda: platform)
    with jax.sharding.set_mesh(mesh):
        placed = jax.device_put(x_BTD, sharding.row_sharding(mesh))
        are_close(jax.jit(step)(params, placed), wanted)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"chosen": 9}, "9 experts a position are more than are open"), ({"gate": "tanh"}, "gate 'tanh' is not one of"),
        ({"groups": 3}, "8 experts cannot be 3 groups"), ({"groups": 2}, "with sigmoid alone"),
        ({"mlp": 0}, "experts mlp is 0"), ({"shared_gate": True}, "no shared_mlp that it could gate"),
        ({"gate": "sigmoid", "groups": 8, "chosen_groups": 4}, "of fewer than two"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_go_together_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(SPEC, **changes)


@pytest.mark.parity
def test_gates_choose_and_weigh_as_those_of_transformers():
    let_torchvision_import()
    import torch
    from transformers import DeepseekV3Config, MixtralConfig, Qwen3MoeConfig
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
    from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

    sizes = {"hidden_size": D, "num_experts_per_tok": 3}
    routers = {
        "softmax": Qwen3MoeTopKRouter(Qwen3MoeConfig(**sizes, num_experts=8, norm_topk_prob=True)),
        "chosen": MixtralTopKRouter(MixtralConfig(**sizes, num_local_experts=8)),
        "sigmoid": DeepseekV3TopkRouter(
            DeepseekV3Config(**sizes, n_routed_experts=8, n_group=4, topk_group=2, routed_scaling_factor=2.5)
        ),
    }
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(shape, np.float32) for shape in ((1, 64, D), (8, D), 8))
    for name, router in routers.items():
        with torch.no_grad():
            router.weight.copy_(torch.tensor(weight))
            if name == "sigmoid":
                router.e_score_correction_bias.copy_(torch.tensor(0.3 * bias))
            _, weights, experts = (found.numpy() for found in router(torch.tensor(x)))
        choice = choose(jnp.asarray(x @ weight.T), jnp.asarray(0.3 * bias), SPECS[name])
        order, theirs = np.argsort(choice.experts_BTK[0], -1), np.argsort(experts, -1)
        for ours, other in ((choice.experts_BTK, experts), (choice.weights_BTK, weights)):
            np.testing.assert_allclose(
                np.take_along_axis(np.asarray(ours[0]), order, -1), np.take_along_axis(other, theirs, -1), rtol=1e-5
            )


@pytest.mark.parity
def test_the_balance_loss_is_that_of_transformers_and_padding_does_not_count():
    let_torchvision_import()
    import torch
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    logits = np.random.default_rng(0).standard_normal((3, B, T, 8), np.float32)
    is_real_BT = np.arange(T)[None] < np.arange(20, 28)[:, None]
    layers = tuple(torch.tensor(one.reshape(-1, 8)) for one in logits)
    theirs = load_balancing_loss_func(layers, 8, 3, torch.tensor(is_real_BT, dtype=torch.int64))

    def of(one) -> Load:
        return Load.of(choose(jnp.asarray(one), None, SPEC), jnp.asarray(one), jnp.asarray(is_real_BT))

    load = jax.tree.map(lambda *x: jnp.stack(x), *map(of, logits))
    balance = router_losses(load, dataclasses.replace(SPEC, balance_loss=1.0, z_loss=0.0)) / is_real_BT.sum()
    np.testing.assert_allclose(balance, theirs, rtol=1e-5)
    z_loss = router_losses(load, dataclasses.replace(SPEC, balance_loss=0.0, z_loss=1.0)) / is_real_BT.sum()
    squares = np.log(np.exp(logits.astype(np.float64)).sum(-1)) ** 2
    np.testing.assert_allclose(z_loss, squares[:, is_real_BT].mean(), rtol=1e-5)
