"""Linear maps between groups of dims, with or without an adapter beside their kernel, which may be quantised."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
from flax import nnx
from jax import lax

from jaxmm.models.lora import Lora
from jaxmm.models.materialize import barrier
from jaxmm.models.parameters import fan_in, parameter, zeros
from jaxmm.models.quantized import Kernel, Quantized, QuantizedKernel, as_array
from jaxmm.runtime.jax_internals import TUNED


class Linear(nnx.Module):
    """A linear map between groups of dims: (..., *inputs) to (..., *outputs), computed in the dtype of its input.

    Attributes:
      lora: the adapter, see ``adapters.adapt``; None without one.
      kernel: (*inputs, *outputs), or what it is held as, see ``frozen.hold``.
    """

    lora: Lora | None = None
    kernel: nnx.Param | QuantizedKernel

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

    def held(self) -> Kernel:
        """The kernel as it is held."""
        return self.kernel.value() if isinstance(self.kernel, QuantizedKernel) else self.kernel[...]

    def __call__(self, x: jax.Array) -> jax.Array:
        held = self.held()
        y = _mapped_by(x, held, self.inputs)
        if self.lora is not None:
            into = self.lora.factors()[0]
            y = self.lora.added(y, _mapped_by(self.lora.dropped(x), into, self.inputs), held)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)

    def of_hidden(self, hidden: Callable[..., jax.Array], parts: tuple[jax.Array, ...]) -> jax.Array:
        """The map of ``hidden(*parts)``, of one dim, which is elementwise: see ``_hidden_mapped``."""
        lora = self.lora
        if not TUNED or (lora is not None and lora.dropout):
            return self(hidden(*parts))
        dtype = parts[0].dtype
        held = self.held()
        kernels = (held if isinstance(held, Quantized) else held.astype(dtype),)
        if lora is None:
            (y,) = _hidden_mapped(hidden, parts, kernels)
        else:
            y, low = _hidden_mapped(hidden, parts, (*kernels, lora.factors()[0].astype(dtype)))
            y = lora.added(y, low, held)
        return y if self.bias is None else y + self.bias[...].astype(dtype)


def _mapped_by(x, kernel: Kernel, inputs: int):
    """x times a kernel as it is held; one that is quantised always has the rule that dequantises it again."""
    if isinstance(kernel, Quantized):
        return _mapped(x, kernel, inputs)
    return (_mapped if TUNED else _plainly_mapped)(x, kernel.astype(x.dtype), inputs)


def _plainly_mapped(x, kernel, inputs: int):
    """x (..., *inputs) times the kernel (*inputs, *outputs)."""
    return _mapped_forward(x, kernel, inputs)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _mapped(x, kernel: Kernel, inputs: int):
    """As ``_plainly_mapped``, also of a quantised kernel: it gets no gradient, and is dequantised again for that of x.

    Its gradients are those JAX makes, but for the order in the kernel's: the narrower of x and the cotangent is first.
    XLA on CPU writes the first one out transposed, with the elementwise work that made it: of the wide one, that was a
    quarter of the MLP's time.
    """
    return _mapped_forward(x, kernel, inputs)[0]


def _mapped_forward(x, kernel: Kernel, inputs: int):
    # Not by _mapped: what a policy of REMAT keeps it must see, and it does not look into a custom rule.
    over = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    if isinstance(kernel, Quantized):
        tied, x = barrier((kernel, x))  # that it is not dequantised ahead of time
        return lax.dot_general(x, as_array(tied, x.dtype), (over, ((), ()))), (None, kernel)
    return lax.dot_general(x, kernel, (over, ((), ()))), (x, kernel)


def _mapped_backward(inputs: int, saved, dy):
    x, kernel = saved
    if isinstance(kernel, Quantized):
        # Tied to dy: else it could be what the forward pass made of it, which would stay until now.
        kernel, dy = barrier((kernel, dy))
        return _of_input(dy, as_array(kernel, dy.dtype), inputs), None
    x, dy = barrier((x, dy))  # what is written transposed is no more than written
    outputs, rows = kernel.ndim - inputs, tuple(range(x.ndim - inputs))
    dx = _of_input(dy, kernel, inputs)
    if math.prod(kernel.shape[:inputs]) <= math.prod(kernel.shape[inputs:]):
        return dx, lax.dot_general(x, dy, ((rows, rows), ((), ())))
    transposed = lax.dot_general(dy, x, ((rows, rows), ((), ())))
    return dx, transposed.transpose(*range(outputs, kernel.ndim), *range(outputs))


def _of_input(dy, kernel, inputs: int):
    """The gradient of x."""
    outputs = kernel.ndim - inputs
    over = tuple(range(dy.ndim - outputs, dy.ndim)), tuple(range(inputs, kernel.ndim))
    return lax.dot_general(dy, kernel, (over, ((), ())))


_mapped.defvjp(_mapped_forward, _mapped_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _hidden_mapped(hidden: Callable[..., jax.Array], parts: tuple[jax.Array, ...], kernels: tuple[Kernel, ...]):
    """``hidden(*parts)`` (..., mlp) times each kernel (mlp, outputs).

    Keeps the parts for the backward pass and recomputes the hidden activations: they and their derivative were half of
    what a layer kept of its MLP.
    """
    return _hidden_mapped_forward(hidden, parts, kernels)[0]


def _hidden_mapped_forward(hidden, parts, kernels):
    x = hidden(*parts)
    return tuple(_mapped_forward(x, kernel, 1)[0] for kernel in kernels), (parts, kernels)


def _hidden_mapped_backward(hidden, saved, dys):
    parts, kernels = saved
    parts, dys = barrier((parts, dys))
    x, pull = jax.vjp(hidden, *parts)
    dxs, dkernels = zip(*(_mapped_backward(1, (x, k), dy) for k, dy in zip(kernels, dys, strict=True)), strict=True)
    return pull(sum(dxs[1:], dxs[0])), dkernels


_hidden_mapped.defvjp(_hidden_mapped_forward, _hidden_mapped_backward)
