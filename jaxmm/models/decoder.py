"""The decoder: Llama (Touvron et al., 2023) with rotary positions, grouped-query attention and a gated MLP."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmm import sharding
from jaxmm.models import attention as attn
from jaxmm.models.layers import Linear, RMSNorm, apply_stack, fan_in, parameter, stack


@dataclasses.dataclass(frozen=True)
class DecoderSpec:
    """Sizes and named features of the decoder.

    Attributes:
      vocab_size: rows of the embedding, separators included, padded as the caller likes.
      tie_embeddings: the vocabulary projection is the embedding, transposed.
      window: how many positions back attention reaches, 0 for all.
      two_way_blocks: positions of one block of the batch (an image, a prefix) see each other both ways.
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
    two_way_blocks: bool = False


def rotary_angles(positions_BT, head_dim: int, theta: float):
    """Angles of rotary position embedding (Su et al., 2021), float32 (B, T, head_dim / 2)."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    return positions_BT.astype(jnp.float32)[..., None] * frequencies


def rotate(x_BTHD, angles_BTD):
    """Rotates pairs (d, d + D / 2) of each head by the position's angles, in float32."""
    first, second = jnp.split(x_BTHD.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles_BTD)[:, :, None], jnp.sin(angles_BTD)[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x_BTHD.dtype)


class SelfAttention(nnx.Module):
    """Grouped-query attention with rotary positions, without biases."""

    def __init__(self, spec: DecoderSpec, *, rngs: nnx.Rngs):
        q, kv = (spec.heads, spec.head_dim), (spec.kv_heads, spec.head_dim)
        self.query = Linear([spec.width], q, ("embed", "heads", None), bias=False, rngs=rngs)
        self.key = Linear([spec.width], kv, ("embed", "kv_heads", None), bias=False, rngs=rngs)
        self.value = Linear([spec.width], kv, ("embed", "kv_heads", None), bias=False, rngs=rngs)
        depth = 0.5 / spec.layers  # keeps the residual stream's variance flat in depth (GPT-2)
        self.out = Linear(q, [spec.width], ("heads", None, "embed"), bias=False, rngs=rngs, scale=depth)

    def __call__(self, x_BTD, angles_BTD, intervals: attn.Intervals):
        q_BTHD, k_BTKD = (rotate(project(x_BTD), angles_BTD) for project in (self.query, self.key))
        return self.out(attn.attention(q_BTHD, k_BTKD, self.value(x_BTD), intervals))


class Block(nnx.Module):
    """Pre-norm transformer layer with a SwiGLU MLP (Shazeer, 2020)."""

    def __init__(self, spec: DecoderSpec, *, rngs: nnx.Rngs):
        self.norm_attention = RMSNorm(spec.width, spec.norm_eps, rngs=rngs)
        self.attention = SelfAttention(spec, rngs=rngs)
        self.norm_mlp = RMSNorm(spec.width, spec.norm_eps, rngs=rngs)
        self.gate = Linear([spec.width], [spec.mlp], ("embed", "mlp"), bias=False, rngs=rngs)
        self.up = Linear([spec.width], [spec.mlp], ("embed", "mlp"), bias=False, rngs=rngs)
        depth = 0.5 / spec.layers
        self.down = Linear([spec.mlp], [spec.width], ("mlp", "embed"), bias=False, rngs=rngs, scale=depth)

    def __call__(self, x_BTD, angles_BTD, intervals: attn.Intervals):
        x_BTD = x_BTD + self.attention(self.norm_attention(x_BTD), angles_BTD, intervals)
        h_BTD = self.norm_mlp(x_BTD)
        x_BTD = x_BTD + self.down(jax.nn.silu(self.gate(h_BTD)) * self.up(h_BTD))
        return sharding.constrain(x_BTD, "rows", None, None)


class Decoder(nnx.Module):
    """Embedded positions to hidden states; the vocabulary projection lives in the loss."""

    def __init__(self, spec: DecoderSpec, *, rngs: nnx.Rngs):
        self.spec = spec
        shape, axes = (spec.vocab_size, spec.width), ("vocab", "embed")
        self.embedding = parameter(rngs, shape, axes, jax.nn.initializers.normal(spec.width**-0.5))
        self.blocks = stack(spec.layers, lambda r: Block(spec, rngs=r), rngs)
        self.norm = RMSNorm(spec.width, spec.norm_eps, rngs=rngs)
        if not spec.tie_embeddings:
            init = fan_in(1.0, "fan_in", "normal", in_axis=1, out_axis=0)
            self.head = parameter(rngs, shape, axes, init)

    def embed(self, tokens_BT, dtype):
        return jnp.take(self.embedding[...].astype(dtype), tokens_BT, axis=0)

    def projection(self):
        """The vocabulary projection, float32 (V, D)."""
        return (self.embedding if self.spec.tie_embeddings else self.head)[...]

    def __call__(self, x_BTD, positions_BTA, segments_BT, blocks_BT, *, remat: str = "none", unroll: int = 1):
        """Runs embedded positions (B, T, D) through the layers; returns normed hidden states of the same shape."""
        spec = self.spec
        angles = rotary_angles(positions_BTA[..., 0], spec.head_dim, spec.rope_theta)
        intervals = attn.causal(segments_BT, blocks_BT if spec.two_way_blocks else None, spec.window)
        x_BTD = apply_stack(self.blocks, x_BTD, lambda block, x: block(x, angles, intervals), remat, unroll)
        return self.norm(x_BTD)
