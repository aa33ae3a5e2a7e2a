"""A packed pair is a pair alone, and its loss and gradient are those of answers that were asked one by one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import IMAGE, chat, picture, rows_of

from jaxmm import sharding
from jaxmm.batch import Pairs
from jaxmm.data.assemble import Assembler
from jaxmm.data.documents import Document
from jaxmm.data.packing.plan import Budgets
from jaxmm.models.adapters import AdapterSpec, is_factor
from jaxmm.models.multimodal import begin_adapters, make_model
from jaxmm.models.trainable import Trainable
from jaxmm.models.tree import flat, joined, nested
from jaxmm.training.preference import OBJECTIVES, PreferenceSpec, Said, losses
from jaxmm.training.preference_objective import make_both, make_objective
from jaxmm.training.program import dropping, make_noise
from jaxmm.training.step import init_state, make_train_step

BUDGETS = Budgets(tokens=256, patches=256, items=16, targets=64, pairs=8)
ADAPTED = Trainable(adapters=True)
keep_gradient = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, state, params=None: (jax.tree.map(jnp.zeros_like, grads), grads),
)


def preference(question: tuple[Any, ...], answer: str, other: str, verdict: str = "better") -> Document:
    turns, beside = (chat(question, said).turns for said in (answer, other))
    return Document(turns, "made", verdict=verdict, other=beside)


ASKED = [
    ((picture(16, 24), "what?"), "a cat", "dog dog"),
    (("who?",), "me", "nobody knows that"),
    ((picture(8, 8, 1), "and", picture(24, 16, 2), "?"), "two of them", "one"),
]
VERDICTS = ("wanted", "unwanted", "wanted")


@pytest.fixture(scope="module")
def adapted(tiny):
    """The tiny model with adapters that have moved, and its parameters."""
    model = dataclasses.replace(tiny.spec, adapter=AdapterSpec(("vision", "decoder"), 3, 6.0))
    found, rng = flat(begin_adapters(tiny.params, model, jax.random.key(0))), np.random.default_rng(1)
    moved = {p: x + 0.2 * rng.standard_normal(x.shape, np.float32) if is_factor(p) else x for p, x in found.items()}
    return model, nested(moved)


def documents(spec: PreferenceSpec) -> list[Document]:
    verdicts = VERDICTS if spec.judges else ["better"] * len(ASKED)
    return [preference(*asked, verdict) for asked, verdict in zip(ASKED, verdicts, strict=True)]


def batch_of(lengths_of, documents: list[Document], rows: list[list[int]]) -> Any:
    lengths = lengths_of(documents)
    return Assembler([lengths], BUDGETS, IMAGE)(rows_of(lengths, *rows)).batch


def stepped(
    tiny, adapted, batch: Any, spec: PreferenceSpec, accumulation: int = 1, sizes: Any = None, dropout: float = 0.0
) -> Any:
    """The metrics of a step, and the gradients of the factors."""
    model, params = adapted
    model = dropping(model, dropout)
    both = make_both(model, tiny.compute, shares_media=False, asks_reference=spec.has_reference)
    objective = make_objective(both, spec, target_budget=BUDGETS.targets, sources=1)
    step = make_train_step(
        tiny.forward, keep_gradient, trainable=ADAPTED, accumulation=accumulation, target_budget=BUDGETS.targets,
        sources=1, objective=objective, noise=make_noise(model, 7),
    )  # fmt: skip
    sizes = sizes or {"data": 1}
    mesh = sharding.make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    with jax.set_mesh(mesh):
        where = sharding.replicated(mesh)
        state = init_state(jax.device_put(params, where), keep_gradient, ADAPTED)
        state, metrics = jax.jit(step)(state, sharding.place_batch(batch, mesh))
    return jax.device_get(metrics), {p: np.asarray(x) for p, x in flat(jax.device_get(state.opt_state)).items()}


def logps_of(tiny, model: Any, params: Any, batch: Any) -> jax.Array:
    """(questions, 2): of answers that stand in rows of their own, by a softmax over the whole vocabulary."""
    hidden_BTD, head_VD = make_model(model)[1](params, batch, tiny.compute, None)
    said_BTV = jax.nn.log_softmax(hidden_BTD @ head_VD.T)
    of_targets = jnp.take_along_axis(said_BTV, jnp.asarray(batch.targets_BT)[..., None], -1)[..., 0]
    return (of_targets * batch.weights_BT).sum(1).reshape(-1, 2)


class Alone(NamedTuple):
    """What is said of ASKED by answers that were asked one by one.

    Attributes:
      policy, beneath: log-probabilities, (questions, 2), of the adapted model and of the one beneath.
      length: tokens of the answers.
      pulled: the gradients of the factors, by that of a loss for ``policy``.
    """

    policy: jax.Array
    beneath: jax.Array
    length: jax.Array
    pulled: Callable[[jax.Array], dict]


@pytest.fixture(scope="module")
def alone(tiny, adapted, lengths_of) -> Alone:
    model, params = adapted
    learnt, fixed = ADAPTED.split(params)
    batch = batch_of(lengths_of, [chat(q, said) for q, *answers in ASKED for said in answers], [[n] for n in range(6)])

    @jax.jit
    def both(learnt: Any, slope: jax.Array) -> tuple[jax.Array, Any]:
        policy, pull = jax.vjp(lambda learnt: logps_of(tiny, model, joined(learnt, fixed), batch), learnt)
        return policy, pull(slope)[0]

    beneath = jax.jit(lambda fixed: logps_of(tiny, tiny.spec, fixed, batch))(fixed)
    policy, _ = both(learnt, beneath)
    length = jnp.asarray((batch.weights_BT > 0).sum(1).reshape(-1, 2))
    return Alone(policy, beneath, length, lambda slope: flat(both(learnt, slope)[1]))


def by_the_papers(alone: Alone, spec: PreferenceSpec) -> tuple[float, dict]:
    """The mean loss of ASKED, and the gradients of the factors."""

    def loss(policy: jax.Array) -> jax.Array:
        by_tokens = 1 / alone.length if spec.objective in ("ipo", "simpo", "orpo") else 1.0
        own, ratios = policy * by_tokens, (policy - alone.beneath) * by_tokens
        gap, nll = ratios[:, 0] - ratios[:, 1], -(policy / alone.length)[:, 0]
        if spec.objective == "dpo":
            e = spec.label_smoothing
            each = -(1 - e) * jnp.log(jax.nn.sigmoid(spec.beta * gap)) - e * jnp.log(jax.nn.sigmoid(-spec.beta * gap))
        elif spec.objective == "ipo":
            each = (gap - 1 / (2 * spec.beta)) ** 2
        elif spec.objective == "simpo":
            each = -jnp.log(jax.nn.sigmoid(spec.beta * (own[:, 0] - own[:, 1]) - spec.margin))
        elif spec.objective == "orpo":
            odds = jnp.exp(own) / (1 - jnp.exp(own))
            each = nll - spec.beta * jnp.log(jax.nn.sigmoid(jnp.log(odds[:, 0] / odds[:, 1])))
        else:
            kl = jax.lax.stop_gradient(jnp.maximum(ratios[:, 1].mean(), 0))
            is_wanted = jnp.array([verdict == "wanted" for verdict in VERDICTS])
            sign, weight = jnp.where(is_wanted, 1, -1), jnp.where(is_wanted, spec.wanted, spec.unwanted)
            each = weight * (1 - jax.nn.sigmoid(spec.beta * sign * (ratios[:, 0] - kl)))
        return (each + spec.sft * nll).mean()

    value, slope = jax.jit(jax.value_and_grad(loss))(alone.policy)
    return float(value), {path: np.asarray(x) for path, x in alone.pulled(slope).items()}


def spec_of(objective: str) -> PreferenceSpec:
    beside = {"dpo": {"label_smoothing": 0.1, "sft": 0.5}, "kto": {"unwanted": 1.5}}
    return PreferenceSpec(objective, **({"beta": 0.3} | beside.get(objective, {})))


@pytest.fixture(scope="module")
def packed(tiny, adapted, lengths_of) -> Callable[[str], Any]:
    """The step of ASKED in one row, by its objective."""

    @functools.cache
    def of(objective: str) -> Any:
        spec = spec_of(objective)
        return stepped(tiny, adapted, batch_of(lengths_of, documents(spec), [[0, 1, 2]]), spec)

    return of


def assert_same_gradients(found: dict, wanted: dict) -> None:
    largest = max(np.abs(x).max() for x in wanted.values())
    for path, x in wanted.items():
        np.testing.assert_allclose(found[path], x, atol=1e-5 * largest, err_msg=".".join(path))


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


def full(*values: Any) -> Any:
    return pytest.param(*values, marks=[pytest.mark.slow, pytest.mark.full])


@pytest.mark.parametrize("objective", [slow(one) if one in ("ipo", "simpo") else one for one in OBJECTIVES])
def test_a_packed_pair_is_two_answers_alone_by_the_formula_of_its_paper(objective, packed, alone):
    metrics, found = packed(objective)
    wanted, gradients = by_the_papers(alone, spec_of(objective))
    assert float(metrics.loss_sum) / float(metrics.weight_sum) == pytest.approx(wanted, rel=1e-5)
    assert_same_gradients(found, gradients)


def test_a_judged_answer_is_right_by_how_it_stands_to_the_other_prompts_answers():
    """All answers have become likelier, by 5 nats on average: those that people want are to be so by more."""
    one, ratios = jnp.ones((1, 2)), jnp.array([[[7.0, 5.0], [3.0, 5.0]]])
    for verdicts, wanted in (([2, 3], [1.0, 1.0]), ([3, 2], [0.0, 0.0])):
        pairs = Pairs(one.astype(jnp.int32), jnp.array([verdicts]), one, 0 * one.astype(jnp.int32), 0 * ratios)
        policy, beneath = Said(ratios, 1 + 0 * ratios), Said(0 * ratios, 1 + 0 * ratios)
        assert losses(policy, beneath, pairs, PreferenceSpec("kto"), 5.0).right_BC.tolist() == [wanted]


@pytest.mark.parametrize(("objective", "rows", "accumulation", "sizes"), [
    ("dpo", [[0, 2], [1]], 1, {"context": 2, "fsdp": 2, "tensor": 2}),
    ("kto", [[1, 2], [0]], 2, {"context": 2, "tensor": 2}),
    full("dpo", [[1, 2], [0]], 2, {}), full("kto", [[0, 2], [1]], 1, {"fsdp": 2}),
])  # fmt: skip
def test_rows_microbatches_and_meshes_change_nothing(
    objective, rows, accumulation, sizes, tiny, adapted, lengths_of, packed
):
    spec = spec_of(objective)
    metrics, wanted = packed(objective)
    batch = batch_of(lengths_of, documents(spec), rows)
    other, found = stepped(tiny, adapted, batch, spec, accumulation, sizes)
    assert float(other.loss_sum) == pytest.approx(float(metrics.loss_sum), rel=1e-5)
    assert float(other.target_weight_sum) == float(metrics.target_weight_sum)
    assert_same_gradients(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes", [pytest.param({"data": 2, "fsdp": 4}, marks=pytest.mark.full), {"data": 4, "tensor": 2}]
)
def test_dropout_of_adapters_is_the_same_on_another_mesh(sizes, tiny, adapted, lengths_of):
    spec = PreferenceSpec("dpo", beta=0.3)
    batch = batch_of(lengths_of, documents(spec), [[0, 1], [2], *[[]] * 6])
    one = stepped(tiny, adapted, batch, spec, dropout=0.3)
    other, gradients = stepped(tiny, adapted, batch, spec, sizes=sizes, dropout=0.3)
    assert float(other.loss_sum) == pytest.approx(float(one[0].loss_sum), rel=1e-5)
    assert_same_gradients(gradients, one[1])
    assert float(one[0].loss_sum) != pytest.approx(float(stepped(tiny, adapted, batch, spec)[0].loss_sum), rel=1e-3)


def test_media_of_a_pair_are_in_the_row_once_and_its_answers_see_nothing_of_each_other(lengths_of):
    question = (picture(16, 24), "what?")
    pair, alone = preference(question, "a cat", "dog dog"), chat(question, "a cat")
    both = batch_of(lengths_of, [pair], [[0]])
    one = batch_of(lengths_of, [alone], [[0]])
    assert (both.patches.segments > 0).sum() == (one.patches.segments > 0).sum()
    size = int((one.text.segments > 0).sum())
    for of_pair, of_one in ((both.text.values, one.text.values), (both.slots_BT, one.slots_BT)):
        np.testing.assert_array_equal(of_pair[0, :size], of_one[0, :size])
    second = both.text.segments[0] == 2
    np.testing.assert_array_equal(both.slots_BT[0][second][both.slots_BT[0][second] >= 0], np.arange(6))
    assert both.text.positions[0][second][0] == 0
    assert both.weights_BT[0, size - 1] == 0, "what ends an answer does not predict how the next prompt begins"
    assert both.pairs.segments_BC[0].tolist() == [1, *[0] * 7]
