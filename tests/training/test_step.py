"""The step: the same loss and gradients however it is cut and spread, nothing lost to a bad number; a golden curve."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import IMAGE, chat, picture, plain, random_documents, rows_of
from jax.sharding import NamedSharding

from jaxmm import sharding
from jaxmm.batch import Batch
from jaxmm.data.assemble import Assembler
from jaxmm.data.packing.plan import Budgets, Piece
from jaxmm.models.multimodal import logical_axes
from jaxmm.models.trainable import EVERYTHING, Trainable
from jaxmm.training.optimizer import make_optimizer, make_schedule
from jaxmm.training.step import init_state, make_eval_step, make_train_step

BUDGETS = Budgets(tokens=128, patches=128, items=4, targets=96)
ROWS = 8

# Losses of 20 steps, in nats a target. A refactor shows the same ones.
GOLDEN = [
    6.538076, 6.423603, 6.508821, 6.257572, 4.939956, 5.028284, 5.019882, 4.720613, 3.737188, 3.744293,
    3.996129, 3.797376, 2.990626, 3.100080, 3.520329, 3.405304, 2.665335, 2.835404, 3.384043, 3.304087,
]  # fmt: skip


@pytest.fixture(scope="module")
def batch(lengths_of) -> Batch:
    """Eight rows of very uneven targets: none, one, some, and as many as fit."""
    documents = [
        plain(picture(16, 16, 1), "x" * 80),
        plain("y" * 95),
        chat((picture(20, 30, 2), "what?"), ""),
        chat(("nothing",), "a"),
        plain("z" * 90),
        chat((picture(8, 24, 3),), "two of them"),
        plain(picture(24, 24, 4)),
    ]
    lengths = lengths_of(documents)
    rows = [[e] for e in range(len(documents))]
    return Assembler([lengths], BUDGETS, IMAGE)(rows_of(lengths, *rows, [])).batch


# Keeps the last gradient as its state and changes nothing: what a step computed, to the last bit.
keep_gradient = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, state, params=None: (jax.tree.map(jnp.zeros_like, grads), grads),
)


def step_of(tiny, accumulation: int = 1, optimizer=keep_gradient, trainable=EVERYTHING, **options):
    options = {"target_budget": BUDGETS.targets, "sources": 1, "z_loss": 1e-3, **options}
    return make_train_step(tiny.forward, optimizer, trainable=trainable, accumulation=accumulation, **options)


def placed(tiny, tree: Any, mesh) -> Any:
    """Parameters where the rule table puts them."""
    axes = logical_axes(tiny.spec)
    specs = jax.tree.map(
        lambda one: NamedSharding(mesh, sharding.partition(one[1], one[0], mesh)), axes,
        is_leaf=lambda x: isinstance(x, tuple),
    )  # fmt: skip
    return jax.device_put(tree, specs)


def loss_and_gradients(tiny, batch, accumulation: int = 1, sizes=None):
    """Loss a target and the gradients, on a mesh of the given sizes over as many of the eight devices."""
    sizes = sizes or {"data": 1}
    mesh = sharding.make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    with jax.set_mesh(mesh):
        state = init_state(placed(tiny, tiny.params, mesh), keep_gradient)
        state, metrics = jax.jit(step_of(tiny, accumulation))(state, sharding.place_batch(batch, mesh))
    assert float(metrics.weight_sum) == batch.weights_BT.sum()
    return jax.tree.map(np.asarray, (metrics.loss_sum / metrics.weight_sum, state.opt_state, metrics.correct_sum))


@pytest.fixture(scope="module")
def whole(tiny, batch):
    return loss_and_gradients(tiny, batch)


def assert_equal(found, wanted, tolerance: float = 1e-5):
    def close(a, b):
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-2)

    jax.tree.map(close, found, wanted)


def test_the_rows_of_the_batch_have_very_uneven_targets(batch):
    targets = (batch.weights_BT > 0).sum(1)
    assert (targets.min(), sorted(targets)[2], targets.max()) == (0, 1, 95)


@pytest.mark.parametrize("accumulation", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_accumulation_changes_neither_loss_nor_gradients(tiny, batch, whole, accumulation):
    assert_equal(loss_and_gradients(tiny, batch, accumulation), whole)


# Every axis alone and in pairs, on all eight devices; `tensor` also on two, which divide every head, and `context` on
# four, as a row's length is to be a multiple of 32 times as many.
FAST = [{"data": 4, "tensor": 2}, {"fsdp": 2, "context": 4}]
SLOW = [{"fsdp": 4, "tensor": 2}, {"tensor": 2, "context": 4}]
FULL = [
    {"tensor": 2},
    {"data": 8},
    {"fsdp": 8},
    {"tensor": 8},
    {"context": 4},
    {"data": 2, "fsdp": 4},
    {"data": 2, "context": 4},
]


@pytest.mark.parametrize(
    ("sizes", "accumulation"),
    [
        *[(sizes, 1) for sizes in FAST],
        *[pytest.param(sizes, 1, marks=pytest.mark.slow) for sizes in SLOW],
        *[pytest.param(sizes, 1, marks=[pytest.mark.slow, pytest.mark.full]) for sizes in FULL],
        pytest.param({"context": 2}, 2, marks=[pytest.mark.slow, pytest.mark.full]),
        pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, 2, marks=pytest.mark.slow),
    ],
)
def test_a_mesh_changes_neither_loss_nor_gradients(tiny, batch, whole, sizes, accumulation):
    assert_equal(loss_and_gradients(tiny, batch, accumulation, sizes), whole)


def trained_step(tiny, trainable=EVERYTHING, clip: float = 1.0):
    schedule = make_schedule(rate=1e-2, steps=20, warmup=4)
    optimizer = make_optimizer(schedule, clip=clip)
    # Every test that trains all parts compiles the same program, so that the cache has it.
    return init_state(tiny.params, optimizer, trainable), step_of(tiny, optimizer=optimizer, trainable=trainable)


@pytest.mark.parametrize("where", ["parameter", "weight"])
def test_a_step_that_is_not_finite_changes_no_parameter_and_is_counted(tiny, batch, where):
    state, step = trained_step(tiny)
    step = jax.jit(step)
    good = batch
    if where == "parameter":
        width = tiny.spec.decoder.width
        decoder = {**tiny.params["decoder"], "norm": {"scale": np.full(width, np.inf, np.float32)}}
        state = state._replace(params={**tiny.params, "decoder": decoder})
    else:
        weights = batch.weights_BT.copy()
        weights[0, 30] = np.nan
        batch = batch._replace(weights_BT=weights)
    after, metrics = step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), (state.params, state.opt_state))
    assert (int(after.step), int(after.bad_steps), int(metrics.bad_steps)) == (1, 1, 1)
    after, _ = step(after, batch)
    assert int(after.bad_steps) == 2
    after, metrics = step(after._replace(params=tiny.params), good)
    assert (int(after.step), int(after.bad_steps)) == (3, 0)
    assert np.isfinite(metrics.loss_sum)


def test_a_batch_without_targets_changes_nothing_but_decay_and_gives_no_nan(tiny, batch):
    state, step = trained_step(tiny)
    empty = batch._replace(weights_BT=np.zeros_like(batch.weights_BT))
    after, metrics = jax.jit(step)(state, empty)
    assert (float(metrics.loss_sum), float(metrics.weight_sum), int(metrics.bad_steps)) == (0, 0, 0)
    assert float(metrics.grad_norms["all"]) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.params))
    np.testing.assert_array_equal(after.params["decoder"]["embedding"], state.params["decoder"]["embedding"])


def test_a_batch_without_images_trains_the_decoder_and_leaves_the_tower_its_zeros(tiny, lengths_of):
    lengths = lengths_of([plain("only text"), plain("more of it")])
    rows = rows_of(lengths, [0], [1], *([[]] * (ROWS - 2)))
    batch = Assembler([lengths], BUDGETS, IMAGE)(rows).batch
    state, step = trained_step(tiny)
    _, metrics = jax.jit(step)(state, batch)
    assert np.isfinite(metrics.loss_sum)
    norms = {part: float(norm) for part, norm in metrics.grad_norms.items()}
    assert norms["vision"] == norms["connector"] == 0
    assert norms["decoder"] == pytest.approx(norms["all"])
    assert norms["decoder"] > 0


def test_frozen_parts_keep_every_bit_and_hold_no_optimizer_state(tiny, batch):
    state, step = trained_step(tiny, trainable=Trainable(("vision", "connector")))
    after, metrics = jax.jit(step)(state, batch)
    for part in ("vision", "connector"):
        jax.tree.map(np.testing.assert_array_equal, after.params[part], tiny.params[part])
    assert not np.array_equal(after.params["decoder"]["embedding"], tiny.params["decoder"]["embedding"])
    assert set(metrics.grad_norms) == {"decoder", "all"}
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(x.size for x in moments) == 2 * sum(x.size for x in jax.tree.leaves(tiny.params["decoder"]))


def test_the_flops_of_a_frozen_part_s_backward_pass_are_gone(tiny, batch):
    def flops(frozen) -> float:
        state, step = trained_step(tiny, Trainable(frozen))
        return jax.jit(step).lower(state, batch).compile().cost_analysis()["flops"]

    forward = jax.jit(lambda params, b: tiny.apply(params, b, tiny.compute, method="soft_tokens"))
    once = forward.lower(tiny.params, batch).compile().cost_analysis()["flops"]
    gone = flops(()) - flops(("vision", "connector"))
    assert gone > 1.5 * once  # a backward pass is about two forward ones


def test_what_a_pattern_freezes_keeps_every_bit_and_has_no_weight_gradient(tiny, batch):
    maps = Trainable(("decoder.blocks.attention", "decoder.blocks.mlp"))
    state, step = trained_step(tiny, trainable=maps)
    after, _ = jax.jit(step)(state, batch)
    blocks, before = after.params["decoder"]["blocks"], tiny.params["decoder"]["blocks"]
    for name in ("attention", "mlp"):
        jax.tree.map(np.testing.assert_array_equal, blocks[name], before[name])
    assert not np.array_equal(blocks["norm_mlp"]["scale"], before["norm_mlp"]["scale"])

    def flops(trainable: Trainable) -> float:
        state, step = trained_step(tiny, trainable)
        return jax.jit(step).lower(state, batch).compile().cost_analysis()["flops"]

    positions, sizes = batch.text.values.size, [x.size for x in jax.tree.leaves((before["attention"], before["mlp"]))]
    gone = flops(EVERYTHING) - flops(maps)
    assert gone > 0.5 * 2 * positions * sum(sizes), "the last layer works on targets alone behind its attention"


def golden_curve(tiny, lengths_of) -> list[float]:
    lengths = lengths_of(random_documents(4 * ROWS, seed=11))
    assemble = Assembler([lengths], BUDGETS, IMAGE)
    rows = [[Piece(0, e, 0, min(int(lengths.tokens_E[e]), 96))] for e in range(len(lengths))]
    batches = [assemble(rows[i : i + ROWS]).batch for i in range(0, len(rows), ROWS)]
    state, step = trained_step(tiny)
    step = jax.jit(step)
    losses = []
    for k in range(20):
        state, metrics = step(state, batches[k % len(batches)])
        losses.append(float(metrics.loss_sum / metrics.weight_sum))
    return losses


def test_the_losses_of_twenty_steps_are_the_golden_ones(tiny, lengths_of):
    np.testing.assert_allclose(golden_curve(tiny, lengths_of), GOLDEN, rtol=1e-3)


def test_evaluation_predicts_what_training_measures(tiny, batch, whole):
    found = jax.jit(make_eval_step(tiny.forward, target_budget=BUDGETS.targets))(tiny.params, batch)
    loss = (found.nll_BR * found.weights_BR).sum() / found.weights_BR.sum()
    assert float(loss) == pytest.approx(float(whole[0]), rel=1e-5)


def test_training_and_evaluation_bend_the_logits_of_a_model_that_asks_for_it(tiny, batch, whole):
    options = {"target_budget": BUDGETS.targets, "logit_softcap": 0.5}
    found = jax.jit(make_eval_step(tiny.forward, **options))(tiny.params, batch)
    loss = float((found.nll_BR * found.weights_BR).sum() / found.weights_BR.sum())
    assert abs(loss - float(whole[0])) > 1e-3
    state = init_state(tiny.params, keep_gradient)
    _, metrics = jax.jit(step_of(tiny, z_loss=0.0, logit_softcap=0.5))(state, batch)
    assert float(metrics.loss_sum / metrics.weight_sum) == pytest.approx(loss, rel=1e-5)
