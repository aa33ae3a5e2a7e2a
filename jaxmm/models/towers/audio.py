"""The audio tower: convolutions over log-mel frames, then a transformer, over clips packed in one Stream.

By default the encoder of Whisper (Radford et al., 2022); the towers of other families differ in named features.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jaxmm import sharding, zigzag
from jaxmm.batch import Stream
from jaxmm.models import attention as attn
from jaxmm.models.compute import Compute
from jaxmm.models.layers import MLP, LayerNorm, activation, apply_stack, checkpointed, stack
from jaxmm.models.linear import Linear
from jaxmm.models.materialize import materialize
from jaxmm.models.parameters import parameter
from jaxmm.models.sizes import check_numbers, check_sizes

STRIDES = {"whisper": 2, "chunks": 8}  # of each stem: frames from a tower position to the next


@dataclasses.dataclass(frozen=True)
class AudioTowerSpec:
    """Sizes and named features of the tower.

    Attributes:
      stem: "whisper": two convolutions over the frames of a piece, the second of stride 2, and a table of position
        embeddings (Whisper, Qwen2-Audio). "chunks": three of stride 2 over frames and bands of each chunk by itself,
        and sines of the position in the chunk (Qwen3-ASR, Qwen3-Omni).
      mels: bands of a frame.
      positions: of "whisper", rows of the table; a piece has at most twice as many frames.
      chunk: of "chunks", frames of a chunk.
      channels: of "chunks", of its convolutions.
      pool: neighbouring positions whose mean, before the final norm, is one output (Qwen2-Audio: 2).
      key_bias: keys have a bias, as queries and values do.
      activation: of the layers; that of the stem is GELU.
    """

    stem: str = "whisper"
    mels: int = 80
    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 512
    positions: int = 1500
    chunk: int = 100
    channels: int = 32
    pool: int = 1
    key_bias: bool = False
    activation: str = "gelu"
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_sizes(self, "audio", "mels", "width", "layers", "heads", "mlp", "positions", "chunk", "channels", "pool")
        check_numbers(self, "audio", "norm_eps")
        if self.stem not in STRIDES:
            raise ValueError(f"audio stem '{self.stem}' is not one of {', '.join(STRIDES)}")
        if self.width % self.heads:
            raise ValueError(f"audio width {self.width} is no multiple of {self.heads} heads")
        if self.width % 2 or self.width < 4:
            raise ValueError(f"audio width {self.width} must be even, 4 or above: half of it are sines of positions")
        if self.stem == "chunks" and -(-self.chunk // self.stride) % self.pool:
            raise ValueError(f"audio chunk of {self.chunk} frames has no whole outputs of {self.pool} positions")

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.width // self.heads

    @property
    def stride(self) -> int:
        """Frames from a tower position to the next, in a chunk."""
        return STRIDES[self.stem]

    @property
    def unit(self) -> int:
        """What the number of frames of a row must be a multiple of, and where in it a clip may begin."""
        return self.chunk if self.stem == "chunks" else self.stride * self.pool

    def outputs(self, frames: int) -> int:
        """Rows of the soft-token table that so many frames of a row take."""
        return frames // self.unit * -(-self.unit // self.stride) // self.pool


def tower_segments(segments_BF: Any, spec: AudioTowerSpec) -> Any:
    """The attention windows of tower positions (B, T): each has that of the frame it stands on, padding too."""
    B, F = segments_BF.shape
    return segments_BF.reshape(B, F // spec.unit, spec.unit)[:, :, :: spec.stride].reshape(B, -1)


def sinusoids(length: int, width: int) -> np.ndarray:
    """float32 (length, width): sines and then cosines, of wavelengths from 2 pi to 10000 times that."""
    half = width // 2
    angle = np.arange(length)[:, None] * np.exp(-math.log(10000) / (half - 1) * np.arange(half))
    return np.concatenate([np.sin(angle), np.cos(angle)], -1).astype(np.float32)


class FrameStem(nnx.Module):
    """Whisper's: two convolutions of 3 frames, as matmuls of shifted views, so that clips in a row stay apart.

    Frame 0 of a piece has a wall to its left; padding is number 0 too, so nothing sees it.
    """

    def __init__(self, spec: AudioTowerSpec, *, rngs: nnx.Rngs):
        width = spec.width
        self.first = Linear([3, spec.mels], [width], (None, None, "mlp"), bias=True, rngs=rngs)
        self.second = Linear([3, width], [width], (None, "mlp", "embed"), bias=True, rngs=rngs)
        table = lambda key, shape, dtype: jnp.asarray(sinusoids(*shape), dtype)  # noqa: E731
        self.position_embedding = parameter(rngs, (spec.positions, width), (None, "embed"), table)

    def __call__(self, audio: Stream, dtype: Any) -> jax.Array:
        """Frames (B, F, mels) to tower positions (B, F / 2, D)."""
        gelu, frame_BF = activation("gelu"), audio.positions[..., 0]
        wall_BF1 = (frame_BF == 0)[..., None]
        x_BFC = audio.values.astype(dtype)
        before_BFC = jnp.where(wall_BF1, 0, _shifted(x_BFC, 1))
        after_BFC = _shifted(jnp.where(wall_BF1, 0, x_BFC), -1)
        x_BFD = gelu(self.first(jnp.stack([before_BFC, x_BFC, after_BFC], -2)))
        even_BTD, odd_BTD = x_BFD[:, ::2], x_BFD[:, 1::2]
        before_BTD = jnp.where(wall_BF1[:, ::2], 0, _shifted(odd_BTD, 1))
        x_BTD = gelu(self.second(jnp.stack([before_BTD, even_BTD, odd_BTD], -2)))
        table = self.position_embedding[...].astype(dtype)
        return x_BTD + table[jnp.clip(frame_BF[:, ::2] // 2, 0, len(table) - 1)]


def _shifted(x: jax.Array, by: int) -> jax.Array:
    """(B, N, D) moved along a row by 1 or -1; zeros come in."""
    return jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1] if by > 0 else jnp.pad(x, ((0, 0), (0, 1), (0, 0)))[:, 1:]


class Convolution(nnx.Module):
    """A convolution of 3 x 3 and stride 2, zeros around: (N, frames, bands, inputs) to half of both, rounded up."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        axes, init = (None, None, None, "embed"), jax.nn.initializers.lecun_normal()
        self.kernel = parameter(rngs, (3, 3, inputs, outputs), axes, init, inputs=3)
        self.bias = parameter(rngs, (outputs,), ("embed",), jax.nn.initializers.zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = sharding.constrain(
            self.kernel[...].astype(x.dtype), None, None, None, None
        )  # gathered, as it is small
        y = lax.conv_general_dilated(x, kernel, (2, 2), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + self.bias[...].astype(x.dtype)


class ChunkStem(nnx.Module):
    """Qwen3-ASR's: three convolutions over each chunk by itself, and a linear map of all bands of a position."""

    def __init__(self, spec: AudioTowerSpec, *, rngs: nnx.Rngs):
        self.spec, bands, channels = spec, -(-spec.mels // 8), spec.channels
        self.first = Convolution(1, channels, rngs=rngs)
        self.second = Convolution(channels, channels, rngs=rngs)
        self.third = Convolution(channels, channels, rngs=rngs)
        self.out = Linear([channels, bands], [spec.width], (None, None, "embed"), bias=False, rngs=rngs)

    def __call__(self, audio: Stream, dtype: Any) -> jax.Array:
        """Frames (B, F, mels) to tower positions (B, T, D): 13 of each chunk of 100."""
        spec, gelu = self.spec, activation("gelu")
        B, F, mels = audio.values.shape
        positions = -(-spec.chunk // spec.stride)
        T = F // spec.chunk * positions
        x_NFC1 = audio.values.astype(dtype).reshape(-1, spec.chunk, mels, 1)
        x = sharding.constrain(x_NFC1, "row_parts" if zigzag.are_sharded(T) else "rows", None, None, None)
        for convolution in (self.first, self.second, self.third):
            x = gelu(convolution(x))
        x_NTD = self.out(jnp.swapaxes(x, -1, -2)) + sinusoids(positions, spec.width).astype(dtype)
        return x_NTD.reshape(B, T, spec.width)


STEMS = {"whisper": FrameStem, "chunks": ChunkStem}


class SelfAttention(nnx.Module):
    """Multi-head attention over packed segments."""

    def __init__(self, spec: AudioTowerSpec, *, rngs: nnx.Rngs):
        width = spec.width
        shape, axes = (spec.heads, spec.head_dim), ("heads", None)
        self.query = Linear([width], shape, ("embed", *axes), bias=True, rngs=rngs)
        self.key = Linear([width], shape, ("embed", *axes), bias=spec.key_bias, rngs=rngs)
        self.value = Linear([width], shape, ("embed", *axes), bias=True, rngs=rngs)
        self.out = Linear(shape, [width], (*axes, "embed"), bias=True, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, intervals: attn.Intervals, compute: Compute) -> jax.Array:
        out_BTHD = attn.attention(
            self.query(x_BTD), self.key(x_BTD), self.value(x_BTD), intervals, backend=compute.attention, mask="runs"
        )
        return self.out(out_BTHD)


class Block(nnx.Module):
    """Pre-norm transformer layer."""

    def __init__(self, spec: AudioTowerSpec, *, rngs: nnx.Rngs):
        self.norm_attention = LayerNorm(spec.width, spec.norm_eps, rngs=rngs)
        self.attention = SelfAttention(spec, rngs=rngs)
        self.norm_mlp = LayerNorm(spec.width, spec.norm_eps, rngs=rngs)
        self.mlp = MLP(spec.width, spec.mlp, spec.activation, gated=False, bias=True, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, intervals: attn.Intervals, compute: Compute) -> jax.Array:
        x_BTD = materialize(x_BTD + self.attention(self.norm_attention(x_BTD), intervals, compute))
        x_BTD = materialize(x_BTD + self.mlp(self.norm_mlp(x_BTD)))
        return sharding.constrain(x_BTD, "rows", zigzag.positions_axis(x_BTD.shape[1]), None)


class AudioTower(nnx.Module):
    """Frames of packed clips to features, each attention window seeing only itself."""

    def __init__(self, spec: AudioTowerSpec, *, rngs: nnx.Rngs):
        self.spec = spec
        self.stem = STEMS[spec.stem](spec, rngs=rngs)
        self.blocks = stack(spec.layers, lambda r: Block(spec, rngs=r), rngs)
        self.norm = LayerNorm(spec.width, spec.norm_eps, rngs=rngs)

    def __call__(self, audio: Stream, compute: Compute) -> jax.Array:
        """Returns (B, S, D) in the dtype of ``compute``, by position, pooled; what padding gives is finite and
        meaningless.

        Args:
          audio: frames, as ``data/media/audio_geometry.py`` lays them out.
        """
        spec, (B, F, mels) = self.spec, audio.values.shape
        if mels != spec.mels or F % spec.unit:
            raise ValueError(
                f"audio of {F} frames of {mels} mels: the tower takes multiples of {spec.unit}, {spec.mels}"
            )
        stem = checkpointed(lambda audio: self.stem(audio, jnp.dtype(compute.dtype)), compute.remat)
        intervals = attn.bidirectional(tower_segments(audio.segments, spec))
        intervals = jax.tree.map(zigzag.shard, intervals)
        x_BTD = zigzag.shard(stem(audio))
        axes = "rows", zigzag.positions_axis(x_BTD.shape[1]), None
        x_BTD = sharding.constrain(x_BTD, *axes)
        call = lambda block, x, _: block(x, intervals, compute)  # noqa: E731
        x_BTD, _ = apply_stack(self.blocks, x_BTD, call, compute.remat, compute.unroll)
        x_BTD = sharding.constrain(zigzag.unshard(x_BTD), *axes)
        x_BSD = x_BTD.reshape(B, -1, spec.pool, spec.width).mean(2) if spec.pool > 1 else x_BTD
        return self.norm(x_BSD)
