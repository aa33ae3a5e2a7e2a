"""Experts: of many MLPs, a position goes through the few that a router chooses, and none is dropped.

Positions are sorted by expert, so that each expert's are adjacent, and multiplied by ``grouped``. Where experts are
split over devices, positions go to them: see ``through_experts`` and ``per_device.over_experts``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxmm import per_device, sharding
from jaxmm.models.exchange import Slices, exchange
from jaxmm.models.grouped import GroupedLinear, Groups, Maps, axes_of
from jaxmm.models.layers import MLP, activation, unit_rms
from jaxmm.models.linear import Linear
from jaxmm.models.parameters import fan_in, ones, parameter, zeros
from jaxmm.models.routing import ExpertSpec, Load, choose

LONGEST_BLOCK = 128


class Experts(nnx.Module):
    """Gated MLPs, of which each position goes through some, and one for all positions where the spec has it.

    Logits of the router are float32, whatever the dtype of activations.
    """

    def __init__(self, width: int, spec: ExpertSpec, act: str, *, rngs: nnx.Rngs, scale: float = 1.0):
        """``scale``: of the initial variance of the maps that lead out."""
        self.spec, self.act = spec, activation(act)
        self.router = parameter(rngs, (width, spec.count), ("embed", None), fan_in(1.0, "fan_in", "normal"))
        self.router_scale = parameter(rngs, (width,), ("embed",), ones) if spec.router_norm else None
        self.own_scale = parameter(rngs, (spec.count,), (None,), ones) if spec.own_scales else None
        self.choice_bias = parameter(rngs, (spec.count,), (None,), zeros) if spec.gate == "sigmoid" else None
        self.gate = GroupedLinear(spec.count, width, spec.mlp, ("embed", "mlp"), rngs=rngs)
        self.up = GroupedLinear(spec.count, width, spec.mlp, ("embed", "mlp"), rngs=rngs)
        self.down = GroupedLinear(spec.count, spec.mlp, width, ("mlp", "embed"), rngs=rngs, scale=scale)
        shared = functools.partial(MLP, width, spec.shared_mlp, act, gated=True, bias=False, rngs=rngs, scale=scale)
        self.shared = shared() if spec.shared_mlp else None
        self.shared_gate = Linear([width], [1], ("embed", None), bias=False, rngs=rngs) if spec.shared_gate else None

    def __call__(
        self, x_BTD: jax.Array, is_real_BT: jax.Array, routed_BTD: jax.Array | None = None
    ) -> tuple[jax.Array, Load]:
        """Returns what the experts give, and their load by real positions.

        Args:
          routed_BTD: what the router takes; None is x.
        """
        wide_BTD = (x_BTD if routed_BTD is None else routed_BTD).astype(jnp.float32)
        if self.router_scale is not None:
            wide_BTD = unit_rms(wide_BTD, self.spec.router_norm) * self.router_scale[...] * wide_BTD.shape[-1] ** -0.5
        logits_BTE = jnp.einsum(
            "btd,de->bte", wide_BTD, self.router[...].astype(jnp.float32), precision=lax.Precision.HIGHEST
        )  # fmt: skip
        bias_E = None if self.choice_bias is None else self.choice_bias[...]
        choice = choose(logits_BTE, bias_E, self.spec)
        weights_BTK = choice.weights_BTK
        if self.own_scale is not None:
            weights_BTK = weights_BTK * jnp.take(self.own_scale[...], choice.experts_BTK)
        maps, axes = zip(*(one.maps(x_BTD.dtype) for one in (self.gate, self.up, self.down)), strict=True)
        arrays, tree = jax.tree.flatten(maps)

        def through(x_BTD, experts_BTK, weights_BTK, *arrays, held):
            return through_experts(
                x_BTD, experts_BTK, weights_BTK, jax.tree.unflatten(tree, arrays), act=self.act, held=held
            )

        over_devices = per_device.over_experts(through, self.spec.chosen, *axes_of(axes))
        y_BTD = over_devices(x_BTD, choice.experts_BTK, weights_BTK.astype(x_BTD.dtype), *arrays)
        if self.shared is not None:
            shared_BTD = self.shared(x_BTD)
            if self.shared_gate is not None:
                shared_BTD *= jax.nn.sigmoid(self.shared_gate(x_BTD))
            y_BTD += shared_BTD
        return y_BTD, Load.of(choice, logits_BTE, is_real_BT)


def through_experts(
    x_BTD, experts_BTK, weights_BTK, maps: tuple[Maps, Maps, Maps], *, act: Callable, held: per_device.Held
) -> jax.Array:
    """The weighted sum of what the chosen experts give; of those that one device holds, or, where it exchanges rows
    with others, of all.

    Args:
      maps: gates, maps up and maps down.
    """
    shape = x_BTD.shape
    x_ND, experts_NK, weights_NK = (x.reshape(-1, x.shape[-1]) for x in (x_BTD, experts_BTK, weights_BTK))
    if held.over:
        y_NKD = _through_all(x_ND, experts_NK, maps, act, held.over)
    else:
        places = sort_by_expert(experts_NK - held.first, maps[0].experts)
        y_NKD = collect(through_slots(spread(x_ND, places), places.groups, maps, act), places)
    return jnp.einsum("nkd,nk->nd", y_NKD, weights_NK).reshape(shape)


def through_slots(x_SD: jax.Array, groups: Groups, maps: tuple[Maps, Maps, Maps], act: Callable) -> jax.Array:
    """Slots through the MLP of their expert."""
    gate, up, down = maps
    return down(act(gate(x_SD, groups)) * up(x_SD, groups), groups)


def _through_all(
    x_ND: jax.Array, experts_NK: jax.Array, maps: tuple[Maps, Maps, Maps], act: Callable, axis: str
) -> jax.Array:
    """What all chosen experts give, (N, K, D), of which each device of the axis holds some.

    Choices are sorted by expert and sent to the slots of the devices that hold these: as many rows as are chosen.
    """
    (N, K), held, P = experts_NK.shape, maps[0].experts, lax.axis_size(axis)
    own = sort_by_expert(experts_NK, held * P, block=1)
    taken_PE = lax.all_gather(own.groups.size_E, axis)
    slots, block = _slots(P * N * min(K, held), P * N * K, held)
    size_PPH = taken_PE.reshape(P, P, held)  # of which device, to which, for which of its experts
    groups = jax.vmap(functools.partial(_groups, blocks=slots // block, block=block))(size_PPH.sum(0))  # of each device
    start_PH = jnp.cumsum(groups.size_E, -1) - groups.size_E
    slices = Slices(
        (jnp.cumsum(taken_PE, 1) - taken_PE).reshape(P, P, held), size_PPH,
        start_PH + jnp.cumsum(size_PPH, 0) - size_PPH,
    )  # fmt: skip
    mine = jax.tree.map(lambda x: x[lax.axis_index(axis)], groups)
    y_SD = through_slots(exchange(spread(x_ND, own), slices, slots, axis), mine, maps, act)
    return collect(exchange(y_SD, slices.reversed(), N * K, axis), own)


class Places(NamedTuple):
    """The slots of positions.

    Attributes:
      choice_S: which choice a slot holds: K times the position, and which of its K; N times K in an empty slot.
      slot_NK: the slot of each choice; one behind all of them for a choice of another device's expert.
      groups: of the slots.
    """

    choice_S: jax.Array
    slot_NK: jax.Array
    groups: Groups

    @property
    def position_S(self) -> jax.Array:
        """Which position a slot holds; N in an empty slot."""
        return self.choice_S // self.slot_NK.shape[1]


def _slots(most: int, expected: int, experts: int, block: int = 0) -> tuple[int, int]:
    """Slots for at most so many choices, and those of a block: 1 where ``lax.ragged_dot`` is used; on a CPU about half
    of what an expert is expected to have."""
    if not block:
        mean = max(1, expected // (2 * experts))
        block = 1 if sharding.platform() != "cpu" else min(LONGEST_BLOCK, 1 << (mean.bit_length() - 1))
    return (-(-most // block) + (min(experts, most) if block > 1 else 0)) * block, block


def _groups(taken_E: jax.Array, blocks: int, block: int) -> Groups:
    """Of so many choices of each expert."""
    size_E = -(-taken_E // block) * block
    expert_L = jnp.searchsorted(jnp.cumsum(size_E) // block, jnp.arange(blocks), side="right")
    return Groups(size_E, jnp.minimum(expert_L, taken_E.shape[0] - 1))


def sort_by_expert(experts_NK: jax.Array, count: int, block: int = 0) -> Places:
    """The slots of all choices of experts 0 to ``count``; of one expert, in the order of positions.

    Args:
      block: slots of a block; 0 is what is best here.
    """
    N, K = experts_NK.shape
    choices = N * K
    slots, block = _slots(N * min(K, count), choices, count, block)  # a position chooses an expert once
    expert_C = experts_NK.reshape(-1)
    expert_C = jnp.where((expert_C >= 0) & (expert_C < count), expert_C, count)  # those of other devices come last
    order_C = jnp.argsort(expert_C, stable=True)
    taken_E = (expert_C[:, None] == jnp.arange(count)).sum(0)
    groups = _groups(taken_E, slots // block, block)
    start_E, first_E = jnp.cumsum(groups.size_E) - groups.size_E, jnp.cumsum(taken_E) - taken_E
    sorted_C = expert_C[order_C]
    own_C = jnp.minimum(sorted_C, count - 1)
    slot_C = start_E[own_C] + jnp.arange(choices) - first_E[own_C]  # of the sorted ones
    slot_C = jnp.where(sorted_C < count, slot_C, slots).astype(jnp.int32)
    choice_S = jnp.full(slots, choices, jnp.int32).at[slot_C].set(order_C.astype(jnp.int32), mode="drop")
    slot_NK = jnp.zeros(choices, jnp.int32).at[order_C].set(slot_C).reshape(N, K)
    return Places(choice_S, slot_NK, groups)


def _rows(x: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of x; zeros where the index is behind its end."""
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


# Each choice has one slot, so the transpose of taking rows for slots is taking slots for rows: no scatter.
@jax.custom_vjp
def spread(x_ND: jax.Array, places: Places) -> jax.Array:
    """Positions to their slots, (S, D)."""
    return _rows(x_ND, places.position_S)


spread.defvjp(
    lambda x_ND, places: (spread(x_ND, places), places),
    lambda places, dx_SD: (_rows(dx_SD, places.slot_NK).sum(1), None),
)


@jax.custom_vjp
def collect(y_SD: jax.Array, places: Places) -> jax.Array:
    """Slots to the choices of positions, (N, K, D)."""
    return _rows(y_SD, places.slot_NK)


collect.defvjp(
    lambda y_SD, places: (collect(y_SD, places), places),
    lambda places, dy_NKD: (_rows(dy_NKD.reshape(-1, dy_NKD.shape[-1]), places.choice_S), None),
)
