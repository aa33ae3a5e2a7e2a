"""Adapters of a model's linear maps: which maps have one, where it starts, and what is a part of it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxmm.models.linear import Linear
from jaxmm.models.lora import KINDS, Lora, column_norms, scale_of, with_first
from jaxmm.models.quantized import Kernel, Quantized, as_array, over_layers
from jaxmm.models.tree import ParamPath, Params, matches, nested

STARTS = ("", "gaussian", "pissa")
FIRST = ("first_into", "first_out")  # factors that stay as they began
LORA = "lora"  # what an adapter is called, beside the kernel that it adapts
CONVOLUTIONS = ("vision.patch_embedding", "audio.stem")  # linear maps here, convolutions in other places


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """Low-rank adapters of linear maps.

    Attributes:
      targets: patterns of the maps' paths that have one, as ``decoder.blocks`` or ``*.attention.value``.
      rank: of the update.
      alpha: what the update is scaled by, over the rank; of "rslora" over its root.
      kind: one of KINDS.
      start: where the factors begin, one of STARTS: see ``begin``.
      dropout: part of what goes into the factors that is dropped; 0 everywhere but in the training step.
      ranks: (pattern, rank, alpha) of maps that have others; the last that means a map counts.
    """

    targets: tuple[str, ...]
    rank: int = 16
    alpha: float = 32.0
    kind: str = "lora"
    dropout: float = 0.0
    start: str = ""
    ranks: tuple[tuple[str, int, float], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"adapter kind '{self.kind}' is not one of {', '.join(KINDS)}")
        if self.start not in STARTS:
            raise ValueError(f"adapter start '{self.start}' is not one of {', '.join(map(repr, STARTS))}")
        if not all(rank >= 1 for rank in (self.rank, *(rank for _, rank, _ in self.ranks))):
            raise ValueError(f"adapter rank {self.rank} is not at least 1")

    def adapts(self, path: ParamPath) -> bool:
        """Whether the linear map at a path has an adapter."""
        is_map = not any(matches(path, pattern) for pattern in CONVOLUTIONS)
        return is_map and any(matches(path, pattern) for pattern in self.targets)

    def scale(self) -> float:
        """What updates are multiplied by, but for maps in ``ranks``."""
        return scale_of(self.kind, self.rank, self.alpha)

    def sizes(self, path: ParamPath) -> tuple[int, float]:
        """Rank, and what the update is multiplied by, of the map at a path."""
        rank, alpha = self.rank, self.alpha
        for pattern, its_rank, its_alpha in self.ranks:
            if matches(path, pattern):
                rank, alpha = its_rank, its_alpha
        return rank, scale_of(self.kind, rank, alpha)


def adapt(model: nnx.Module, spec: AdapterSpec, rngs: nnx.Rngs) -> None:
    """Gives the linear maps that ``spec`` means an adapter that changes nothing yet."""
    for keys, module in list(nnx.iter_modules(model)):
        path = tuple(map(str, keys))
        if not isinstance(module, Linear) or not spec.adapts(path):
            continue
        assert isinstance(module.kernel, nnx.Param), "what is quantised is so after it is adapted"
        rank, scale = spec.sizes(path)
        axes = module.kernel.get_metadata()["axes"]
        module.lora = Lora(
            module.kernel[...].shape, axes, module.inputs, rank=rank, scale=scale, kind=spec.kind,
            has_first=spec.start == "pissa", dropout=spec.dropout, rngs=rngs,
        )  # fmt: skip


def is_factor(path: ParamPath) -> bool:
    """Whether a parameter belongs to an adapter."""
    return LORA in path


def is_learnt_factor(path: ParamPath) -> bool:
    """Whether a parameter belongs to an adapter and learns."""
    return is_factor(path) and path[-1] not in FIRST


class Map(NamedTuple):
    """An adapted linear map.

    Attributes:
      path: of the map, that of its kernel without the last name.
      inputs, outputs: the kernel's dims that it takes in and gives out; those before are of stacked layers.
    """

    path: ParamPath
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    rank: int
    scale: float


def adapted_maps(spec: AdapterSpec, dims: Mapping[ParamPath, tuple[tuple[int, ...], tuple[int, ...]]]) -> list[Map]:
    """The linear maps that have an adapter; ``dims``: of all kernels, as ``multimodal.kernel_dims`` gives them."""
    maps = [(path[:-1], *both) for path, both in sorted(dims.items())]
    return [Map(path, into, out, *spec.sizes(path)) for path, into, out in maps if spec.adapts(path)]


def begin(
    base: Mapping[ParamPath, Kernel], maps: Sequence[Map], spec: AdapterSpec, key: jax.Array
) -> dict[ParamPath, jax.Array]:
    """Where adapters start, so that they change nothing of what the model says: the factors by path.

    By ``spec.start`` the factor that goes in is: "" uniform within 1 / root of its inputs, as PEFT's; "gaussian" normal
    with variance 1 / rank squared; "pissa" (Meng et al., 2024) the largest singular values of the kernel, from
    which they are taken away again: the kernel itself stays as it is.

    Args:
      base: the kernels of the maps, by path, as they are held: of a quantised one, its own numbers count.
    """
    found: dict[ParamPath, jax.Array] = {}
    for number, one in enumerate(maps):
        kernel = base[(*one.path, "kernel")]
        layers, inputs, outputs = _dims(kernel, one)
        into, out = (*layers, *inputs, one.rank), jnp.zeros((*layers, one.rank, *outputs), jnp.float32)
        random = jax.random.fold_in(key, number)
        if spec.start == "pissa":
            principal = over_layers(functools.partial(_principal, one=one, inputs=math.prod(inputs)), layers, kernel)
            factors = principal[0].reshape(into), principal[1].reshape(out.shape)
            found[(*one.path, LORA, FIRST[0])], found[(*one.path, LORA, FIRST[1])] = factors
        elif spec.start == "gaussian":
            factors = jax.random.normal(random, into) / one.rank, out
        else:
            bound = math.prod(inputs) ** -0.5
            factors = jax.random.uniform(random, into, minval=-bound, maxval=bound), out
        found[(*one.path, LORA, "into")], found[(*one.path, LORA, "out")] = factors
        if spec.kind == "dora":
            lengths = functools.partial(_lengths, inputs=len(inputs))
            found[(*one.path, LORA, "magnitude")] = over_layers(lengths, layers, kernel)
    return found


def _dims(kernel: Kernel, one: Map) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Dims of stacked layers, of inputs and of outputs."""
    count, split = one.inputs[0], one.outputs[0]
    if isinstance(kernel, Quantized):
        inputs = kernel.shape[: split - count], kernel.shape[split - count :]
        return kernel.arrays["codes"].shape[:count], *inputs
    return kernel.shape[:count], kernel.shape[count:split], kernel.shape[split:]


