"""What every part of the model is made of: parameters with their logical axes, linear maps, norms, stacked layers."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jaxmm.models.materialize import barrier, recompute
from jaxmm.runtime.jax_internals import TUNED

Initializer = Callable[..., jax.Array]
_SHAPES_ONLY = contextvars.ContextVar("shapes only", default=False)

zeros = jax.nn.initializers.zeros
ones = jax.nn.initializers.ones
# LeCun's: variance 1 / fan-in, with the fan counted over `in_axis`.
fan_in = jax.nn.initializers.variance_scaling


def parameter(
    rngs: nnx.Rngs, shape: Sequence[int], axes: Sequence[str | None], init: Initializer, inputs: int = 0
) -> nnx.Param:
    """Declares one float32 parameter: its shape, its logical axes and its initialiser.

    Args:
      axes: a name or None for each dim (see ``sharding.RULES``).
      inputs: of a linear map, how many leading dims it takes in, the others it gives out; 0 for all else.
    """
    if len(shape) != len(axes):
        raise ValueError(f"parameter of shape {tuple(shape)} has logical axes {tuple(axes)}")
    init = zeros if _SHAPES_ONLY.get() else init
    return nnx.Param(init(rngs.params(), tuple(shape), jnp.float32), axes=tuple(axes), inputs=inputs)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Parameters declared here are zeros: where only their shapes are asked for, initialisers take long to trace."""
    token = _SHAPES_ONLY.set(True)
    try:
        yield
    finally:
        _SHAPES_ONLY.reset(token)


class Linear(nnx.Module):
    """A linear map between groups of dims: (..., *inputs) to (..., *outputs), computed in the dtype of its input."""

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        axes: Sequence[str | None],
        *,
        bias: bool,
        rngs: nnx.Rngs,
        scale: float = 1.0,
    ):
        """``axes`` names the dims of inputs, then outputs; ``scale`` multiplies the initial variance 1 / fan-in."""
        shape, split = (*inputs, *outputs), len(inputs)
        self.inputs = split
        init = fan_in(max(scale, 1e-10), "fan_in", "normal", in_axis=range(split), out_axis=range(split, len(shape)))
        self.kernel = parameter(rngs, shape, axes, init, inputs=split)
        self.bias = parameter(rngs, outputs, axes[split:], zeros) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        mapped = _mapped if TUNED else _plainly_mapped
        y = mapped(x, self.kernel[...].astype(x.dtype), self.inputs)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def _plainly_mapped(x, kernel, inputs: int):
    """x (..., *inputs) times the kernel (*inputs, *outputs)."""
    return _mapped_forward(x, kernel, inputs)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _mapped(x, kernel, inputs: int):
    """As ``_plainly_mapped``.

    Its gradients are those JAX makes, but for the order in the kernel's: the narrower of x and the cotangent is first.
    XLA on CPU writes the first one out transposed, with the elementwise work that made it: of the wide one, that was a
    quarter of the MLP's time.
    """
    return _mapped_forward(x, kernel, inputs)[0]


def _mapped_forward(x, kernel, inputs: int):
    # Not by _mapped: what a policy of REMAT keeps it must see, and it does not look into a custom rule.
    over = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    return lax.dot_general(x, kernel, (over, ((), ()))), (x, kernel)


def _mapped_backward(inputs: int, saved, dy):
    x, kernel = saved
    x, dy = barrier((x, dy))  # what is written transposed is no more than written
    outputs, rows = kernel.ndim - inputs, tuple(range(x.ndim - inputs))
    over = tuple(range(dy.ndim - outputs, dy.ndim)), tuple(range(inputs, kernel.ndim))
    dx = lax.dot_general(dy, kernel, (over, ((), ())))
    if math.prod(kernel.shape[:inputs]) <= math.prod(kernel.shape[inputs:]):
        return dx, lax.dot_general(x, dy, ((rows, rows), ((), ())))
    transposed = lax.dot_general(dy, x, ((rows, rows), ((), ())))
    return dx, transposed.transpose(*range(outputs, kernel.ndim), *range(outputs))


_mapped.defvjp(_mapped_forward, _mapped_backward)


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
        wide = x.astype(jnp.float32)
        normal = wide * lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.eps)
        return (normal * (scale + self.offset)).astype(x.dtype)


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
        self, width: int, hidden: int, act: str, *, gated: bool, bias: bool, rngs: nnx.Rngs, scale: float = 1.0
    ):
        """``scale``: of the initial variance of the map that leads out."""
        self.act = activation(act)
        axes = ("embed", "mlp")
        self.gate = Linear([width], [hidden], axes, bias=bias, rngs=rngs) if gated else None
        self.up = Linear([width], [hidden], axes, bias=bias, rngs=rngs)
        self.down = Linear([hidden], [width], ("mlp", "embed"), bias=bias, rngs=rngs, scale=scale)

    def __call__(self, x: jax.Array) -> jax.Array:
        parts = (self.up(x),) if self.gate is None else (self.up(x), self.gate(x))
        if not TUNED:
            return self.down(self._hidden(*parts))
        y = _hidden_mapped(self._hidden, parts, self.down.kernel[...].astype(x.dtype))
        return y if self.down.bias is None else y + self.down.bias[...].astype(x.dtype)

    def _hidden(self, up: jax.Array, gate: jax.Array | None = None) -> jax.Array:
        return self.act(up) if gate is None else self.act(gate) * up


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _hidden_mapped(hidden: Callable[..., jax.Array], parts: tuple[jax.Array, ...], kernel):
    """``hidden(*parts)`` (..., mlp) times the kernel (mlp, embed).

    Keeps the parts for the backward pass and recomputes the hidden activations: they and their derivative were half of
    what a layer kept of its MLP.
    """
    return _hidden_mapped_forward(hidden, parts, kernel)[0]


def _hidden_mapped_forward(hidden, parts, kernel):
    return _mapped_forward(hidden(*parts), kernel, 1)[0], (parts, kernel)


def _hidden_mapped_backward(hidden, saved, dy):
    parts, kernel = saved
    parts, dy = barrier((parts, dy))
    x, pull = jax.vjp(hidden, *parts)
    dx, dkernel = _mapped_backward(1, (x, kernel), dy)
    return pull(dx), dkernel


_hidden_mapped.defvjp(_hidden_mapped_forward, _hidden_mapped_backward)


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


def split_last(stacked: Any) -> tuple[Any, Any]:
    """The modules of ``stack`` but the last one, stacked still, and the last one by itself."""
    graph, layers = nnx.split(stacked)
    return nnx.merge(graph, jax.tree.map(lambda x: x[:-1], layers)), nnx.merge(
        graph, jax.tree.map(lambda x: x[-1], layers)
    )


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
