"""Clips encoded once: training on their vectors is training on the clips, with each kind of tower."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from clip_folder import BAD, write_clips
from made_folders import folder_of
from test_hearing import whole_folder

from jaxmm import encode_features as tool
from jaxmm import sharding
from jaxmm.api import load_config
from jaxmm.data.assemble import Assembler
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.limits import Budgets
from jaxmm.data.packing.plan import Piece
from jaxmm.encoding import encoder
from jaxmm.hf.pretrained import read_params
from jaxmm.models.multimodal import make_model
from jaxmm.models.tree import nested
from jaxmm.recipe import Recipe, fitted, read_recipe, train_corpus
from jaxmm.training.loss import batch_loss

SMALL = {
    "vision.width": 16, "vision.layers": 1, "vision.heads": 2, "vision.mlp": 32, "connector.mlp": 32,
    "decoder.width": 32, "decoder.layers": 2, "decoder.heads": 2, "decoder.head_dim": 16, "decoder.mlp": 64,
    "audio.width": 24, "audio.layers": 1, "audio.heads": 2, "audio.mlp": 32, "audio.mels": 16,
    "image.min_pixels": 256, "image.max_pixels": 1024, "video.fps": 4, "video.max_frames": 8,
    "video.max_pixels": 2048, "data.media": "video,audio", "compute.dtype": "float32",
}  # fmt: skip


def loss_and_gradients(recipe: Recipe, params: Any, batch: Any, targets: int) -> Any:
    """Of the parts that are trained where the towers are frozen."""
    _, apply = make_model(recipe.model)
    trained = {part: tree for part, tree in params.items() if part not in ("vision", "audio")}

    def loss(trained):
        hidden_at = functools.partial(apply, {**params, **trained}, batch, recipe.compute)
        return batch_loss(hidden_at, batch, targets, 1e-4)[0] / batch.weights_BT.sum()

    return jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(loss))(trained))


def packed(lengths: Lengths, examples: Sequence[int], image: Any) -> Any:
    """All of some examples in one row."""
    row = [Piece(0, n, 0, int(lengths.tokens_E[n])) for n in examples]
    needs = dict(zip(lengths.columns, lengths.needs(np.array(examples)).sum(0).tolist(), strict=True))
    rounds = {"tokens": 16, "targets": 16, "patches": 64, "features": 64, "audio": 800, "audio_features": 64}
    budgets = {name: -(-count // rounds.get(name, 1)) * rounds.get(name, 1) for name, count in needs.items()}
    if image.is_sighted:  # the tower of pictures is run in any case
        budgets |= {"patches": max(budgets["patches"], 64), "items": max(budgets["items"], 1)}
    loaded = Assembler([lengths], Budgets(**budgets), image)([row])
    assert not loaded.skipped
    return loaded.batch, budgets["targets"]


def assert_the_same_training(folder: Path, recipe: Recipe, params: Any, config: Any, encode: Any) -> None:
    """Encodes the clips of a folder, and compares a packed row of them with one of their vectors."""
    (source,) = tool.raw_sources(config, recipe)
    counts = tool.encode(source, folder / "encoded", recipe, encode, "float32")
    tool.describe(folder / "encoded", ["clips"])
    live = train_corpus(config, recipe)
    with config.unlocked():
        config.data.path = str(folder / "encoded")
    ready = train_corpus(config, recipe)
    assert counts.documents == len(ready.lengths[0])
    assert ready.media == live.media
    known = [live.lengths[0].prepared.read(e).origin for e in range(len(live.lengths[0]))]
    good = [e for e, origin in enumerate(known) if origin != f"clips.json, record {BAD}" or counts.skipped == 0]
    image = fitted(recipe, live.media).image
    one, targets = packed(live.lengths[0], good, image)
    other, _ = packed(ready.lengths[0], range(len(good)), image)
    assert not other.patches.segments.any()
    assert "audio" not in other.media
    for name in ("values", "positions", "segments"):
        np.testing.assert_array_equal(getattr(other.text, name), getattr(one.text, name), err_msg=name)
    for name in ("targets_BT", "weights_BT", "blocks_BT"):
        np.testing.assert_array_equal(getattr(other, name), getattr(one, name), err_msg=name)
    (loss, gradients), (again, others) = (loss_and_gradients(recipe, params, b, targets) for b in (one, other))
    assert loss > 0
    assert again == pytest.approx(loss, rel=1e-6)
    for part, tree in gradients.items():
        norm = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(tree)))
        pairs = zip(*map(jax.tree.leaves, (tree, others[part])), strict=True)
        gap = np.sqrt(sum(((x - y) ** 2).sum() for x, y in pairs))
        assert norm > 0
        assert gap < 1e-6 * norm, part


def config_of(info: Path, **changes: Any) -> Any:
    asked = {"data.path": str(info), "data.mixture": "clips", "data.cache": str(info.parent / "cache"), "seq_len": 512}
    return load_config("base", **(asked | changes))


def on_one_device() -> Any:
    return jax.set_mesh(sharding.make_mesh({"data": 1}, jax.devices()[:1]))


@pytest.fixture(autouse=True)
def several_rows(monkeypatch):
    """What is encoded at once is little, and some media are more than that."""
    monkeypatch.setattr(encoder, "UNITS", {"patches": 64, "audio": 600})


def test_a_model_from_random_weights_trains_on_vectors_as_on_clips(tmp_path, capsys):
    """In so short a row some videos have fewer frames."""
    config = config_of(write_clips(tmp_path), **SMALL, seq_len=40)
    recipe = read_recipe(config)
    init, _ = make_model(recipe.model)
    with on_one_device():
        params = jax.jit(init)(jax.random.key(0))
        assert_the_same_training(tmp_path, recipe, params, config, encoder.Encoder(recipe, params, False))
    assert "videos get fewer frames" in capsys.readouterr().out


def of_folder(folder: Path, info: Path) -> tuple[Recipe, Any, Any]:
    """The recipe, the parameters and the config of a model's folder, with the data of another one."""
    small = {"video.max_pixels": 1024, "compute.dtype": "float32"}
    config = config_of(info, init_from=str(folder), **small)
    recipe = read_recipe(config)
    where = sharding.replicated(sharding.make_mesh({"data": 1}, jax.devices()[:1]))
    return recipe, nested(read_params(recipe.start, lambda *_: where).params), config


