"""Each family from its folder to a folder: read, trained on a mesh as its recipe says, written, and read again."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import small_run
from made_folders import folder_of

from jaxmm import export, sharding, train
from jaxmm.checkpoints.params import place_params
from jaxmm.hf import folder as hf
from jaxmm.hf import weights
from jaxmm.models.multimodal import abstract_params
from jaxmm.models.tree import flat

# The families' models of tools/parities, and the config that trains each.
CASES = {
    "siglip2 + llama": "base", "qwen3": "base", "lfm2": "base", "lfm2, experts": "base", "llava, clip": "llava_1_5",
    "llava-next": "llava_1_5", "llava-onevision": "base",
    "qwen2-vl": "qwen2_5_vl", "qwen2.5-vl": "qwen2_5_vl", "qwen3-vl": "qwen3_vl", "qwen3-vl, experts": "qwen3_vl_moe",
    "qwen3.5": "qwen3_5", "qwen3.5, experts": "qwen3_5", "gemma3": "gemma3", "gemma4": "gemma4",
    "gemma4, experts": "gemma4", "gemma4, e2b": "gemma4",
    "paligemma2": "base",
    "internvl": "internvl3", "smolvlm": "base", "mistral3": "base", "pixtral": "base", "glm-4.1v": "base",
    "glm-4.5v": "qwen3_vl_moe", "glm-ocr": "base", "paddleocr-vl": "base",
}  # fmt: skip
# Those that CI trains, one of each of the most involved mechanisms; `pytest --slow --full` trains all.
TRAINED = {
    "qwen2.5-vl": "windows in the tower", "qwen3-vl, experts": "DeepStack, and an axis for experts",
    "qwen3.5, experts": "DeltaNet", "gemma4, e2b": "embeddings of layers, shared keys and values",
    "internvl": "tiles, a frozen tower",
}  # fmt: skip
MESH = ("--config.mesh.data=2",)  # beside fsdp and tensor
MESHES = {"qwen3_vl_moe": ("--config.mesh.data=1", "--config.mesh.expert=2")}
FROZEN = {name: {"vision"} for name in ("llava_1_5", "gemma3", "gemma4", "internvl3")}  # by their configs
# Its processor takes 70 soft tokens or more.
SOFT = ("--config.image.min_pixels=0", f"--config.image.max_pixels={70 * 144}")
FLAGS = {
    "gemma4": SOFT, "gemma4, experts": SOFT, "gemma4, e2b": SOFT,
    "paligemma2": ("--config.optimizer.rate=2e-3",),  # of its answers alone, it learns little in a step
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("whole_transformers")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_run.make_data(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in TRAINED])
def test_tensors_of_a_family_that_is_not_trained_are_read_onto_a_mesh_and_written_again_to_the_bit(name, tmp_path):
    folder = folder_of(name, tmp_path / "theirs", has_weights=False)
    layout = hf.read_whole(folder).layout
    abstract = abstract_params(layout.spec)
    rng = np.random.default_rng(0)
    drawn = {path: rng.standard_normal(leaf.shape, np.float32) for path, leaf in flat(abstract).items()}
    weights.write(folder, hf.outgoing(layout, drawn, np.float32))
    where = flat(place_params(layout.spec, abstract, sharding.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])))
    read = hf.read_model(folder, layout, lambda path, shape: where[path])
    assert read.spare == []
    assert read.params.keys() == drawn.keys()
    for path, value in read.params.items():
        np.testing.assert_array_equal(value, drawn[path], err_msg=".".join(path))
    (tmp_path / "out").mkdir()
    weights.write(tmp_path / "out", hf.outgoing(layout, read.params, np.float32))
    out, given = (safetensors.numpy.load_file(place / "model.safetensors") for place in (tmp_path / "out", folder))
    small_run.assert_same_bits(out, given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recipe"),
    [pytest.param(*case, marks=[] if case[0] in TRAINED else pytest.mark.full) for case in CASES.items()],
)
def test_a_family_is_read_trained_by_its_recipe_written_and_read_again_to_the_bit(
    name, recipe, data, tmp_path, tmp_path_factory
):
    """Only what makes a run small and its rates large is other than the recipe's."""
    theirs = folder_of(name, tmp_path / "theirs")
    arguments = [
        *small_run.arguments(data, tmp_path_factory.getbasetemp() / "cache", recipe), *MESHES.get(recipe, MESH),
        "--config.mesh.fsdp=2", "--config.mesh.tensor=2", *small_run.UNSEEN, small_run.SCANNED,
        "--config.checkpoint.every=100", "--config.optimizer.rate=1e-3", "--config.optimizer.vision_rate=1.0",
        "--config.optimizer.connector_rate=1.0", "--config.steps=20", *FLAGS.get(name, ()),
    ]  # fmt: skip
    run = [*arguments, f"--config.init_from={theirs}"]
    assert train.main([*run, f"--workdir={tmp_path / 'run'}"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-2:]) < 0.8 * losses[0], losses
    last = {n: x for n, x in small_run.saved(tmp_path / "run", 20).items() if n.startswith("params.")}
    before = small_run.first_params(*run)
    learnt = {n.split(".")[1] for n in last if not np.array_equal(last[n], before[n])}
    assert learnt == {"vision", "connector", "decoder"} - FROZEN.get(recipe, set())
    assert export.main([f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"]) == 0
    written = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == safetensors.numpy.load_file(theirs / "model.safetensors").keys()
    small_run.assert_same_bits(last, small_run.first_params(*arguments, f"--config.init_from={tmp_path / 'out'}"))
