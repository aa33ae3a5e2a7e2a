"""Where the attention of target positions goes, by layer and head, source and modality, over one loaded batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmm import sharding
from jaxmm.batch import Batch
from jaxmm.data.assemble import Loaded
from jaxmm.data.media.table import MEDIA
from jaxmm.data.packing.plan import Lengths
from jaxmm.data.text.template import Template
from jaxmm.models.multimodal import Compute, ModelSpec, make_model
from jaxmm.models.probe import CLASSES, COUNT, ENTROPY, Attended, Queries
from jaxmm.monitor.standing import CLASS_OF, MODALITIES, Standing, standing

DIGITS = 6  # behind the point, of figures in the log
MOST = 32  # groups of sources
MAP_BYTES = 1 << 27  # of the maps of single heads
SEEN = 1 << len(MODALITIES)  # sets of modalities that a target may have before it


class Probe:
    """``attended`` of a model, under jit: compiled once for each shape of a batch and its queries.

    Attributes:
      groups: of queries, each with sums of its own.
    """

    def __init__(self, model: ModelSpec, compute: Compute, groups: int = 1, parts: int = 1):
        """
        Args:
          parts: a batch is computed in, one after the other, as a step with ``accumulation``; above 1, maps are not
            made.
        """
        apply = make_model(model)[1]
        self.groups, self._heads = groups, len(model.decoder.attention_layers()) * model.decoder.heads
        # Layers in a loop: it is compiled for a few batches alone.
        compute = dataclasses.replace(compute, unroll=1, remat="none")

        def attended(params: Any, batch: Batch, queries: Queries, by_head: bool) -> Attended:
            def of(part: tuple[Batch, Queries]) -> Attended:
                return apply(params, *part, groups, by_head, compute, method="attended")

            sums = of((batch, queries)) if parts == 1 else _added_up(of, (batch, queries), parts)
            return jax.tree.map(lambda x: sharding.constrain(x, *[None] * x.ndim), sums)

        self._run = jax.jit(attended, static_argnums=3)

    def __call__(self, params: Any, batch: Batch, queries: Queries) -> Attended:
        """Attention of a placed batch's queries, whole in every process.

        Where maps of each head would be larger than MAP_BYTES, they are the mean over heads.
        """
        numbers = math.prod(queries.at_BQ.shape) * queries.columns_BC.shape[1] * self._heads
        return self._run(params, batch, queries, 4 * numbers <= MAP_BYTES)


def _added_up(of: Callable[[Any], Attended], inputs: Any, parts: int) -> Attended:
    """The sums over microbatches, without maps."""
    dealt = sharding.microbatches(inputs, parts)
    shape = jax.eval_shape(of, jax.tree.map(lambda x: x[0], dealt)).sums_LHGX

    def add(sums: jax.Array, part: Any) -> tuple[jax.Array, None]:
        return sums + of(part).sums_LHGX, None

    return Attended(jax.lax.scan(add, jnp.zeros(shape.shape, shape.dtype), dealt)[0], jnp.zeros((0,)))


class AttentionMonitor:
    """Looks at the attention of a run's batches."""

    def __init__(
        self, model: ModelSpec, compute: Compute, mesh: Any, lengths: Sequence[Lengths], template: Template, most: int,
        accumulation: int = 1,
    ):  # fmt: skip
        """
        Args:
          lengths: of the sources that batches are made of.
          most: target positions of a row that are looked at.
          accumulation: microbatches that a batch is computed in.
        """
        self._mesh, self._lengths, self._template, self._most = mesh, list(lengths), template, most
        self._names, self._group_S = _groups(self._lengths)
        held = {MEDIA[name].modality for source in self._lengths for name in source.media_counts()}
        self._media = {MODALITIES[CLASS_OF[name]] for name in held}
        self._probe = Probe(model, compute, len(self._names) * SEEN, accumulation)

    def __call__(self, params: Any, loaded: Loaded, batch: Batch) -> dict[str, Any]:
        """The figures of one batch; {} where it has no targets. Every process of a job must ask.

        Args:
          loaded: the rows that this process loads.
          batch: the same batch on the mesh.
        """
        stands = standing(loaded, self._lengths, self._template)
        queries = choose_queries(loaded, stands, self._most, self._group_S)
        attended = self._probe(params, batch, sharding.place_batch(queries, self._mesh))
        return figures(np.asarray(attended.sums_LHGX, np.float64), self._names, self._media)


