"""Which experts a position goes to, how much each counts, and the losses that keep their loads even."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxmm import per_device
from jaxmm.models.sizes import check_numbers, check_sizes

GATES = ("softmax", "softmax of chosen", "sigmoid")
CHOICE_BIAS = "decoder", "blocks", "experts", "choice_bias"  # where the bias of the gate "sigmoid" lies, of all layers


@dataclasses.dataclass(frozen=True)
class ExpertSpec:
    """The experts of a layer, which stand in the place of its MLP, and how positions are routed to them.

    Attributes:
      count: of experts.
      chosen: how many a position goes to.
      mlp: width of an expert.
      gate: what becomes of the router's logits, one of GATES: a softmax over all experts before the choice (Qwen 3), a
        softmax over the chosen ones (Mixtral, GPT-OSS), or a sigmoid each, with a bias that counts in the choice alone
        (DeepSeek-V3).
      normalised: the weights of the chosen experts are divided by their sum.
      sum_offset: added to that sum.
      scale: multiplies the weights.
      groups: the experts are so many groups, in order; those of ``chosen_groups`` are open to a position: of the
        groups whose two best experts have the largest sums. Of "sigmoid" alone.
      router_norm: above 0, an epsilon: what the router takes is normed with it, multiplied by a vector and divided by
        the root of its width (Gemma 4).
      own_scales: the weight of an expert is multiplied by a number of its own (Gemma 4).
      shared_mlp: width of an MLP that all positions go through as well; 0 is none.
      shared_gate: what it gives is multiplied by a sigmoid of a linear map of the position.
      balance_loss, z_loss: weights of the losses of ``router_losses`` in training.
      bias_rate: how far a training step moves the bias of the choice, see ``balanced``; 0 leaves it.
    """

    count: int
    chosen: int
    mlp: int
    gate: str = "softmax"
    normalised: bool = False
    sum_offset: float = 0.0
    scale: float = 1.0
    groups: int = 1
    chosen_groups: int = 1
    router_norm: float = 0.0
    own_scales: bool = False
    shared_mlp: int = 0
    shared_gate: bool = False
    balance_loss: float = 0.0
    z_loss: float = 0.0
    bias_rate: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self, "experts", "count", "chosen", "mlp", "groups", "chosen_groups")
        check_sizes(self, "experts", "shared_mlp", least=0)
        check_numbers(self, "experts", "scale")
        check_numbers(
            self, "experts", "balance_loss", "z_loss", "sum_offset", "bias_rate", "router_norm", may_be_0=True
        )
        if self.gate not in GATES:
            raise ValueError(f"experts' gate '{self.gate}' is not one of {', '.join(GATES)}")
        if self.chosen_groups > self.groups or self.count % self.groups:
            raise ValueError(f"{self.count} experts cannot be {self.groups} groups with {self.chosen_groups} chosen")
        if self.groups > 1 and self.gate != "sigmoid":
            raise ValueError(f"groups of experts with the gate '{self.gate}' are not supported: with sigmoid alone")
        if self.groups > 1 and self.count // self.groups < 2:
            raise ValueError(f"{self.groups} groups of {self.count} experts are of fewer than two, which are summed")
        if self.chosen > self.chosen_groups * (self.count // self.groups):
            raise ValueError(f"{self.chosen} experts a position are more than are open to it")
        if self.bias_rate and self.gate != "sigmoid":
            raise ValueError(f"a bias of the choice is of the gate sigmoid, and experts have the gate '{self.gate}'")
        if self.shared_gate and not self.shared_mlp:
            raise ValueError("experts have a shared_gate, and no shared_mlp that it could gate")


class Choice(NamedTuple):
    """Where positions go.

    Attributes:
      experts_BTK: int32.
      weights_BTK: float32, of what each of them gives.
      probabilities_BTE: float32, of all experts, with sum 1: what the balance loss makes even.
    """

    experts_BTK: jax.Array
    weights_BTK: jax.Array
    probabilities_BTE: jax.Array


def choose(logits_BTE: jax.Array, bias_E: jax.Array | None, spec: ExpertSpec) -> Choice:
    """Routes positions by their float32 logits.

    Args:
      bias_E: of the choice alone; it gets no gradient.
    """
    if spec.gate == "sigmoid":
        scores_BTE = jax.nn.sigmoid(logits_BTE)
        probabilities_BTE = scores_BTE / scores_BTE.sum(-1, keepdims=True)
        ranked_BTE = lax.stop_gradient(scores_BTE if bias_E is None else scores_BTE + bias_E)
    else:
        probabilities_BTE = jax.nn.softmax(logits_BTE)
        scores_BTE = probabilities_BTE if spec.gate == "softmax" else logits_BTE
        ranked_BTE = lax.stop_gradient(scores_BTE)
    if spec.groups > 1:
        ranked_BTE = _in_open_groups(ranked_BTE, spec)
    experts_BTK = per_device.top_k(ranked_BTE, spec.chosen)[1]
    weights_BTK = jnp.take_along_axis(scores_BTE, experts_BTK, axis=-1)
    if spec.gate == "softmax of chosen":
        weights_BTK = jax.nn.softmax(weights_BTK)
    elif spec.normalised:
        weights_BTK /= weights_BTK.sum(-1, keepdims=True) + spec.sum_offset
    return Choice(experts_BTK, weights_BTK * spec.scale, probabilities_BTE)


def _in_open_groups(ranked_BTE: jax.Array, spec: ExpertSpec) -> jax.Array:
    """The scores of experts in the groups that are open to a position, minus infinity for the others."""
    by_group = ranked_BTE.reshape(*ranked_BTE.shape[:-1], spec.groups, -1)
    best_two = per_device.top_k(by_group, 2)[0].sum(-1)
    chosen = per_device.top_k(best_two, spec.chosen_groups)[1]
    is_open = (chosen[..., None] == jnp.arange(spec.groups)).any(-2)
    return jnp.where(is_open[..., None], by_group, -jnp.inf).reshape(ranked_BTE.shape)


class Load(NamedTuple):
    """Sums over real positions, of one layer, or with a leading dim of layers.

    Attributes:
      chosen_E: how often each expert was chosen; it has no gradient.
      probability_E: of ``Choice.probabilities_BTE``.
      log_z: of the squared logarithm of the logits' normaliser.
    """

    chosen_E: jax.Array
    probability_E: jax.Array
    log_z: jax.Array

    @classmethod
    def of(cls, choice: Choice, logits_BTE: jax.Array, is_real_BT: jax.Array) -> Load:
        """Of one layer. Padding does not count."""
        experts = jnp.arange(logits_BTE.shape[-1])
        counted_BTE = (choice.experts_BTK[..., None] == experts).sum(-2) * is_real_BT[..., None]
        return cls(
            counted_BTE.sum((0, 1)).astype(jnp.float32),
            jnp.where(is_real_BT[..., None], choice.probabilities_BTE, 0.0).sum((0, 1)),
            jnp.where(is_real_BT, jax.nn.logsumexp(logits_BTE, axis=-1) ** 2, 0.0).sum(),
        )

    @classmethod
    def empty(cls, layers: int, spec: ExpertSpec) -> Load:
        """Of so many layers, none of which has run."""
        each = jnp.zeros((layers, spec.count), jnp.float32)
        return cls(each, each, jnp.zeros(layers, jnp.float32))

    def filled(self, layer: jax.Array | int, one: Load) -> Load:
        """With one layer's sums."""
        return jax.tree.map(lambda all_, mine: lax.dynamic_update_index_in_dim(all_, mine, layer, 0), self, one)


