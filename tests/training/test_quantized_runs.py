"""A run with adapters over weights in four bits: read as they are held, left as they are, found again, and exported."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import small_run
from small_run import params_of

from jaxmm import evaluate, export, generate, train
from jaxmm.checkpoints.params import full_params
from jaxmm.config.file import load_workdir
from jaxmm.errors import UserError
from jaxmm.models.adapters import is_factor
from jaxmm.models.multimodal import hold_params, holdings
from jaxmm.models.tree import flat, nested
from jaxmm.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("whole_transformers")
NF4 = "--config.adapter.base_dtype=nf4"
ADAPTERS = (
    "--config.adapter.rank=2", "--config.adapter.targets=decoder.blocks,vision.blocks.attention",
    "--config.adapter.modules_to_save=connector.down", "--config.optimizer.name=adamw", "--config.optimizer.rate=1e-2",
    "--config.eval.every=0", "--config.eval.examples=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> list[str]:
    """Arguments of a run with adapters over random weights."""
    data = small_run.make_data(tmp_path_factory.mktemp("data"))
    return [*small_run.arguments(data, tmp_path_factory.getbasetemp() / "cache"), small_run.SCANNED, *ADAPTERS]


@pytest.fixture(scope="module")
def finished(plain, qwen_vl, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    assert train.main([*plain, NF4, f"--config.init_from={qwen_vl}", f"--workdir={workdir}"]) == 0
    return workdir


def test_weights_are_read_as_they_are_held_and_stay_to_the_bit(plain, qwen_vl, finished):
    model = read_recipe(load_workdir(str(finished)), finished).model
    kinds = {path: one.kind for path, one in holdings(model).items()}
    assert kinds["decoder", "blocks", "mlp", "down", "kernel"] == "nf4"
    assert kinds["decoder", "embedding"] == kinds["vision", "patch_embedding", "kernel"] == "bfloat16"
    assert ("connector", "down", "kernel") not in kinds, "it learns"
    assert not any("norm" in name for path in kinds for name in path)
    as_stored = small_run.first_params(*plain[: -len(ADAPTERS)], f"--config.init_from={qwen_vl}")
    tree = nested({tuple(name.split(".")[1:]): jax.numpy.asarray(x) for name, x in as_stored.items()})
    held = flat(jax.jit(lambda tree: hold_params(tree, model))(tree))
    found = params_of(finished)
    assert found["decoder", "blocks", "mlp", "down", "kernel", "codes"].dtype == np.uint8
    assert {path for path in found if not is_factor(path)} == set(held)
    for path, x in held.items():
        is_same = np.array_equal(np.asarray(x), found[path])
        assert is_same != (path[:2] == ("connector", "down")), path
    assert {name for name in small_run.saved(finished, 8) if name.startswith("params.") and ".lora." not in name} == {
        "params.connector.down.kernel", "params.connector.down.bias"
    }  # fmt: skip


def test_a_run_that_stopped_and_went_on_has_the_bits_of_one_that_did_not(plain, qwen_vl, finished, tmp_path, capsys):
    arguments = [*plain, NF4, f"--config.init_from={qwen_vl}", *small_run.UNSEEN]
    for steps in (4, 8):
        assert train.main([*arguments, f"--config.steps={steps}", f"--workdir={tmp_path / 'run'}"]) == 0
    assert "frozen weights are held" in capsys.readouterr().err
    small_run.assert_same_bits(small_run.saved(finished, 8), small_run.saved(tmp_path / "run", 8))
    with pytest.raises(UserError, match=r"adapter\.base_dtype"):
        train.main([*plain, f"--config.init_from={qwen_vl}", "--config.steps=9", f"--workdir={tmp_path / 'run'}"])
    assert evaluate.main([f"--workdir={finished}"]) == 0
    assert generate.main([f"--workdir={finished}", "--prompt=Colour?", "--max_tokens=2"]) == 0


def test_an_export_merges_into_the_weights_as_stored(qwen_vl, finished, tmp_path, capsys):
    out = tmp_path / "out"
    assert export.main([f"--workdir={finished}", f"--output={out}", "--dtype=float32", "--merge"]) == 0
    assert "held as nf4 are merged into these as stored" in capsys.readouterr().out
    as_stored, written = (safetensors.numpy.load_file(folder / "model.safetensors") for folder in (qwen_vl, out))
    assert written.keys() == as_stored.keys()
    adapted = re.compile(r"(model\.layers\.\d+\.\w+\.\w+_proj|visual\.blocks\.\d+\.attn\.\w+)\.weight")
    for name, x in as_stored.items():
        is_learnt = bool(adapted.fullmatch(name)) or name.startswith("visual.merger.mlp.2.")
        assert np.array_equal(x, written[name]) == (not is_learnt), name


@pytest.mark.slow
@pytest.mark.full  # models/test_quantized.py has the numbers
def test_random_weights_and_those_of_another_run_are_quantised_too(plain, finished, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    plain = [*plain, *small_run.UNSEEN]
    of_first = [*plain, "--config.adapter.base_dtype=int8", "--config.steps=2"]
    assert train.main([*of_first, f"--workdir={first}"]) == 0
    assert small_run.saved(first, 2)["params.decoder.blocks.mlp.down.kernel.codes"].dtype == np.int8
    whole = params_of(first, full_params)
    assert whole["decoder", "blocks", "mlp", "down", "kernel"].dtype == np.float32
    assert train.main([*plain, NF4, "--config.steps=1", f"--config.init_from={first}", f"--workdir={second}"]) == 0
    assert params_of(second)["decoder", "blocks", "mlp", "down", "kernel", "codes"].dtype == np.uint8


def test_without_adapters_it_is_refused(plain):
    none = [f"--config.adapter.{one}" for one in ("rank=0", "modules_to_save=", "targets=decoder.blocks")]
    with pytest.raises(UserError, match=r"base_dtype is 'nf4', which is of what lies beneath adapters: set config"):
        train.main([*plain, NF4, *none, "--workdir=unused"])
