"""The whole model: towers, connectors, soft tokens in their text positions, decoder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmm import sharding, zigzag
from jaxmm.batch import Batch, Mixed
from jaxmm.models.adapters import AdapterSpec, Map, adapt, adapted_maps, begin
from jaxmm.models.cache import Cache
from jaxmm.models.compute import Compute
from jaxmm.models.connector import Connector, ConnectorSpec, Projector
from jaxmm.models.decoder import Decoder, DecoderSpec, DeepStack
from jaxmm.models.frozen import FrozenSpec, Holding, held, hold, kernel_at, restored
from jaxmm.models.matmuls import MATMULS, multiply_in_float8
from jaxmm.models.parameters import shapes_only
from jaxmm.models.probe import Attended, Queries
from jaxmm.models.routing import Load
from jaxmm.models.tables import TABLES, Head, terms
from jaxmm.models.towers.audio import AudioTower, AudioTowerSpec
from jaxmm.models.towers.vit import Features, VisionSpec, VisionTower
from jaxmm.models.tree import ParamPath, Params, flat, nested

PARTS = ("vision", "connector", "audio", "audio_connector", "decoder")  # a model has some of them, in this order


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A multimodal model: the specs of its parts, None for those that it does not have.

    A tower has a connector with it. Without vision, the patches of a batch are not looked at, and have no soft tokens.
    ``adapter`` says which linear maps have an adapter, ``frozen`` how what does not learn is held: None as float32.
    ``matmul``, one of MATMULS, is what linear maps of layers multiply in: '' is the dtype of activations.
    """

    vision: VisionSpec | None = dataclasses.field(default_factory=VisionSpec)
    connector: ConnectorSpec | None = dataclasses.field(default_factory=ConnectorSpec)
    decoder: DecoderSpec = dataclasses.field(default_factory=DecoderSpec)
    audio: AudioTowerSpec | None = None
    audio_connector: ConnectorSpec | None = None
    adapter: AdapterSpec | None = None
    frozen: FrozenSpec | None = None
    matmul: str = ""

    def __post_init__(self) -> None:
        if self.matmul not in MATMULS:
            raise ValueError(f"matmul '{self.matmul}' is not one of {', '.join(map(repr, MATMULS))}")
        for tower, connector in (("vision", "connector"), ("audio", "audio_connector")):
            if (getattr(self, tower) is None) != (getattr(self, connector) is None):
                raise ValueError(f"a model has both {tower} and {connector}, or neither")
        if self.audio_connector and (self.audio_connector.merge > 1 or self.audio_connector.deep):
            raise ValueError("audio_connector takes one feature for each soft token: its merge is 1, and deep 0")

    @property
    def parts(self) -> tuple[str, ...]:
        """Those of PARTS that the model has."""
        return tuple(part for part in PARTS if getattr(self, part) is not None)

    @property
    def head_widths(self) -> frozenset[int]:
        """The widths that heads of attention have."""
        towers = [part.width // part.heads for part in (self.vision, self.audio) if part]
        return frozenset([*towers, *(sizes.head_dim for sizes in self.decoder.attention_sizes().values())])

    @property
    def base(self) -> ModelSpec:
        """The model without adapters."""
        return dataclasses.replace(self, adapter=None)

    @property
    def plain(self) -> ModelSpec:
        """The model that holds all parameters as float32."""
        return dataclasses.replace(self, frozen=None)

    @property
    def seeing(self) -> tuple[VisionSpec, ConnectorSpec]:
        """The vision tower and its connector. Raises ValueError for a model that has none."""
        if self.vision is None or self.connector is None:
            raise ValueError(f"the model has no vision tower: its parts are {', '.join(self.parts)}")
        return self.vision, self.connector


class SoftTokens(NamedTuple):
    """What media become: a table a row (B, S, D), and tables for the decoder's first layers, (K, B, S, D) or None."""

    table_BSD: jax.Array
    deep_KBSD: jax.Array | None = None


class MultimodalModel(nnx.Module):
    """Towers -> connectors -> decoder over one packed Batch."""

    def __init__(self, spec: ModelSpec, *, rngs: nnx.Rngs):
        vision, audio, width = spec.vision, spec.audio, spec.decoder.width
        self.vision = VisionTower(vision, rngs=rngs) if vision else None
        self.connector = (
            Connector(spec.connector, vision.feature_width, width, taps=vision.width, rngs=rngs)
            if vision and spec.connector
            else None
        )
        self.audio = AudioTower(audio, rngs=rngs) if audio else None
        self.audio_connector = (
            Projector(spec.audio_connector, audio.width, width, rngs=rngs) if audio and spec.audio_connector else None
        )
        self.decoder = Decoder(spec.decoder, rngs=rngs)
        if spec.adapter:
            adapt(self, spec.adapter, rngs)
        if spec.frozen:
            hold(self, spec.frozen, rngs)
        if spec.matmul == "fp8":
            multiply_in_float8(self)

    def soft_tokens(self, batch: Batch, compute: Compute) -> SoftTokens:
        """The rows' soft-token tables: of patches, then of ready-made features, then of audio and its features; before
        them the vector that ends rows, where the connector has one."""
        if unknown := sorted(set(batch.media) - ({"audio", "audio_features"} if self.audio is not None else set())):
            raise ValueError(f"the batch has {unknown[0]}, and the model no tower for it")
        tables_BSD, deep_KBSD = [], None
        if self.connector is not None:
            features = self.features(batch, compute)
            last_BND = features.last_BND
            if batch.features is not None:
                last_BND = jnp.concatenate([last_BND, batch.features.values.astype(last_BND.dtype)], axis=1)
            tables_BSD.append(self.connector(last_BND))
            if self.connector.newline is not None:
                tables_BSD.insert(0, self.connector.newline_table(last_BND.shape[0], tables_BSD[0].dtype))
            if features.taps:
                deep_KBSD = self.connector.deep_tables(jnp.stack(features.taps))
        elif batch.features is not None:
            raise ValueError("the batch has ready-made features, and the model no connector for them")
        if self.audio_connector is not None and batch.media:
            tables_BSD.append(self.audio_connector(self._audio_features(batch, compute)))
        if not tables_BSD:
            rows, width = batch.slots_BT.shape[0], self.decoder.spec.width
            return SoftTokens(jnp.zeros((rows, 0, width), jnp.dtype(compute.dtype)))
        table_BSD = jnp.concatenate(tables_BSD, axis=1) if len(tables_BSD) > 1 else tables_BSD[0]
        if deep_KBSD is None:
            return SoftTokens(table_BSD)
        others = table_BSD.shape[1] - deep_KBSD.shape[2]  # only patches have tapped layers
        return SoftTokens(table_BSD, jnp.pad(deep_KBSD, ((0, 0), (0, 0), (0, others), (0, 0))))

    def features(self, batch: Batch, compute: Compute) -> Features:
        """The vision tower's outputs."""
        if self.vision is None:
            raise ValueError("the model has no vision tower")
        return self.vision(batch.patches, batch.grids_BM3, compute)

    def heard(self, batch: Batch, compute: Compute) -> jax.Array:
        """The audio tower's outputs."""
        if self.audio is None:
            raise ValueError("the model has no audio tower")
        return self.audio(batch.media["audio"], compute)

    def _audio_features(self, batch: Batch, compute: Compute) -> jax.Array:
        """The audio tower's outputs, then ready-made ones; without recordings the tower is not run."""
        features = [self.heard(batch, compute)] if "audio" in batch.media else []
        if "audio_features" in batch.media:
            features.append(batch.media["audio_features"].values.astype(jnp.dtype(compute.dtype)))
        return jnp.concatenate(features, axis=1) if len(features) > 1 else features[0]

    def _inputs(self, batch: Batch, soft: SoftTokens, compute: Compute) -> tuple[Any, ...]:
        """What the decoder takes: embeddings and soft tokens in their places, and where these are."""
        slots_BT, tokens_BT = zigzag.shard(batch.slots_BT), zigzag.shard(batch.text.values)
        x_BTD = self.decoder.embed(tokens_BT, jnp.dtype(compute.dtype))
        if soft.table_BSD.shape[1]:
            placed_BTD = jnp.take_along_axis(soft.table_BSD, jnp.maximum(slots_BT, 0)[..., None], axis=1)
            if batch.mixed is not None:
                placed_BTD = _mixed(placed_BTD, soft.table_BSD, jax.tree.map(zigzag.shard, batch.mixed))
            x_BTD = jnp.where((slots_BT >= 0)[..., None], placed_BTD, x_BTD)
        x_BTD = sharding.constrain(x_BTD, "rows", zigzag.positions_axis(slots_BT.shape[1]), None)
        deep = None if soft.deep_KBSD is None else DeepStack(soft.deep_KBSD, slots_BT)
        own_LBTI = self.decoder.brought(tokens_BT, x_BTD, slots_BT >= 0)
        return x_BTD, batch.text.positions, batch.text.segments, batch.blocks_BT, deep, own_LBTI

    def hidden(self, batch: Batch, soft: SoftTokens, compute: Compute, target_positions_BR=None):
        """Hidden states (B, T, D) of text and soft tokens, sharded over ``context``, or those at target positions."""
        return self.decoder(
            *self._inputs(batch, soft, compute), compute=compute, target_positions_BR=target_positions_BR
        )

    def routed(self, batch: Batch, compute: Compute, target_positions_BR=None) -> tuple[jax.Array, Head, Load | None]:
        """As ``__call__``, with the load of the decoder's experts; None where it has none."""
        inputs = self._inputs(batch, self.soft_tokens(batch, compute), compute)
        hidden, load = self.decoder.routed(*inputs, compute=compute, target_positions_BR=target_positions_BR)
        return hidden, self.projection(), load

    def prefill(self, batch: Batch, size: int, compute: Compute) -> tuple[jax.Array, Cache]:
        """Logits (B, V) of what follows the one document of each row, and a cache for ``size`` positions of it."""
        inputs = self._inputs(batch, self.soft_tokens(batch, compute), compute)
        hidden_BTD, cache = self.decoder.prefill(*inputs, size=size, compute=compute)
        last_B1D = jnp.take_along_axis(hidden_BTD, cache.length_B[:, None, None] - 1, axis=1)
        return self.logits(last_B1D[:, 0]), cache

    def step(self, tokens_B, cache: Cache, compute: Compute) -> tuple[jax.Array, Cache]:
        """Logits (B, V) of what follows one more token of each row, and the cache with it."""
        x_B1D = self.decoder.embed(tokens_B[:, None], jnp.dtype(compute.dtype))
        own_LB1I = self.decoder.brought(tokens_B[:, None], x_B1D)
        hidden_B1D, cache = self.decoder.step(x_B1D, cache, compute, own_LB1I)
        return self.logits(hidden_B1D[:, 0]), cache

    def attended(self, batch: Batch, queries: Queries, groups: int, by_head: bool, compute: Compute) -> Attended:
        """Where chosen queries of the rows attend, in each layer of the decoder; see ``Decoder.attended``."""
        inputs = self._inputs(batch, self.soft_tokens(batch, compute), compute)
        return self.decoder.attended(*inputs, queries=queries, groups=groups, by_head=by_head, compute=compute)

    def logits(self, hidden_BD):
        """Float32 logits (B, V) of the vocabulary."""
        vectors, tables = terms(hidden_BD.astype(jnp.float32), self.projection())
        logits_BV = functools.reduce(jnp.add, (x @ table.T for x, table in zip(vectors, tables, strict=True)))
        cap = self.decoder.spec.logit_softcap
        return cap * jnp.tanh(logits_BV / cap) if cap else logits_BV

    def projection(self) -> Head:
        """The vocabulary projection (V, D), as it is held."""
        return self.decoder.projection()

    def __call__(self, batch: Batch, compute: Compute, target_positions_BR=None):
        """Returns hidden states and the vocabulary projection, a ``Head``.

        Args:
          target_positions_BR: where in the rows, in zigzag order; None is everywhere: (B, T, D), sharded.
        """
        return self.hidden(batch, self.soft_tokens(batch, compute), compute, target_positions_BR), self.projection()


def _mixed(placed_BTD, table_BSD, mixed: Mixed):
    """Weighted sums, in float32, of the rows of the table that are placed already and of the others."""
    others = jnp.split(mixed.others_BT3, 3, axis=-1)
    rows = [placed_BTD, *(jnp.take_along_axis(table_BSD, rows_BT1, axis=1) for rows_BT1 in others)]
    weights = jnp.split(mixed.weights_BT4, 4, axis=-1)
    return sum(x * weight_BT1 for x, weight_BT1 in zip(rows, weights, strict=True)).astype(table_BSD.dtype)


@functools.cache  # the model is traced once for all who ask
def _abstract(spec: ModelSpec) -> MultimodalModel:
    """The model with shapes in place of arrays; nothing is allocated."""
    with shapes_only():
        return nnx.eval_shape(lambda: MultimodalModel(spec, rngs=nnx.Rngs(0)))


@functools.cache
def _declared(spec: ModelSpec) -> tuple[tuple[ParamPath, jax.ShapeDtypeStruct, dict[str, Any]], ...]:
    """Path, shape and dtype, and metadata of every parameter."""
    declared = []
    for path, variable in nnx.to_flat_state(nnx.state(_abstract(spec), nnx.Param)):
        x = variable.get_value()
        declared.append((tuple(map(str, path)), jax.ShapeDtypeStruct(x.shape, x.dtype), variable.get_metadata()))
    return tuple(declared)


def flat_axes(spec: ModelSpec) -> dict[ParamPath, tuple[tuple[int, ...], tuple[str | None, ...]]]:
    """Shape and logical axes of every parameter by its path, as it is held."""
    return {
        path: (x.shape, ("layers",) * (x.ndim - len(metadata["axes"])) + tuple(metadata["axes"]))
        for path, x, metadata in _declared(spec)
    }


def kernel_dims(spec: ModelSpec) -> dict[ParamPath, tuple[tuple[int, ...], tuple[int, ...]]]:
    """The dims that each linear map takes in and gives out, by its path; those of layers and experts are in neither.

    However a kernel is held, these are its own dims, as ``flat_axes`` of the plain model has them.
    """
    maps = {}
    for path, x, metadata in _declared(spec.plain):
        if metadata["inputs"]:
            first = x.ndim - len(metadata["axes"]) + metadata["copies"]
            split = first + metadata["inputs"]
            maps[path] = tuple(range(first, split)), tuple(range(split, x.ndim))
    return maps


@functools.cache
def holdings(spec: ModelSpec) -> dict[ParamPath, Holding]:
    """What is not held as float32, by the paths of the plain model."""
    by_path: dict[ParamPath, Holding] = {}
    for path, x, metadata in _declared(spec.plain) if spec.frozen else ():
        axes, inputs = tuple(metadata["axes"]), metadata["inputs"]
        kind = spec.frozen.kind_of(path, len(axes), inputs) if spec.frozen else ""
        if kind != "float32":
            axes = axes[metadata["copies"] :]
            layers = x.ndim - len(axes)
            by_path[path] = Holding(kind, x.shape[layers:], axes, inputs, layers)
    return by_path


def hold_params(params: Params, spec: ModelSpec) -> Params:
    """The parameters of the plain model as this model holds them."""
    return nested(held(flat(params), holdings(spec))) if spec.frozen else params


def plain_params(params: Params, spec: ModelSpec) -> Params:
    """Parameters that this model holds, as float32; what was rounded stays so."""
    return nested(restored(flat(params), holdings(spec))) if spec.frozen else params


def model_maps(spec: ModelSpec) -> list[Map]:
    """The linear maps that have an adapter, and the tables over the vocabulary that have one."""
    if spec.adapter is None:
        return []
    tables = [path for path in TABLES if path in flat_axes(spec.plain)]
    return adapted_maps(spec.adapter, kernel_dims(spec), tables)


def logical_axes(spec: ModelSpec) -> Params:
    """The tree of parameters with (shape, logical axes) in place of arrays."""
    return nested(flat_axes(spec))


def abstract_params(spec: ModelSpec) -> Params:
    """The tree of parameters with shapes in place of arrays; unlike ``jax.eval_shape(init, ...)`` it traces nothing."""
    return nested({path: x for path, x, _ in _declared(spec)})


def begin_adapters(params: Params, spec: ModelSpec, key: jax.Array) -> Params:
    """The parameters of the model without adapters, with adapters that begin: see ``adapters.begin``."""
    if spec.adapter is None:
        return params
    base, maps = flat(params), model_maps(spec)
    kernels = {path: kernel_at(base, path, holdings(spec).get(path)) for path in (m.kernel for m in maps)}
    return nested(base | begin(kernels, maps, spec.adapter, key))


@functools.cache  # a run asks for it many times; each takes a third of a second
def make_model(spec: ModelSpec) -> tuple[Callable[[jax.Array], Params], Callable[..., Any]]:
    """Returns ``init(key) -> params`` and ``apply(params, *args, method=name)``, both pure and ready for ``jax.jit``.

    ``apply(params, batch, compute, target_positions_BR)`` is the model's ``__call__``.
    """
    graph, abstract = nnx.split(_abstract(spec))

    def init(key: jax.Array) -> Params:
        model = MultimodalModel(spec.plain, rngs=nnx.Rngs(params=key))
        params = hold_params(nnx.to_pure_dict(nnx.state(model, nnx.Param)), spec)
        return begin_adapters(params, spec, key) if spec.adapter else params

    def apply(params: Params, *args, method: str = "__call__"):
        state = jax.tree.map(lambda x: x, abstract)
        nnx.replace_by_pure_dict(state, params)
        return getattr(nnx.merge(graph, state), method)(*args)

    return init, apply
