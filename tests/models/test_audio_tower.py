"""The audio tower: a clip in a row of others gives what it gives alone, on one device and on eight."""

from __future__ import annotations

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from audio_streams import clips_of, stream_of
from conftest import IMAGE
from test_vit import patches_of

from jaxmm import sharding
from jaxmm.batch import Stream
from jaxmm.clip_spec import AudioSpec
from jaxmm.data.assemble import empty_batch
from jaxmm.data.packing.limits import Budgets
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.decoder import DecoderSpec
from jaxmm.models.flops import attended_shares, batch_flops
from jaxmm.models.multimodal import Compute, ModelSpec, logical_axes, make_model
from jaxmm.models.towers.audio import AudioTowerSpec
from jaxmm.models.towers.vit import VisionSpec
from jaxmm.models.trainable import Trainable

MELS, FRAMES = 6, 1200
SIZES = {"mels": MELS, "width": 16, "layers": 2, "heads": 2, "mlp": 24}
CASES = {
    "whisper": (
        AudioTowerSpec("whisper", **SIZES, positions=60, pool=2),
        AudioSpec(mels=MELS, chunk=4, chunk_positions=2, pool=2, attend=0, halo=2, piece=120),
    ),
    "chunks": (
        AudioTowerSpec("chunks", **SIZES, channels=5, key_bias=True),
        AudioSpec(mels=MELS, chunk=100, chunk_positions=13, attend=2),
    ),
}
DECODER = DecoderSpec(vocab_size=40, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp=24)


def hearing(name: str, **changes) -> ModelSpec:
    """A model that only hears."""
    tower = dataclasses.replace(CASES[name][0], **changes)
    return ModelSpec(None, None, DECODER, tower, ConnectorSpec(merge=1, mlp=0, norm=""))


def batch_of(audio: Stream, tokens: int = 8, patches: int = 0):
    """Rows of that audio and of text that is not there."""
    batch = empty_batch(len(audio.segments), Budgets(tokens, patches, 1, 1), IMAGE)
    return batch._replace(media={"audio": audio})


@functools.cache
def drawn(spec: ModelSpec):
    """Parameters, no bias or norm of which is 0 or 1."""
    rng = np.random.default_rng(0)
    is_leaf = lambda x: isinstance(x, tuple)  # noqa: E731

    def draw(path, described):
        shape = described[0]
        noise = rng.standard_normal(shape, np.float32) / max(np.prod(shape[1:-1]) ** 0.5, 1)
        return 1 + 0.2 * noise if path[-1].key == "scale" else 0.5 * noise

    return jax.tree_util.tree_map_with_path(draw, logical_axes(spec), is_leaf=is_leaf)


@functools.cache
def compiled(spec: ModelSpec, compute: Compute = Compute()):  # noqa: B008
    """``run(params, batch, counts_BS) -> (table, gradients)`` of the sum of squares of the soft tokens that count."""
    _, apply = make_model(spec)

    def loss(params, batch, counts_BS):
        table_BSD = apply(params, batch, compute, method="soft_tokens").table_BSD
        return (jax.numpy.square(table_BSD).sum(-1) * counts_BS).sum(), table_BSD

    grad = jax.jit(jax.grad(loss, has_aux=True))

    def run(params, batch, counts_BS):
        gradients, table_BSD = grad(params, batch, counts_BS)
        return np.asarray(table_BSD), jax.tree.map(np.asarray, gradients)

    return run


def heard(name: str, clips, compute: Compute = Compute(), spec: ModelSpec | None = None):  # noqa: B008
    """Soft tokens of each clip of one row, and the gradients."""
    spec = spec or hearing(name)
    stream, rows = stream_of(clips, CASES[name][1], FRAMES)
    counts = np.zeros((1, spec.audio.outputs(FRAMES)), np.float32)
    counts[0, np.concatenate(rows)] = 1
    table_BSD, gradients = compiled(spec, compute)(drawn(spec), batch_of(stream), counts)
    assert np.isfinite(table_BSD).all()
    return [table_BSD[0, own] for own in rows], gradients


def assert_close(found, wanted, tolerance=1e-5):
    """Gradients, relative to the largest of a leaf, or a hundredth of the largest of all."""
    floor = 1e-2 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.abs(one - other).max() <= tolerance * max(np.abs(other).max(), floor)