def _groups(lengths: Sequence[Lengths]) -> tuple[list[str], np.ndarray]:
    """Names of groups of sources, and the group of each: of more than MOST sources, the smallest are one group."""
    by_size = sorted(range(len(lengths)), key=lambda i: -int(lengths[i].tokens_E.sum()))
    alone = sorted(by_size if len(by_size) <= MOST else by_size[: MOST - 1])
    group_S = np.full(len(lengths), len(alone), np.int64)
    group_S[alone] = np.arange(len(alone))
    others = [f"{len(lengths) - len(alone)} other sources"] if len(alone) < len(lengths) else []
    return [lengths[i].name for i in alone] + others, group_S


def choose_queries(loaded: Loaded, stands: Standing, most: int, group_S: np.ndarray) -> Queries:
    """Up to ``most`` target positions of each row, spread evenly over all that it has; their group is that of their
    source, of which ``group_S`` has the number, and the set of modalities that stand before them."""
    rows, length = stands.classes_BT.shape
    at_BQ, groups_BQ, turns_BQ = (np.full((rows, min(most, length)), value, np.int32) for value in (0, -1, 0))
    for b, weights in enumerate(loaded.batch.weights_BT):
        targets = np.flatnonzero(weights > 0)
        count = min(most, len(targets))
        at = targets[((np.arange(count) + 0.5) * len(targets) / max(count, 1)).astype(int)]  # the middle of equal parts
        here = slice(0, len(at))
        at_BQ[b, here], turns_BQ[b, here] = at, stands.turns_BT[b, at + 1]
        groups_BQ[b, here] = group_S[loaded.batch.sources_BT[b, at]] * SEEN + stands.seen_BT[b, at]
    none = np.zeros((rows, 0), np.int32)
    return Queries(at_BQ, groups_BQ, turns_BQ, stands.classes_BT, stands.turns_BT, none)


class _Share(NamedTuple):
    """Of some queries: how many they are, and what they attend to on average, (layers, heads, classes and entropy)."""

    queries: int
    mean_LHX: np.ndarray

    @classmethod
    def of(cls, sums_LHGX: np.ndarray) -> _Share:
        total = sums_LHGX.sum(2)
        count = total[0, 0, COUNT]
        return cls(round(float(count)), total[..., :COUNT] / max(count, 1.0))


def figures(sums_LHGX: np.ndarray, names: Sequence[str], media: Container[str]) -> dict[str, Any]:
    """The sums of a batch as they are logged.

    Args:
      sums_LHGX: as of ``Attended``; group ``number of the sources * SEEN + set of modalities seen``.
      names: of the groups of sources.
      media: the modalities that the run has.
    Returns:
      queries, layers, heads; classes: all but media that the run does not have; mean: of each class and the entropy,
      over all layers and heads; mass: of each class by [layer][head]; entropy by [layer][head], in nats; sources: the
      same of each, by [layer]; media: of the queries that have a modality before them, attention onto it, by
      [layer][head].
    """
    sums = sums_LHGX.reshape(*sums_LHGX.shape[:2], len(names), SEEN, -1)
    whole = _Share.of(sums_LHGX)
    if not whole.queries:
        return {}
    classes = [name for name in CLASSES if name not in MODALITIES or name in media]
    columns = {name: CLASSES.index(name) for name in classes}
    by_source = {name: _Share.of(sums[:, :, i]) for i, name in enumerate(names)}
    seen = np.arange(SEEN)
    by_modality = {name: _Share.of(sums[:, :, :, seen >> m & 1 > 0].reshape(*sums.shape[:2], -1, sums.shape[-1]))
                   for m, name in enumerate(MODALITIES)}  # fmt: skip
    return {
        "queries": whole.queries,
        "layers": sums.shape[0],
        "heads": sums.shape[1],
        "classes": classes,
        "mean": {name: _rounded(whole.mean_LHX[..., x].mean()) for name, x in (columns | {"entropy": ENTROPY}).items()},
        "mass": {name: _rounded(whole.mean_LHX[..., x]) for name, x in columns.items()},
        "entropy": _rounded(whole.mean_LHX[..., ENTROPY]),
        "sources": {
            name: {
                "queries": share.queries,
                "mass": {each: _rounded(share.mean_LHX[..., x].mean(1)) for each, x in columns.items()},
                "entropy": _rounded(share.mean_LHX[..., ENTROPY].mean(1)),
            }
            for name, share in by_source.items()
            if share.queries
        },
        "media": {
            name: {"queries": share.queries, "mass": _rounded(share.mean_LHX[..., MODALITIES.index(name)])}
            for name, share in by_modality.items()
            if share.queries
        },
    }


def _rounded(values: Any) -> Any:
    return np.round(values, DIGITS).tolist()
