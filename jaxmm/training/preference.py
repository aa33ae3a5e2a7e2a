"""Losses of preferences: of an answer and the one that it is compared with, by their log-probabilities.

    dpo    Rafailov et al., 2023, "Direct Preference Optimization", equation 7; with label smoothing Mitchell, 2023,
           "A note on DPO with noisy preferences"
    ipo    Azar et al., 2023, "A General Theoretical Paradigm to Understand Learning from Human Preferences", eq. 17
    simpo  Meng et al., 2024, "SimPO", equation 6: without a reference
    orpo   Hong et al., 2024, "ORPO", equations 6 and 7: without a reference, beside the loss of the chosen answer
    kto    Ethayarajh et al., 2024, "KTO", equation 8: answers that are judged one by one

What a model says of an answer is the sum of the log-probabilities of its tokens, in nats, or their mean: of ipo, simpo
and orpo always (as in TRL: the sum would weigh a pair by its length), of the others with ``is_mean``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmm.batch import Pairs

OBJECTIVES = ("dpo", "ipo", "simpo", "orpo", "kto")
WITHOUT_REFERENCE = ("simpo", "orpo")
OF_MEANS = ("ipo", "simpo", "orpo")
OF_JUDGED = ("kto",)  # the others learn from pairs
BETA, MARGIN = {"simpo": 2.0}, {"simpo": 1.0}  # where the config has 0: SimPO's own, table 8 of its paper
BETA_ELSEWHERE = 0.1
WANTED, UNWANTED = 2, 3  # in ``documents.VERDICTS``


@dataclasses.dataclass(frozen=True)
class PreferenceSpec:
    """A loss of preferences.

    Attributes:
      objective: one of OBJECTIVES.
      beta: how far the model may go from the reference: the larger, the less (of orpo, the weight of its odds ratio); 0
        is the objective's own.
      margin: of simpo, gamma: by how much the chosen answer's reward is to be larger; 0 is its own.
      label_smoothing: of dpo and simpo, the part of pairs that are taken to be the other way round.
      sft: weight of the chosen answer's own loss, a mean over its tokens, that is added.
      is_mean: whether an answer counts by the mean over its tokens, not their sum.
      wanted, unwanted: of kto, weights of answers that people want, and of those that they do not.
      asked: whether the reference was asked before, where it could be asked in each step, too.
    """

    objective: str = "dpo"
    beta: float = 0.0
    margin: float = 0.0
    label_smoothing: float = 0.0
    sft: float = 0.0
    is_mean: bool = False
    wanted: float = 1.0
    unwanted: float = 1.0
    asked: bool = False

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective '{self.objective}' is not one of {', '.join(OBJECTIVES)}")
        own = self.beta or BETA.get(self.objective, BETA_ELSEWHERE), self.margin or MARGIN.get(self.objective, 0.0)
        for name, value in zip(("beta", "margin"), own, strict=True):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "is_mean", self.is_mean or self.objective in OF_MEANS)

    @property
    def has_reference(self) -> bool:
        return self.objective not in WITHOUT_REFERENCE

    @property
    def judges(self) -> bool:
        """Whether answers are judged one by one; else they come in pairs."""
        return self.objective in OF_JUDGED


def make_preference(objective: str, asked: Mapping[str, Any]) -> PreferenceSpec | None:
    """The loss that ``config.objective`` and ``config.preference`` ask for; None where targets are learnt."""
    if not objective:
        return None
    spec = dict(asked)
    is_mean, was_asked = spec.pop("length_normalised"), spec.pop("reference") == "asked"
    return PreferenceSpec(objective, is_mean=is_mean, asked=was_asked, **spec)


class Said(NamedTuple):
    """What a model says of both answers of each pair: their log-probabilities (B, C, 2), and their tokens."""

    logps_BC2: jax.Array
    tokens_BC2: jax.Array

    def of(self, spec: PreferenceSpec) -> jax.Array:
        """(B, C, 2): sums or means of the log-probabilities."""
        return self.logps_BC2 / jnp.maximum(self.tokens_BC2, 1) if spec.is_mean else self.logps_BC2


class PairFigures(NamedTuple):
    """Of each pair, (B, C); 0 where there is none.

    ``rewards``: beta times the log-ratio to the reference; without one, beta times the log-probability.
    """

    loss_BC: jax.Array
    chosen_BC: jax.Array  # reward of the answer
    other_BC: jax.Array  # and of the one that it is compared with
    # Of a pair, whether the first is larger; of a judged one, whether it is on its side of beta times kl.
    right_BC: jax.Array
    nll_BC: jax.Array  # of the answer, the mean over its tokens


def divergence(policy: Said, reference: Said, pairs: Pairs, spec: PreferenceSpec) -> tuple[jax.Array, jax.Array]:
    """Of kto: log-ratios of the other prompts' answers, summed, and how many; their mean estimates the KL (section 4).

    Both are sums, so that they add up over microbatches.
    """
    is_one = pairs.segments_BC > 0
    ratios = policy.of(spec)[..., 1] - reference.of(spec)[..., 1]
    return jnp.where(is_one, ratios, 0.0).sum(), is_one.sum().astype(jnp.float32)


def losses(
    policy: Said, reference: Said | None, pairs: Pairs, spec: PreferenceSpec, kl: jax.Array | float = 0.0
) -> PairFigures:
    """The loss of each pair.

    Args:
      reference: what the reference says; None for objectives without one.
      kl: of kto, how far the model is from the reference in nats, at least 0; a constant.
    """
    own = policy.of(spec)
    if spec.has_reference:
        assert reference is not None, f"{spec.objective} compares with a reference"
        ratios = own - reference.of(spec)
    else:
        ratios = own
    first, other = ratios[..., 0], ratios[..., 1]
    nll = -policy.logps_BC2[..., 0] / jnp.maximum(policy.tokens_BC2[..., 0], 1)
    if spec.judges:
        is_wanted = pairs.verdicts_BC == WANTED
        sign = jnp.where(is_wanted, 1.0, -1.0)
        loss = jnp.where(is_wanted, spec.wanted, spec.unwanted) * jax.nn.sigmoid(-spec.beta * sign * (first - kl))
        loss = loss + jnp.where(is_wanted, spec.sft * nll, 0.0)
        right = (first - kl) * sign > 0
    else:
        loss = _of_pairs(first, other, spec) + (spec.sft + (spec.objective == "orpo")) * nll
        right = first > other
    is_one = pairs.segments_BC > 0
    figures = PairFigures(loss, spec.beta * first, spec.beta * other, right.astype(jnp.float32), nll)
    return PairFigures(*(jnp.where(is_one, x, 0.0) for x in figures))


def _of_pairs(first: jax.Array, other: jax.Array, spec: PreferenceSpec) -> jax.Array:
    """Losses by log-ratios to the reference; without one, by log-probabilities."""
    if spec.objective == "ipo":
        return jnp.square(first - other - 1 / (2 * spec.beta))
    if spec.objective == "orpo":
        log_odds = (first - other) - (_log1mexp(first) - _log1mexp(other))
        return -spec.beta * jax.nn.log_sigmoid(log_odds)
    logits = spec.beta * (first - other) - spec.margin
    smooth = spec.label_smoothing
    return -(1 - smooth) * jax.nn.log_sigmoid(logits) - smooth * jax.nn.log_sigmoid(-logits)


def _log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) of x < 0, exact near 0 too; an answer of which the model is all but sure stays finite."""
    x = jnp.minimum(x, -1e-7)
    near = x > -0.6931472
    return jnp.where(near, jnp.log(-jnp.expm1(jnp.where(near, x, -1.0))), jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))))


def told(sums: Mapping[str, float], spec: PreferenceSpec) -> dict[str, float | None]:
    """Means over the pairs of a source, of their sums as ``preference_objective.sums`` has them; None where is none."""

    def mean(name: str, over: float) -> float | None:
        return sums[name] / over if over else None

    pairs = sums["pairs"]
    good, bad = (sums["wanted"], pairs - sums["wanted"]) if spec.judges else (pairs, pairs)
    chosen, rejected = mean("chosen", good), mean("rejected", bad)
    figures = {
        "pairs": pairs,
        "accuracy": mean("right", pairs),
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        "margin": None if chosen is None or rejected is None else chosen - rejected,
        "chosen_nll": mean("nll", pairs),
    }
    if spec.judges:  # what the other prompts' answers say of how far the model has gone, in nats
        figures["kl"] = None if not pairs else max(0.0, sums["elsewhere"] / pairs / spec.beta)
    return figures