@pytest.mark.parametrize("name", CASES)
@hypothesis.settings(max_examples=8)
@hypothesis.given(lengths=st.lists(st.integers(1, 260), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_packed_clips_give_the_soft_tokens_and_gradients_of_the_same_clips_alone(name, lengths, seed):
    clips = clips_of(lengths, MELS, seed)
    together, gradients = heard(name, clips)
    alone = [heard(name, [clip]) for clip in clips]
    for own, (wanted, _) in zip(together, alone, strict=True):
        np.testing.assert_allclose(own, wanted[0], atol=1e-5)
    assert_close(gradients, jax.tree.map(lambda *each: functools.reduce(np.add, each), *[g for _, g in alone]))


@pytest.mark.parametrize("name", CASES)
def test_a_clip_sees_its_own_window_alone(name):
    lengths = [120, 37, 240]  # a full piece beside another clip, and two pieces, or windows
    clips = clips_of(lengths, MELS)
    before, _ = heard(name, clips)
    clips[1] = clips[1] + 1
    after, _ = heard(name, clips)
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[2], before[2])
    clips[2][200:] += 1
    window = len(after[2]) * 120 // 240 if name == "whisper" else 26
    changed = np.abs(heard(name, clips)[0][2] - after[2]).max(-1) > 0
    assert not changed[:window].any()
    assert changed[window:].all()


def test_the_halo_is_seen_and_padding_is_not():
    spec, (clip,) = hearing("whisper"), clips_of([118], MELS)
    stream, (rows,) = stream_of([clip], CASES["whisper"][1], FRAMES)
    counts = np.zeros((1, spec.audio.outputs(FRAMES)), np.float32)

    def soft_tokens(louder):
        batch = batch_of(stream._replace(values=stream.values + louder))
        return compiled(spec)(drawn(spec), batch, counts)[0][0, rows]

    is_padding = (stream.positions == 0) & (stream.segments == 0)[..., None]
    np.testing.assert_array_equal(soft_tokens(is_padding), soft_tokens(0))
    assert np.abs(soft_tokens(stream.positions < 0) - soft_tokens(0))[-1].max() > 0


@pytest.mark.parametrize("name", CASES)
def test_how_layers_are_run_changes_nothing(name):
    clips = clips_of([130, 37, 5], MELS)
    found, gradients = heard(name, clips, Compute(remat="full" if name == "chunks" else "dots", unroll=2))
    wanted, expected = heard(name, clips)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert_close(gradients, expected)


@pytest.mark.parametrize(("name", "frames"), [("whisper", 256), ("chunks", 6400)])
def test_eight_devices_give_the_numbers_of_one(name, frames):
    spec, audio = hearing(name), CASES[name][1]
    lengths = [130, 37] if name == "whisper" else [frames // 3, 170, 37]
    streams, rows = zip(*(stream_of(clips_of(lengths, MELS, seed), audio, frames) for seed in range(4)), strict=True)
    batch = batch_of(Stream(*map(np.concatenate, zip(*streams, strict=True))))
    counts = np.zeros((4, spec.audio.outputs(frames)), np.float32)
    for b, own in enumerate(rows):
        counts[b, np.concatenate(own)] = 1
    params, run = drawn(spec), compiled(spec)
    wanted, expected = run(params, batch, counts)
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2, "context": 2})
    where = jax.tree.map(
        lambda described: jax.sharding.NamedSharding(mesh, sharding.partition(described[1], described[0], mesh)),
        logical_axes(spec), is_leaf=lambda x: isinstance(x, tuple),
    )  # fmt: skip
    with jax.set_mesh(mesh):
        found, gradients = run(jax.device_put(params, where), sharding.place_batch(batch, mesh), counts)
    for b, own in enumerate(rows):
        np.testing.assert_allclose(found[b, np.concatenate(own)], wanted[b, np.concatenate(own)], atol=1e-5)
    assert_close(gradients, expected)


