"""The objective of a step that learns from preferences: both answers of a pair in one row, the reference beside them.

What a loss of pairs makes of log-probabilities is not a sum over tokens. So the targets are projected twice: at first
for the log-probabilities of whole answers, by which the loss has a slope; then with this slope as the weight of each
token, which gives the gradient of the loss. The decoder runs once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxmm import zigzag
from jaxmm.batch import Batch, Pairs
from jaxmm.models.adapters import is_factor
from jaxmm.models.multimodal import Compute, ModelSpec, make_model
from jaxmm.models.tables import Head
from jaxmm.models.tree import only
from jaxmm.training.loss import Targets, cross_entropy, select_targets
from jaxmm.training.preference import WANTED, PairFigures, PreferenceSpec, Said, divergence, losses
from jaxmm.training.step import Objective, target_sums

Place = tuple[jax.Array, Head]  # hidden states at places in the rows (B, R, D), vocabulary projection
# (params, batch, target_positions_BR) -> those of the model, and of the reference; None where it was asked before
Both = Callable[[Any, Batch, jax.Array], tuple[Place, Place | None]]


def make_objective(
    both: Both, spec: PreferenceSpec, *, target_budget: int, sources: int, logit_softcap: float = 0.0
) -> Objective:
    """Builds the objective of a step; the loss is divided by the weight of all pairs of the global batch."""

    def asked(params, batch: Batch):
        """What the model and the reference say of the batch, beside what the gradient needs."""
        targets, pairs, rows = select_targets(batch, target_budget), _pairs(batch), batch.text.segments.shape[0]
        halves_BRC2 = halves(batch, targets)
        own, beneath = both(params, batch, targets.target_positions_BR)
        policy = said(own, targets, halves_BRC2, rows, logit_softcap)
        reference: Said | None = policy._replace(logps_BC2=pairs.reference_BC2)
        if not spec.has_reference:
            reference = None
        elif beneath is not None:
            reference = said(beneath, targets, halves_BRC2, rows, logit_softcap)
        return own, targets, policy, reference, halves_BRC2

    def known(params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Of kto, how far the model is from the reference: as sums over the batch."""
        _, _, policy, reference, _ = asked(params, batch)
        return divergence(policy, reference, _pairs(batch), spec)

    def loss(params, batch: Batch, before) -> tuple[jax.Array, dict[str, Any]]:
        (x_BRD, head), targets, policy, reference, halves_BRC2 = asked(params, batch)
        pairs, kl = _pairs(batch), jnp.float32(0)
        if spec.judges:
            total, count = before or divergence(policy, reference, pairs, spec)
            kl = jnp.maximum(total / jnp.maximum(count, 1), 0)

        def summed(logps_BC2):
            figures = losses(Said(logps_BC2, policy.tokens_BC2), reference, pairs, spec, kl)
            return (pairs.weights_BC * figures.loss_BC).sum(), figures

        (value, figures), slope_BC2 = jax.value_and_grad(summed, has_aux=True)(policy.logps_BC2)
        parts = halves_BRC2.shape[0] // slope_BC2.shape[0]
        weights_BR = -_dot("bcz,brcz->br", jnp.repeat(slope_BC2, parts, 0), halves_BRC2)
        sloped, terms = cross_entropy(x_BRD, head, targets.tokens_BR, weights_BR, softcap=logit_softcap)
        all_sums = target_sums(targets, terms, sources) | sums(figures, pairs, spec, sources)
        return sloped + lax.stop_gradient(value - sloped), all_sums

    return Objective(
        total=lambda batch: _pairs(batch).weights_BC.sum(), loss=loss, known=known if spec.judges else None
    )  # fmt: skip


def halves(batch: Batch, targets: Targets) -> jax.Array:
    """(B, R, C, 2), 1 where a target is of that answer of that pair; rows are those of ``targets``."""
    segments_BT = zigzag.as_rows(zigzag.shard(batch.text.segments))
    segments_BR = jnp.take_along_axis(segments_BT, targets.target_positions_BR, axis=1)
    parts = segments_BR.shape[0] // batch.text.segments.shape[0]
    first_BC = jnp.repeat(_pairs(batch).segments_BC, parts, axis=0)
    is_of = segments_BR[..., None, None] - first_BC[:, None, :, None] == jnp.arange(2)
    is_of &= (targets.weights_BR > 0)[..., None, None] & (first_BC > 0)[:, None, :, None]
    return is_of.astype(jnp.float32)


