"""The vision tower: a ViT over images of any grid, packed in one Stream.

By default SigLIP 2 NaFlex (Tschannen et al., 2025); the towers of other families differ in named features.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmm import sharding, zigzag
from jaxmm.batch import Stream
from jaxmm.models import attention as attn
from jaxmm.models import rope
from jaxmm.models.compute import Compute
from jaxmm.models.embedding import look_up
from jaxmm.models.layers import MLP, LayerNorm, RMSNorm, Taps, apply_stack, stack, unit_rms
from jaxmm.models.linear import ClippedLinear, Linear
from jaxmm.models.materialize import materialize
from jaxmm.models.parameters import parameter
from jaxmm.models.sizes import check_numbers, check_sizes


@dataclasses.dataclass(frozen=True)
class VisionSpec:
    """Sizes and named features of the tower.

    Attributes:
      positions: side of the learned square of position embeddings; 0 is none.
      axis_positions: rows of two learned tables of position embeddings, one of columns and one of rows of patches,
        which are added up; 0 is none (Gemma 4).
      resize: how the square is resized to an image's grid: "antialias" (SigLIP 2 NaFlex; on images of the square's own
        grid it is the square itself), or without antialiasing: "corners" (corner on corner: Qwen3-VL), "linear" (by two
        embeddings along each side: PaddleOCR-VL) or "cubic" (by four: GLM-4.1V).
      frames: of video that one patch spans; a still image is as many equal ones.
      mean, std: of pixels from 0 to 1, by channel: what is taken off, and divided by.
      centred: what comes of that is then brought from 0 to 1 to -1 to 1, as part of the tower (Gemma 4).
      class_tokens: learned tokens of each tile, at row -1, numbered by column.
      norm: "layer" or "rms".
      gated: the MLP has a gate.
      patch_bias, qkv_bias, out_bias, mlp_bias: which linear maps have biases; ``out`` is of attention.
      pre_norm: patches are normed before the layers (CLIP); final_norm: after them; patch_norm: before position
        embeddings are added (GLM-4.1V).
      clipped: what the maps of its layers take and give is kept within bounds (Gemma 4's E2B).
      post_norms: what attention and MLP give is normed too, before it is added (Gemma 4).
      qk_norm: queries and keys are normed, all heads together (InternViT 6B).
      head_norms: queries and keys are normed, each head by itself (Gemma 4, GLM-OCR).
      value_norm: values are too, without scales (Gemma 4).
      attention_scale: of the logits of attention; 0 is 1 / sqrt(width of a head).
      layer_scale: learned factors of what attention and MLP give (InternViT).
      rope_theta: rotary positions by row and column; 0 is none.
      rope_turns: rows and columns take turns at the frequencies of a whole head (Pixtral); else both have those of
        half a head.
      rope_by_halves: the first half of a head turns by itself, with the column, the second with the row (Gemma 4);
        else the halves of a head are the two numbers of a pair, and half of the pairs turn with the row.
      window: side, in patches, of what most layers see of an image; 0 is all of it.
      global_layers: with a window, the layers that see all of it.
      taps: layers, from 0, whose outputs go to the decoder's first layers (DeepStack).
      features: layers whose outputs are the features, side by side; () is the last one's.
    """

    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 384
    patch_size: int = 16
    positions: int = 16
    axis_positions: int = 0
    norm_eps: float = 1e-6
    resize: str = "antialias"
    frames: int = 1
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    centred: bool = False
    class_tokens: int = 0
    norm: str = "layer"
    activation: str = "gelu_tanh"
    gated: bool = False
    patch_bias: bool = True
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    patch_norm: bool = False
    pre_norm: bool = False
    final_norm: bool = True
    clipped: bool = False
    post_norms: bool = False
    qk_norm: bool = False
    head_norms: bool = False
    value_norm: bool = False
    attention_scale: float = 0.0
    layer_scale: float = 0.0
    rope_theta: float = 0.0
    rope_turns: bool = False
    rope_by_halves: bool = False
    window: int = 0
    global_layers: tuple[int, ...] = ()
    taps: tuple[int, ...] = ()
    features: tuple[int, ...] = ()

    def __post_init__(self):
        check_sizes(self, "vision", "width", "layers", "heads", "mlp", "patch_size", "frames")
        check_sizes(self, "vision", "positions", "axis_positions", "class_tokens", "window", least=0)
        check_numbers(self, "vision", "norm_eps")
        check_numbers(self, "vision", "rope_theta", "attention_scale", may_be_0=True)
        if not all(map(math.isfinite, (*self.mean, *self.std))) or not min(self.std) > 0:
            raise ValueError(f"vision mean {self.mean} and std {self.std} of pixels: finite numbers, std above 0")
        if self.width % self.heads:
            raise ValueError(f"vision width {self.width} is no multiple of {self.heads} heads")
        if self.rope_theta and self.width // self.heads % 4:
            raise ValueError(f"vision heads of {self.width // self.heads} dims: rows and columns turn pairs of them")
        if self.norm not in NORMS:
            raise ValueError(f"vision norm '{self.norm}' is not one of {', '.join(NORMS)}")
        if self.resize not in RESIZES:
            raise ValueError(f"vision resize '{self.resize}' is not one of {', '.join(RESIZES)}")

    @property
    def linear(self) -> type[Linear]:
        """What the maps of its layers are."""
        return ClippedLinear if self.clipped else Linear

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.width // self.heads

    @property
    def feature_width(self) -> int:
        """Width of what the connector gets of a patch."""
        return self.width * max(1, len(self.features))

    def is_local(self) -> np.ndarray:
        """bool (layers,): which layers see windows."""
        return np.array([bool(self.window) and i not in self.global_layers for i in range(self.layers)])


NORMS = {"layer": LayerNorm, "rms": RMSNorm}
RESIZES = ("antialias", "corners", "linear", "cubic")


def position_weights(positions_BN3, grids_BN2, side: int, resize: str = "antialias"):
    """Weights of each patch over a side x side square of position embeddings: float32 (B, N, side * side).

    One row per patch instead of one resize per image; the same numbers as ``torch.nn.functional.interpolate`` to the
    patch's own grid with ``mode="bilinear"`` and ``antialias=True``, with ``align_corners=True`` for "corners", or with
    neither for "linear"; for "cubic" those of ``grid_sample`` with ``mode="bicubic"`` and ``padding_mode="border"``.
    """
    source = jnp.arange(side, dtype=jnp.float32)

    def along(index_BN, size_BN):
        index = index_BN.astype(jnp.float32)[..., None]
        size = jnp.maximum(size_BN, 1).astype(jnp.float32)[..., None]
        if resize == "corners":
            return jnp.maximum(0.0, 1.0 - jnp.abs(source - index * (side - 1) / jnp.maximum(size - 1, 1)))
        scale = side / size
        place = (index + 0.5) * scale - 0.5
        if resize == "linear":
            return jnp.maximum(0.0, 1.0 - jnp.abs(source - jnp.clip(place, 0, side - 1)))
        if resize == "cubic":
            seen = [jnp.floor(place) + n for n in (-1, 0, 1, 2)]  # what is behind an edge is the last one before it
            return sum(_cubic(place - at) * (source == jnp.clip(at, 0, side - 1)) for at in seen)
        weights = jnp.maximum(0.0, 1.0 - jnp.abs(source + 0.5 - (index + 0.5) * scale) / jnp.maximum(scale, 1.0))
        return weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-6)

    rows = along(positions_BN3[..., 1], grids_BN2[..., 0])
    columns = along(positions_BN3[..., 2], grids_BN2[..., 1])
    return (rows[..., :, None] * columns[..., None, :]).reshape(*rows.shape[:-1], side * side)


def _cubic(distance):
    """Keys' kernel of cubic convolution with a = -0.75, of distances up to 2."""
    x = jnp.abs(distance)
    return jnp.where(x <= 1, (1.25 * x - 2.25) * x * x + 1, ((-0.75 * x + 3.75) * x - 6) * x + 3)


class Features(NamedTuple):
    """What a tower makes of patches: (B, N, features), and (B, N, D) of each layer that is tapped."""

    last_BND: jax.Array
    taps: tuple[jax.Array, ...] = ()


def _sincos(side: int, class_tokens: int):
    """Initialiser of position embeddings: 2-D sines and cosines, so that a fresh tower knows where a patch is."""

    def init(key, shape, dtype):
        width = shape[-1]
        quarter = -(-width // 4)
        angle = jnp.arange(side)[:, None] / 100.0 ** (jnp.arange(quarter) / quarter)
        table = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
        rows = jnp.broadcast_to(table[:, None], (side, side, 2 * quarter))
        columns = jnp.broadcast_to(table[None], (side, side, 2 * quarter))
        square = jnp.concatenate([rows, columns], -1).reshape(side * side, -1)[:, :width]
        return jnp.concatenate([jnp.zeros((class_tokens, width)), square]).astype(dtype)

    return init


class SelfAttention(nnx.Module):
    """Multi-head attention over packed segments."""

    def __init__(self, spec: VisionSpec, *, rngs: nnx.Rngs):
        width, bias = spec.width, spec.qkv_bias
        shape, axes = (spec.heads, spec.head_dim), ("heads", None)
        self.query = spec.linear([width], shape, ("embed", *axes), bias=bias, rngs=rngs)
        self.key = spec.linear([width], shape, ("embed", *axes), bias=bias, rngs=rngs)
        self.value = spec.linear([width], shape, ("embed", *axes), bias=bias, rngs=rngs)
        self.out = spec.linear(shape, [width], (*axes, "embed"), bias=spec.out_bias, rngs=rngs)
        self.spec, self.query_norm, self.key_norm = spec, self._norm(spec, rngs), self._norm(spec, rngs)

    def _norm(self, spec: VisionSpec, rngs: nnx.Rngs) -> RMSNorm | None:
        """Of queries or keys."""
        if spec.head_norms:
            return RMSNorm(spec.head_dim, spec.norm_eps, rngs=rngs, axis=None)
        return RMSNorm(spec.width, 1e-6, rngs=rngs) if spec.qk_norm else None

    def __call__(
        self, x_BND, intervals: attn.Intervals, rotation: tuple[jax.Array, jax.Array] | None, compute: Compute
    ):  # fmt: skip
        spec, q_BNHD, k_BNHD, v_BNHD = self.spec, self.query(x_BND), self.key(x_BND), self.value(x_BND)
        if self.query_norm is not None and self.key_norm is not None:
            q_BNHD, k_BNHD = (
                norm(x if spec.head_norms else x.reshape(x_BND.shape)).reshape(x.shape)
                for norm, x in ((self.query_norm, q_BNHD), (self.key_norm, k_BNHD))
            )
        if spec.value_norm:
            v_BNHD = unit_rms(v_BNHD, spec.norm_eps)
        if spec.rope_by_halves:  # in one order for both, in which the logits are the same
            q_BNHD, k_BNHD = _pairs_apart(q_BNHD), _pairs_apart(k_BNHD)
        if rotation is not None:
            q_BNHD, k_BNHD = rope.rotate(q_BNHD, rotation), rope.rotate(k_BNHD, rotation)
        out_BNHD = attn.attention(
            q_BNHD, k_BNHD, v_BNHD, intervals, scale=spec.attention_scale,
            backend=compute.attention, block=attn.block_of_tiles(compute.tile), mask="runs",
        )  # fmt: skip
        return self.out(out_BNHD)


def _pairs_apart(x_BNHD):
    """Heads of which each half has its pairs' first numbers and then their second ones, with all first ones first."""
    halves = x_BNHD.reshape(*x_BNHD.shape[:-1], 2, 2, -1)
    return jnp.swapaxes(halves, -3, -2).reshape(x_BNHD.shape)


class Block(nnx.Module):
    """Pre-norm transformer layer."""

    def __init__(self, spec: VisionSpec, *, rngs: nnx.Rngs):
        norm = NORMS[spec.norm]
        self.norm_attention = norm(spec.width, spec.norm_eps, rngs=rngs)
        self.attention = SelfAttention(spec, rngs=rngs)
        self.norm_mlp = norm(spec.width, spec.norm_eps, rngs=rngs)
        self.mlp = MLP(
            spec.width, spec.mlp, spec.activation, gated=spec.gated, bias=spec.mlp_bias, rngs=rngs, linear=spec.linear
        )
        init, shape = jax.nn.initializers.constant(spec.layer_scale), (spec.width,)
        self.scale_attention = parameter(rngs, shape, ("embed",), init) if spec.layer_scale else None
        self.scale_mlp = parameter(rngs, shape, ("embed",), init) if spec.layer_scale else None
        self.norm_attention_out = norm(spec.width, spec.norm_eps, rngs=rngs) if spec.post_norms else None
        self.norm_mlp_out = norm(spec.width, spec.norm_eps, rngs=rngs) if spec.post_norms else None

    def __call__(
        self, x_BND, intervals: attn.Intervals, rotation: tuple[jax.Array, jax.Array] | None, compute: Compute
    ):  # fmt: skip
        def scaled(y_BND, scale, norm):
            y_BND = y_BND if norm is None else norm(y_BND)
            return y_BND if scale is None else y_BND * scale[...].astype(y_BND.dtype)

        h_BND = self.attention(self.norm_attention(x_BND), intervals, rotation, compute)
        x_BND = materialize(x_BND + scaled(h_BND, self.scale_attention, self.norm_attention_out))
        h_BND = self.mlp(self.norm_mlp(x_BND))
        x_BND = materialize(x_BND + scaled(h_BND, self.scale_mlp, self.norm_mlp_out))
        return sharding.constrain(x_BND, "rows", zigzag.positions_axis(x_BND.shape[1]), None)


class VisionTower(nnx.Module):
    """Patches of packed images to features, each image seeing only itself."""

    def __init__(self, spec: VisionSpec, *, rngs: nnx.Rngs):
        self.spec, width, norm = spec, spec.width, NORMS[spec.norm]
        pixels = [spec.frames, spec.patch_size**2 * 3] if spec.frames > 1 else [spec.patch_size**2 * 3]
        axes = (*[None] * len(pixels), "embed")
        self.patch_embedding = Linear(pixels, [width], axes, bias=spec.patch_bias, rngs=rngs)
        init, axes = jax.nn.initializers.normal(0.02), (None, "embed")
        tokens, rows = spec.class_tokens, spec.class_tokens + spec.positions**2  # class tokens' positions come first
        places = _sincos(spec.positions, tokens)
        self.class_embedding = parameter(rngs, (tokens, width), axes, init) if tokens else None
        self.position_embedding = parameter(rngs, (rows, width), axes, places) if spec.positions else None
        self.patch_norm = norm(width, spec.norm_eps, rngs=rngs) if spec.patch_norm else None
        tables = (2, spec.axis_positions, width)
        self.axis_embedding = parameter(rngs, tables, (None, *axes), init) if spec.axis_positions else None
        self.pre_norm = norm(width, spec.norm_eps, rngs=rngs) if spec.pre_norm else None
        self.blocks = stack(spec.layers, lambda r: Block(spec, rngs=r), rngs)
        self.norm = norm(width, spec.norm_eps, rngs=rngs) if spec.final_norm else None

    def __call__(self, patches: Stream, grids_BM3, compute: Compute) -> Features:
        """Returns features in the dtype of ``compute``; those of padding are finite and meaningless."""
        spec = self.spec
        intervals, rotation = jax.tree.map(zigzag.shard, (self._intervals(patches), self._rotation(patches)))
        patches = Stream(*map(zigzag.shard, patches))
        axes = "rows", zigzag.positions_axis(patches.segments.shape[1]), None
        x_BND = self._embedded(patches, grids_BM3, jnp.dtype(compute.dtype))
        if self.pre_norm is not None:
            x_BND = self.pre_norm(x_BND)
        x_BND = sharding.constrain(x_BND, *axes)

        def call(block: Block, x: jax.Array, is_local: Any) -> jax.Array:
            if len(intervals) == 1:
                (seen,) = intervals.values()
            else:
                seen = jax.tree.map(lambda a, b: jnp.where(is_local, a, b), intervals[True], intervals[False])
            return block(x, seen, rotation, compute)

        kept = tuple(sorted({*spec.taps, *spec.features}))
        x_BND, kept_KBND = apply_stack(
            self.blocks, x_BND, call, compute.remat, compute.unroll, each=spec.is_local(), taps=Taps(kept)
        )  # fmt: skip
        if self.norm is not None:
            x_BND = self.norm(x_BND)
        by_layer = {} if kept_KBND is None else dict(zip(kept, kept_KBND, strict=True))
        if spec.features:
            x_BND = jnp.concatenate([by_layer[i] for i in spec.features], -1)
        features = Features(x_BND, tuple(by_layer[i] for i in spec.taps))
        return jax.tree.map(lambda x: sharding.constrain(zigzag.unshard(x), *axes), features)

    def _embedded(self, patches: Stream, grids_BM3, dtype):
        """Patches, and class tokens where they are, with their position embeddings: (B, N, D)."""
        spec = self.spec
        scale, shift = pixel_scale(spec)
        if spec.frames > 1:  # those of a video travel; a still picture, alone in a batch, is as many equal ones
            shape = (*patches.values.shape[:-1], -1, scale.size)
            pixels = patches.values.reshape(shape).astype(jnp.float32) * scale + shift
            pixels_BNP = jnp.broadcast_to(pixels, (*shape[:-2], spec.frames, scale.size))
        else:
            pixels_BNP = patches.values.astype(jnp.float32) * scale + shift
        x_BND = self.patch_embedding(pixels_BNP.astype(dtype))
        if self.patch_norm is not None:
            x_BND = self.patch_norm(x_BND)
        row_BN, column_BN = patches.positions[..., 1], patches.positions[..., 2]
        is_class = (row_BN < 0)[..., None]
        if self.class_embedding is not None:
            x_BND = jnp.where(is_class, self.class_embedding[...].astype(dtype)[jnp.maximum(column_BN, 0)], x_BND)
        if self.axis_embedding is not None:
            columns, rows = self.axis_embedding[...]
            x_BND += look_up(columns, column_BN, dtype) + look_up(rows, row_BN, dtype)
        if self.position_embedding is None:
            return x_BND
        tile_BN = jnp.maximum(patches.segments - 1, 0)
        grid_BN2 = jnp.take_along_axis(grids_BM3[..., 1:], tile_BN[..., None], axis=1)
        weights_BNW = position_weights(patches.positions, grid_BN2, spec.positions, spec.resize).astype(dtype)
        table = self.position_embedding[...].astype(dtype)
        if not spec.class_tokens:
            return x_BND + weights_BNW @ table
        square_BND = weights_BNW @ table[spec.class_tokens :]
        return x_BND + jnp.where(is_class, table[jnp.clip(column_BN, 0, spec.class_tokens - 1)], square_BND)

    def _intervals(self, patches: Stream) -> dict[bool, attn.Intervals]:
        """What global layers (False) see, and local ones (True)."""
        spec = self.spec
        _, row_BN, column_BN = jnp.moveaxis(patches.positions, -1, 0)
        keys = {False: (), True: (row_BN // max(spec.window, 1), column_BN // max(spec.window, 1))}
        return {local: attn.bidirectional(patches.segments, *keys[local]) for local in set(spec.is_local().tolist())}

    def _rotation(self, patches: Stream) -> tuple[jax.Array, jax.Array] | None:
        """Half of the frequencies turn with the row, half with the column; by halves, those of the column are first."""
        spec, dim = self.spec, self.spec.head_dim
        if not spec.rope_theta:
            return None
        if spec.rope_turns:
            waves = rope.inverse_wavelengths(spec.rope_theta, dim).reshape(-1, 2).T.reshape(-1)
        else:
            waves = np.tile(rope.inverse_wavelengths(spec.rope_theta, dim // 2), 2)
        axes = np.repeat([2, 1] if spec.rope_by_halves else [1, 2], len(waves) // 2)
        return rope.rotations(patches.positions, waves, axes, 1.0)


def pixel_scale(spec: VisionSpec) -> tuple[np.ndarray, np.ndarray]:
    """What bytes of a patch are multiplied by, and then what is added: float32 (patch_size**2 * 3,) each."""
    mean, std = np.array(spec.mean), np.array(spec.std)
    if spec.centred:
        mean, std = mean + std / 2, std / 2
    count = spec.patch_size**2
    return np.tile(1 / (255 * std), count).astype(np.float32), np.tile(-mean / std, count).astype(np.float32)
