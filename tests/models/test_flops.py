"""Model FLOPs of attention, against the pairs that the masks themselves let see each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import IMAGE
from test_vit import patches_of

from jaxmm.batch import Stream
from jaxmm.data.assemble import empty_batch
from jaxmm.data.packing.limits import Budgets
from jaxmm.models import attention as attn
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.decoder import DecoderSpec
from jaxmm.models.decoder_spec import AttentionSizes
from jaxmm.models.flops import batch_flops, recomputed_flops
from jaxmm.models.multimodal import ModelSpec, flat_axes
from jaxmm.models.recurrent import ConvolutionSpec
from jaxmm.models.towers.vit import VisionSpec
from jaxmm.models.trainable import EVERYTHING, Trainable


def seen(intervals) -> float:
    start, end = map(np.asarray, intervals)
    return float(np.maximum(end - start, 0).sum())


def in_windows(stream: Stream, side: int) -> Stream:
    """In the order in which patches travel: window by window."""
    places = stream.positions[0]
    keys = (places[:, 2], places[:, 1], places[:, 2] // side, places[:, 1] // side, stream.segments[0])
    order = np.lexsort(keys)
    return Stream(*(x[:, order] for x in stream))


@pytest.mark.parametrize("window", [0, 2])
def test_a_tower_counts_what_each_of_its_layers_sees(window):
    stream, grids = patches_of([(4, 6), (2, 5)])
    stream = in_windows(stream, window or 1)
    batch = empty_batch(1, Budgets(16, stream.segments.shape[1], 2, 1), IMAGE)._replace(patches=stream, grids_BM3=grids)
    sizes = {"width": 16, "layers": 3, "heads": 2, "mlp": 32, "patch_size": 2}

    def flops(**changes) -> float:
        model = ModelSpec(VisionSpec(**sizes, **changes), ConnectorSpec(merge=1, mlp=8), DecoderSpec())
        return batch_flops(model, batch)

    whole = seen(attn.bidirectional(stream.segments))
    places = stream.positions // max(window, 1)
    local = seen(attn.bidirectional(stream.segments, places[..., 1], places[..., 2]))
    saved = flops() - flops(window=window, global_layers=(1,))
    assert saved == pytest.approx(3 * 4 * 16 * 2 * (whole - local) * bool(window))
    assert not window or saved > 0


@pytest.mark.parametrize("window", [0, 7, 500])
def test_a_decoder_counts_what_windows_leave(window):
    segments = np.repeat([[1, 2, 3, 0]], 1, 0).repeat([40, 90, 5, 9], 1).astype(np.int32)
    batch = empty_batch(1, Budgets(segments.shape[1], 16, 1, 1), IMAGE)
    batch = batch._replace(text=batch.text._replace(segments=segments))
    layers, width = 4, DecoderSpec().heads * DecoderSpec().head_dim
    sparse, full = (
        batch_flops(ModelSpec(decoder=DecoderSpec(window=w, global_layers=(3,))), batch) for w in (window, 0)
    )
    cut_off = seen(attn.causal(segments)) - seen(attn.causal(segments, window=window))
    # A position counts half of itself, which windows of few positions notice.
    assert full - sparse == pytest.approx(3 * 4 * (layers - 1) * width * cut_off, rel=0.05)


def test_two_kinds_of_attention_count_their_own_sizes():
    segments = np.repeat([[1, 2, 0]], 1, 0).repeat([60, 20, 9], 1).astype(np.int32)
    batch = empty_batch(1, Budgets(segments.shape[1], 16, 1, 1), IMAGE)
    batch = batch._replace(text=batch.text._replace(segments=segments))
    spec = DecoderSpec(
        window=500, global_layers=(1, 3), mixers=("attention", "global_attention") * 2,
        global_attention=AttentionSizes(1, 64, shared_kv=True),
    )  # fmt: skip
    kernels = sum(
        math.prod(shape)
        for path, (shape, _) in flat_axes(ModelSpec(decoder=spec)).items()
        if path[:2] == ("decoder", "blocks") and path[-1] == "kernel"
    )
    pairs, widths = (60**2 + 20**2) / 2, 2 * spec.heads * (spec.head_dim + 64)
    assert batch_flops(ModelSpec(decoder=spec), batch) == pytest.approx(3 * (2 * 80 * kernels + 4 * widths * pairs))


def test_a_decoder_of_several_mixers_counts_its_own_maps():
    """Two for each number of a kernel and position, and attention in the layers that have it."""
    segments = np.repeat([[1, 2, 0]], 1, 0).repeat([60, 20, 9], 1).astype(np.int32)
    batch = empty_batch(1, Budgets(segments.shape[1], 16, 1, 1), IMAGE)
    batch = batch._replace(text=batch.text._replace(segments=segments))
    mixers = ("convolution", "attention", "convolution", "convolution")
    spec = DecoderSpec(mixers=mixers, convolution=ConvolutionSpec(DecoderSpec().width, 4))
    kernels = sum(
        math.prod(shape)
        for path, (shape, _) in flat_axes(ModelSpec(decoder=spec)).items()
        if path[:2] == ("decoder", "blocks") and path[-1] == "kernel"
    )
    pairs = (60**2 + 20**2) / 2
    wanted = 3 * (2 * 80 * kernels + 4 * spec.heads * spec.head_dim * pairs)
    assert batch_flops(ModelSpec(decoder=spec), batch) == pytest.approx(wanted)


def test_what_is_computed_again_is_the_forward_pass_of_layers_that_a_gradient_passes():
    """Of the model whose layers are two matmuls of 24 x 48 behind attention of 24: not the last one, of "dots" none."""
    stream, grids = patches_of([(4, 6)])
    batch = empty_batch(1, Budgets(16, stream.segments.shape[1], 2, 1), IMAGE)
    text = batch.text._replace(segments=np.ones((1, 16), np.int32))
    batch = batch._replace(text=text, patches=stream, grids_BM3=grids)
    vision = VisionSpec(width=24, layers=3, heads=2, mlp=48, patch_size=2)
    decoder = DecoderSpec(width=24, layers=2, heads=2, kv_heads=1, head_dim=12, mlp=48)
    spec = ModelSpec(vision, ConnectorSpec(merge=1, mlp=8), decoder)
    meet = {"vision": 4 * 24 * 3 * 24**2, "decoder": 4 * 24 * 2 * 16**2 / 2}
    maps = {"vision": 2 * 24 * 3 * (4 * 24 + 48) * 24, "decoder": 2 * 16 * 2 * (3 * 24 + 2 * 48) * 24}
    for frozen, parts in {
        (): {"vision", "decoder"},
        ("vision",): {"decoder"},
        ("vision", "decoder"): {"decoder"},  # from the loss to the connector
        ("vision", "connector", "decoder.embedding", "decoder.blocks"): set(),  # the head alone
    }.items():
        of_dots, of_all = (recomputed_flops(spec, batch, Trainable(frozen), remat) for remat in ("dots", "full"))
        assert of_dots == sum(meet[part] for part in parts)
        assert of_all - of_dots == sum(maps[part] for part in parts)
    assert recomputed_flops(spec, batch, EVERYTHING, "none") == 0
