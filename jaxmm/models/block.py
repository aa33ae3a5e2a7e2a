"""One layer of the decoder: grouped-query attention with rotary positions, or another mixer, and a gated MLP."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmm import sharding, zigzag
from jaxmm.models import attention as attn
from jaxmm.models import rope
from jaxmm.models.cache import Cache
from jaxmm.models.decoder_spec import ATTENTIONS, HANDED, DecoderSpec
from jaxmm.models.experts import Experts
from jaxmm.models.layer_inputs import LayerInput
from jaxmm.models.layers import MLP, LayerScale, RMSNorm, unit_rms
from jaxmm.models.linear import Linear
from jaxmm.models.materialize import materialize
from jaxmm.models.recurrent import GatedDeltaNet, ShortConvolution
from jaxmm.models.routing import Load

Handed = tuple[jax.Array, jax.Array]  # keys and values (B, T, K, D)


class AttentionContext(NamedTuple):
    """Where the positions of a row are, and what they see, to layers of one kind."""

    rotation: tuple[jax.Array, jax.Array]
    intervals: attn.Intervals


# How the positions of a layer meet: ``(q, k, v, intervals, cache=, kind=, layer=, number=, backend=, mask=, scale=,
# softcap=, is_handed=)`` gives what they take, and what the layers hand on from one to the next: a cache, or what
# a probe has found. ``layer`` counts the layers of this kind of attention, ``number`` those of any; ``is_handed``: keys
# and values are those of an earlier layer, which a cache holds already.
Attend = Callable[..., tuple[jax.Array, Any]]


def attend_own(
    q_BTHD, k_BTKD, v_BTKD, intervals, *, cache: Cache | None, kind: str, layer, number, backend: str, mask: str,
    is_handed: bool = False, **logits,
):  # fmt: skip
    """Positions meet those of their own pass, which a cache then holds, where there is one."""
    del number
    out_BTHD = attn.attention(q_BTHD, k_BTKD, v_BTKD, intervals, backend=backend, mask=mask, **logits)
    if cache is not None and not is_handed:
        cache = cache.filled(kind, layer, zigzag.unshard(k_BTKD), zigzag.unshard(v_BTKD))
    return out_BTHD, cache


def attend_cached(
    q_B1HD, k_B1KD, v_B1KD, intervals, *, cache: Cache, kind: str, layer, number, backend: str, mask: str,
    is_handed: bool = False, **logits,
):  # fmt: skip
    """One position a row meets all that its row's cache holds, itself included."""
    del number, backend, mask  # one query needs none of them
    cache = cache if is_handed else cache.added(kind, layer, k_B1KD, v_B1KD)
    return attn.decode_attention(q_B1HD, *cache.of(kind, layer), intervals, **logits), cache


def at_places(x_BT, target_positions_BR):
    """x (B, T, ...) at some places of each row; as it is for None."""
    if target_positions_BR is None:
        return x_BT
    return jnp.take_along_axis(
        x_BT, target_positions_BR.reshape(*target_positions_BR.shape, *[1] * (x_BT.ndim - 2)), axis=1
    )


