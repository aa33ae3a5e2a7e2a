"""The decoder: Llama's layout (Touvron et al., 2023), with named features for what other families do otherwise."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jaxmm import sharding
from jaxmm.models import attention as attn
from jaxmm.models import rope
from jaxmm.models.cache import Cache
from jaxmm.models.compute import Compute
from jaxmm.models.embedding import look_up
from jaxmm.models.layers import (
    MLP,
    Linear,
    RMSNorm,
    apply_stack,
    checkpointed,
    fan_in,
    parameter,
    split_last,
    stack,
)
from jaxmm.models.materialize import materialize
from jaxmm.models.rope import RopeScaling
from jaxmm.models.sizes import check_numbers, check_sizes


@dataclasses.dataclass(frozen=True)
class DecoderSpec:
    """Sizes and named features of the decoder.

    Attributes:
      vocab_size: rows of the embedding, separators included, padded as the caller likes.
      tie_embeddings: the vocabulary projection is the embedding, transposed.
      window: how many positions back attention reaches, itself included; 0 is all.
      global_layers: with a window, the layers that see everything all the same.
      local_rope_theta: of the layers with a window, which then have no scaling; 0 is as the others.
      two_way_blocks: positions of one block of the batch (an image, a prefix) see each other both ways.
      rope_sections: frequencies of each axis of positions (frame, row, column); () is one axis.
      rope_interleaved: the axes take turns; else they follow each other.
      qkv_bias, out_bias, mlp_bias: which linear maps have biases.
      qk_norm: queries and keys are normed, each head by itself (Qwen 3, Gemma 3).
      post_norms: what attention and MLP give is normed too, before it is added (Gemma 2).
      norm_offset: added to the scales of norms: 1 where they are stored around 0 (Gemma).
      embed_scale: multiplies embedded tokens, not soft tokens.
      attention_scale: of the logits of attention; 0 is 1 / sqrt(head_dim).
      attention_softcap, logit_softcap: bend logits of attention, and those of the vocabulary, by a tanh (Gemma 2); 0
        does not.
    """

    vocab_size: int = 512
    width: int = 192
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 48
    mlp: int = 512
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    window: int = 0
    global_layers: tuple[int, ...] = ()
    local_rope_theta: float = 0.0
    bidirectional_blocks: bool = False
    rope_scaling: RopeScaling = dataclasses.field(default_factory=RopeScaling)
    rope_sections: tuple[int, ...] = ()
    rope_interleaved: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    activation: str = "silu"
    embed_scale: float = 1.0
    attention_scale: float = 0.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self, "decoder", "vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "mlp")
        check_sizes(self, "decoder", "window", least=0)
        check_numbers(self, "decoder", "rope_theta", "norm_eps")
        check_numbers(self, "decoder", "local_rope_theta", "embed_scale", "attention_scale", "attention_softcap",
                      "logit_softcap", may_be_0=True)  # fmt: skip
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} attention heads are no multiple of {self.kv_heads} key-value heads")
        if self.head_dim % 2:
            raise ValueError(f"decoder head_dim {self.head_dim} is odd: rotary positions turn pairs of numbers")
        # Axes that take turns need no full sum: the first takes what the others leave.
        in_a_row = self.rope_sections and not self.rope_interleaved
        if in_a_row and sum(self.rope_sections) != self.head_dim // 2:
            raise ValueError(
                f"rotary sections {self.rope_sections}: their sum does not add up to half of a head of {self.head_dim}"
            )

    @property
    def text_axes(self) -> int:
        """Coordinates of a text position."""
        return max(1, len(self.rope_sections))

    def is_local(self) -> np.ndarray:
        """bool (layers,): which layers see a window."""
        return np.array([bool(self.window) and i not in self.global_layers for i in range(self.layers)])


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


class AttentionContext(NamedTuple):
    """Where the positions of a row are, and what they see, to layers of one kind."""

    rotation: tuple[jax.Array, jax.Array]
    intervals: attn.Intervals


Attend = Callable[..., tuple[jax.Array, Cache | None]]


def _attend_own(q_BTHD, k_BTKD, v_BTKD, intervals, *, cache: Cache | None, layer, backend: str, whole: bool, **logits):
    """Positions meet those of their own pass, which a cache then holds, where there is one."""
    out_BTHD = attn.attention(q_BTHD, k_BTKD, v_BTKD, intervals, backend=backend, whole=whole, **logits)
    if cache is not None:
        cache = cache.filled(layer, sharding.zigzag_unshard(k_BTKD), sharding.zigzag_unshard(v_BTKD))
    return out_BTHD, cache


def _attend_cached(q_B1HD, k_B1KD, v_B1KD, intervals, *, cache: Cache, layer, backend: str, whole: bool, **logits):
    """One position a row meets all that its row's cache holds, itself included."""
    del backend, whole  # one query needs neither
    cache = cache.added(layer, k_B1KD, v_B1KD)
    return attn.decode_attention(q_B1HD, *cache.of(layer), intervals, **logits), cache


