"""Model FLOPs of a batch, counted from its real patches, positions, attention spans and targets.

Two per multiply-add of a matmul; a backward pass is two more forwards. Padding, recomputation, norms and softmax count
nothing, as in PaLM's model FLOPs utilisation (Chowdhery et al., 2022, appendix B).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmm.batch import Batch, Stream
from jaxmm.models.decoder import DecoderSpec
from jaxmm.models.multimodal import ModelSpec
from jaxmm.models.towers.vit import VisionSpec


def _lengths(segments: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """float64: how many positions each segment of each row has; with keys, each run of equal keys in it."""
    rows = np.broadcast_to(np.arange(len(segments))[:, None], segments.shape)
    where = np.stack([rows, segments, *keys], -1)[segments > 0]
    return np.unique(where, axis=0, return_counts=True)[1].astype(float) if len(where) else np.zeros(0)


def _tower_pairs(spec: VisionSpec, patches: Stream) -> float:
    """Pairs of patches that see each other, over all layers."""
    segments, places = np.asarray(patches.segments), np.asarray(patches.positions)
    is_local = spec.is_local()
    total = (~is_local).sum() * (_lengths(segments) ** 2).sum()
    if is_local.any():
        total += is_local.sum() * (_lengths(segments, *np.moveaxis(places[..., 1:] // spec.window, -1, 0)) ** 2).sum()
    return float(total)


def _decoder_pairs(spec: DecoderSpec, segments: np.ndarray) -> float:
    """Pairs of positions and what they see, over all layers: half of the square, less what a window cuts off."""
    lengths = _lengths(segments)
    cut_off = np.maximum(lengths - spec.window, 0) if spec.window else np.zeros_like(lengths)
    is_local = spec.is_local()
    return float(len(is_local) * (lengths**2).sum() - is_local.sum() * (cut_off**2).sum()) / 2


def batch_flops(spec: ModelSpec, batch: Batch, frozen: tuple[str, ...] = ()) -> float:
    """FLOPs of one training step on a NumPy Batch, forward and backward.

    A frozen part has no weight gradient; it passes the gradient on only if something before it is trained.
    """
    vision, connector, decoder = spec.vision, spec.connector, spec.decoder
    patches = float((np.asarray(batch.patches.segments) > 0).sum())
    vectors = patches if batch.features is None else patches + float((np.asarray(batch.features.segments) > 0).sum())
    positions = float((np.asarray(batch.text.segments) > 0).sum())
    targets = float((np.asarray(batch.weights_BT) > 0).sum())
    group = connector.merge**2

    vision_layer = 4 * vision.width**2 + (3 if vision.gated else 2) * vision.width * vision.mlp
    wide = connector.pooled_width(vision.feature_width)
    connector_map = (wide + decoder.width) * connector.mlp if connector.mlp else wide * decoder.width
    forward = {
        "vision": 2 * patches * (3 * vision.patch_size**2 * vision.width + vision.layers * vision_layer)
        + 4 * vision.width * _tower_pairs(vision, batch.patches),
        "connector": 2 * vectors / group * connector_map * (1 + connector.deep),
    }
    head_width = decoder.heads * decoder.head_dim
    decoder_layer = decoder.width * (2 * head_width + 2 * decoder.kv_heads * decoder.head_dim + 3 * decoder.mlp)
    forward["decoder"] = (
        2 * positions * decoder.layers * decoder_layer
        + 2 * targets * decoder.width * decoder.vocab_size
        + 4 * head_width * _decoder_pairs(decoder, np.asarray(batch.text.segments))
    )
    total, trained_before = 0.0, False
    for part in ("vision", "connector", "decoder"):
        trained = part not in frozen
        total += forward[part] * (1 + trained + (trained_before or (trained and part != "vision")))
        total += forward[part] if trained and part == "vision" else 0.0
        trained_before = trained_before or trained
    return total


def parameter_counts(params: dict[str, Any]) -> dict[str, int]:
    """Numbers of parameters by part."""

    def count(tree: Any) -> int:
        return sum(count(v) for v in tree.values()) if isinstance(tree, dict) else int(np.prod(tree.shape))

    return {part: count(tree) for part, tree in params.items()}