class SelfAttention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, kind: str, spec: DecoderSpec, *, rngs: nnx.Rngs, is_handed: bool = False):
        """
        Args:
          kind: one of ATTENTIONS, which has its own sizes.
          is_handed: it makes no keys and values.
        """
        sizes = spec.attention_sizes()[kind]
        q, kv = (spec.heads, sizes.head_dim), (sizes.kv_heads, sizes.head_dim)
        self.kind, self.spec, bias = kind, spec, spec.qkv_bias
        self.query = Linear([spec.width], q, ("embed", "heads", None), bias=bias, rngs=rngs)
        to_keys = functools.partial(Linear, [spec.width], kv, ("embed", "kv_heads", None), bias=bias, rngs=rngs)
        self.key = None if is_handed else to_keys()
        self.value = None if is_handed or sizes.shared_kv else to_keys()
        depth = 0.5 / spec.layers  # keeps the residual stream's variance flat in depth (GPT-2)
        self.out = Linear(q, [spec.width], ("heads", None, "embed"), bias=spec.out_bias, rngs=rngs, scale=depth)
        self.gate = (
            Linear([spec.width], q, ("embed", "heads", None), bias=bias, rngs=rngs) if spec.attention_gate else None
        )
        self.query_norm = self._head_norm(sizes.head_dim, rngs) if spec.qk_norm else None
        self.key_norm = self._head_norm(sizes.head_dim, rngs) if spec.qk_norm and not is_handed else None

    def _head_norm(self, head_dim: int, rngs: nnx.Rngs) -> RMSNorm:
        return RMSNorm(head_dim, self.spec.norm_eps, rngs=rngs, offset=self.spec.norm_offset, axis=None)

    def projected(self, x_BTD, rotation, handed: Handed | None = None):
        """Queries (B, T, H, D), keys and values (B, T, K, D), ready to meet; or ``handed``, of an earlier layer."""
        q_BTHD = self.query(x_BTD)
        if self.key is None:
            assert handed is not None
            q_BTHD = q_BTHD if self.query_norm is None else self.query_norm(q_BTHD)
            return rope.rotate(q_BTHD, rotation, self.spec.rope_adjacent), *handed
        k_BTKD = self.key(x_BTD)
        v_BTKD = k_BTKD if self.value is None else self.value(x_BTD)
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHD, k_BTKD = self.query_norm(q_BTHD), self.key_norm(k_BTKD)
        if self.spec.value_norm:
            v_BTKD = unit_rms(v_BTKD, self.spec.norm_eps)
        q_BTHD, k_BTKD = (rope.rotate(x, rotation, self.spec.rope_adjacent) for x in (q_BTHD, k_BTKD))
        return q_BTHD, k_BTKD, v_BTKD

    def __call__(
        self, x_BTD, where: AttentionContext, attend: Attend, target_positions_BR=None, handed: Handed | None = None
    ) -> tuple[jax.Array, Any, Handed]:
        """``handed``: keys and values of an earlier layer, for one that makes none; returned are those that are met."""
        spec = self.spec
        q_BTHD, *met = self.projected(x_BTD, where.rotation, handed)
        out_BTHD, cache = attend(
            q_BTHD, *met, where.intervals, kind=self.kind, is_handed=handed is not None,
            scale=spec.attention_scale, softcap=spec.attention_softcap,
        )  # fmt: skip
        out_BTHD = at_places(out_BTHD, target_positions_BR)
        if self.gate is not None:
            out_BTHD = out_BTHD * jax.nn.sigmoid(self.gate(at_places(x_BTD, target_positions_BR)))
        return self.out(out_BTHD), cache, (met[0], met[1])


def recur_own(mixer: Any, x_BTD, segments_BT, *, cache: Cache | None, kind: str, layer):
    """Positions are mixed with those before them in their document; a cache, where there is one, holds the state."""
    if not isinstance(cache, Cache):
        return mixer(x_BTD, segments_BT), cache
    y_BTD, state = mixer.prefill(x_BTD, segments_BT)
    return y_BTD, cache.with_state(kind, layer, state)


def recur_cached(mixer: Any, x_B1D, segments_B1, *, cache: Cache, kind: str, layer):
    """One position a row is mixed with the state that its row's cache holds."""
    del segments_B1
    y_B1D, state = mixer.step(x_B1D, cache.state(kind, layer))
    return y_B1D, cache.with_state(kind, layer, state)


class Mixing(NamedTuple):
    """How positions meet: ``attend`` in attention; ``recur`` in layers that carry a state, which is ``(mixer, x,
    segments, cache=, kind=, layer=)`` and gives what ``attend`` gives."""

    attend: Attend
    recur: Callable[..., tuple[jax.Array, Any]] = recur_own