def said(place: Place, targets: Targets, halves_BRC2: jax.Array, rows: int, softcap: float = 0.0) -> Said:
    """What a model says of each answer; it has no gradient.

    Args:
      rows: of the batch. Those of the other arrays are more where positions are sharded: parts of a row follow another.
    """
    x_BRD, head = lax.stop_gradient(place)
    _, terms = cross_entropy(x_BRD, head, targets.tokens_BR, targets.weights_BR, softcap=softcap)
    of_parts = Said(_dot("br,brcz->bcz", -terms.nll_BR, halves_BRC2), halves_BRC2.sum(1))
    return Said(*(x.reshape(rows, -1, *x.shape[1:]).sum(1) for x in of_parts))


def sums(figures: PairFigures, pairs: Pairs, spec: PreferenceSpec, sources: int) -> dict[str, Any]:
    """Those fields of ``Metrics`` that are sums over the pairs, by their weights; those of microbatches are added."""
    weight_BC = pairs.weights_BC
    is_source = pairs.sources_BC[..., None] == jnp.arange(sources)

    def by_source(x_BC: jax.Array) -> jax.Array:
        return jnp.where(is_source, (weight_BC * x_BC)[..., None], 0.0).sum((0, 1))

    one_BC = jnp.ones_like(weight_BC)
    by_name = {"pairs": one_BC, "right": figures.right_BC, "nll": figures.nll_BC}
    if spec.judges:
        is_wanted = (pairs.verdicts_BC == WANTED).astype(jnp.float32)
        by_name |= {"wanted": is_wanted, "chosen": is_wanted * figures.chosen_BC}
        by_name |= {"rejected": (1 - is_wanted) * figures.chosen_BC, "elsewhere": figures.other_BC}
    else:
        by_name |= {"chosen": figures.chosen_BC, "rejected": figures.other_BC}
    return {
        "loss_sum": (weight_BC * figures.loss_BC).sum(),
        "weight_sum": weight_BC.sum(),
        "source_loss_sum": by_source(figures.loss_BC),
        "source_weight_sum": by_source(one_BC),
        "correct_sum": (weight_BC * figures.right_BC).sum(),
        "modality_sums": {},
        "preferences": {name: by_source(x_BC) for name, x_BC in by_name.items()},
    }


def _dot(pattern: str, *arrays: jax.Array) -> jax.Array:
    return jnp.einsum(pattern, *arrays, precision=lax.Precision.HIGHEST)


def _pairs(batch: Batch) -> Pairs:
    assert batch.pairs is not None, "the data has no preferences"
    return batch.pairs


def make_both(model: ModelSpec, compute: Compute, *, shares_media: bool, asks_reference: bool) -> Both:
    """Builds what asks the model and, beneath its adapters, the reference.

    Args:
      model: with its adapters, which the reference is without.
      shares_media: whether towers and connectors are frozen and have no adapters: then media are encoded once for both.
      asks_reference: whether there is a reference to ask; if not, what it says is in the batch, or not needed.
    """

    def both(params, batch: Batch, target_positions_BR) -> tuple[Place, Place | None]:
        ask, ask_beneath = make_model(model)[1], make_model(model.base)[1]  # only made where the step is traced
        media = ask(params, batch, compute, method="soft_tokens")
        own = _place(ask, params, batch, media, compute, target_positions_BR)
        if not asks_reference:
            return own, None
        beneath = lax.stop_gradient(only(params, lambda path: not is_factor(path)))
        if not shares_media:
            media = ask_beneath(beneath, batch, compute, method="soft_tokens")
        return own, _place(ask_beneath, beneath, batch, lax.stop_gradient(media), compute, target_positions_BR)

    return both


def _place(ask: Callable[..., Any], params: Any, batch: Batch, media: Any, compute: Compute, places_BR: Any) -> Place:
    hidden_BRD = ask(params, batch, media, compute, places_BR, method="hidden")
    return hidden_BRD, ask(params, method="projection")
