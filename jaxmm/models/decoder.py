"""The decoder: Llama's layout (Touvron et al., 2023), with named features for what other families do otherwise."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jaxmm import zigzag
from jaxmm.models import attention as attn
from jaxmm.models import rope
from jaxmm.models.block import (
    AttentionContext,
    Handed,
    Layer,
    Mixing,
    at_places,
    attend_cached,
    attend_own,
    recur_cached,
)
from jaxmm.models.cache import Cache
from jaxmm.models.compute import Compute
from jaxmm.models.decoder_layers import Stacks, apply_layers, make_blocks, places_in_stacks
from jaxmm.models.decoder_spec import ATTENTIONS, HANDED, DecoderSpec
from jaxmm.models.embedding import look_up
from jaxmm.models.layer_inputs import LayerInputs
from jaxmm.models.layers import RMSNorm, checkpointed
from jaxmm.models.parameters import fan_in, parameter
from jaxmm.models.probe import Attended, Queries, attend_probed
from jaxmm.models.rope import RopeScaling
from jaxmm.models.routing import Load
from jaxmm.models.tables import Head, TableAdapters, adapted, looked_up


class DeepStack(NamedTuple):
    """What is added to soft tokens after the first layers (DeepStack, Meng et al., 2024): one table a layer."""

    tables_KBSD: jax.Array
    slots_BT: jax.Array

    def added(self, x_BTD, layer):
        """x with the layer's table added at the positions of soft tokens; as it is after the last table."""

        def add(x):
            table_BSD = lax.dynamic_index_in_dim(self.tables_KBSD, layer, keepdims=False)
            placed = jnp.take_along_axis(table_BSD, jnp.maximum(self.slots_BT, 0)[..., None], axis=1)
            return x + jnp.where((self.slots_BT >= 0)[..., None], placed.astype(x.dtype), 0)

        return lax.cond(layer < self.tables_KBSD.shape[0], add, lambda x: x, x_BTD)