class Layer(NamedTuple):
    """The modules of one layer, by the names of COMPONENTS: one mixer, an MLP or experts, or both, and norms around."""

    norm_attention: RMSNorm
    norm_mlp: RMSNorm
    mlp: MLP | None = None
    experts: Experts | None = None
    attention: SelfAttention | None = None
    global_attention: SelfAttention | None = None
    convolution: ShortConvolution | None = None
    delta: GatedDeltaNet | None = None
    norm_attention_out: RMSNorm | None = None
    norm_mlp_out: RMSNorm | None = None
    scale: LayerScale | None = None
    norm_dense_out: RMSNorm | None = None
    norm_experts: RMSNorm | None = None
    norm_experts_out: RMSNorm | None = None
    handed_attention: SelfAttention | None = None
    handed_global_attention: SelfAttention | None = None
    handed_mlp: MLP | None = None
    layer_input: LayerInput | None = None

    @property
    def is_wide(self) -> bool:
        """Whether it has global attention."""
        return self.global_attention is not None or self.handed_global_attention is not None

    def __call__(
        self, x_BTD, where: AttentionContext, segments_BT, mixing: Mixing, target_positions_BR=None,
        own_BTI=None, handed: Mapping[str, Handed] = {},
    ) -> tuple[jax.Array, Any, Load | None, Mapping[str, Handed]]:  # fmt: skip
        """Returns what goes on, at ``target_positions_BR`` or everywhere, the cache, the load of experts, if any, and
        ``handed`` with this layer's keys and values.

        Args:
          segments_BT: the documents of positions, to mixers that carry a state.
          own_BTI: what positions bring to this layer.
          handed: keys and values of the last layer of each mixer, where later layers see them; {} where none does.
        """
        normal_BTD = self.norm_attention(x_BTD)
        makers = self.attention if self.attention is not None else self.global_attention
        taker = self.handed_attention if self.handed_attention is not None else self.handed_global_attention
        attention = makers if makers is not None else taker
        if attention is not None:
            taken = handed[attention.kind] if makers is None else None
            h_BTD, cache, met = attention(normal_BTD, where, mixing.attend, target_positions_BR, taken)
            handed = {**handed, attention.kind: met} if attention.kind in handed else handed
        else:
            mixer, kind = (self.convolution, "convolution") if self.convolution is not None else (self.delta, "delta")
            h_BTD, cache = mixing.recur(mixer, normal_BTD, segments_BT, kind=kind)
            h_BTD = at_places(h_BTD, target_positions_BR)
        x_BTD = at_places(x_BTD, target_positions_BR) + (
            h_BTD if self.norm_attention_out is None else self.norm_attention_out(h_BTD)
        )
        x_BTD = materialize(x_BTD)
        h_BTD, load = self._mlp(x_BTD, where, target_positions_BR)
        x_BTD = x_BTD + (h_BTD if self.norm_mlp_out is None else self.norm_mlp_out(h_BTD))
        if self.layer_input is not None:
            x_BTD = x_BTD + self.layer_input(x_BTD, at_places(own_BTI, target_positions_BR))
        x_BTD = materialize(x_BTD if self.scale is None else self.scale(x_BTD))
        axis = zigzag.positions_axis(x_BTD.shape[1]) if target_positions_BR is None else None
        return sharding.constrain(x_BTD, "rows", axis, None), cache, load, handed

    def _mlp(self, x_BTD, where: AttentionContext, target_positions_BR) -> tuple[jax.Array, Load | None]:
        if self.experts is None:
            mlp = self.mlp if self.mlp is not None else self.handed_mlp
            assert mlp is not None
            return mlp(self.norm_mlp(x_BTD)), None
        start_BT, end_BT = where.intervals
        is_real_BT = at_places(end_BT > start_BT, target_positions_BR)
        if self.mlp is None or self.norm_experts is None:
            return self.experts(self.norm_mlp(x_BTD), is_real_BT)
        assert self.norm_dense_out is not None
        assert self.norm_experts_out is not None
        chosen_BTD, load = self.experts(self.norm_experts(x_BTD), is_real_BT, x_BTD)
        dense_BTD = self.mlp(self.norm_mlp(x_BTD))
        return self.norm_dense_out(dense_BTD) + self.norm_experts_out(chosen_BTD), load


def component(name: str, spec: DecoderSpec, rngs: nnx.Rngs) -> nnx.Module:
    """One module of a layer, by its name in COMPONENTS."""
    depth = 0.5 / spec.layers
    if name in ATTENTIONS:
        return SelfAttention(name, spec, rngs=rngs)
    if name in HANDED.values():
        return SelfAttention(name.removeprefix("handed_"), spec, rngs=rngs, is_handed=True)
    if name == "layer_input":
        return LayerInput(spec, rngs=rngs, scale=depth)
    if name == "scale":
        return LayerScale(rngs=rngs)
    if name == "convolution":
        assert spec.convolution is not None
        return ShortConvolution(spec.convolution, rngs=rngs, scale=depth)
    if name == "delta":
        assert spec.delta is not None
        return GatedDeltaNet(spec.delta, rngs=rngs, scale=depth)
    if name == "experts":
        assert spec.experts is not None
        return Experts(spec.width, spec.experts, spec.activation, rngs=rngs, scale=depth)
    if name in ("mlp", "handed_mlp"):
        width = spec.mlp if name == "mlp" else spec.handed_mlp
        return MLP(spec.width, width, spec.activation, gated=True, bias=spec.mlp_bias, rngs=rngs, scale=depth)
    return RMSNorm(spec.width, spec.norm_eps, rngs=rngs, offset=spec.norm_offset)
