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

from jaxmm import sharding
from jaxmm.batch import Batch

# Bytes of the float32 logits that a device holds at a time. Each chunk adds to the head's whole gradient: where memory
# is slow beside matmuls, chunks must be long.
LOGITS = {"cpu": 2**26}
LOGITS_ELSEWHERE = 2**29


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
    index, tokens, weights, sources = (sharding.as_rows(sharding.zigzag_shard(x)) for x in of_batch)
    chosen = jnp.argsort((weights == 0).astype(jnp.int32), axis=1, stable=True)[:, :budget]
    return Targets(chosen, *(jnp.take_along_axis(x, chosen, axis=1) for x in (index, tokens, weights, sources)))


class TokenLoss(NamedTuple):
    """Per target: negative log-likelihood in nats, and whether the most likely token is the target."""

    nll_BR: jax.Array
    correct_BR: jax.Array


def _chunk(targets: int, vocab: int) -> int:
    """Targets to project at a time: even parts of all of them, whose logits LOGITS can hold."""
    held = LOGITS.get(sharding.platform(), LOGITS_ELSEWHERE) // (4 * vocab)
    return -(-targets // -(-targets // max(held, 1)))


def _logit_terms(x_ND, head_VD, tokens_N, softcap: float):
    logits_NV = jnp.einsum("nd,vd->nv", x_ND, head_VD, preferred_element_type=jnp.float32)
    slope: jax.Array | float = 1.0  # of the bent logits
    if softcap:
        softcapped = jnp.tanh(logits_NV / softcap)
        logits_NV, slope = softcap * softcapped, 1 - softcapped**2
    top = logits_NV.max(-1, keepdims=True)
    exp_NV = jnp.exp(logits_NV - top)
    total = exp_NV.sum(-1, keepdims=True)
    log_z = (jnp.log(total) + top)[..., 0]
    is_target = jnp.arange(head_VD.shape[0]) == tokens_N[..., None]
    target_logit = jnp.where(is_target, logits_NV, 0.0).sum(-1)
    correct = logits_NV.argmax(-1) == tokens_N
    return exp_NV / total, log_z, log_z - target_logit, correct, is_target, slope


def _over_chunks(step, start, x_BRD, tokens_BR, weights_BR, vocab: int, chunk: int):
    """Scans ``step(carry, (x_ND, tokens_N, weights_N)) -> (carry, tree of (N, ...))`` over chunks of all targets, the
    last one padded with weight 0: (carry, tree of (B, R, ...))."""
    B, R = tokens_BR.shape
    size = chunk or _chunk(B * R, vocab)

    def cut(a):
        a = a.reshape(B * R, *a.shape[2:])
        return jnp.pad(a, ((0, -(B * R) % size), *[(0, 0)] * (a.ndim - 1))).reshape(-1, size, *a.shape[1:])

    carry, terms = lax.scan(step, start, jax.tree.map(cut, (x_BRD, tokens_BR, weights_BR)))
    return carry, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[: B * R].reshape(B, R, *a.shape[2:]), terms)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def cross_entropy(
    x_BRD, head_VD, tokens_BR, weights_BR, z_loss: float = 0.0, chunk: int = 0, softcap: float = 0.0
):  # fmt: skip
    """Weighted sum of cross-entropies of ``softmax(x @ head.T)``, in nats, and the terms of each target.

    Each device goes through its own rows with the whole head, which is gathered once, and its gradient summed once.

    Args:
      x_BRD: hidden states at target positions; ``head_VD`` is cast to their dtype.
      weights_BR: float32; a target of weight 0 adds nothing.
      z_loss: factor of log(Z)**2, which keeps the softmax's normaliser near 1 (PaLM, section 5).
      chunk: targets projected at a time; 0 is as many as LOGITS can hold.
      softcap: bends the logits to within plus and minus this by a tanh (Gemma 2); 0 does not.
    Returns:
      (sum, TokenLoss); only the sum has a gradient.
    """

    def own(x_BRD, head_VD, tokens_BR, weights_BR):
        def step(total, chunk_inputs):
            x, tokens, weights = chunk_inputs
            _, log_z, nll, correct, *_ = _logit_terms(x, head_VD, tokens, softcap)
            return total + (weights * (nll + z_loss * log_z**2)).sum(), TokenLoss(nll, correct)

        start, vocab = jnp.float32(0), head_VD.shape[0]
        total, terms = _over_chunks(step, start, x_BRD, tokens_BR, weights_BR, vocab, chunk)
        return terms, (total,)

    inputs = x_BRD, head_VD.astype(x_BRD.dtype), tokens_BR, weights_BR
    terms, (total,) = sharding.over_row_parts(own, whole=1)(*inputs)
    return total, terms


def _forward(x_BRD, head_VD, tokens_BR, weights_BR, z_loss: float, chunk: int, softcap: float):
    def own(x_BRD, head_VD, tokens_BR, weights_BR):
        def step(carry, chunk_inputs):
            total, dhead_VD = carry
            x, tokens, weights = chunk_inputs
            p, log_z, nll, correct, is_target, slope = _logit_terms(x, head_VD, tokens, softcap)
            total += (weights * (nll + z_loss * log_z**2)).sum()
            scale = (weights * (1 + 2 * z_loss * log_z))[..., None]
            dlogits = ((p * scale - jnp.where(is_target, weights[..., None], 0.0)) * slope).astype(x.dtype)
            # The narrow one first: XLA on CPU writes that one out transposed.
            dhead_VD += jnp.einsum("nd,nv->dv", x, dlogits, preferred_element_type=jnp.float32).T
            return (total, dhead_VD), (jnp.einsum("nv,vd->nd", dlogits, head_VD), TokenLoss(nll, correct))

        start = jnp.float32(0), jnp.zeros(head_VD.shape, jnp.float32)
        sums, of_rows = _over_chunks(step, start, x_BRD, tokens_BR, weights_BR, head_VD.shape[0], chunk)
        return of_rows, sums

    inputs = x_BRD, head_VD.astype(x_BRD.dtype), tokens_BR, weights_BR
    (dx, terms), (total, dhead_VD) = sharding.over_row_parts(own, whole=1)(*inputs)
    return (total, terms), (dx, dhead_VD.astype(head_VD.dtype))


def _backward(z_loss: float, chunk: int, softcap: float, saved, cotangents):
    del z_loss, chunk, softcap
    dx_BRD, dhead_VD = saved
    g = cotangents[0]
    return g.astype(dx_BRD.dtype) * dx_BRD, g.astype(dhead_VD.dtype) * dhead_VD, None, None


cross_entropy.defvjp(_forward, _backward)


HiddenAt = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def from_hidden(hidden_BTD, head_VD) -> HiddenAt:
    """``hidden_at`` for ``batch_loss``, of hidden states of whole rows."""
    return lambda target_positions_BR: (
        jnp.take_along_axis(sharding.as_rows(hidden_BTD), target_positions_BR[..., None], axis=1),
        head_VD,
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
    x_BRD, head_VD = hidden_at(targets.target_positions_BR)
    total, terms = cross_entropy(x_BRD, head_VD, targets.tokens_BR, targets.weights_BR, z_loss, softcap=softcap)
    return total, targets, terms
