"""Layers with a state in the place of attention: short convolutions (LFM2) and gated DeltaNet (Qwen3.5).

Both run over packed rows: convolution and state begin anew at each document.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxmm import zigzag
from jaxmm.models.delta_rule import delta_rule, delta_step, document_starts, rule_multiplications
from jaxmm.models.layers import activation
from jaxmm.models.linear import Linear
from jaxmm.models.materialize import recompute
from jaxmm.models.parameters import ones, parameter, zeros
from jaxmm.models.sizes import check_numbers, check_sizes


def convolved(x_BTC, kernel_WC, segments_BT, bias_C=None):
    """Causal convolution over positions, each channel by itself, that never reaches over the start of a document.

    Args:
      x_BTC: channels may be several dims, those of the kernel and the bias.
      kernel_WC: its last row, of W, is of the position itself.
      segments_BT: a run of equal numbers is a document; 0 is padding, which gives 0.
    Returns:
      As ``x_BTC``; summed in float32.
    """
    real_BT, index = segments_BT > 0, jnp.arange(x_BTC.shape[1], dtype=jnp.int32)
    reach_BT = jnp.where(real_BT, index - document_starts(segments_BT), -1)
    total_BTC = _convolved(x_BTC, kernel_WC, reach_BT)
    if bias_C is not None:
        total_BTC = jnp.where(_over(real_BT, x_BTC), total_BTC + bias_C.astype(jnp.float32), 0)
    return total_BTC.astype(x_BTC.dtype)


@jax.custom_vjp
def _convolved(x_BTC, kernel_WC, reach_BT):
    """The sum, in float32, over as many positions back as ``reach_BT`` says, none where it is -1.

    Its gradients are written out: XLA on a CPU takes several times as long over those that JAX makes.
    """
    total_BTC = jnp.zeros((), jnp.float32)
    for back, weights_C in enumerate(kernel_WC[::-1].astype(jnp.float32)):
        total_BTC += _reached(_earlier(x_BTC, back), reach_BT, back) * weights_C
    return total_BTC


def _convolved_forward(x_BTC, kernel_WC, reach_BT):
    return _convolved(x_BTC, kernel_WC, reach_BT), (x_BTC, kernel_WC, reach_BT)


def _convolved_backward(saved, dy_BTC):
    x_BTC, kernel_WC, reach_BT = saved
    dx_BTC, dkernel = jnp.zeros((), jnp.float32), []
    for back, weights_C in enumerate(kernel_WC[::-1].astype(jnp.float32)):
        reached_BTC = _reached(dy_BTC, reach_BT, back)
        dx_BTC += jnp.pad(reached_BTC, ((0, 0), (0, back), *[(0, 0)] * (x_BTC.ndim - 2)))[:, back:] * weights_C
        dkernel.append((reached_BTC * _earlier(x_BTC, back)).sum((0, 1)))
    return dx_BTC.astype(x_BTC.dtype), jnp.stack(dkernel[::-1]).astype(kernel_WC.dtype), None


_convolved.defvjp(_convolved_forward, _convolved_backward)


def _earlier(x_BTC, back: int):
    """float32: what stands so many positions before each; 0 before the row."""
    padded = jnp.pad(x_BTC, ((0, 0), (back, 0), *[(0, 0)] * (x_BTC.ndim - 2)))
    return padded[:, : x_BTC.shape[1]].astype(jnp.float32)


def _reached(x_BTC, reach_BT, back: int):
    return jnp.where(_over(reach_BT >= back, x_BTC), x_BTC, 0)


def convolved_next(x_B1C, kernel_WC, last_BWC, bias_C=None):
    """The same for one more position of each row, after its ``last_inputs``; returns it and those after it."""
    inputs_BWC = jnp.concatenate([last_BWC.astype(x_B1C.dtype), x_B1C], axis=1)
    total_BC = (inputs_BWC.astype(jnp.float32) * kernel_WC.astype(jnp.float32)).sum(1)
    total_BC = total_BC if bias_C is None else total_BC + bias_C.astype(jnp.float32)
    return total_BC[:, None].astype(x_B1C.dtype), inputs_BWC[:, 1:]


def last_inputs(x_BTC, segments_BT, kernel: int):
    """The last ``kernel`` - 1 positions (B, W - 1, C) of rows of one document from the first position on; 0 before."""
    length_B1 = (segments_BT > 0).sum(-1, keepdims=True, dtype=jnp.int32)
    index_BW = length_B1 + jnp.arange(1 - kernel, 0, dtype=jnp.int32)
    taken_BWC = jnp.take_along_axis(x_BTC, _over(jnp.maximum(index_BW, 0), x_BTC), axis=1)
    return jnp.where(_over(index_BW >= 0, x_BTC), taken_BWC, 0)


def _over(x_BT, of_BTC):
    """x (B, T) with dims of size 1 for channels."""
    return x_BT.reshape(*x_BT.shape, *[1] * (of_BTC.ndim - 2))


def _check_whole(part: str, length: int) -> None:
    if zigzag.are_sharded(length):
        raise ValueError(
            f"{part} need rows whole, and mesh axis 'context' splits those of {length} positions: make context 1"
        )


@dataclasses.dataclass(frozen=True)
class ConvolutionSpec:
    """Sizes of a gated short convolution.

    Attributes:
      width: of the residual stream, and channels.
      kernel: positions that an output sees, its own included.
      bias: whether the linear maps and the convolution have biases.
    """

    width: int
    kernel: int = 3
    bias: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, "short convolution", "width", "kernel")

    def multiplications(self) -> int:
        """Multiply-adds of a position."""
        return self.width * (4 * self.width + self.kernel)


class ConvolutionState(NamedTuple):
    """What the next position needs of those before it: the last inputs of the convolution."""

    inputs_BWC: jax.Array


class ShortConvolution(nnx.Module):
    """A causal convolution between two gates, which are linear in the input (LFM2, Liquid AI, 2025).

    In ``transformers``, ``in_proj`` has the rows of ``gate_in``, ``gate_out`` and ``into``, one after the other.
    """

    def __init__(self, spec: ConvolutionSpec, *, rngs: nnx.Rngs, scale: float = 1.0):
        """``scale``: of the initial variance of the map that leads out."""
        self.spec, width = spec, [spec.width]
        self.gate_in = Linear(width, width, ("embed", "heads"), bias=spec.bias, rngs=rngs)
        self.gate_out = Linear(width, width, ("embed", "heads"), bias=spec.bias, rngs=rngs)
        self.into = Linear(width, width, ("embed", "heads"), bias=spec.bias, rngs=rngs)
        self.kernel = _kernel(spec.kernel, width, ("heads",), rngs)
        self.bias = parameter(rngs, width, ("heads",), zeros) if spec.bias else None
        self.out = Linear(width, width, ("heads", "embed"), bias=spec.bias, rngs=rngs, scale=scale)

    def __call__(self, x_BTD, segments_BT):
        """x (B, T, D) of packed rows to the same shape."""
        return self.prefill(x_BTD, segments_BT)[0]

    def prefill(self, x_BTD, segments_BT) -> tuple[jax.Array, ConvolutionState]:
        """The same, and the state after rows of one document from their first position on.

        Raises:
          ValueError: if positions are sharded.
        """
        _check_whole("short convolutions", x_BTD.shape[1])
        inputs_BTC = self.gate_in(x_BTD) * self.into(x_BTD)
        mixed_BTC = convolved(inputs_BTC, self.kernel[...], segments_BT, self._bias())
        state = ConvolutionState(last_inputs(inputs_BTC, segments_BT, self.spec.kernel))
        return self.out(self.gate_out(x_BTD) * mixed_BTC), state

    def step(self, x_B1D, state: ConvolutionState) -> tuple[jax.Array, ConvolutionState]:
        """One more position of each row."""
        inputs_B1C = self.gate_in(x_B1D) * self.into(x_B1D)
        mixed_B1C, last_BWC = convolved_next(inputs_B1C, self.kernel[...], state.inputs_BWC, self._bias())
        return self.out(self.gate_out(x_B1D) * mixed_B1C), ConvolutionState(last_BWC)

    def _bias(self):
        return None if self.bias is None else self.bias[...]


@dataclasses.dataclass(frozen=True)
class GatedDeltaNetSpec:
    """Sizes of a gated DeltaNet.

    Attributes:
      width: of the residual stream.
      key_heads, value_heads: heads of queries and keys each serve as many consecutive heads of values.
      key_dim, value_dim: of a head.
      kernel: positions that the convolutions of queries, keys and values see, a position's own included.
      norm_eps: of the norm of what heads give.
      activation: behind the convolutions.
    """

    width: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int = 4
    norm_eps: float = 1e-6
    activation: str = "silu"

    def __post_init__(self) -> None:
        check_sizes(self, "DeltaNet", "width", "key_heads", "value_heads", "key_dim", "value_dim", "kernel")
        check_numbers(self, "DeltaNet", "norm_eps")
        if self.value_heads % self.key_heads:
            raise ValueError(f"{self.value_heads} DeltaNet value_heads are no multiple of {self.key_heads} key_heads")

    def multiplications(self) -> int:
        """Multiply-adds of a position."""
        keys, values = self.key_heads * self.key_dim, self.value_heads * self.value_dim
        maps = self.width * (2 * keys + 3 * values + 2 * self.value_heads)
        convolutions = self.kernel * (2 * keys + values)
        return maps + convolutions + rule_multiplications(self.value_heads, self.key_dim, self.value_dim)


class GatedDeltaNetState(NamedTuple):
    """What the next position needs of those before it: the last inputs of the convolutions, and what the heads hold."""

    query_BWKD: jax.Array
    key_BWKD: jax.Array
    value_BWHV: jax.Array
    heads_BHDV: jax.Array  # float32


class GatedRMSNorm(nnx.Module):
    """RMS normalisation over the last dim, times the SiLU of a gate; computed in float32."""

    def __init__(self, width: int, eps: float, *, rngs: nnx.Rngs):
        self.eps = eps
        self.scale = parameter(rngs, (width,), (None,), ones)

    def __call__(self, x: jax.Array, gate: jax.Array) -> jax.Array:
        return recompute(self._normal)(x, gate, self.scale[...])

    def _normal(self, x, gate, scale):
        wide = x.astype(jnp.float32)
        normal = wide * lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.eps)
        return (normal * scale * jax.nn.silu(gate.astype(jnp.float32))).astype(x.dtype)


class GatedDeltaNet(nnx.Module):
    """Heads with a state by the gated delta rule, behind short convolutions and before a gated norm (Qwen3.5).

    In ``transformers``, ``in_proj_qkv`` has the rows of ``query``, ``key`` and ``value``, one after the other, and
    ``conv1d`` those of their kernels; ``in_proj_z`` is ``gate``, ``in_proj_a`` is ``decay``, ``in_proj_b`` is ``rate``.
    """

    def __init__(self, spec: GatedDeltaNetSpec, *, rngs: nnx.Rngs, scale: float = 1.0):
        """``scale``: of the initial variance of the map that leads out."""
        self.spec, width, heads = spec, [spec.width], [spec.value_heads]
        self.act = activation(spec.activation)
        keys, values = (spec.key_heads, spec.key_dim), (spec.value_heads, spec.value_dim)
        axes = ("embed", "heads", None)
        self.query = Linear(width, keys, axes, bias=False, rngs=rngs)
        self.key = Linear(width, keys, axes, bias=False, rngs=rngs)
        self.value = Linear(width, values, axes, bias=False, rngs=rngs)
        self.gate = Linear(width, values, axes, bias=False, rngs=rngs)
        self.decay = Linear(width, heads, ("embed", "heads"), bias=False, rngs=rngs)
        self.rate = Linear(width, heads, ("embed", "heads"), bias=False, rngs=rngs)
        self.query_kernel = _kernel(spec.kernel, keys, ("heads", None), rngs)
        self.key_kernel = _kernel(spec.kernel, keys, ("heads", None), rngs)
        self.value_kernel = _kernel(spec.kernel, values, ("heads", None), rngs)
        self.a_log = parameter(rngs, heads, ("heads",), _log_uniform)
        self.dt_bias = parameter(rngs, heads, ("heads",), ones)
        self.norm = GatedRMSNorm(spec.value_dim, spec.norm_eps, rngs=rngs)
        self.out = Linear(values, width, ("heads", None, "embed"), bias=False, rngs=rngs, scale=scale)

    def __call__(self, x_BTD, segments_BT):
        """x (B, T, D) of packed rows to the same shape."""
        return self.prefill(x_BTD, segments_BT)[0]

    def prefill(self, x_BTD, segments_BT) -> tuple[jax.Array, GatedDeltaNetState]:
        """The same, and the state after rows of one document from their first position on.

        Raises:
          ValueError: if positions are sharded.
        """
        _check_whole("DeltaNet layers", x_BTD.shape[1])
        inputs = self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)
        q_BTKD, k_BTKD, v_BTHV = (
            self.act(convolved(x, weights, segments_BT)) for x, weights in zip(inputs, self._kernels(), strict=True)
        )
        out_BTHV, heads_BHDV = delta_rule(q_BTKD, k_BTKD, v_BTHV, *self._decay_and_rate(x_BTD), segments_BT)
        query, key, value = (last_inputs(x, segments_BT, self.spec.kernel) for x in inputs)
        return self._leads_out(x_BTD, out_BTHV), GatedDeltaNetState(query, key, value, heads_BHDV)

    def step(self, x_B1D, state: GatedDeltaNetState) -> tuple[jax.Array, GatedDeltaNetState]:
        """One more position of each row."""
        inputs = self.query(x_B1D), self.key(x_B1D), self.value(x_B1D)
        mixed, (query, key, value) = zip(*map(convolved_next, inputs, self._kernels(), state[:3]), strict=True)
        q_B1KD, k_B1KD, v_B1HV = map(self.act, mixed)
        out_B1HV, heads_BHDV = delta_step(q_B1KD, k_B1KD, v_B1HV, *self._decay_and_rate(x_B1D), state.heads_BHDV)
        return self._leads_out(x_B1D, out_B1HV), GatedDeltaNetState(query, key, value, heads_BHDV)

    def _kernels(self):
        return self.query_kernel[...], self.key_kernel[...], self.value_kernel[...]

    def _decay_and_rate(self, x_BTD) -> tuple[jax.Array, jax.Array]:
        """(B, T, H) each, float32: minus exp(a_log) times a softplus, as Mamba's; a sigmoid."""
        step_BTH = jax.nn.softplus(self.decay(x_BTD).astype(jnp.float32) + self.dt_bias[...])
        return -jnp.exp(self.a_log[...]) * step_BTH, jax.nn.sigmoid(self.rate(x_BTD).astype(jnp.float32))

    def _leads_out(self, x_BTD, out_BTHV):
        return self.out(self.norm(out_BTHV, self.gate(x_BTD)))


def _kernel(positions: int, channels, axes, rngs: nnx.Rngs) -> nnx.Param:
    """That of a convolution of each channel by itself, (W, *channels), of variance 1 / W."""
    return parameter(rngs, (positions, *channels), (None, *axes), jax.nn.initializers.normal(positions**-0.5))


def _log_uniform(key, shape, dtype) -> jax.Array:
    """Logarithms of numbers between nearly 0 and 16, as Mamba-2 begins with."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 0.01, 16.0))
