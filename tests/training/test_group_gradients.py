"""Gradients by group: they add up to the batch's, on any mesh, and the training step does not know of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
import pytest
from conftest import IMAGE, chat, picture, plain
from test_step import keep_gradient, placed

from jaxmm import sharding
from jaxmm.data.assemble import Assembler, Loaded
from jaxmm.data.packing.plan import Budgets, Lengths, Piece
from jaxmm.models.trainable import Trainable
from jaxmm.training.group_gradients import GroupNorms, make_group_gradients, make_group_norms
from jaxmm.training.step import init_state, make_train_step

BUDGETS = Budgets(tokens=128, patches=128, items=4, targets=96)
OPTIONS = {"target_budget": BUDGETS.targets, "z_loss": 1e-3}


@pytest.fixture(scope="module")
def sources(lengths_of) -> list[Lengths]:
    mixed = [
        plain(picture(16, 16, 1), "x" * 80), plain("y" * 40), chat((picture(20, 30, 2), "what?"), "a"), plain("z" * 30),
    ]  # fmt: skip
    return [lengths_of(mixed, "mixed"), lengths_of([chat(("nothing",), "b"), plain("w" * 60)], "text")]


@pytest.fixture(scope="module")
def loaded(sources) -> Loaded:
    """Eight rows of both sources, some of them without a target."""
    pieces = [
        [Piece(s, e, 0, int(lengths.tokens_E[e]))] for s, lengths in enumerate(sources) for e in range(len(lengths))
    ]
    return Assembler(sources, BUDGETS, IMAGE)([*pieces, [], [pieces[3][0], pieces[4][0]]])


def on_mesh(tiny, loaded: Loaded, sizes: dict[str, int], f) -> Any:
    """``f(params, batch, sources_BT)`` on a mesh over as many of the eight devices."""
    mesh = sharding.make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    with jax.set_mesh(mesh):
        batch = sharding.place_batch(loaded.batch, mesh)
        return jax.tree.map(np.asarray, f(placed(tiny, tiny.params, mesh), batch, batch.sources_BT))


@pytest.fixture(scope="module")
def whole(tiny, loaded):
    """(gradients of the whole batch, sum of its losses), as the training step has them."""
    step = make_train_step(tiny.forward, keep_gradient, sources=2, **OPTIONS)

    def run(params, batch, _):
        state, metrics = jax.jit(step)(init_state(params, keep_gradient), batch)
        return state.opt_state, metrics.source_loss_sum, metrics.source_weight_sum

    return on_mesh(tiny, loaded, {"data": 1}, run)


def test_the_gradients_of_groups_add_up_to_those_of_the_batch(tiny, loaded, whole):
    gradients = make_group_gradients(tiny.forward, **OPTIONS)

    def run(params, batch, group_BT):
        compiled = jax.jit(gradients)
        return [compiled(params, batch, group_BT, number) for number in (0, 1, 2)]

    first, second, none = on_mesh(tiny, loaded, {"data": 1}, run)
    expected, losses, weights = whole

    def close(a, b, wanted):
        assert np.abs(a + b - wanted).max() <= 1e-5 * max(np.abs(wanted).max(), 1e-2)

    jax.tree.map(close, first[0], second[0], expected)
    np.testing.assert_allclose([first[1], second[1]], losses, rtol=1e-5)
    assert [float(first[2]), float(second[2])] == weights.tolist()
    assert not any(x.any() for x in jax.tree.leaves(none))


@pytest.fixture(scope="module")
def alone(tiny, loaded) -> tuple[dict[str, float], float, float]:
    """Norms of the first source's targets on one device, its summed loss and weight; the tower is frozen."""
    gradients = make_group_gradients(tiny.forward, trainable=Trainable(("vision",)), **OPTIONS)
    grads, loss, weight = on_mesh(tiny, loaded, {"data": 1}, lambda *batch: jax.jit(gradients)(*batch, 0))
    norms = {part: float(optax.tree.norm(tree)) for part, tree in grads.items()}
    return norms | {"all": float(optax.tree.norm(grads))}, float(loss), float(weight)


