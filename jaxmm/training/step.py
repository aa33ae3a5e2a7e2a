"""The training and evaluation steps: pure functions of (state, batch). They take the model as an argument."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxmm import sharding
from jaxmm.batch import Batch
from jaxmm.models.routing import CHOICE_BIAS, ExpertSpec, Load, balanced, router_losses
from jaxmm.models.trainable import EVERYTHING, Trainable
from jaxmm.models.tree import flat, joined, nested
from jaxmm.training.loss import Targets, TokenLoss, batch_loss, cross_entropy, select_targets

# (params, batch, target_positions_BR) -> hidden states there (B, R, D), vocabulary projection (V, D); in the training
# step of a model with experts also their ``Load``
Apply = Callable[[Any, Batch, jax.Array], tuple[Any, ...]]


Noise = Callable[[jax.Array, Batch], Any]  # (step, microbatch) -> random keys, a tree to join with the parameters


class TrainState(NamedTuple):
    """All that changes from step to step; the plan's position is ``step``."""

    step: jax.Array  # int32: batches consumed
    params: dict[str, Any]
    opt_state: Any  # of the parameters that learn
    bad_steps: jax.Array  # int32: updates skipped in a row, for a non-finite loss or gradient


class Metrics(NamedTuple):
    """Sums over a global batch. The host divides and logs them, in ``progress._loss_figures``.

    ``source`` arrays have one entry a source. The evaluation's figures are made in ``evaluator``.
    """

    loss_sum: jax.Array  # of negative log-likelihoods, in nats; of preferences, of the losses of pairs
    weight_sum: jax.Array  # of the same targets or pairs
    target_weight_sum: jax.Array  # of targets; of preferences, those of both answers
    source_loss_sum: jax.Array
    source_weight_sum: jax.Array
    correct_sum: jax.Array  # weighted count of targets that were the most likely token
    modality_sums: dict[str, tuple[jax.Array, jax.Array]]  # (loss, weight) of "text" and "image_tokens", or empty
    grad_norms: dict[str, jax.Array]  # by part, and "all"
    bad_steps: jax.Array
    preferences: Mapping[str, jax.Array] = {}  # by source, as ``preference_objective.sums`` names them; or empty
    load: Load | tuple[()] = ()  # of experts, by layer; or empty


class Objective(NamedTuple):
    """What a step makes small.

    Attributes:
      total: of the global batch, what the loss is divided by.
      loss: (params, batch, known) -> (the loss, summed; fields of ``Metrics``, sums too).
      known: (params, batch) -> sums over the global batch that the loss must know; None if it needs none. Where the
        batch is whole, ``loss`` is given None, and finds it itself.
    """

    total: Callable[[Batch], jax.Array]
    loss: Callable[[Any, Batch, Any], tuple[jax.Array, dict[str, Any]]]
    known: Callable[[Any, Batch], Any] | None = None


def init_state(params, optimizer: optax.GradientTransformation, trainable: Trainable = EVERYTHING) -> TrainState:
    return TrainState(jnp.int32(0), params, optimizer.init(trainable.split(params)[0]), jnp.int32(0))


def target_sums(targets: Targets, terms: TokenLoss, sources: int, image_offset: int = 0) -> dict[str, Any]:
    """Fields of ``Metrics``, each a sum over the targets; those of microbatches are added.

    Of preferences the targets are those of both answers, and ``preference_objective.sums`` takes the place of some.
    """
    weights = targets.weights_BR
    nll = weights * terms.nll_BR
    is_source = targets.sources_BR[..., None] == jnp.arange(sources)

    def by_source(x_BR):
        return jnp.where(is_source, x_BR[..., None], 0.0).sum((0, 1))

    modalities = {}
    if image_offset:
        is_image = targets.tokens_BR >= image_offset
        for name, where in (("text", ~is_image), ("image_tokens", is_image)):
            modalities[name] = jnp.where(where, nll, 0.0).sum(), jnp.where(where, weights, 0.0).sum()
    return {
        "loss_sum": nll.sum(),
        "weight_sum": weights.sum(),
        "target_weight_sum": weights.sum(),
        "source_loss_sum": by_source(nll),
        "source_weight_sum": by_source(weights),
        "correct_sum": (weights * terms.correct_BR).sum(),
        "modality_sums": modalities,
    }


