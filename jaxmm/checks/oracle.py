"""Attention and the loss written out in float64: what ``jaxmm check`` and the tests hold the library's against."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


def dense(q_BTHD: Any, k_BTKD: Any, v_BTKD: Any, mask_BTT: Any, grad_BTHD: Any, softcap: float = 0.0) -> Any:
    """Output of masked softmax attention and the gradients of q, k, v for ``grad_BTHD``, all in float64."""
    group = q_BTHD.shape[2] // k_BTKD.shape[2]
    # Heads first, so that each product is a matmul.
    q, k, v, grad = (np.asarray(x).astype(np.float64).swapaxes(1, 2) for x in (q_BTHD, k_BTKD, v_BTKD, grad_BTHD))
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scale = q.shape[-1] ** -0.5
    logits = q @ k.mT * scale
    softcapped = softcap * np.tanh(logits / softcap) if softcap else logits
    slope = 1 - (softcapped / softcap) ** 2 if softcap else 1.0
    logits = np.where(mask_BTT[:, None], softcapped, -np.inf)
    e = np.exp(logits - logits.max(-1, keepdims=True, initial=-1e30))
    p = e / np.maximum(e.sum(-1, keepdims=True), 1e-300)
    dp = grad @ v.mT
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * slope * scale

    def ungroup(x: np.ndarray) -> np.ndarray:
        return x.reshape(x.shape[0], -1, group, *x.shape[2:]).sum(2)

    outputs = p @ v, ds @ k, ungroup(ds.mT @ q), ungroup(p.mT @ grad)
    return tuple(x.swapaxes(1, 2) for x in outputs)


def mask_by_definition(
    segments: Any, *, causal: bool, blocks: Any = None, window: int = 0, keys: Any = None, over_window: bool = False
) -> Any:  # fmt: skip
    """The dense mask of one kind of attention, from what it is said to be."""
    i, j = np.arange(segments.shape[1])[:, None], np.arange(segments.shape[1])[None]
    same = (segments[:, :, None] == segments[:, None]) & (segments > 0)[:, :, None]
    if not causal:
        return same if keys is None else same & (keys[:, :, None] == keys[:, None])
    before, near = j <= i, (j > i - window) if window else True
    of_block = False if blocks is None else (blocks[:, :, None] == blocks[:, None]) & (blocks > 0)[:, :, None]
    seen = (before & near) | of_block if over_window else (before | of_block) & near
    return same & seen


class PlainLoss(NamedTuple):
    """A sum of cross-entropies, its terms, and its gradients."""

    total: np.float64
    nll_BR: np.ndarray
    dx_BRD: np.ndarray
    dhead_VD: np.ndarray


def cross_entropy(
    x_BRD: Any, head_VD: Any, tokens_BR: Any, weights_BR: Any, z_loss: float, softcap: float = 0.0
) -> PlainLoss:
    """``jaxmm.training.loss.cross_entropy`` in float64, with the derivative of each term by hand."""
    x, head, weights = (np.asarray(a).astype(np.float64) for a in (x_BRD, head_VD, weights_BR))
    logits = x @ head.T
    slope: Any = 1.0
    if softcap:
        softcapped = np.tanh(logits / softcap)
        logits, slope = softcap * softcapped, 1 - softcapped**2
    top = logits.max(-1, keepdims=True)
    log_z = np.log(np.exp(logits - top).sum(-1, keepdims=True)) + top
    nll = -np.take_along_axis(logits - log_z, tokens_BR[..., None], -1)[..., 0]
    p = np.exp(logits - log_z)
    dlogits = weights[..., None] * (p + 2 * z_loss * log_z * p)
    np.add.at(dlogits, (*np.indices(tokens_BR.shape), tokens_BR), -weights)
    dlogits = dlogits * slope
    total = (weights * (nll + z_loss * log_z[..., 0] ** 2)).sum()
    return PlainLoss(total, nll, dlogits @ head, np.einsum("brv,brd->vd", dlogits, x, optimize=True))
