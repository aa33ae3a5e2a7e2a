"""The vision tower: SigLIP 2 NaFlex (Tschannen et al., 2025), a ViT over images of any grid, packed in one Stream."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmm import sharding
from jaxmm.batch import Stream
from jaxmm.models import attention as attn
from jaxmm.models.layers import LayerNorm, Linear, apply_stack, parameter, stack


@dataclasses.dataclass(frozen=True)
class VisionSpec:
    """Sizes of the tower. ``positions``: side of the learned square of position embeddings."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 384
    patch_size: int = 16
    positions: int = 16
    norm_eps: float = 1e-6


def position_weights(positions_BN3, grids_BN2, side: int):
    """Bilinear weights, with antialiasing, of each patch over a side x side square of position embeddings.

    The same numbers as ``torch.nn.functional.interpolate(mode="bilinear", antialias=True)`` to the patch's own grid,
    as one row per patch instead of one resize per image. Returns float32 (B, N, side * side).
    """

    def along(index_BN, size_BN):
        scale = side / jnp.maximum(size_BN, 1).astype(jnp.float32)[..., None]
        centre = (index_BN.astype(jnp.float32)[..., None] + 0.5) * scale
        source = jnp.arange(side, dtype=jnp.float32) + 0.5
        weights = jnp.maximum(0.0, 1.0 - jnp.abs(source - centre) / jnp.maximum(scale, 1.0))
        return weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-6)

    rows = along(positions_BN3[..., 1], grids_BN2[..., 0])
    columns = along(positions_BN3[..., 2], grids_BN2[..., 1])
    return (rows[..., :, None] * columns[..., None, :]).reshape(*rows.shape[:-1], side * side)


def _sincos(side: int):
    """Initialiser of position embeddings: 2-D sines and cosines, so that a fresh tower knows where a patch is."""

    def init(key, shape, dtype):
        width = shape[-1]
        quarter = -(-width // 4)
        angle = jnp.arange(side)[:, None] / 100.0 ** (jnp.arange(quarter) / quarter)
        table = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
        rows = jnp.broadcast_to(table[:, None], (side, side, 2 * quarter))
        columns = jnp.broadcast_to(table[None], (side, side, 2 * quarter))
        return jnp.concatenate([rows, columns], -1).reshape(side * side, -1)[:, :width].astype(dtype)

    return init


class SelfAttention(nnx.Module):
    """Multi-head attention over packed segments, with biases."""

    def __init__(self, spec: VisionSpec, *, rngs: nnx.Rngs):
        width, heads = spec.width, spec.heads
        shape, axes = (heads, width // heads), ("heads", None)
        self.query = Linear([width], shape, ("embed", *axes), bias=True, rngs=rngs)
        self.key = Linear([width], shape, ("embed", *axes), bias=True, rngs=rngs)
        self.value = Linear([width], shape, ("embed", *axes), bias=True, rngs=rngs)
        self.out = Linear(shape, [width], (*axes, "embed"), bias=True, rngs=rngs)

    def __call__(self, x_BND, intervals: attn.Intervals):
        return self.out(attn.attention(self.query(x_BND), self.key(x_BND), self.value(x_BND), intervals))


class Block(nnx.Module):
    """Pre-norm transformer layer with a GELU MLP."""

    def __init__(self, spec: VisionSpec, *, rngs: nnx.Rngs):
        self.norm_attention = LayerNorm(spec.width, spec.norm_eps, rngs=rngs)
        self.attention = SelfAttention(spec, rngs=rngs)
        self.norm_mlp = LayerNorm(spec.width, spec.norm_eps, rngs=rngs)
        self.up = Linear([spec.width], [spec.mlp], ("embed", "mlp"), bias=True, rngs=rngs)
        self.down = Linear([spec.mlp], [spec.width], ("mlp", "embed"), bias=True, rngs=rngs)

    def __call__(self, x_BND, intervals: attn.Intervals):
        x_BND = x_BND + self.attention(self.norm_attention(x_BND), intervals)
        x_BND = x_BND + self.down(jax.nn.gelu(self.up(self.norm_mlp(x_BND)), approximate=True))
        return sharding.constrain(x_BND, "rows", None, None)


class VisionTower(nnx.Module):
    """Patches of packed images to features, each image seeing only itself."""

    def __init__(self, spec: VisionSpec, *, rngs: nnx.Rngs):
        if spec.width % spec.heads:
            raise ValueError(f"vision width {spec.width} is no multiple of {spec.heads} heads")
        self.spec = spec
        self.patch_embedding = Linear([spec.patch_size**2 * 3], [spec.width], (None, "embed"), bias=True, rngs=rngs)
        self.position_embedding = parameter(
            rngs, (spec.positions**2, spec.width), (None, "embed"), _sincos(spec.positions)
        )
        self.blocks = stack(spec.layers, lambda r: Block(spec, rngs=r), rngs)
        self.norm = LayerNorm(spec.width, spec.norm_eps, rngs=rngs)

    def __call__(self, patches: Stream, grids_BM3, *, dtype, remat: str = "none", unroll: int = 1):
        """Returns features (B, N, D) in ``dtype``; those of padding are finite and meaningless."""
        pixels_BNP = patches.values.astype(jnp.float32) / 127.5 - 1.0
        tile_BN = jnp.maximum(patches.segments - 1, 0)
        grid_BN2 = jnp.take_along_axis(grids_BM3[..., 1:], tile_BN[..., None], axis=1)
        weights_BNW = position_weights(patches.positions, grid_BN2, self.spec.positions)
        x_BND = self.patch_embedding(pixels_BNP.astype(dtype))
        x_BND = x_BND + weights_BNW.astype(dtype) @ self.position_embedding[...].astype(dtype)
        x_BND = sharding.constrain(x_BND, "rows", None, None)
        intervals = attn.two_way(patches.segments)
        x_BND = apply_stack(self.blocks, x_BND, lambda block, x: block(x, intervals), remat, unroll)
        return self.norm(x_BND)
