"""Adapters of a model's linear maps and tables: which have one, where it starts, and what is a part of it."""

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

from jaxmm.models.decoder import Decoder
from jaxmm.models.grouped import GroupedLinear
from jaxmm.models.linear import Linear
from jaxmm.models.lora import KINDS, Lora, column_norms, scale_of, with_first
from jaxmm.models.quantized import Kernel, Quantized, as_array, over_layers
from jaxmm.models.tables import TABLES, TableAdapters
from jaxmm.models.tree import ParamPath, Params, matches, nested

STARTS = ("", "gaussian", "pissa")
FIRST = ("first_into", "first_out")  # factors that stay as they began
LORA = "lora"  # what an adapter is called, beside the kernel that it adapts
CONVOLUTIONS = ("vision.patch_embedding", "audio.stem")  # linear maps here, convolutions in other places


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """Low-rank adapters of linear maps, and of the tables over the vocabulary.

    Attributes:
      targets: patterns of the maps' paths that have one, as ``decoder.blocks`` or ``*.attention.value``; a table has
        one where it is named itself, as ``decoder.embedding``.
      rank: of the update.
      alpha: what the update is scaled by, over the rank; of "rslora" over its root.
      kind: one of KINDS.
      start: where the factors begin, one of STARTS: see ``begin``.
      dropout: part of what goes into the factors that is dropped; 0 everywhere but in the training step.
      ranks: (pattern, rank, alpha) of maps that have others; the last that means a map counts.
      frozen: patterns of parameters that do not learn: a map whose factors these mean has no adapter.
    """

    targets: tuple[str, ...]
    rank: int = 16
    alpha: float = 32.0
    kind: str = "lora"
    dropout: float = 0.0
    start: str = ""
    ranks: tuple[tuple[str, int, float], ...] = ()
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"adapter kind '{self.kind}' is not one of {', '.join(KINDS)}")
        if self.start not in STARTS:
            raise ValueError(f"adapter start '{self.start}' is not one of {', '.join(map(repr, STARTS))}")
        if not all(rank >= 1 for rank in (self.rank, *(rank for _, rank, _ in self.ranks))):
            raise ValueError(f"adapter rank {self.rank} is not at least 1")
        if (self.kind == "dora" or self.start == "pissa") and any(map(self.adapts, TABLES)):
            raise ValueError("tables over the vocabulary have no adapters of DoRA, nor such that begin by PiSSA")

    def adapts(self, path: ParamPath) -> bool:
        """Whether the linear map or the table at a path has an adapter."""
        if self.is_frozen(path):
            return False
        if path in TABLES:
            return ".".join(path) in self.targets
        is_map = not any(matches(path, pattern) for pattern in CONVOLUTIONS)
        return is_map and any(matches(path, pattern) for pattern in self.targets)

    def is_frozen(self, path: ParamPath) -> bool:
        """Whether no factor of the linear map or the table at a path would learn."""
        return any(matches(factors_at(path), pattern) for pattern in self.frozen)

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
    """Gives the linear maps and the tables that ``spec`` means an adapter that changes nothing yet."""
    for keys, module in list(nnx.iter_modules(model)):
        path = tuple(map(str, keys))
        if isinstance(module, Decoder):
            _adapt_tables(module, path, spec, rngs)
        if not isinstance(module, Linear | GroupedLinear) or not spec.adapts(path):
            continue
        assert isinstance(module.kernel, nnx.Param), "what is quantised is so after it is adapted"
        rank, scale = spec.sizes(path)
        axes, inputs, copies = (module.kernel.get_metadata()[key] for key in ("axes", "inputs", "copies"))
        module.lora = Lora(
            module.kernel[...].shape, axes, inputs, rank=rank, scale=scale, kind=spec.kind,
            has_first=spec.start == "pissa", dropout=spec.dropout, rngs=rngs, copies=copies,
        )  # fmt: skip


def _adapt_tables(decoder: Decoder, path: ParamPath, spec: AdapterSpec, rngs: nnx.Rngs) -> None:
    names = [table[-1] for table in TABLES if spec.adapts(table) and hasattr(decoder, table[-1])]
    decoder.lora = TableAdapters() if names else None
    for name in names:
        table, (rank, scale) = getattr(decoder, name), spec.sizes((*path, name))
        adapter = Lora(
            table[...].shape, table.get_metadata()["axes"], 1, rank=rank, scale=scale, kind=spec.kind, has_first=False,
            dropout=0.0, rngs=rngs,
        )  # fmt: skip
        setattr(decoder.lora, name, adapter)


def factors_at(path: ParamPath) -> ParamPath:
    """Above the factors of the linear map or the table at a path."""
    return (*path[:-1], LORA, path[-1]) if path in TABLES else (*path, LORA)