def _at(x_BT, target_positions_BR):
    """x (B, T, ...) at some places of each row; as it is for None."""
    if target_positions_BR is None:
        return x_BT
    return jnp.take_along_axis(
        x_BT, target_positions_BR.reshape(*target_positions_BR.shape, *[1] * (x_BT.ndim - 2)), axis=1
    )


class SelfAttention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, spec: DecoderSpec, *, rngs: nnx.Rngs):
        q, kv = (spec.heads, spec.head_dim), (spec.kv_heads, spec.head_dim)
        self.spec, bias = spec, spec.qkv_bias
        self.query = Linear([spec.width], q, ("embed", "heads", None), bias=bias, rngs=rngs)
        self.key = Linear([spec.width], kv, ("embed", "kv_heads", None), bias=bias, rngs=rngs)
        self.value = Linear([spec.width], kv, ("embed", "kv_heads", None), bias=bias, rngs=rngs)
        depth = 0.5 / spec.layers  # keeps the residual stream's variance flat in depth (GPT-2)
        self.out = Linear(q, [spec.width], ("heads", None, "embed"), bias=spec.out_bias, rngs=rngs, scale=depth)
        self.query_norm = self._head_norm(rngs) if spec.qk_norm else None
        self.key_norm = self._head_norm(rngs) if spec.qk_norm else None

    def _head_norm(self, rngs: nnx.Rngs) -> RMSNorm:
        spec = self.spec
        return RMSNorm(spec.head_dim, spec.norm_eps, rngs=rngs, offset=spec.norm_offset, axis=None)

    def projected(self, x_BTD, rotation):
        """Queries (B, T, H, D), keys and values (B, T, K, D), ready to meet."""
        q_BTHD, k_BTKD = self.query(x_BTD), self.key(x_BTD)
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHD, k_BTKD = self.query_norm(q_BTHD), self.key_norm(k_BTKD)
        return rope.rotate(q_BTHD, rotation), rope.rotate(k_BTKD, rotation), self.value(x_BTD)

    def __call__(self, x_BTD, where: AttentionContext, attend: Attend, target_positions_BR=None):
        spec = self.spec
        out_BTHD, cache = attend(
            *self.projected(x_BTD, where.rotation), where.intervals,
            scale=spec.attention_scale, softcap=spec.attention_softcap,
        )  # fmt: skip
        return self.out(_at(out_BTHD, target_positions_BR)), cache


class Block(nnx.Module):
    """Pre-norm transformer layer with a gated MLP."""

    def __init__(self, spec: DecoderSpec, *, rngs: nnx.Rngs):
        def norm() -> RMSNorm:
            return RMSNorm(spec.width, spec.norm_eps, rngs=rngs, offset=spec.norm_offset)

        self.norm_attention, self.norm_mlp = norm(), norm()
        self.attention = SelfAttention(spec, rngs=rngs)
        depth = 0.5 / spec.layers
        self.mlp = MLP(spec.width, spec.mlp, spec.activation, gated=True, bias=spec.mlp_bias, rngs=rngs, scale=depth)
        self.norm_attention_out = norm() if spec.post_norms else None
        self.norm_mlp_out = norm() if spec.post_norms else None

    def __call__(self, x_BTD, where: AttentionContext, attend: Attend, target_positions_BR=None):
        """Returns what goes on, at ``target_positions_BR`` or everywhere, and the cache."""
        h_BTD, cache = self.attention(self.norm_attention(x_BTD), where, attend, target_positions_BR)
        x_BTD = _at(x_BTD, target_positions_BR) + (
            h_BTD if self.norm_attention_out is None else self.norm_attention_out(h_BTD)
        )
        x_BTD = materialize(x_BTD)
        h_BTD = self.mlp(self.norm_mlp(x_BTD))
        x_BTD = materialize(x_BTD + (h_BTD if self.norm_mlp_out is None else self.norm_mlp_out(h_BTD)))
        axis = sharding.positions_axis(x_BTD.shape[1]) if target_positions_BR is None else None
        return sharding.constrain(x_BTD, "rows", axis, None), cache