def balanced(bias_LE: jax.Array, chosen_LE: jax.Array, rate: float) -> jax.Array:
    """The bias of the choice after a step: higher where an expert was chosen less often than the mean of its layer,
    lower where more often (Wang et al., 2024, "Auxiliary-Loss-Free Load Balancing", algorithm 1; DeepSeek-V3).

    Args:
      chosen_LE: choices of the whole global batch.
    """
    return bias_LE + rate * jnp.sign(chosen_LE.mean(-1, keepdims=True) - chosen_LE)


def router_losses(load: Load, spec: ExpertSpec) -> jax.Array:
    """The weighted losses of the routers of all layers, times the number of positions.

    The balance loss is that of Switch Transformer (Fedus et al., 2021, equations 4 to 6) over all layers together, as
    ``transformers`` has it: experts times the sum, over these, of the part of the positions that chose one times its
    mean probability. It is a product of two means, so it is that of the positions of ``load``: those of a microbatch,
    on all devices. Meshes change nothing of it; accumulation does. The z-loss (ST-MoE, Zoph et al., 2022, equation 5)
    is a mean over positions and layers.

    Args:
      load: of all layers.
    """
    layers = load.log_z.shape[0]
    chosen_E, probability_E = load.chosen_E.sum(0), load.probability_E.sum(0)
    routed = jnp.maximum(chosen_E.sum() / spec.chosen, 1.0)  # positions times layers
    balance = spec.count * (lax.stop_gradient(chosen_E) * probability_E).sum() / routed
    return (spec.balance_loss * balance + spec.z_loss * load.log_z.sum()) / layers