def test_audio_comes_after_patches_and_features_and_taps_reach_none_of_it():
    vision = VisionSpec(width=12, layers=2, heads=2, mlp=16, patch_size=2, positions=4, taps=(0,))
    spec = dataclasses.replace(hearing("whisper"), vision=vision, connector=ConnectorSpec(merge=2, mlp=8, deep=1))
    assert spec.parts == ("vision", "connector", "audio", "audio_connector", "decoder")
    params = drawn(spec)
    stream, _ = stream_of(clips_of([50], MELS), CASES["whisper"][1])
    patches, grids = patches_of([(4, 4)])
    ready = Stream(*(np.ones(shape, kind) for shape, kind in (((1, 8, 12), "f4"), ((1, 8, 1), "i4"), ((1, 8), "i4"))))
    batch = batch_of(stream, patches=16)._replace(patches=patches, grids_BM3=grids, features=ready)
    _, apply = make_model(spec)
    soft = jax.jit(lambda p, b: apply(p, b, Compute(), method="soft_tokens"))(params, batch)
    assert soft.table_BSD.shape == (1, 4 + 2 + spec.audio.outputs(stream.segments.shape[1]), DECODER.width)
    assert soft.deep_KBSD.shape == (1, *soft.table_BSD.shape)
    assert np.abs(soft.deep_KBSD[:, :, :4]).min() > 0
    assert not np.abs(soft.deep_KBSD[:, :, 4:]).any()
    only = {part: params[part] for part in ("audio", "audio_connector", "decoder")}
    _, apply = make_model(dataclasses.replace(spec, vision=None, connector=None))
    alone = jax.jit(lambda p, b: apply(p, b, Compute(), method="soft_tokens"))(only, batch._replace(features=None))
    np.testing.assert_allclose(soft.table_BSD[:, 6:], alone.table_BSD, atol=1e-6)
    assert alone.deep_KBSD is None


def test_a_model_that_hears_takes_rows_of_text_alone():
    spec = hearing("chunks")
    _, apply = make_model(spec)
    batch = empty_batch(1, Budgets(8, 0, 0, 1), IMAGE)
    hidden_BTD, _ = jax.jit(lambda p, b: apply(p, b, Compute()))(drawn(spec), batch)
    assert hidden_BTD.shape == (1, 8, DECODER.width)
    assert np.isfinite(hidden_BTD).all()


@pytest.mark.parametrize("name", CASES)
def test_flops_grow_with_what_is_heard_and_not_with_padding(name):
    spec, audio = hearing(name), CASES[name][1]
    flops = {}
    for lengths in ([100], [200], [100, 100]):
        for frames in (400, 800):
            stream, _ = stream_of(clips_of(lengths, MELS), audio, frames)
            batch = batch_of(stream)
            trained, frozen = batch_flops(spec, batch), batch_flops(spec, batch, Trainable(spec.parts))
            assert trained == pytest.approx(3 * frozen)
            flops[len(lengths), sum(lengths), frames] = trained
            shares = attended_shares(spec, batch)
            assert shares["vision"] == 0 < shares["audio"] <= (sum(lengths) / frames) ** 2
    assert flops[1, 100, 400] == flops[1, 100, 800]
    assert flops[2, 200, 400] == pytest.approx(2 * flops[1, 100, 400])
    assert flops[1, 200, 400] >= flops[2, 200, 400]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="audio stem 'mel' is not one of whisper, chunks"):
        AudioTowerSpec("mel")
    with pytest.raises(ValueError, match="audio width 10 is no multiple of 4 heads"):
        AudioTowerSpec(width=10)
    with pytest.raises(ValueError, match="a model has both audio and audio_connector, or neither"):
        ModelSpec(audio=AudioTowerSpec())
    with pytest.raises(ValueError, match="has no vision tower: its parts are audio, audio_connector, decoder"):
        _ = hearing("chunks").seeing
    stream, _ = stream_of(clips_of([100], MELS), CASES["whisper"][1])
    with pytest.raises(ValueError, match="the batch has audio, and the model no tower for it"):
        jax.eval_shape(
            lambda batch: make_model(ModelSpec(None, None, DECODER))[1](
                drawn(ModelSpec(None, None, DECODER)), batch, Compute()
            ),
            batch_of(stream),
        )
    with pytest.raises(ValueError, match=r"audio of 104 frames of 6 mels: the tower takes multiples of 100"):
        compiled(hearing("chunks"))(drawn(hearing("chunks")), batch_of(stream), np.zeros((1, 13), np.float32))