class Decoder(nnx.Module):
    """Embedded positions to hidden states; the vocabulary projection lives in the loss."""

    def __init__(self, spec: DecoderSpec, *, rngs: nnx.Rngs):
        self.spec = spec
        shape, axes = (spec.vocab_size, spec.width), ("vocab", "embed")
        init = jax.nn.initializers.normal(spec.width**-0.5 / spec.embed_scale)
        self.embedding = parameter(rngs, shape, axes, init)
        self.blocks = stack(spec.layers, lambda r: Block(spec, rngs=r), rngs)
        self.norm = RMSNorm(spec.width, spec.norm_eps, rngs=rngs, offset=spec.norm_offset)
        if not spec.tie_embeddings:
            init = fan_in(1.0, "fan_in", "normal", in_axis=1, out_axis=0)
            self.head = parameter(rngs, shape, axes, init)

    def embed(self, tokens_BT, dtype):
        embedded = look_up(self.embedding[...], tokens_BT, dtype)
        return embedded if self.spec.embed_scale == 1 else embedded * jnp.asarray(self.spec.embed_scale, dtype)

    def projection(self):
        """The vocabulary projection, float32 (V, D)."""
        return (self.embedding if self.spec.tie_embeddings else self.head)[...]

    def rotations(self, positions_BTA, lengths_BT) -> dict[bool, tuple[jax.Array, jax.Array]]:
        """Rotations of global layers (False) and of local ones (True).

        Args:
          lengths_BT: positions in the document of each position.
        """
        spec = self.spec
        axes = rope.axis_of_frequency(spec.rope_sections, spec.rope_interleaved, spec.head_dim // 2)
        scaled = rope.frequencies(spec.rope_theta, spec.head_dim, spec.rope_scaling, lengths_BT)
        by_kind = {False: rope.rotations(positions_BTA, scaled, axes, rope.attention_factor(spec.rope_scaling))}
        by_kind[True] = by_kind[False]
        if spec.local_rope_theta:
            plain = rope.frequencies(spec.local_rope_theta, spec.head_dim, RopeScaling())
            by_kind[True] = rope.rotations(positions_BTA, plain, axes, 1.0)
        return by_kind

    def places(self, positions_BTA, segments_BT, blocks_BT) -> dict[bool, AttentionContext]:
        """The attention context of global layers (False) and of local ones (True), in zigzag order."""
        spec = self.spec
        blocks_BT = blocks_BT if spec.bidirectional_blocks else None
        start_BT, end_BT = attn.runs(segments_BT)
        rotations = self.rotations(positions_BTA, end_BT - start_BT)
        places = {
            local: AttentionContext(rotations[local], attn.causal(segments_BT, blocks_BT, spec.window if local else 0))
            for local in set(spec.is_local().tolist())
        }
        return jax.tree.map(sharding.zigzag_shard, places)

    def places_in(self, cache: Cache) -> dict[bool, AttentionContext]:
        """Where the next position of each row is, (B, 1), and what of the cache it sees."""
        spec, end_B1 = self.spec, cache.length_B[:, None] + 1
        positions_B1A = jnp.broadcast_to(cache.position_B[:, None, None], (*end_B1.shape, spec.text_axes))
        rotations = self.rotations(positions_B1A, end_B1)

        def seen(local: bool) -> attn.Intervals:
            return jnp.maximum(end_B1 - spec.window, 0) if local else jnp.zeros_like(end_B1), end_B1

        return {local: AttentionContext(rotations[local], seen(local)) for local in set(spec.is_local().tolist())}

    def __call__(
        self, x_BTD, positions_BTA, segments_BT, blocks_BT, deep: DeepStack | None = None, *, compute: Compute,
        target_positions_BR=None,
    ):  # fmt: skip
        """Runs embedded positions (B, T, D), sharded over ``context``, through the layers.

        Positions, segments and blocks are in their true order.

        Args:
          target_positions_BR: where hidden states are wanted, in the rows of ``sharding.as_rows``. Unrolled, the last
            layer computes only these.
        Returns:
          Normed hidden states of the same shape, sharded too, or those at target positions, (B, R, D).
        """
        places = self.places(positions_BTA, segments_BT, blocks_BT)
        return self._run(x_BTD, None, places, _attend_own, deep, compute, target_positions_BR)[0]

    def prefill(
        self, x_BTD, positions_BTA, segments_BT, blocks_BT, deep: DeepStack | None = None, *, size: int,
        compute: Compute,
    ):  # fmt: skip
        """The same for one document a row, from its first position on, with a cache for ``size`` positions.

        Returns:
          (hidden states in their true order, Cache).
        """
        spec, (B, T) = self.spec, segments_BT.shape
        if size < T:
            raise ValueError(f"a cache of {size} positions does not hold rows of {T}")
        shape = spec.layers, B, spec.kv_heads, size, spec.head_dim
        cache = Cache.empty(shape, x_BTD.dtype, positions_BTA, segments_BT)
        places = self.places(positions_BTA, segments_BT, blocks_BT)
        x_BTD, cache = self._run(x_BTD, cache, places, _attend_own, deep, compute)
        return sharding.zigzag_unshard(x_BTD), cache

    def step(self, x_B1D, cache: Cache, compute: Compute):
        """Runs one more embedded text position of each row; returns (hidden states (B, 1, D), Cache)."""
        x_B1D, cache = self._run(x_B1D, cache, self.places_in(cache), _attend_cached, None, compute)
        return x_B1D, cache.grown()

    def _run(
        self, x_BTD, cache: Cache | None, places: dict[bool, AttentionContext], attend: Attend, deep: DeepStack | None,
        compute: Compute, target_positions_BR=None,
    ):  # fmt: skip
        each = {"layer": np.arange(self.spec.layers), "is_local": self.spec.is_local()}
        remat = compute.remat if cache is None else "none"

        def call(
            block: Block, carry: tuple[jax.Array, Cache | None], mine: Any, target_positions_BR: Any = None
        ) -> Any:
            x, cache = carry
            if len(places) == 1:
                (where,) = places.values()
            else:
                where = jax.tree.map(lambda a, b: jnp.where(mine["is_local"], a, b), places[True], places[False])
            meet = functools.partial(
                attend, cache=cache, layer=mine["layer"], backend=compute.attention, whole=not self.spec.window
            )
            x, cache = block(x, where, meet, target_positions_BR)
            return x if deep is None or target_positions_BR is not None else deep.added(x, mine["layer"]), cache

        def through(blocks: Any, each: Any) -> Any:
            return apply_stack(blocks, (x_BTD, cache), call, remat, compute.unroll, each=each)[0]

        if target_positions_BR is None or not self._may_end_early(
            target_positions_BR.shape[1], x_BTD.shape[1], deep, compute
        ):
            x_BTD, cache = through(self.blocks, each)
            if target_positions_BR is not None:
                x_BTD = _at(sharding.as_rows(x_BTD), target_positions_BR)
            return self.norm(x_BTD), cache
        first, last = split_last(self.blocks)
        carry = through(first, jax.tree.map(lambda x: x[:-1], each))
        of_last = jax.tree.map(lambda x: x[-1], each)
        x_BRD, cache = checkpointed(lambda carry: call(last, carry, of_last, target_positions_BR), remat)(carry)
        return self.norm(x_BRD), cache

    def _may_end_early(self, wanted: int, length: int, deep: DeepStack | None, compute: Compute) -> bool:
        """Whether the last layer may work on the wanted positions alone, behind its attention, and gains by it.

        Under a scan it may not: all its layers are of one shape.
        """
        is_unrolled = compute.unroll >= self.spec.layers
        is_deep = deep is not None and deep.tables_KBSD.shape[0] == self.spec.layers
        return is_unrolled and not is_deep and wanted < length and not sharding.are_sharded(length)
