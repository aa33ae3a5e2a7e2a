"""The vocabulary projection and cross-entropy, at target positions only and in chunks of them.

The loss is one sum over one sum: this module returns sums, and whoever calls it divides by the weight of the whole
global batch. The gradient of a chunk's logits is made in the forward pass, where they exist anyway, so that no chunk is
projected twice and the logits of one chunk are all that is ever held. Of a larger vocabulary chunks are shorter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxmm import per_device, sharding, zigzag
from jaxmm.batch import Batch
from jaxmm.models import tables
from jaxmm.models.materialize import barrier
from jaxmm.models.tables import Head

# Bytes of the float32 logits that a device holds at a time. Each chunk reads and writes the head's whole gradient:
# where memory is slow beside matmuls, chunks must be long. With the head, read twice, that is 12 bytes for 6 N FLOPs of
# N targets: as much time as their matmuls at 590 targets on an H100, and at 480 on a TPU v5e.
LOGITS = {"cpu": 2**26}
LOGITS_ELSEWHERE = 2**30


class Targets(NamedTuple):
    """The target positions of each row, first to last, padded to the target budget with weight 0.

    Where positions are sharded over ``context``, a row here is what one device holds of a row.
    """

    target_positions_BR: jax.Array  # where they are in the row, in zigzag order; int32 (R: the target budget)
    at_BR: jax.Array  # text position
    tokens_BR: jax.Array
    weights_BR: jax.Array
    sources_BR: jax.Array


def select_targets(batch: Batch, budget: int) -> Targets:
    """Gathers the positions with weight: the plan guarantees that no row has more than ``budget`` of them."""
    index_BT = jnp.broadcast_to(jnp.arange(batch.weights_BT.shape[1], dtype=jnp.int32), batch.weights_BT.shape)
    of_batch = index_BT, batch.targets_BT, batch.weights_BT, batch.sources_BT
    index, tokens, weights, sources = (zigzag.as_rows(zigzag.shard(x)) for x in of_batch)
    chosen = jnp.argsort((weights == 0).astype(jnp.int32), axis=1, stable=True)[:, :budget]
    return Targets(chosen, *(jnp.take_along_axis(x, chosen, axis=1) for x in (index, tokens, weights, sources)))


class TokenLoss(NamedTuple):
    """Per target: negative log-likelihood in nats, and whether no token is likelier."""

    nll_BR: jax.Array
    correct_BR: jax.Array


def _chunk(targets: int, vocab: int) -> int:
    """Targets to project at a time: even parts of all of them, whose logits LOGITS can hold."""
    held = LOGITS.get(sharding.platform(), LOGITS_ELSEWHERE) // (4 * vocab)
    return -(-targets // -(-targets // max(held, 1)))


Terms = tuple[jax.Array, ...]  # vectors (..., D) or tables (V, D), as ``tables.terms`` gives them


def _logit_terms(xs_ND: Terms, heads_VD: Terms, tokens_N, softcap: float):
    multiplied = functools.partial(jnp.einsum, "nd,vd->nv", preferred_element_type=jnp.float32)
    logits_NV = functools.reduce(jnp.add, map(multiplied, xs_ND, heads_VD))
    slope: jax.Array | float = 1.0  # of the softcapped logits
    if softcap:
        softcapped = jnp.tanh(logits_NV / softcap)
        logits_NV, slope = softcap * softcapped, 1 - softcapped**2
    top = logits_NV.max(-1, keepdims=True)
    exp_NV = jnp.exp(logits_NV - top)
    total = exp_NV.sum(-1, keepdims=True)
    log_z = (jnp.log(total) + top)[..., 0]
    tokens_N1 = barrier(tokens_N)[..., None]  # else they are gathered again at each logit
    is_target = jnp.arange(logits_NV.shape[-1]) == tokens_N1
    target_logit = jnp.take_along_axis(logits_NV, tokens_N1, axis=-1)
    correct = target_logit == top  # an argmax takes a CPU longer than the rest
    return exp_NV / total, log_z, log_z - target_logit[..., 0], correct[..., 0], is_target, slope


def _over_chunks(step, start, xs_BRD: Terms, tokens_BR, weights_BR, vocab: int, chunk: int):
    """Scans ``step(carry, (xs_ND, tokens_N, weights_N)) -> (carry, tree of (N, ...))`` over chunks of all targets, the
    last one padded with weight 0: (carry, tree of (B, R, ...))."""
    B, R = tokens_BR.shape
    size = chunk or _chunk(B * R, vocab)

    def cut(a):
        a = a.reshape(B * R, *a.shape[2:])
        return jnp.pad(a, ((0, -(B * R) % size), *[(0, 0)] * (a.ndim - 1))).reshape(-1, size, *a.shape[1:])

    carry, terms = lax.scan(step, start, jax.tree.map(cut, (xs_BRD, tokens_BR, weights_BR)))
    return carry, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[: B * R].reshape(B, R, *a.shape[2:]), terms)


def cross_entropy(
    x_BRD, head: Head, tokens_BR, weights_BR, z_loss: float = 0.0, chunk: int = 0, softcap: float = 0.0
) -> tuple[jax.Array, TokenLoss]:  # fmt: skip
    """Weighted sum of cross-entropies of ``softmax(x @ head.T)``, in nats, and the terms of each target.

    Each device goes through its own rows with the whole head, which is gathered once, and its gradient summed once.

    Args:
      x_BRD: hidden states at target positions.
      head: the vocabulary projection, which is cast to their dtype. Of one with an adapter no gradient of the table is
        made where none is asked for.
      weights_BR: float32; a target of weight 0 adds nothing.
      z_loss: factor of log(Z)**2, which keeps the softmax's normaliser near 1 (PaLM, section 5).
      chunk: targets projected at a time; 0 is as many as LOGITS can hold.
      softcap: bends the logits to within plus and minus this by a tanh (Gemma 2); 0 does not.
    Returns:
      (sum, TokenLoss); only the sum has a gradient.
    """
    xs_BRD, heads_VD = tables.terms(x_BRD, head)
    return _cross_entropy(xs_BRD, heads_VD, tokens_BR, weights_BR, z_loss, chunk, softcap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _cross_entropy(xs_BRD: Terms, heads_VD: Terms, tokens_BR, weights_BR, z_loss: float, chunk: int, softcap: float):
    def own(xs_BRD, heads_VD, tokens_BR, weights_BR):
        def step(total, chunk_inputs):
            xs, tokens, weights = chunk_inputs
            _, log_z, nll, correct, *_ = _logit_terms(xs, heads_VD, tokens, softcap)
            return total + (weights * (nll + z_loss * log_z**2)).sum(), TokenLoss(nll, correct)

        start, vocab = jnp.float32(0), heads_VD[0].shape[0]
        total, terms = _over_chunks(step, start, xs_BRD, tokens_BR, weights_BR, vocab, chunk)
        return terms, (total,)

    inputs = xs_BRD, _as_vectors(heads_VD, xs_BRD), tokens_BR, weights_BR
    terms, (total,) = per_device.over_row_parts(own, whole=1)(*inputs)
    return total, terms


def _as_vectors(heads_VD: Terms, xs_BRD: Terms) -> Terms:
    """Tables in the dtype of the vectors."""
    return tuple(head_VD.astype(xs_BRD[0].dtype) for head_VD in heads_VD)


def _forward(xs_BRD: Terms, heads_VD: Terms, tokens_BR, weights_BR, z_loss: float, chunk: int, softcap: float):
    def own(xs_BRD, heads_VD, tokens_BR, weights_BR):
        def step(carry, chunk_inputs):
            total, dheads_VD = carry
            xs, tokens, weights = chunk_inputs
            p, log_z, nll, correct, is_target, slope = _logit_terms(xs, heads_VD, tokens, softcap)
            total += (weights * (nll + z_loss * log_z**2)).sum()
            scale = (weights * (1 + 2 * z_loss * log_z))[..., None]
            dlogits = ((p * scale - jnp.where(is_target, weights[..., None], 0.0)) * slope).astype(xs[0].dtype)
            # The narrow one first: XLA on CPU writes that one out transposed.
            dheads_VD = tuple(
                dhead_VD + jnp.einsum("nd,nv->dv", x, dlogits, preferred_element_type=jnp.float32).T
                for x, dhead_VD in zip(xs, dheads_VD, strict=True)
            )
            dxs = tuple(jnp.einsum("nv,vd->nd", dlogits, head_VD) for head_VD in heads_VD)
            return (total, dheads_VD), (dxs, TokenLoss(nll, correct))

        start = jnp.float32(0), tuple(jnp.zeros(head_VD.shape, jnp.float32) for head_VD in heads_VD)
        sums, of_rows = _over_chunks(step, start, xs_BRD, tokens_BR, weights_BR, heads_VD[0].shape[0], chunk)
        return of_rows, sums

    inputs = xs_BRD, _as_vectors(heads_VD, xs_BRD), tokens_BR, weights_BR
    (dxs_BRD, terms), (total, dheads_VD) = per_device.over_row_parts(own, whole=1)(*inputs)
    return (total, terms), (dxs_BRD, tuple(d.astype(head.dtype) for d, head in zip(dheads_VD, heads_VD, strict=True)))


def _backward(z_loss: float, chunk: int, softcap: float, saved, cotangents):
    del z_loss, chunk, softcap
    g = cotangents[0]
    dxs_BRD, dheads_VD = jax.tree.map(lambda d: g.astype(d.dtype) * d, saved)
    return dxs_BRD, dheads_VD, None, None


_cross_entropy.defvjp(_forward, _backward)


HiddenAt = Callable[[jax.Array], tuple[jax.Array, Head]]


def from_hidden(hidden_BTD, head: Head) -> HiddenAt:
    """``hidden_at`` for ``batch_loss``, of hidden states of whole rows."""
    return lambda target_positions_BR: (
        jnp.take_along_axis(zigzag.as_rows(hidden_BTD), target_positions_BR[..., None], axis=1),
        head,
    )


def batch_loss(
    hidden_at: HiddenAt,
    batch: Batch, budget: int, z_loss: float, softcap: float = 0.0,
) -> tuple[jax.Array, Targets, TokenLoss]:  # fmt: skip
    """The summed loss of a batch at its targets, with what was predicted where and how well.

    A loss term on hidden states is added to ``total`` here. One on logits belongs into ``_logit_terms``, with its
    derivative in ``_forward``; one on parameters into ``microbatch_loss`` of ``training/step.py``.

    Args:
      hidden_at: from places in the rows, (B, R), to the hidden states there and the vocabulary projection.
    """
    targets = select_targets(batch, budget)
    x_BRD, head = hidden_at(targets.target_positions_BR)
    total, terms = cross_entropy(x_BRD, head, targets.tokens_BR, targets.weights_BR, z_loss, softcap=softcap)
    return total, targets, terms