class Decoder(nnx.Module):
    """Embedded positions to hidden states; the vocabulary projection lives in the loss.

    Attributes:
      lora: adapters of the tables over the vocabulary, see ``adapters.adapt``; None without one.
    """

    lora: TableAdapters | None = None

    def __init__(self, spec: DecoderSpec, *, rngs: nnx.Rngs):
        self.spec = spec
        shape, axes = (spec.vocab_size, spec.width), ("vocab", "embed")
        init = jax.nn.initializers.normal(spec.width**-0.5 / spec.embed_scale)
        self.embedding = parameter(rngs, shape, axes, init)
        self.blocks = make_blocks(spec, rngs)
        self.norm = RMSNorm(spec.width, spec.norm_eps, rngs=rngs, offset=spec.norm_offset)
        self.layer_inputs = LayerInputs(spec, rngs=rngs) if spec.layer_inputs else None
        if not spec.tie_embeddings:
            init = fan_in(1.0, "fan_in", "normal", in_axis=1, out_axis=0)
            self.head = parameter(rngs, shape, axes, init)

    def embed(self, tokens_BT, dtype):
        embedded = look_up(self.embedding[...], tokens_BT, dtype)
        if self.lora is not None and self.lora.embedding is not None:
            embedded += looked_up(self.lora.embedding, tokens_BT, dtype)
        return embedded if self.spec.embed_scale == 1 else embedded * jnp.asarray(self.spec.embed_scale, dtype)

    def brought(self, tokens_BT, x_BTD, is_soft_BT=None):
        """What positions bring to each layer, (L, B, T, I), by what they are embedded as; None where they do not."""
        return None if self.layer_inputs is None else self.layer_inputs(tokens_BT, x_BTD, is_soft_BT)

    def projection(self) -> Head:
        """The vocabulary projection (V, D), as it is held."""
        table, adapters = (self.embedding if self.spec.tie_embeddings else self.head)[...], self.lora
        if adapters is None:
            return table
        return adapted(table, adapters.embedding if self.spec.tie_embeddings else adapters.head)

    def rotations(self, positions_BTA, lengths_BT) -> dict[bool, tuple[jax.Array, jax.Array]]:
        """Rotations of global layers (False) and of local ones (True).

        Args:
          lengths_BT: positions in the document of each position.
        """
        spec = self.spec
        of_global = spec.global_attention.head_dim if spec.global_attention else spec.turning_dim

        def of(theta: float, dim: int, scaling: RopeScaling) -> tuple[jax.Array, jax.Array]:
            axes = rope.axis_of_frequency(spec.rope_sections, spec.rope_interleaved, dim // 2)
            frequencies = rope.frequencies(theta, dim, scaling, lengths_BT)
            return rope.rotations(positions_BTA, frequencies, axes, rope.attention_factor(scaling))

        by_kind = {False: of(spec.rope_theta, of_global, spec.rope_scaling)}
        by_kind[True] = by_kind[False]
        if spec.local_rope_theta:
            by_kind[True] = of(spec.local_rope_theta, spec.turning_dim, RopeScaling())
        return by_kind

    def places(self, positions_BTA, segments_BT, blocks_BT) -> dict[bool, AttentionContext]:
        """The attention context of global layers (False) and of local ones (True), in zigzag order."""
        spec = self.spec
        has_blocks = {True: spec.bidirectional_blocks}
        has_blocks[False] = spec.bidirectional_blocks and not spec.causal_global_layers
        start_BT, end_BT = attn.runs(segments_BT)
        rotations = self.rotations(positions_BTA, end_BT - start_BT)
        places = {
            local: AttentionContext(
                rotations[local],
                attn.causal(
                    segments_BT,
                    blocks_BT if has_blocks[local] else None,
                    spec.window if local else 0,
                    over_window=spec.prefix_blocks,
                ),
            )
            for local in set(spec.is_local().tolist())
        }
        return jax.tree.map(zigzag.shard, places)

    def places_in(self, cache: Cache) -> dict[bool, AttentionContext]:
        """Where the next position of each row is, (B, 1), and what of the cache it sees."""
        spec, end_B1 = self.spec, cache.length_B[:, None] + 1
        positions_B1A = jnp.broadcast_to(cache.position_B[:, None, None], (*end_B1.shape, spec.text_axes))
        rotations = self.rotations(positions_B1A, end_B1)

        def seen(local: bool) -> attn.Intervals:
            return jnp.maximum(end_B1 - spec.window, 0) if local else jnp.zeros_like(end_B1), end_B1

        return {local: AttentionContext(rotations[local], seen(local)) for local in set(spec.is_local().tolist())}

    def __call__(
        self, x_BTD, positions_BTA, segments_BT, blocks_BT, deep: DeepStack | None = None, own_LBTI=None, *,
        compute: Compute, target_positions_BR=None,
    ):  # fmt: skip
        """Runs embedded positions (B, T, D), sharded over ``context``, through the layers.

        Positions, segments and blocks are in their true order.

        Args:
          own_LBTI: what positions bring to each layer, as ``brought`` gives it.
          target_positions_BR: where hidden states are wanted, in the rows of ``zigzag.as_rows``. Unrolled, the last
            layer computes only these.
        Returns:
          Normed hidden states of the same shape, sharded too, or those at target positions, (B, R, D).
        """
        return self.routed(
            x_BTD, positions_BTA, segments_BT, blocks_BT, deep, own_LBTI, compute=compute,
            target_positions_BR=target_positions_BR,
        )[0]  # fmt: skip

    def routed(
        self, x_BTD, positions_BTA, segments_BT, blocks_BT, deep: DeepStack | None = None, own_LBTI=None, *,
        compute: Compute, target_positions_BR=None,
    ) -> tuple[jax.Array, Load | None]:  # fmt: skip
        """As ``__call__``, with the load of experts, by layer that has them; None of a decoder that has none."""
        places = self.places(positions_BTA, segments_BT, blocks_BT)
        x_BTD, _, load = self._run(
            x_BTD, None, places, segments_BT, Mixing(attend_own), deep, own_LBTI, compute, target_positions_BR
        )
        return x_BTD, load

    def prefill(
        self, x_BTD, positions_BTA, segments_BT, blocks_BT, deep: DeepStack | None = None, own_LBTI=None, *,
        size: int, compute: Compute,
    ):  # fmt: skip
        """The same for one document a row, from its first position on, with a cache for ``size`` positions.

        Returns:
          (hidden states in their true order, Cache).
        """
        spec, (B, T) = self.spec, segments_BT.shape
        if size < T:
            raise ValueError(f"a cache of {size} positions does not hold rows of {T}")
        shapes = {
            kind: (len(spec.layers_of(kind)), B, of_kind.kv_heads, size, of_kind.head_dim)
            for kind, of_kind in spec.attention_sizes().items()
        }
        cache = Cache.empty(shapes, x_BTD.dtype, positions_BTA, segments_BT, self._states(x_BTD, segments_BT))
        places = self.places(positions_BTA, segments_BT, blocks_BT)
        x_BTD, cache, _ = self._run(x_BTD, cache, places, segments_BT, Mixing(attend_own), deep, own_LBTI, compute)
        return zigzag.unshard(x_BTD), cache

    def attended(
        self, x_BTD, positions_BTA, segments_BT, blocks_BT, deep: DeepStack | None = None, own_LBTI=None, *,
        queries: Queries, groups: int, by_head: bool, compute: Compute,
    ) -> Attended:  # fmt: skip
        """Where chosen queries attend in each layer of attention, summed by ``groups`` groups of them; inputs as of
        ``__call__``.

        Args:
          by_head: maps are made of each head, not of their mean.
        """
        places = self.places(positions_BTA, segments_BT, blocks_BT)
        layers = len(self.spec.attention_layers())
        sums = Attended.empty(layers, self.spec.heads, groups, queries, by_head)
        mixing = Mixing(functools.partial(attend_probed, queries=queries))
        return self._run(x_BTD, sums, places, segments_BT, mixing, deep, own_LBTI, compute)[1]

    def step(self, x_B1D, cache: Cache, compute: Compute, own_LB1I=None):
        """Runs one more embedded text position of each row; returns (hidden states (B, 1, D), Cache)."""
        mixing = Mixing(attend_cached, recur_cached)
        x_B1D, cache, _ = self._run(x_B1D, cache, self.places_in(cache), None, mixing, None, own_LB1I, compute)
        return x_B1D, cache.grown()

    def _states(self, x_BTD, segments_BT) -> dict[str, Any]:
        """Shapes and dtypes of the states of layers that carry one, by mixer, with a leading dim of layers."""
        stacks, states = Stacks(self.blocks, self.spec), {}
        for kind in set(self.spec.mixer_of_layers()) - set(ATTENTIONS):
            mixer, layers = stacks.first_of(kind), len(self.spec.layers_of(kind))
            state = jax.eval_shape(lambda x, s, mixer=mixer: mixer.prefill(x, s)[1], x_BTD, segments_BT)
            states[kind] = jax.tree.map(lambda x, n=layers: jax.ShapeDtypeStruct((n, *x.shape), x.dtype), state)
        return states

    def _run(
        self, x_BTD, cache: Any, places: dict[bool, AttentionContext], segments_BT, mixing: Mixing,
        deep: DeepStack | None, own_LBTI: Any, compute: Compute, target_positions_BR=None,
    ):  # fmt: skip
        spec, stacks = self.spec, Stacks(self.blocks, self.spec)
        routed, attentions = spec.layers_of("experts"), np.isin(spec.mixer_of_layers(), ATTENTIONS)
        each = {
            "layer": np.arange(spec.layers), "place": spec.places_of_keys(),
            "routed": places_in_stacks([n in routed for n in range(spec.layers)]), "is_local": spec.is_local(),
            "attention": np.cumsum(attentions, dtype=np.int32) - attentions, "own": own_LBTI,
        }  # fmt: skip
        handed = self._unhanded(x_BTD)
        remat = compute.remat if cache is None else "none"
        load_in, cache_in = Load.empty(len(routed), spec.experts) if spec.experts else None, cache

        def call(layer: Layer, carry: Any, mine: Any, target_positions_BR: Any = None, taken: Any = None) -> Any:
            x, cache, load, handed = carry
            if len(places) == 1:
                (where,) = places.values()
            elif spec.global_attention:  # whose heads turn in other dims
                where = places[not layer.is_wide]
            else:
                where = jax.tree.map(lambda a, b: jnp.where(mine["is_local"], a, b), places[True], places[False])
            of_layer = {"cache": cache, "layer": mine["place"]}
            of_attention = {"number": mine["attention"], "backend": compute.attention, "mask": spec.mask}
            meet = Mixing(
                functools.partial(mixing.attend, **of_layer, **of_attention),
                functools.partial(mixing.recur, **of_layer),
            )
            x, cache, of_experts, made = layer(
                x, where, segments_BT, meet, target_positions_BR, mine["own"], handed if taken is None else taken
            )
            if of_experts is not None:
                load = load.filled(mine["routed"], of_experts)
            x = x if deep is None or target_positions_BR is not None else deep.added(x, mine["layer"])
            return x, cache, load, made if taken is None else handed

        def through(stop: int = spec.layers) -> Any:
            """What goes on behind so many layers; those that are handed keys see them from outside of their scan."""
            run = functools.partial(apply_layers, stacks, remat=remat, unroll=compute.unroll, each=each)
            first = min(stop, spec.first_handed)
            x, cache, load, made = run((x_BTD, cache_in, load_in, handed), call, stop=first)
            if stop > first:
                x, cache, load, _ = run(
                    (x, cache, load, {}), functools.partial(call, taken=made), start=first, stop=stop
                )
            return x, cache, load, made

        if target_positions_BR is None or not self._may_end_early(
            target_positions_BR.shape[1], x_BTD.shape[1], deep, compute
        ):
            x_BTD, cache, load, _ = through()
            if target_positions_BR is not None:
                x_BTD = at_places(zigzag.as_rows(x_BTD), target_positions_BR)
            return self.norm(x_BTD), cache, load
        carry = through(stop=spec.layers - 1)
        of_last = jax.tree.map(lambda x: x[-1], each)
        last = Layer(**stacks.merged(stacks.layer(spec.layers - 1)))
        taken = carry[3] if spec.handed_layers else None
        x_BRD, cache, load, _ = checkpointed(
            lambda carry: call(last, carry, of_last, target_positions_BR, taken), remat
        )(carry)
        return self.norm(x_BRD), cache, load

    def _unhanded(self, x_BTD) -> dict[str, Handed]:
        """Keys and values of each mixer that later layers see, before any layer has made them; {} where none does."""
        handed = {kind for kind, name in HANDED.items() if self.spec.layers_of(name)}
        sizes = self.spec.attention_sizes()
        zeros = {
            kind: jnp.zeros((*x_BTD.shape[:2], sizes[kind].kv_heads, sizes[kind].head_dim), x_BTD.dtype)
            for kind in sorted(handed)
        }
        return {kind: (x, x) for kind, x in zeros.items()}

    def _may_end_early(self, wanted: int, length: int, deep: DeepStack | None, compute: Compute) -> bool:
        """Whether the last layer may work on the wanted positions alone, behind its attention, and gains by it.

        Under a scan it may not: all its layers are of one shape. Nor with experts, whose load is that of all positions.
        """
        is_unrolled = compute.unroll >= self.spec.layers
        is_deep = deep is not None and deep.tables_KBSD.shape[0] == self.spec.layers
        return (
            is_unrolled
            and not is_deep
            and self.spec.experts is None
            and wanted < length
            and not zigzag.are_sharded(length)
        )