def is_factor(path: ParamPath) -> bool:
    """Whether a parameter belongs to an adapter."""
    return LORA in path


class Map(NamedTuple):
    """An adapted linear map, or an adapted table.

    Attributes:
      path: of the map, that of its kernel without the last name; of a table its own.
      inputs, outputs: the kernel's dims that it takes in and gives out; those before are of stacked layers and experts.
    """

    path: ParamPath
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    rank: int
    scale: float

    @property
    def is_table(self) -> bool:
        return self.path in TABLES

    @property
    def kernel(self) -> ParamPath:
        """What is adapted."""
        return self.path if self.is_table else (*self.path, "kernel")

    @property
    def lora(self) -> ParamPath:
        """Above the factors."""
        return factors_at(self.path)


def adapted_maps(
    spec: AdapterSpec, dims: Mapping[ParamPath, tuple[tuple[int, ...], tuple[int, ...]]], tables: Sequence[ParamPath]
) -> list[Map]:  # fmt: skip
    """The linear maps that have an adapter, then the tables.

    Args:
      dims: of all kernels, as ``multimodal.kernel_dims`` gives them.
      tables: paths of all tables over the vocabulary.
    """
    maps = [(path[:-1], *both) for path, both in sorted(dims.items())] + [(path, (0,), (1,)) for path in tables]
    return [Map(path, into, out, *spec.sizes(path)) for path, into, out in maps if spec.adapts(path)]


def begin(
    base: Mapping[ParamPath, Kernel], maps: Sequence[Map], spec: AdapterSpec, key: jax.Array
) -> dict[ParamPath, jax.Array]:
    """Where adapters start, so that they change nothing of what the model says: the factors by path.

    By ``spec.start`` the factor that goes in is: "" uniform within 1 / root of its inputs, as PEFT's; "gaussian" normal
    with variance 1 / rank squared; "pissa" (Meng et al., 2024) the largest singular values of the kernel, from
    which they are taken away again: the kernel itself stays as it is. Of a table it is the other factor that begins so,
    that of the width, and the one of the vocabulary begins with zeros.

    Args:
      base: the kernels of the maps, by path, as they are held: of a quantised one, its own numbers count.
    """
    arrays: dict[ParamPath, jax.Array] = {}
    for number, one in enumerate(maps):
        kernel = base[one.kernel]
        layers, inputs, outputs = _dims(kernel, one)
        into, out = (*layers, *inputs, one.rank), jnp.zeros((*layers, one.rank, *outputs), jnp.float32)
        random = jax.random.fold_in(key, number)
        if one.is_table:
            arrays[(*one.lora, "into")] = jnp.zeros(into, jnp.float32)
            arrays[(*one.lora, "out")] = _begun(random, out.shape, outputs, spec, one)
            continue
        if spec.start == "pissa":
            principal = over_layers(functools.partial(_principal, one=one, inputs=math.prod(inputs)), layers, kernel)
            factors = principal[0].reshape(into), principal[1].reshape(out.shape)
            arrays[(*one.lora, FIRST[0])], arrays[(*one.lora, FIRST[1])] = factors
        else:
            factors = _begun(random, into, inputs, spec, one), out
        arrays[(*one.lora, "into")], arrays[(*one.lora, "out")] = factors
        if spec.kind == "dora":
            lengths = functools.partial(_lengths, inputs=len(inputs))
            arrays[(*one.lora, "magnitude")] = over_layers(lengths, layers, kernel)
    return arrays


def _begun(key: jax.Array, shape: tuple[int, ...], side: tuple[int, ...], spec: AdapterSpec, one: Map) -> jax.Array:
    """A factor that begins with random numbers; ``side``: the dims that it and the kernel have in common."""
    if spec.start == "gaussian":
        return jax.random.normal(key, shape) / one.rank
    bound = math.prod(side) ** -0.5
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def _dims(kernel: Kernel, one: Map) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Dims of stacked layers and experts, of inputs and of outputs."""
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
        factors = {path[-1]: value for path, value in params.items() if path[:-1] == one.lora}
        merge = functools.partial(_merged, scale=one.scale, inputs=len(one.inputs))
        for _ in range(one.inputs[0]):
            merge = jax.vmap(merge)
        whole[one.kernel] = merge(params[one.kernel], factors)
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
    """Random keys of dropout, a key a layer of each linear map; a tree to be joined with the parameters."""
    arrays = {}
    for number, one in enumerate(maps):
        if one.is_table:
            continue
        layers = shapes[one.kernel][: one.inputs[0]]
        keys = jax.random.split(jax.random.fold_in(key, number), layers or (1,))
        data = jax.random.key_data(keys)
        arrays[(*one.lora, "noise")] = data if layers else data[0]
    return nested(arrays)
