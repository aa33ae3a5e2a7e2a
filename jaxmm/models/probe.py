"""Where chosen positions of a row attend: the decoder's own probabilities, summed by what stands at the keys.

``attend_probed`` takes the place of the decoder's attention (its ``attend`` seam), so that queries and keys are those
of the model's own layers, in every family. Only chosen queries are computed, some at a time: memory grows with the
length of a row, not with its square.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxmm import sharding, zigzag
from jaxmm.batch import Array
from jaxmm.models import attention as attn
from jaxmm.models.kernels.interval_blocks import Logits

# What stands at a key. Each key is of one class for a query, so that a query's shares sum to 1. The last two are text:
# of the turn that the query's target belongs to, and of those before it.
CLASSES = ("image", "video", "audio", "separators", "first", "turn", "earlier")
TEXT = CLASSES.index("turn")  # in ``classes_BT``, whose numbers are up to here: the turns tell which of the two it is
ENTROPY, COUNT = len(CLASSES), len(CLASSES) + 1  # the columns of sums behind those of the classes
LOGITS_AT_ONCE = 1 << 20  # of a row, all heads


class Queries(NamedTuple):
    """Which positions of each row are looked at, and what stands at its keys. All int32, in the rows' true order.

    Attributes:
      at_BQ: positions.
      groups_BQ: to which sum each belongs; -1: to none, it is not looked at.
      turns_BQ: the turn of the token that each predicts.
      classes_BT: indices into CLASSES, TEXT for text of any turn.
      turns_BT: the turn of each position.
      columns_BC: keys whose own probabilities are kept; (B, 0) where only sums are wanted.
    """

    at_BQ: Array
    groups_BQ: Array
    turns_BQ: Array
    classes_BT: Array
    turns_BT: Array
    columns_BC: Array


class Attended(NamedTuple):
    """What the queries attend to, layer by layer, in float32.

    Attributes:
      sums_LHGX: over the queries of each group: the probability of each class of keys, in the order of CLASSES, then
        the entropy in nats, then 1.
      maps_LBHQC: the probabilities of the columns; or, with L and H of 1, their mean over layers and heads.
    """

    sums_LHGX: jax.Array
    maps_LBHQC: jax.Array

    @classmethod
    def empty(cls, layers: int, heads: int, groups: int, queries: Queries, by_head: bool) -> Attended:
        B, Q = queries.at_BQ.shape
        sums_LHGX = jnp.zeros((layers, heads, groups, len(CLASSES) + 2), jnp.float32)
        L, H = (layers, heads) if by_head else (1, 1)
        return cls(sums_LHGX, jnp.zeros((L, B, H, Q, queries.columns_BC.shape[1]), jnp.float32))

    def added(self, layer, sums_HGX, maps_BHQC) -> Attended:
        layers, heads = self.sums_LHGX.shape[:2]
        written = lax.dynamic_update_index_in_dim
        sums_LHGX = written(self.sums_LHGX, sums_HGX, layer, 0)
        if self.maps_LBHQC.shape[2] == heads and self.maps_LBHQC.shape[0] == layers:
            return Attended(sums_LHGX, written(self.maps_LBHQC, maps_BHQC, layer, 0))
        return Attended(sums_LHGX, self.maps_LBHQC + maps_BHQC.mean(1, keepdims=True)[None] / layers)


def attend_probed(
    q_BTHD, k_BTKD, v_BTKD, intervals: attn.Intervals, *, queries: Queries, cache: Attended, kind: str, layer,
    number, backend: str, mask: str, is_handed: bool = False, scale: float = 0.0, softcap: float = 0.0,
):  # fmt: skip
    """Attention as in training, and what the queries of this layer attend to."""
    del kind, layer, is_handed
    out_BTHD = attn.attention(
        q_BTHD, k_BTKD, v_BTKD, intervals, backend=backend, mask=mask, scale=scale, softcap=softcap
    )
    q_BTHD, k_BTKD, start_BT, end_BT = (zigzag.unshard(x) for x in (q_BTHD, k_BTKD, *intervals))
    logits = Logits(scale or q_BTHD.shape[-1] ** -0.5, softcap)
    groups = cache.sums_LHGX.shape[2]
    return out_BTHD, cache.added(number, *_measured(q_BTHD, k_BTKD, start_BT, end_BT, queries, groups, logits))


def _measured(q_BTHD, k_BTKD, start_BT, end_BT, queries: Queries, groups: int, kind: Logits):
    """The sums (H, groups, X) and maps (B, H, Q, C) of one layer, some queries at a time."""
    (B, T, H, _), (_, Q) = q_BTHD.shape, queries.at_BQ.shape
    size = min(Q, max(1, LOGITS_AT_ONCE // (H * T)))
    parts = -(-Q // size)
    keys = _Keys.of(k_BTKD, queries)

    def cut(x_BQ):
        filled = jnp.pad(x_BQ, ((0, 0), (0, parts * size - Q)), constant_values=-1)
        return jnp.swapaxes(filled.reshape(B, parts, size), 0, 1)

    def measure(sums_HGX, part):
        at_Bq, groups_Bq, turns_Bq = part
        there_Bq = jnp.maximum(at_Bq, 0)
        q_BqHD = jnp.take_along_axis(q_BTHD, there_Bq[..., None, None], axis=1)
        start_Bq, end_Bq = (jnp.take_along_axis(x, there_Bq, axis=1) for x in (start_BT, end_BT))
        p_BHqT = _probabilities(q_BqHD, keys.k_BTKD, start_Bq, end_Bq, kind)
        each_BHqX = keys.sums(p_BHqT, turns_Bq)
        of_BqG = jax.nn.one_hot(groups_Bq, groups, dtype=jnp.float32)  # -1 is of no group
        sums_HGX += jnp.einsum("bhqx,bqg->hgx", each_BHqX, of_BqG, precision=lax.Precision.HIGHEST)
        return sums_HGX, jnp.take_along_axis(p_BHqT, queries.columns_BC[:, None, None], axis=-1)

    start = jnp.zeros((H, groups, len(CLASSES) + 2), jnp.float32)
    sums_HGX, maps = lax.scan(measure, start, tuple(map(cut, queries[:3])))  # maps: (parts, B, H, size, C)
    maps_BHQC = jnp.moveaxis(maps, 0, 2).reshape(B, H, parts * size, -1)[:, :, :Q]
    return sums_HGX, maps_BHQC


class _Keys(NamedTuple):
    """The keys of rows, and what stands there."""

    k_BTKD: jax.Array
    is_class_BTX: jax.Array  # float32, one column for each class up to TEXT
    turns_BT: jax.Array

    @classmethod
    def of(cls, k_BTKD, queries: Queries) -> _Keys:
        k_BTKD = sharding.constrain(k_BTKD, "rows", None, "kv_heads", None)
        return cls(k_BTKD, jax.nn.one_hot(queries.classes_BT, TEXT + 1, dtype=jnp.float32), queries.turns_BT)

    def sums(self, p_BHqT, turns_Bq):
        """(B, H, q, X) of probabilities: those of each class, their entropy, and 1."""
        by_class = jnp.einsum("bhqt,btx->bhqx", p_BHqT, self.is_class_BTX, precision=lax.Precision.HIGHEST)
        is_own_BqT = self.is_class_BTX[:, None, :, TEXT] * (self.turns_BT[:, None] == turns_Bq[..., None])
        own = jnp.einsum("bhqt,bqt->bhq", p_BHqT, is_own_BqT, precision=lax.Precision.HIGHEST)[..., None]
        entropy = -(p_BHqT * jnp.log(jnp.maximum(p_BHqT, 1e-30))).sum(-1, keepdims=True)
        return jnp.concatenate(
            [by_class[..., :TEXT], own, by_class[..., TEXT:] - own, entropy, jnp.ones_like(entropy)], axis=-1
        )


def _probabilities(q_BqHD, k_BTKD, start_Bq, end_Bq, kind: Logits):
    """Softmax (B, H, q, T) in float32 over the keys in each query's interval; 0 for an empty one."""
    B, q, H, D = q_BqHD.shape
    T, K = k_BTKD.shape[1:3]
    q_BqKGD = (q_BqHD.astype(jnp.float32) * kind.scale).reshape(B, q, K, H // K, D)
    logits = jnp.einsum("bqkgd,btkd->bkgqt", q_BqKGD, k_BTKD.astype(jnp.float32), precision=lax.Precision.HIGHEST)
    keys = jnp.arange(T, dtype=jnp.int32)
    seen_BqT = (keys >= start_Bq[..., None]) & (keys < end_Bq[..., None])
    seen = seen_BqT[:, None, None]
    logits = jnp.where(seen, kind.softcapped(logits), -jnp.inf)
    largest = jnp.maximum(logits.max(-1, keepdims=True), -1e30)  # finite where nothing is seen
    raised = jnp.where(seen, jnp.exp(logits - largest), 0.0)
    return (raised / jnp.maximum(raised.sum(-1, keepdims=True), 1e-30)).reshape(B, H, q, T)
