"""Model FLOPs of a batch, counted from its real patches, frames, positions, attention spans and targets.

Two per multiply-add of a matmul; a backward pass is two more forwards. Padding, recomputation, norms and softmax count
nothing, as in PaLM's model FLOPs utilisation (Chowdhery et al., 2022, appendix B), nor do experts that a position does
not go through.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from jaxmm.batch import Batch, Stream
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.decoder_spec import HANDED, DecoderSpec
from jaxmm.models.multimodal import ModelSpec, flat_axes, model_maps
from jaxmm.models.towers.audio import AudioTowerSpec, tower_segments
from jaxmm.models.towers.vit import VisionSpec
from jaxmm.models.trainable import EVERYTHING, Trainable


class Forward(NamedTuple):
    """FLOPs of a part's forward pass.

    Attributes:
      maps: the linear maps of its layers, but for experts and the last ones.
      experts: those of experts.
      last: the last map of each layer, of whose output no gradient is taken: its MLP's.
      meetings: positions that meet each other in attention.
      beside: all that is in no layer.
    """

    maps: float = 0.0
    experts: float = 0.0
    last: float = 0.0
    meetings: float = 0.0
    beside: float = 0.0

    @property
    def total(self) -> float:
        return sum(self)

    def again(self, remat: str) -> float:
        """What is computed again for the backward pass, by a key of ``layers.REMAT``.

        "dots" and "offload" keep what maps give, not what experts and attention do.
        """
        if remat == "none":
            return 0.0
        return self.meetings + self.experts + (self.maps if remat == "full" else 0.0)


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


def _decoder_pairs(spec: DecoderSpec, segments: np.ndarray, kind: str) -> float:
    """Pairs of positions and what they see, over the layers of a kind of attention: half of the square, less what a
    window cuts off."""
    lengths = _lengths(segments)
    cut_off = np.maximum(lengths - spec.window, 0) if spec.window else np.zeros_like(lengths)
    is_local = spec.is_local()[[*spec.layers_of(kind), *spec.layers_of(HANDED[kind])]]
    return float(len(is_local) * (lengths**2).sum() - is_local.sum() * (cut_off**2).sum()) / 2


def _vision_flops(spec: VisionSpec, patches: Stream) -> Forward:
    count = 2 * float((np.asarray(patches.segments) > 0).sum())
    last, is_needed = spec.width * spec.mlp, spec.post_norms or bool(spec.layer_scale)
    layer = 4 * spec.width**2 + (2 if spec.gated else 1) * last + is_needed * last
    return Forward(
        maps=count * spec.layers * layer,
        last=count * spec.layers * last * (not is_needed),
        meetings=4 * spec.width * _tower_pairs(spec, patches),
        beside=count * 3 * spec.patch_size**2 * spec.width,
    )


def _stem_maps(spec: AudioTowerSpec) -> float:
    """Multiply-adds of the stem, a frame."""
    if spec.stem == "whisper":
        return 3 * spec.mels * spec.width + 3 * spec.width**2 / spec.stride
    total, inputs, frames, bands = 0, 1, spec.chunk, spec.mels
    for _ in range(3):
        frames, bands = -(-frames // 2), -(-bands // 2)
        total += 9 * inputs * spec.channels * frames * bands
        inputs = spec.channels
    return (total + frames * bands * spec.channels * spec.width) / spec.chunk


def _audio_flops(spec: AudioTowerSpec, audio: Stream) -> Forward:
    segments_BF = np.asarray(audio.segments)
    frames, lengths = float((segments_BF > 0).sum()), _lengths(tower_segments(segments_BF, spec))
    count, last = 2 * float(lengths.sum()) * spec.layers, spec.width * spec.mlp
    return Forward(
        maps=count * (4 * spec.width**2 + last),
        last=count * last,
        meetings=4 * spec.width * spec.layers * float((lengths**2).sum()),
        beside=2 * frames * _stem_maps(spec),
    )


def _connector_flops(spec: ConnectorSpec, inputs: int, outputs: int, soft_tokens: float) -> float:
    wide = spec.pooled_width(inputs)
    maps = (wide + outputs) * spec.mlp if spec.mlp else wide * outputs
    if spec.gated:
        maps = wide * spec.mlp + 3 * outputs * spec.gated
    maps += spec.merge**2 * inputs * spec.merged
    return 2 * soft_tokens * maps * (1 + spec.deep)


def _decoder_flops(spec: DecoderSpec, batch: Batch) -> Forward:
    positions = float((np.asarray(batch.text.segments) > 0).sum())
    targets = float((np.asarray(batch.weights_BT) > 0).sum())
    last = len(spec.layers_of("mlp")) * spec.width * spec.mlp
    last += len(spec.layers_of("handed_mlp")) * spec.width * spec.handed_mlp
    maps, experts, meetings = 2.0 * last, 0.0, 0.0
    if one := spec.experts:
        of_layer = one.count + 3 * (one.chosen * one.mlp + one.shared_mlp) + one.shared_gate
        experts = float(len(spec.layers_of("experts")) * spec.width * of_layer)
    for kind, (kv_heads, head_dim, shared_kv) in spec.attention_sizes().items():
        own, of_keys = (2 + spec.attention_gate) * spec.heads, (2 - shared_kv) * kv_heads
        numbers = len(spec.layers_of(kind)) * (own + of_keys) + len(spec.layers_of(HANDED[kind])) * own
        maps += numbers * spec.width * head_dim
        meetings += 4 * spec.heads * head_dim * _decoder_pairs(spec, np.asarray(batch.text.segments), kind)
    for mixer, of_mixer in (("convolution", spec.convolution), ("delta", spec.delta)):
        maps += len(spec.layers_of(mixer)) * of_mixer.multiplications() if of_mixer else 0
    maps += 3 * spec.layers * spec.width * spec.layer_inputs  # all layers' at once, and two maps of each
    if spec.post_norms or spec.layer_inputs or spec.experts_beside:  # a gradient needs its output
        maps, last = maps + last, 0
    head = targets * spec.width * spec.vocab_size
    return Forward(2 * positions * maps, 2 * positions * experts, 2 * positions * last, meetings, 2 * head)


def _forward_flops(spec: ModelSpec, batch: Batch) -> dict[str, Forward]:
    """Of a forward pass, by part."""
    forward = {"decoder": _decoder_flops(spec.decoder, batch)}
    width = spec.decoder.width
    if spec.vision is not None and spec.connector is not None:
        vectors = sum(float((np.asarray(x.segments) > 0).sum()) for x in (batch.patches, batch.features) if x)
        forward["vision"] = _vision_flops(spec.vision, batch.patches)
        forward["connector"] = Forward(
            beside=_connector_flops(spec.connector, spec.vision.feature_width, width, vectors / spec.connector.merge**2)
        )
    if spec.audio is not None and spec.audio_connector is not None and batch.media:
        heard = 0.0
        if audio := batch.media.get("audio"):
            heard += float((tower_segments(np.asarray(audio.segments), spec.audio) > 0).sum()) / spec.audio.pool
            forward["audio"] = _audio_flops(spec.audio, audio)
        if ready_made := batch.media.get("audio_features"):
            heard += float((np.asarray(ready_made.segments) > 0).sum())
        of_heard = _connector_flops(spec.audio_connector, spec.audio.width, width, heard)
        forward["audio_connector"] = Forward(beside=of_heard)
    return forward


def _adapter_flops(spec: ModelSpec, batch: Batch) -> dict[str, float]:
    """Of the factors of adapters, forward, by part."""
    counts = {"decoder": float((np.asarray(batch.text.segments) > 0).sum())}
    targets = float((np.asarray(batch.weights_BT) > 0).sum())
    if spec.vision is not None and spec.connector is not None:
        vectors = [float((np.asarray(x.segments) > 0).sum()) for x in (batch.patches, batch.features) if x]
        counts |= {"vision": vectors[0], "connector": sum(vectors) / spec.connector.merge**2}
    if spec.audio is not None and (audio := batch.media.get("audio")):
        counts["audio"] = _lengths(tower_segments(np.asarray(audio.segments), spec.audio)).sum()
        counts["audio_connector"] = counts["audio"] / spec.audio.pool
    shapes, found = flat_axes(spec.plain), dict.fromkeys(counts, 0.0)
    for one in model_maps(spec):
        shape = shapes[one.kernel][0]
        if one.is_table:
            if one.path[-1] == "embedding":
                found["decoder"] += 2 * counts["decoder"] * one.rank * shape[1]
            if one.path[-1] == "head" or spec.decoder.tie_embeddings:
                found["decoder"] += 2 * targets * one.rank * sum(shape)
            continue
        layers, *sides = (math.prod(shape[n] for n in dims) for dims in (range(one.inputs[0]), one.inputs, one.outputs))
        if one.path[0] in found:
            found[one.path[0]] += 2 * counts[one.path[0]] * layers * one.rank * sum(sides)
    return found


def attended_shares(spec: ModelSpec, batch: Batch) -> dict[str, float]:
    """Of the pairs of a NumPy Batch's rows, the part that sees each other, in the mean over layers: of the "decoder",
    and of the towers "vision" and "audio"."""
    kinds, (rows, length) = spec.decoder.attention_sizes(), batch.text.segments.shape
    pairs = sum(_decoder_pairs(spec.decoder, np.asarray(batch.text.segments), kind) for kind in kinds)
    layers = sum(len(spec.decoder.layers_of(kind)) + len(spec.decoder.layers_of(HANDED[kind])) for kind in kinds)
    shares = {"decoder": pairs / max(rows * length**2 * layers, 1), "vision": 0.0, "audio": 0.0}
    if spec.vision is not None:
        rows, patches = batch.patches.segments.shape
        shares["vision"] = _tower_pairs(spec.vision, batch.patches) / max(rows * patches**2 * spec.vision.layers, 1)
    if spec.audio is not None and (audio := batch.media.get("audio")):
        segments = tower_segments(np.asarray(audio.segments), spec.audio)
        rows, heard = segments.shape
        shares["audio"] = float((_lengths(segments) ** 2).sum()) / max(rows * heard**2, 1)
    return shares


def forward_flops(spec: ModelSpec, batch: Batch, parts: Collection[str]) -> float:
    """FLOPs of a forward pass of some parts on a NumPy Batch, without adapters."""
    return sum(forward.total for part, forward in _forward_flops(spec, batch).items() if part in parts)


def recomputed_flops(spec: ModelSpec, batch: Batch, trainable: Trainable, remat: str) -> float:
    """FLOPs of the forward pass on a NumPy Batch that a backward pass does again: of the layers that a gradient passes.

    What their last maps give is not needed again. The stem of an audio tower, which is checkpointed by itself, is left
    out.

    Args:
      remat: a key of ``layers.REMAT``.
    """
    forward, total = _forward_flops(spec, batch), 0.0
    adapters = _adapter_flops(spec, batch) if spec.adapter and remat == "full" else {}
    learnt = [path for path in flat_axes(spec) if trainable.learns(path)]
    for part in ("vision", "audio", "decoder"):
        # What stands behind the layers has its gradient without them.
        is_passed = any(
            (path[0] == part and path[1] not in ("norm", "head")) or (path[0] != part == "decoder") for path in learnt
        )
        if is_passed and part in forward:
            total += forward[part].again(remat) + adapters.get(part, 0.0)
    return total


def batch_flops(spec: ModelSpec, batch: Batch, trainable: Trainable = EVERYTHING) -> float:
    """FLOPs of one training step on a NumPy Batch, forward and backward.

    What is frozen has no weight gradient; a frozen part passes the gradient on only if something before it is trained.
    A part that is first passes it on to none, but is counted as if it did, as is usual.
    """
    forward, total, anything_trained = _forward_flops(spec, batch), 0.0, False
    shares, adapters = trainable.shares(spec), _adapter_flops(spec, batch) if spec.adapter else {}
    for chain in (("vision", "connector"), ("audio", "audio_connector"), ("decoder",)):
        passes = anything_trained and chain == ("decoder",)
        for part in chain:
            share = shares.get(part) if part in forward else None
            passes = passes or share is not None
            of_part = forward[part].total if part in forward else 0.0
            total += of_part * (1 + (share or 0.0) + passes) + adapters.get(part, 0.0) * (2 + passes)
        anything_trained = anything_trained or passes
    return total


def parameter_counts(params: dict[str, Any]) -> dict[str, int]:
    """Numbers of parameters by part."""

    def count(tree: Any) -> int:
        return sum(count(v) for v in tree.values()) if isinstance(tree, dict) else int(np.prod(tree.shape))

    return {part: count(tree) for part, tree in params.items()}
