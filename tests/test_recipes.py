"""The configs that users start from: at their true sizes by their shapes, and small ones trained from end to end."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import small_run

from jaxmm import command, export, sharding, train
from jaxmm.data.lengths import Budgets
from jaxmm.models.multimodal import flat_axes
from jaxmm.recipe import read_recipe

sys.path[:0] = [str(small_run.ROOT / "tools"), str(small_run.ROOT / "tests" / "hf")]
import parity_models
import test_families
import test_releases

CONFIGS = small_run.ROOT / "configs"
QWEN3_1_7B = test_releases.QWEN3 | {"hidden_size": 2048, "intermediate_size": 6144}
PARTS = {"tower": test_releases.SIGLIP2, "small": test_releases.QWEN3, "large": QWEN3_1_7B}
WHOLE = {"llava": test_releases.LLAVA, "qwen": test_releases.QWEN2_5_VL}
TOWER = 428_000_000  # SigLIP 2 so400m's own, without its head


@pytest.fixture(scope="module", autouse=True)
def whole_transformers():
    if importlib.util.find_spec("torch"):
        parity_models.let_torchvision_import()


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """Folders with the configs of the releases, and a tokenizer, without weights."""
    root = tmp_path_factory.mktemp("released")
    for name, config in (PARTS | WHOLE).items():
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(config))
        test_families.byte_level_tokenizer().save_pretrained(root / name)
    return root


def test_each_config_is_one_of_the_recipes_here():
    names = {path.stem for path in CONFIGS.glob("*.py")} - {"base"}
    assert names == {"siglip2_qwen3_connector", "siglip2_qwen3", "llava_1_5", "qwen2_5_vl", "early_fusion"}


@pytest.mark.parametrize(
    ("name", "init_from", "millions"),
    [
        ("siglip2_qwen3_connector", "vision:{}/tower,decoder:{}/small", 428 + 596 + 14),
        ("siglip2_qwen3_connector", "vision:{}/tower,decoder:{}/large", 428 + 1721 + 17),
        ("siglip2_qwen3", "vision:{}/tower,decoder:{}/large", 428 + 1721 + 17),
        ("llava_1_5", "{}/llava", 7051),
        ("qwen2_5_vl", "{}/qwen", 8292),
        ("early_fusion", "", 6740),
    ],
)
def test_a_recipe_at_its_true_size_has_a_step_that_fits_its_mesh(name, init_from, millions, released):
    """Parameters as published, every shape and sharding of the state, and the whole step traced; nothing is computed."""
    from jaxmm.program import abstract_batch, make_program

    text = init_from.replace("{}", str(released))
    config = command.parse([f"--config={CONFIGS / name}.py", f"--config.init_from={text}"], {}).config
    recipe = read_recipe(config)
    spec = recipe.model
    if name == "early_fusion":  # the vocabulary is the tokenizer's
        spec = dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, vocab_size=65536))
        recipe = recipe._replace(model=spec)
    count = sum(math.prod(shape) for shape, _ in flat_axes(spec).values())
    assert count / 1e6 == pytest.approx(millions, rel=0.02)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 8})
    budgets = Budgets(config.seq_len, 4096, 32, config.seq_len)
    program = make_program(config, recipe, steps=config.steps, targets=budgets.targets, sources=1)
    with jax.set_mesh(mesh):
        state = program.abstract_state(mesh)
        moments = {id(x) for x in jax.tree.leaves(state.opt_state)}
        assert len(moments) >= 2 * len([p for p in flat_axes(spec) if p[0] not in recipe.frozen])
        after, metrics = jax.eval_shape(program.step, state, abstract_batch(recipe, budgets, 8, mesh))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert metrics.loss_sum.shape == ()
    bytes_of_one = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state.params))
    assert bytes_of_one < 1.05 * count / 8


def shrunken(folder: Path, config: Any, rng_seed: int = 0) -> Path:
    """A part of a model, a tower or a decoder, of random weights as its own folder."""
    from transformers import AutoModel

    from jaxmm.hf import names

    del AutoModel, names
    raise NotImplementedError(config, folder, rng_seed)