def _lengths(kernel: Kernel, inputs: int) -> jax.Array:
    """Of the columns of one layer's kernel, (*outputs)."""
    return jnp.sqrt(jnp.square(as_array(kernel, jnp.float32)).sum(tuple(range(inputs))))


def _principal(kernel: Kernel, one: Map, inputs: int) -> tuple[jax.Array, jax.Array]:
    """Factors (inputs, rank) and (rank, outputs) of the largest singular values of one layer's kernel."""
    wide = as_array(kernel, jnp.float32).reshape(inputs, -1)
    left, values, right = jnp.linalg.svd(wide, full_matrices=False)
    root = jnp.sqrt(values[: one.rank] / one.scale)
    return left[:, : one.rank] * root, right[: one.rank] * root[:, None]


def merged(params: Mapping[ParamPath, jax.Array], maps: Sequence[Map]) -> dict[ParamPath, jax.Array]:
    """The parameters of the model without adapters that says the same, by path; kernels keep their dtypes.

    Of DoRA the lengths of the columns count as constants, as they do in training.
    """
    whole = {path: value for path, value in params.items() if not is_factor(path)}
    for one in maps:
        kernel = (*one.path, "kernel")
        factors = {path[-1]: value for path, value in params.items() if path[:-1] == (*one.path, LORA)}
        merge = functools.partial(_merged, scale=one.scale, inputs=len(one.inputs))
        for _ in range(one.inputs[0]):
            merge = jax.vmap(merge)
        whole[kernel] = merge(params[kernel], factors)
    return whole


def _merged(kernel: jax.Array, factors: Mapping[str, jax.Array], *, scale: float, inputs: int) -> jax.Array:
    into, out = factors["into"], factors["out"]
    if FIRST[0] in factors:
        into, out = with_first(into, out, *(factors[name] for name in FIRST))
    wide = kernel.astype(jnp.float32) + scale * jnp.tensordot(into, out, 1)
    if "magnitude" in factors:
        wide = wide * (factors["magnitude"] / lax.stop_gradient(column_norms(kernel, into, out, scale, inputs)))
    return wide.astype(kernel.dtype)


def noise(maps: Sequence[Map], shapes: Mapping[ParamPath, tuple[int, ...]], key: jax.Array) -> Params:
    """Random keys of dropout, a key a layer of each map; a tree to be joined with the parameters."""
    found = {}
    for number, one in enumerate(maps):
        layers = shapes[(*one.path, "kernel")][: one.inputs[0]]
        keys = jax.random.split(jax.random.fold_in(key, number), layers or (1,))
        data = jax.random.key_data(keys)
        found[(*one.path, LORA, "noise")] = data if layers else data[0]
    return nested(found)