# A mesh that splits rows and heads, one that splits positions, and microbatches.
@pytest.mark.parametrize(
    ("sizes", "accumulation"),
    [
        ({"data": 4, "tensor": 2}, 1),
        pytest.param({"fsdp": 2, "context": 4}, 1, marks=pytest.mark.slow),
        pytest.param({"data": 2, "fsdp": 2}, 2, marks=pytest.mark.slow),
        ({"data": 1}, 4),
    ],
)
def test_norms_are_the_same_on_any_mesh_and_with_microbatches(tiny, loaded, alone, sizes, accumulation):
    norms = make_group_norms(tiny.forward, accumulation=accumulation, trainable=Trainable(("vision",)), **OPTIONS)
    found, loss, weight = on_mesh(tiny, loaded, sizes, lambda *batch: jax.jit(norms)(*batch, 0))
    assert set(found) == {"connector", "decoder", "all"}
    for part, norm in alone[0].items():
        assert float(found[part]) == pytest.approx(norm, rel=1e-5), part
    assert float(loss) == pytest.approx(alone[1], rel=1e-5)
    assert float(weight) == alone[2]


@pytest.fixture(scope="module")
def norms(tiny):
    looped = dataclasses.replace(tiny.compute, unroll=1)
    return make_group_norms(lambda p, b, at: tiny.apply(p, b, looped, at), **OPTIONS)


def of_batch(tiny, norms, sources, loaded) -> tuple[GroupNorms, Any, list[str]]:
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        groups = GroupNorms(norms, sources, mesh)
        ran, original = [], groups._run
        groups._run = lambda *args: ran.append(args[-1]) or original(*args)  # type: ignore[method-assign]
        return groups, groups(tiny.params, sharding.place_batch(loaded.batch, mesh), loaded), ran


def test_sources_and_modalities_of_a_batch_have_their_norms(tiny, norms, sources, loaded, whole):
    _, pulls, ran = of_batch(tiny, norms, sources, loaded)
    assert {kind: set(of) for kind, of in pulls.norms.items()} == {
        "sources": {"mixed", "text"}, "modalities": {"text", "image"},
    }  # fmt: skip
    assert ran == ["mixed", "text", "text", "image"]
    assert sum(pulls.losses["sources"].values()) == pytest.approx(float(whole[1].sum()), rel=1e-5)
    assert sum(pulls.losses["modalities"].values()) == pytest.approx(float(whole[1].sum()), rel=1e-5)
    of_text = pulls.norms["modalities"]["text"]
    assert of_text["vision"] == of_text["connector"] == 0 < of_text["decoder"]
    assert pulls.norms["modalities"]["image"]["vision"] > 0
    assert pulls.norms["sources"]["text"]["vision"] == 0


def test_what_is_a_group_twice_is_computed_once_and_one_group_is_not_at_all(tiny, norms, sources, lengths_of):
    seen = lengths_of([chat((picture(16, 16, 5), "?"), "a"), plain(picture(8, 8, 6), "b")], "seen")
    both = [seen, sources[1]]
    rows = [[Piece(s, e, 0, int(both[s].tokens_E[e]))] for s in (0, 1) for e in (0, 1)] + [[]] * 4
    _, pulls, ran = of_batch(tiny, norms, both, Assembler(both, BUDGETS, IMAGE)(rows))
    assert ran == ["seen", "text"]
    assert pulls.norms["modalities"]["image"] == pulls.norms["sources"]["seen"]
    alone = Assembler(both, BUDGETS, IMAGE)([*rows[:2], *[[]] * 6])
    groups, pulls, ran = of_batch(tiny, norms, both, alone)
    assert (pulls.norms, pulls.losses, ran, groups._compiled) == ({}, {}, [], {})


def test_the_training_step_is_the_same_program_with_and_without(tiny, norms, sources, loaded):
    def lowered() -> str:
        step = make_train_step(tiny.forward, keep_gradient, sources=2, **OPTIONS)
        return jax.jit(step).lower(init_state(tiny.params, keep_gradient), loaded.batch).as_text()

    without = lowered()
    of_batch(tiny, norms, sources, loaded)
    assert lowered() == without
