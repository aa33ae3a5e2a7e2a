"""What layers are made of: norms, MLPs, and stacks of layers that are run in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jaxmm.models.linear import Linear
from jaxmm.models.materialize import recompute
from jaxmm.models.parameters import ones, parameter, zeros


class LayerNorm(nnx.Module):
    """Layer normalisation over the last dim, statistics in float32 (Ba et al., 2016)."""

    def __init__(self, width: int, eps: float, *, rngs: nnx.Rngs):
        self.eps = eps
        self.scale = parameter(rngs, (width,), ("embed",), ones)
        self.bias = parameter(rngs, (width,), ("embed",), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        return recompute(self._normal)(x, self.scale[...], self.bias[...])

    def _normal(self, x, scale, bias):
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        normal = centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.eps)
        return (normal * scale + bias).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation over the last dim, statistics in float32 (Zhang and Sennrich, 2019)."""

    def __init__(self, width: int, eps: float, *, rngs: nnx.Rngs, offset: float = 0.0, axis: str | None = "embed"):
        """
        Args:
          offset: what is added to the scale: 1 where scales are stored around 0, as Gemma's are.
          axis: logical axis of the last dim.
        """
        self.eps, self.offset = eps, offset
        self.scale = parameter(rngs, (width,), (axis,), zeros if offset else ones)

    def __call__(self, x: jax.Array) -> jax.Array:
        return recompute(self._normal)(x, self.scale[...])

    def _normal(self, x, scale):
        return (_unit_rms(x.astype(jnp.float32), self.eps) * (scale + self.offset)).astype(x.dtype)


def _unit_rms(wide: jax.Array, eps: float) -> jax.Array:
    return wide * lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)


def unit_rms(x: jax.Array, eps: float) -> jax.Array:
    """RMSNorm without scales."""
    return recompute(lambda x: _unit_rms(x.astype(jnp.float32), eps).astype(x.dtype))(x)


class LayerScale(nnx.Module):
    """A number that multiplies what a layer gives. It is read from a checkpoint, and has no gradient."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.factor = parameter(rngs, (1,), (None,), ones)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * lax.stop_gradient(self.factor[...]).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """Returns the activation of that name; raises ValueError with those there are."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation '{name}' is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class MLP(nnx.Module):
    """Two linear maps and an activation between them; gated, that of a third map multiplies (Shazeer, 2020)."""

    def __init__(
        self, width: int, hidden: int, act: str, *, gated: bool, bias: bool, rngs: nnx.Rngs, scale: float = 1.0,
        linear: type[Linear] = Linear,
    ):  # fmt: skip
        """
        Args:
          scale: of the initial variance of the map that leads out.
          linear: what its maps are.
        """
        self.act = activation(act)
        axes = ("embed", "mlp")
        self.gate = linear([width], [hidden], axes, bias=bias, rngs=rngs) if gated else None
        self.up = linear([width], [hidden], axes, bias=bias, rngs=rngs)
        self.down = linear([hidden], [width], ("mlp", "embed"), bias=bias, rngs=rngs, scale=scale)

    def __call__(self, x: jax.Array) -> jax.Array:
        parts = (self.up(x),) if self.gate is None else (self.up(x), self.gate(x))
        return self.down.of_hidden(self._hidden, parts)

    def _hidden(self, up: jax.Array, gate: jax.Array | None = None) -> jax.Array:
        return self.act(up) if gate is None else self.act(gate) * up


# What a layer keeps for its backward pass, by name. None: everything; the rest is computed again.
REMAT: dict[str, Any] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def stack(layers: int, make: Callable[[nnx.Rngs], nnx.Module], rngs: nnx.Rngs) -> Any:
    """Builds ``layers`` modules as one, each parameter with a leading dim of layers."""
    return nnx.vmap(make)(rngs.fork(split=layers))


def checkpointed(body: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """``body``, keeping for its backward pass what a key of REMAT says."""
    if remat not in REMAT:
        raise ValueError(f"remat policy '{remat}' is not one of {', '.join(REMAT)}")
    return body if REMAT[remat] is None else jax.checkpoint(body, policy=REMAT[remat])


class Taps(NamedTuple):
    """Which layers' outputs to keep, beside the last one's: layer numbers, from 0, in order."""

    layers: tuple[int, ...] = ()

    def places(self, count: int) -> np.ndarray:
        """int32 (count,): where a layer's output is kept, or -1."""
        places = np.full(count, -1, np.int32)
        places[list(self.layers)] = np.arange(len(self.layers))
        return places


def apply_stack(
    stacked: nnx.Module,
    x: Any,
    call: Callable[[Any, Any, Any], Any],
    remat: str,
    unroll: int,
    *,
    each: Any = None,
    taps: Taps = Taps(),  # noqa: B008
) -> tuple[Any, jax.Array | None]:
    """Runs x through the layers of ``stack`` in turn: ``call(layer, x, each of it)`` under one scan.

    Args:
      x: an array, or without taps any pytree.
      remat: a key of REMAT.
      unroll: layers per scan iteration; a shallow stack unrolled whole saves the loop's copies.
      each: a pytree of arrays with a leading dim of layers: what differs between them, besides parameters.
      taps: layers whose outputs are kept.
    Returns:
      The last layer's output, and (taps, *x.shape) of the kept ones, or None.
    """
    graph, layers = nnx.split(stacked)

    def body(x, layer):
        state, mine = layer
        return call(nnx.merge(graph, state), x, mine), None

    body = checkpointed(body, remat)
    if not taps.layers:
        return lax.scan(body, x, (layers, each), unroll=unroll)[0], None

    def body_with_taps(carry, layer):
        x, kept = carry
        *inputs, place = layer
        x, _ = body(x, tuple(inputs))
        written = lambda kept: lax.dynamic_update_index_in_dim(kept, x, place, 0)  # noqa: E731
        return (x, lax.cond(place >= 0, written, lambda kept: kept, kept)), None

    count = jax.tree.leaves(layers)[0].shape[0]
    start = x, jnp.zeros((len(taps.layers), *x.shape), x.dtype)
    inputs = layers, each, jnp.asarray(taps.places(count))
    (x, kept), _ = lax.scan(body_with_taps, start, inputs, unroll=unroll)
    return x, kept