def test_a_family_whose_positions_are_seconds_trains_on_vectors_as_on_videos(tmp_path):
    folder = folder_of("qwen2.5-vl", tmp_path / "model")
    with on_one_device():
        recipe, params, config = of_folder(folder, write_clips(tmp_path, ("video", "image")))
        assert_the_same_training(tmp_path, recipe, params, config, encoder.Encoder(recipe, params, False))
    rates = re.findall(r'"fps": ([0-9.]+)', (tmp_path / "encoded/clips.jsonl").read_text())
    assert len(set(rates)) > 2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_audio", pytest.param("qwen3_asr", marks=pytest.mark.full)])
def test_a_model_that_only_hears_trains_on_vectors_as_on_recordings(tmp_path, family):
    folder = whole_folder(family, tmp_path / "model")
    with on_one_device():
        recipe, params, config = of_folder(folder, write_clips(tmp_path, ("audio",)))
        assert recipe.model.vision is None
        assert_the_same_training(tmp_path, recipe, params, config, encoder.Encoder(recipe, params, False))


@pytest.mark.slow
def test_class_tokens_are_seen_when_pictures_are_encoded_and_are_no_vectors(tmp_path):
    folder = folder_of("llava, clip", tmp_path / "model")
    with on_one_device():
        recipe, params, config = of_folder(folder, write_clips(tmp_path, ("image",)))
        assert recipe.whole.class_tokens
        assert_the_same_training(tmp_path, recipe, params, config, encoder.Encoder(recipe, params, False))
