"""Linear maps of experts, over rows that are sorted by expert: their kernels, and what is added to or held of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxmm import sharding
from jaxmm.models.lora import Lora
from jaxmm.models.materialize import barrier
from jaxmm.models.parameters import fan_in, parameter
from jaxmm.models.quantized import Quantized, QuantizedKernel, as_array


class Groups(NamedTuple):
    """Slots, sorted by expert. On a CPU each expert's begin a new block; empty slots fill the last one.

    Attributes:
      size_E: slots of each expert, the empty ones of its last block too.
      expert_L: of each block.
    """

    size_E: jax.Array
    expert_L: jax.Array


class GroupedLinear(nnx.Module):
    """One linear map for each expert.

    Attributes:
      kernel: (experts, inputs, outputs), or what it is held as, see ``frozen.hold``.
      lora: the adapters of the experts, see ``adapters.adapt``; None without.
    """

    lora: Lora | None = None
    kernel: nnx.Param | QuantizedKernel

    def __init__(
        self, experts: int, inputs: int, outputs: int, axes: tuple[str, str], *, rngs: nnx.Rngs, scale: float = 1.0
    ):
        """``axes`` names the dims of inputs and outputs; ``scale`` multiplies the initial variance 1 / fan-in."""
        init = fan_in(max(scale, 1e-10), "fan_in", "normal", in_axis=1, out_axis=2, batch_axis=0)
        self.kernel = parameter(rngs, (experts, inputs, outputs), ("expert", *axes), init, inputs=1, copies=1)

    def maps(self, dtype: jnp.dtype) -> tuple[Maps, Maps]:
        """What it is held as, to be computed in this dtype, and in the places of its arrays their logical axes."""
        kernel: Any
        axes: Any
        if isinstance(self.kernel, QuantizedKernel):
            kernel = self.kernel.value()
            of_arrays = {name: getattr(self.kernel, name).get_metadata()["axes"] for name in self.kernel.names}
            axes = dataclasses.replace(kernel, arrays=of_arrays)
        else:
            kernel, axes = self.kernel[...].astype(dtype), self.kernel.get_metadata()["axes"]
        if self.lora is None:
            return Maps(kernel), Maps(axes)
        into, out = (x.astype(dtype) for x in self.lora.factors())
        of_into, of_out = (x.get_metadata()["axes"] for x in (self.lora.into, self.lora.out))
        return Maps(kernel, into, out, self.lora.scale), Maps(axes, of_into, of_out, self.lora.scale)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("kernel", "into", "out"), meta_fields=("scale",))
@dataclasses.dataclass(frozen=True)
class Maps:
    """The linear maps of the experts of a device.

    Attributes:
      kernel: (E, D, F), as it is held.
      into, out: (E, D, rank) and (E, rank, F), of their low-rank updates, or None.
      scale: of these.
    """

    kernel: Any
    into: Any = None
    out: Any = None
    scale: float = 1.0

    @property
    def experts(self) -> int:
        return jax.tree.leaves(self.kernel)[0].shape[0]

    def __call__(self, x_SD: jax.Array, groups: Groups) -> jax.Array:
        """Slots through the map of their expert, (S, F)."""
        if isinstance(self.kernel, Quantized):
            y_SF = _frozen(x_SD, self.kernel, groups)
        else:
            y_SF = grouped(x_SD, self.kernel, groups)
        if self.into is None:
            return y_SF
        update_SF = grouped(grouped(x_SD, self.into, groups), self.out, groups)
        return y_SF + jnp.asarray(self.scale, y_SF.dtype) * update_SF


def axes_of(maps: Sequence[Maps]) -> list[tuple[str | None, ...]]:
    """The logical axes of the arrays of maps, in their order.

    The constants of nf4 are of blocks over inputs and groups over outputs: no part of a kernel has its own. So its
    maps, and what is added to them, are whole on the devices of the axis ``tensor``.
    """
    axes = [x for one in maps for x in jax.tree.leaves(one, is_leaf=lambda x: isinstance(x, tuple))]
    if any(isinstance(one.kernel, Quantized) and one.kernel.kind == "nf4" for one in maps):
        return [tuple(None if name == "mlp" else name for name in one) for one in axes]
    return axes


def grouped(x_SD: jax.Array, kernel_EDF: jax.Array, groups: Groups) -> jax.Array:
    """Slots times the kernel of their expert, (S, F).

    XLA:CPU has no grouped matmul: ``lax.ragged_dot`` multiplies all slots by all kernels there. A scan over blocks took
    a quarter of its time with 8 experts and a thirtieth with 128, forward and backward.
    """
    if sharding.platform() == "cpu":
        return _by_block(x_SD, kernel_EDF, groups.expert_L)
    return lax.ragged_dot(x_SD, kernel_EDF, groups.size_E.astype(jnp.int32))


@jax.custom_vjp
def _frozen(x_SD: jax.Array, kernel: Quantized, groups: Groups) -> jax.Array:
    """As ``grouped``, of kernels that are dequantised here, and again for the gradient of x; they have none."""
    tied, x_SD = barrier((kernel, x_SD))  # that they are not dequantised ahead of time
    return grouped(x_SD, _dequantized(tied, x_SD.dtype), groups)


def _frozen_backward(saved, dy_SF: jax.Array):
    # Tied to dy: else it could be what the forward pass made of it, which would stay until now.
    (kernel, groups), dy_SF = barrier((saved, dy_SF))
    return grouped(dy_SF, _dequantized(kernel, dy_SF.dtype).swapaxes(1, 2), groups), None, None


_frozen.defvjp(lambda x_SD, kernel, groups: (_frozen(x_SD, kernel, groups), (kernel, groups)), _frozen_backward)


def _dequantized(kernel: Quantized, dtype: Any) -> jax.Array:
    return jax.vmap(functools.partial(as_array, dtype=dtype))(kernel)


@jax.custom_vjp
def _by_block(x_SD: jax.Array, kernel_EDF: jax.Array, expert_L: jax.Array) -> jax.Array:
    def multiply(_, block):
        x_MD, expert = block
        return None, x_MD @ lax.dynamic_index_in_dim(kernel_EDF, expert, keepdims=False)

    x_LMD = x_SD.reshape(expert_L.shape[0], -1, x_SD.shape[1])
    return lax.scan(multiply, None, (x_LMD, expert_L))[1].reshape(x_SD.shape[0], -1)


def _by_block_backward(saved, dy_SF: jax.Array):
    """The kernels' gradient is one array, to which each block adds in place."""
    x_SD, kernel_EDF, expert_L = saved

    def multiply(dkernel_EDF, block):
        x_MD, dy_MF, expert = block
        kernel_DF, sum_DF = (lax.dynamic_index_in_dim(k, expert, keepdims=False) for k in (kernel_EDF, dkernel_EDF))
        sum_DF += jnp.einsum("md,mf->df", x_MD, dy_MF, preferred_element_type=jnp.float32)
        return lax.dynamic_update_index_in_dim(dkernel_EDF, sum_DF, expert, 0), dy_MF @ kernel_DF.T

    blocks = (x.reshape(expert_L.shape[0], -1, x.shape[1]) for x in (x_SD, dy_SF))
    dkernel_EDF, dx_LMD = lax.scan(multiply, jnp.zeros(kernel_EDF.shape, jnp.float32), (*blocks, expert_L))
    return dx_LMD.reshape(x_SD.shape), dkernel_EDF.astype(kernel_EDF.dtype), None


_by_block.defvjp(
    lambda x_SD, kernel_EDF, expert_L: (_by_block(x_SD, kernel_EDF, expert_L), (x_SD, kernel_EDF, expert_L)),
    _by_block_backward,
)
