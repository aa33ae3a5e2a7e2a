"""Linear maps between groups of dims, with or without an adapter beside their kernel, which may be quantised."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxmm import sharding
from jaxmm.models import float8
from jaxmm.models.float8 import Float8
from jaxmm.models.lora import Adapted, Lora
from jaxmm.models.materialize import barrier
from jaxmm.models.parameters import fan_in, parameter, zeros
from jaxmm.models.quantized import Kernel, Quantized, QuantizedKernel, as_array
from jaxmm.runtime.jax_internals import TUNED


class Linear(nnx.Module):
    """A linear map between groups of dims: (..., *inputs) to (..., *outputs), computed in the dtype of its input.

    Attributes:
      lora: the adapter, see ``adapters.adapt``; None without one.
      kernel: (*inputs, *outputs), or what it is held as, see ``frozen.hold``.
      is_float8: whether it multiplies in float8, see ``matmuls.multiply_in_float8``; an adapter beside it never does.
    """

    lora: Lora | None = None
    kernel: nnx.Param | QuantizedKernel
    is_float8: bool = False

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
        held, lora = self.held(), self.lora
        if lora is None:
            y = _mapped_by(x, self._factor(held), self.inputs)
        elif self._is_summed(x.dtype):
            y = lora.scaled(_mapped(x, Adapted(held, *lora.factors(), lora.scale), self.inputs), held)
        else:
            low = _mapped_by(lora.dropped(x), lora.factors()[0], self.inputs)
            y = lora.added(_mapped_by(x, self._factor(held), self.inputs), low, held)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)

    def _factor(self, held: Kernel) -> Kernel | Float8:
        """The kernel as what x is multiplied by."""
        return held if isinstance(held, Quantized) or not self.is_float8 else Float8(held)

    def _is_summed(self, dtype: jnp.dtype) -> bool:
        """Whether kernel and update are added up before x is multiplied: two passes fewer over x and y, each way.

        Not in float8, which would round small updates away."""
        is_exact = dtype == jnp.float32 and not self.is_float8
        return TUNED and is_exact and self.lora is not None and not self.lora.dropout

    def of_hidden(self, hidden: Callable[..., jax.Array], parts: tuple[jax.Array, ...]) -> jax.Array:
        """The map of ``hidden(*parts)``, of one dim, which is elementwise: see ``_hidden_mapped``."""
        lora = self.lora
        if not TUNED or (lora is not None and lora.dropout):
            return self(hidden(*parts))
        dtype = parts[0].dtype
        held = self.held()
        kernel: Any = self._factor(held)
        kernel = kernel.astype(dtype) if isinstance(kernel, jax.Array) else kernel
        if lora is None:
            (y,) = _hidden_mapped(hidden, parts, (kernel,))
        elif self._is_summed(dtype):
            (y,) = _hidden_mapped(hidden, parts, (Adapted(kernel, *lora.factors(), lora.scale),))
            y = lora.scaled(y, held)
        else:
            y, low = _hidden_mapped(hidden, parts, (kernel, lora.factors()[0].astype(dtype)))
            y = lora.added(y, low, held)
        return y if self.bias is None else y + self.bias[...].astype(dtype)


class ClippedLinear(Linear):
    """A linear map whose inputs and outputs are kept within bounds (Gemma 4's towers), which are read and never learnt.

    Attributes:
      input_min, input_max, output_min, output_max: one number each.
    """

    def __init__(
        self, inputs: Sequence[int], outputs: Sequence[int], axes: Sequence[str | None], *, bias: bool, rngs: nnx.Rngs,
        scale: float = 1.0,
    ):  # fmt: skip
        super().__init__(inputs, outputs, axes, bias=bias, rngs=rngs, scale=scale)
        least, most = (jax.nn.initializers.constant(bound) for bound in (-WIDE, WIDE))
        self.input_min, self.output_min = (parameter(rngs, (), (), least) for _ in range(2))
        self.input_max, self.output_max = (parameter(rngs, (), (), most) for _ in range(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        return _clipped(super().__call__(_clipped(x, self.input_min, self.input_max)), self.output_min, self.output_max)

    def of_hidden(self, hidden: Callable[..., jax.Array], parts: tuple[jax.Array, ...]) -> jax.Array:
        return self(hidden(*parts))


WIDE = 1e30  # bounds of a map that is not read


def _clipped(x, least: nnx.Param, most: nnx.Param):
    bounds = (lax.stop_gradient(bound[...]).astype(x.dtype) for bound in (least, most))
    return jnp.clip(x, *bounds)


def _mapped_by(x, kernel: Kernel | Float8, inputs: int):
    """x times a kernel as it is held; one that is quantised, or multiplied by in float8, has its own rule."""
    if isinstance(kernel, Quantized | Float8):
        return _mapped(x, kernel, inputs)
    return (_mapped if TUNED else _plainly_mapped)(x, kernel.astype(x.dtype), inputs)


def _plainly_mapped(x, kernel, inputs: int):
    """x (..., *inputs) times the kernel (*inputs, *outputs)."""
    return _mapped_forward(x, kernel, inputs)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _mapped(x, kernel: Kernel | Adapted | Float8, inputs: int):
    """As ``_plainly_mapped``, also of a quantised kernel: it gets no gradient, and is dequantised again for that of x.

    So is an adapted one added up again; of its factors, what is narrow is made in the backward pass alone.

    Its gradients are those JAX makes, but for the order in the kernel's: the narrower of x and the cotangent is first.
    XLA on CPU writes the first one out transposed, with the elementwise work that made it: of the wide one, that was a
    quarter of the MLP's time.
    """
    return _mapped_forward(x, kernel, inputs)[0]


def _mapped_forward(x, kernel: Kernel | Adapted | Float8, inputs: int):
    # Not by _mapped: what a policy of REMAT keeps it must see, and it does not look into a custom rule.
    over = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    if isinstance(kernel, Quantized):
        tied, x = barrier((kernel, x))  # that it is not dequantised ahead of time
        return lax.dot_general(x, as_array(tied, x.dtype), (over, ((), ()))), (None, kernel)
    if isinstance(kernel, Adapted):
        tied, x = kernel.tied(x)
        return lax.dot_general(x, tied.summed(x.dtype), (over, ((), ()))), (x, kernel)
    if isinstance(kernel, Float8):
        return float8.mapped(x, kernel.kernel, inputs), (x, kernel)
    return lax.dot_general(x, kernel, (over, ((), ()))), (x, kernel)


def _mapped_backward(inputs: int, saved, dy):
    x, kernel = saved
    if isinstance(kernel, Quantized):
        # Tied to dy: else it could be what the forward pass made of it, which would stay until now.
        kernel, dy = barrier((kernel, dy))
        return _of_input(dy, as_array(kernel, dy.dtype), inputs), None
    if isinstance(kernel, Adapted):
        kernel, (x, dy) = kernel.tied((x, dy))  # for the same reason
        return _of_input(dy, kernel.summed(dy.dtype), inputs), _of_adapted(x, kernel, dy, inputs)
    x, dy = barrier((x, dy))  # what is written transposed is no more than written
    if isinstance(kernel, Float8):
        of_held = float8.of_kernel(x, dy, inputs).astype(kernel.kernel.dtype)
        return float8.of_input(dy, kernel.kernel, inputs), Float8(of_held)
    return _of_input(dy, kernel, inputs), _of_kernel(x, dy, inputs)


def _of_kernel(x, dy, inputs: int):
    """The gradient of a kernel (*inputs, *outputs): x (..., *inputs) times dy (..., *outputs), over the rows."""
    rows = tuple(range(x.ndim - inputs))
    if math.prod(x.shape[len(rows) :]) <= math.prod(dy.shape[len(rows) :]):
        return lax.dot_general(x, dy, ((rows, rows), ((), ())))
    transposed = lax.dot_general(dy, x, ((rows, rows), ((), ())))
    outputs = dy.ndim - len(rows)
    return transposed.transpose(*range(outputs, transposed.ndim), *range(outputs))


def _of_adapted(x, kernel: Adapted, dy, inputs: int) -> Adapted:
    """The gradients of a kernel and of its factors; what is not asked for is not made."""
    low, dlow = _mapped_forward(x, kernel.into, inputs)[0], _of_input(dy, kernel.out, 1)
    into, out = (kernel.scale * slope for slope in (_of_kernel(x, dlow, inputs), _of_kernel(low, dy, 1)))
    held = kernel.kernel
    of_held = None if isinstance(held, Quantized) else _of_kernel(x, dy, inputs).astype(held.dtype)
    return Adapted(of_held, into, out, kernel.scale)  # type: ignore[arg-type]


def _of_input(dy, kernel, inputs: int):
    """The gradient of x.

    On one device over one dim: of several, XLA on CPU writes the kernel out transposed first. On several devices the
    flat kernel would be gathered beside the one of the forward pass.
    """
    if sharding.is_on_one_device():
        dy = dy.reshape(*dy.shape[: dy.ndim - kernel.ndim + inputs], -1)
        kernel = kernel.reshape(*kernel.shape[:inputs], -1)
    outputs = kernel.ndim - inputs
    over = tuple(range(dy.ndim - outputs, dy.ndim)), tuple(range(inputs, kernel.ndim))
    return lax.dot_general(dy, kernel, (over, ((), ())))


_mapped.defvjp(_mapped_forward, _mapped_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _hidden_mapped(
    hidden: Callable[..., jax.Array], parts: tuple[jax.Array, ...], kernels: tuple[Kernel | Adapted | Float8, ...]
):  # fmt: skip
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