def added_up(f: Callable[[Any], Any], tree: Any, accumulation: int) -> Any:
    """The sum of ``f`` over the microbatches of a tree of arrays, whose rows they get in strides."""
    if accumulation == 1:
        return f(tree)

    def add(carry, part):
        return jax.tree.map(jnp.add, carry, f(part)), None

    parts = sharding.microbatches(tree, accumulation)
    shapes = jax.eval_shape(f, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return lax.scan(add, zeros, parts)[0]


def make_train_step(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    *,
    trainable: Trainable = EVERYTHING,
    accumulation: int = 1,
    target_budget: int,
    sources: int,
    z_loss: float = 0.0,
    logit_softcap: float = 0.0,
    image_offset: int = 0,
    noise: Noise | None = None,
    objective: Objective | None = None,
    experts: ExpertSpec | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Builds ``step(state, batch) -> (state, metrics)``.

    The loss is one sum over one sum: the weights of the whole global batch are added up first, and every microbatch
    divides by that number, so that the number of microbatches changes nothing. Rows go to microbatches in
    strides, which keeps each device's rows its own. A step whose loss or gradient is not finite changes no parameter.
    With ``noise``, its random keys are among the parameters: those of dropout.
    With ``image_offset``, the first image token of the vocabulary, the loss is also summed by modality.
    With ``objective`` the loss is that one, and not the cross-entropy of the targets.
    With ``experts`` the routers' losses are added to that of targets, each microbatch's by its part of the positions:
    see ``routing.router_losses`` for what of them depends on microbatches. The bias of their choice, which has no
    gradient, moves by the loads of the whole batch.
    """

    def of_targets(params, batch: Batch, _) -> tuple[jax.Array, dict[str, Any]]:
        targets = select_targets(batch, target_budget)
        x_BRD, head, *loads = apply(params, batch, targets.target_positions_BR)
        of_batch = targets.tokens_BR, targets.weights_BR
        loss_sum, terms = cross_entropy(x_BRD, head, *of_batch, z_loss, softcap=logit_softcap)
        load = {"load": loads[0]} if loads else {}
        return loss_sum, target_sums(targets, terms, sources, image_offset) | load

    goal = objective or Objective(lambda batch: batch.weights_BT.sum(), of_targets)

    def microbatch_loss(learnt, fixed, batch: Batch, total_weight, positions, known):
        loss_sum, sums = goal.loss(joined(learnt, fixed), batch, known)
        loss = loss_sum / total_weight
        if experts and "load" in sums:
            loss += router_losses(sums["load"], experts) / positions
        return loss, sums

    def gradients(learnt, fixed, batch: Batch, at):
        total_weight, known = jnp.maximum(goal.total(batch), 1e-6), None
        positions = jnp.maximum((batch.text.segments > 0).sum(), 1)
        grad = jax.grad(microbatch_loss, has_aux=True)

        def beside(part: Batch):
            return joined(fixed, noise(at, part)) if noise else fixed

        if (before := goal.known) and accumulation > 1:
            known = added_up(lambda part: before(joined(learnt, beside(part)), part), batch, accumulation)
        return added_up(
            lambda part: grad(learnt, beside(part), part, total_weight, positions, known), batch, accumulation
        )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        learnt, fixed = trainable.split(state.params)
        grads, sums = gradients(learnt, fixed, batch, state.step)
        norms = {part: optax.tree.norm(tree) for part, tree in grads.items()}
        norms["all"] = optax.tree.norm(grads)
        finite = jnp.isfinite(sums["loss_sum"]) & jnp.isfinite(norms["all"])

        def update(operand):
            learnt, opt_state = operand
            updates, opt_state = optimizer.update(grads, opt_state, learnt)
            learnt = optax.apply_updates(learnt, updates)
            if experts and experts.bias_rate:
                by_path = flat(learnt)
                moved = balanced(by_path[CHOICE_BIAS], sums["load"].chosen_E, experts.bias_rate)
                learnt = nested(by_path | {CHOICE_BIAS: moved})
            return learnt, opt_state

        learnt, opt_state = lax.cond(finite, update, lambda operand: operand, (learnt, state.opt_state))
        bad_steps = jnp.where(finite, 0, state.bad_steps + 1)
        state = TrainState(state.step + 1, joined(learnt, fixed), opt_state, bad_steps)
        return state, Metrics(**sums, grad_norms=norms, bad_steps=bad_steps)

    return step


class Predictions(NamedTuple):
    """What the evaluation needs of each target, as host code groups them by document: all (B, R), by rows."""

    at_BR: jax.Array
    weights_BR: jax.Array
    nll_BR: jax.Array
    correct_BR: jax.Array


def make_eval_step(
    apply: Apply, *, target_budget: int, logit_softcap: float = 0.0
) -> Callable[[Any, Batch], Predictions]:
    """Builds ``step(params, batch) -> Predictions``; it does no gradient work."""

    def step(params, batch: Batch) -> Predictions:
        hidden_at = functools.partial(apply, params, batch)
        _, targets, terms = batch_loss(hidden_at, batch, target_budget, 0.0, logit_softcap)
        predictions = Predictions(targets.at_BR, targets.weights_BR, terms.nll_BR, terms.correct_BR)
        return jax.tree.map(lambda x: x.reshape(batch.weights_BT.shape[0], -1), predictions)

    return step
