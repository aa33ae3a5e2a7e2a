"""How parameters that do not learn are held: as float32, as bfloat16, or in eight or four bits (``quantized``)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmm.models import quantized
from jaxmm.models.adapters import CONVOLUTIONS, is_factor
from jaxmm.models.grouped import GroupedLinear
from jaxmm.models.linear import Linear
from jaxmm.models.quantized import Kernel, Quantized, QuantizedKernel, as_array, over_layers
from jaxmm.models.tree import ParamPath, matches

KINDS = ("bfloat16", *quantized.KINDS)


@dataclasses.dataclass(frozen=True)
class FrozenSpec:
    """How the parameters beneath adapters are held.

    Kernels of linear maps are held as ``kind``; convolutions, embeddings and the vocabulary projection as bfloat16.
    Norms and biases stay float32: they are few. So does what learns.

    Attributes:
      kind: one of KINDS.
      learnt: patterns of what learns beside adapters.
    """

    kind: str
    learnt: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"frozen weights '{self.kind}' are not one of {', '.join(KINDS)}")

    def kind_of(self, path: ParamPath, dims: int, inputs: int) -> str:
        """What a parameter is held as: "float32", or one of KINDS.

        Args:
          dims: of one layer's; inputs: how many of them are inputs of a linear map, 0 for all else.
        """
        if dims < 2 or path[-1] == "bias" or is_factor(path) or any(matches(path, pattern) for pattern in self.learnt):
            return "float32"
        is_map = inputs > 0 and not any(matches(path, pattern) for pattern in CONVOLUTIONS)
        return self.kind if is_map else "bfloat16"


class Holding(NamedTuple):
    """What one parameter is held as.

    Attributes:
      kind: one of KINDS.
      shape: of one layer's, or of one expert's in it.
      axes: logical ones, of these dims.
      inputs: how many of them are inputs of a linear map; 0 for all else.
      layers: how many dims of stacked layers and experts come before them.
    """

    kind: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    inputs: int
    layers: int

    @property
    def is_quantized(self) -> bool:
        return self.kind in quantized.KINDS

    @property
    def names(self) -> tuple[str, ...]:
        """Of the arrays of a quantised one."""
        return tuple(quantized.parts(self.kind, self.shape, self.axes, self.inputs)) if self.is_quantized else ()

    def quantize(self, kernel: jax.Array) -> dict[str, jax.Array]:
        """One layer's kernel as the arrays that it is held as."""
        return quantized.quantize(kernel, self.inputs, self.kind)


def hold(model: nnx.Module, spec: FrozenSpec, rngs: nnx.Rngs) -> None:
    """Declares the parameters of a model as they are held; quantised ones have no numbers yet."""
    for keys, module in list(nnx.iter_modules(model)):
        path = tuple(map(str, keys))
        for name, variable in list(vars(module).items()):
            if not isinstance(variable, nnx.Param):
                continue
            axes, inputs, copies = (variable.get_metadata()[key] for key in ("axes", "inputs", "copies"))
            kind = spec.kind_of((*path, name), len(axes), inputs)
            if kind == "bfloat16":
                variable.set_value(variable.get_value().astype(jnp.bfloat16))
            elif kind != "float32":
                assert isinstance(module, Linear | GroupedLinear), "no other kernel is that of linear maps"
                shape = variable.get_value().shape
                module.kernel = QuantizedKernel(shape, axes, inputs, kind, rngs=rngs, copies=copies)


def held(
    params: Mapping[ParamPath, jax.Array], holdings: Mapping[ParamPath, Holding]
) -> dict[ParamPath, jax.Array]:  # fmt: skip
    """Parameters as they are held, from those of the model that holds all as arrays; those not named stay."""
    arrays: dict[ParamPath, jax.Array] = {}
    for path, value in params.items():
        one = holdings.get(path)
        if one is None:
            arrays[path] = value
        elif one.is_quantized:
            made = over_layers(one.quantize, value.shape[: one.layers], value)
            arrays |= {(*path, name): array for name, array in made.items()}
        else:
            arrays[path] = value.astype(one.kind)
    return arrays


def kernel_at(params: Mapping[ParamPath, jax.Array], path: ParamPath, one: Holding | None) -> Kernel:
    """The kernel at a path, as it is held."""
    if one is None or not one.is_quantized:
        return params[path]
    return Quantized({name: params[(*path, name)] for name in one.names}, one.kind, one.shape, one.inputs)


def restored(
    params: Mapping[ParamPath, jax.Array], holdings: Mapping[ParamPath, Holding]
) -> dict[ParamPath, jax.Array]:  # fmt: skip
    """The inverse of ``held``, as float32: what was rounded stays so."""
    parts = {(*path, name) for path, one in holdings.items() for name in one.names}
    whole = {path: value for path, value in params.items() if path not in parts}
    as_float = functools.partial(as_array, dtype=jnp.float32)
    for path, one in holdings.items():
        if one.is_quantized and (*path, "codes") in params:
            kernel = kernel_at(params, path, one)
            assert isinstance(kernel, Quantized)
            whole[path] = over_layers(as_float, kernel.arrays["codes"].shape[: one.layers], kernel)
        elif path in whole:
            whole[path] = whole[path].astype(jnp.float32)
    return whole
