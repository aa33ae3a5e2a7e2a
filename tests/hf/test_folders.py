"""Folders of whole models as releases lay them out: all spellings of names, files, dtypes and ties give one model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import small_run
from made_folders import byte_level_tokenizer
from parities import models as parity_models

from jaxmm import command, sharding, train
from jaxmm.errors import UserError
from jaxmm.hf import folder as hf
from jaxmm.hf import names, pretrained, tensor_files, weights
from jaxmm.hf.families.family import Layout
from jaxmm.hf.families.registry import layout_of
from jaxmm.models.multimodal import flat_axes

CASES = (
    "llava, clip", "llava, siglip", "llava-next", "llava-onevision", "qwen2-vl", "qwen2.5-vl", "qwen3-vl",
    "qwen3-vl, experts", "gemma3", "internvl", "qwen3", "mistral3", "pixtral", "glm-4.1v", "glm-4.6v-flash",
    "paddleocr-vl",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("whole_transformers")


def numbers(spec: Any) -> dict[names.Path, np.ndarray]:
    """Parameters that bfloat16 holds, those of a large dim cheap to make."""
    rng = np.random.default_rng(0)
    drawn = {path: rng.standard_normal(shape, np.float32) for path, (shape, _) in flat_axes(spec).items()}
    return {path: value.astype(ml_dtypes.bfloat16).astype(np.float32) for path, value in drawn.items()}


def config_of(name: str) -> Any:
    return parity_models.case(name).config(np.random.default_rng(0))


def made(name: str, folder: Path, dtype: Any = np.float32, shard_bytes: int = 1 << 30) -> dict[names.Path, np.ndarray]:
    """Writes the case's model; returns its parameters."""
    config = config_of(name)
    layout = layout_of(config)
    params = numbers(layout.spec)
    folder.mkdir(exist_ok=True)
    weights.write(folder, hf.outgoing(layout, params, dtype), shard_bytes)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    return params


def read(folder: Path) -> tuple[Layout, hf.Read]:
    layout = hf.read_whole(folder).layout
    where = sharding.replicated(sharding.make_mesh({"data": 1}, jax.devices()[:1]))
    return layout, hf.read_model(folder, layout, lambda path, shape: where)


def assert_same(found: Any, wanted: dict[names.Path, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_array_equal(found[path], value, err_msg=".".join(path))


def rewritten(folder: Path, change: Any) -> None:
    """``change``: from tensors by name to others."""
    file = folder / tensor_files.SINGLE
    (folder / tensor_files.INDEX).unlink(missing_ok=True)
    safetensors.numpy.save_file(change(safetensors.numpy.load_file(file)), file)


OLD = {"text.": "language_model.model.", "vision.": "vision_tower.vision_model.", "lm_head.": "language_model.lm_head.",
       "connector.": "multi_modal_projector.", "image_newline.": "image_newline"}  # fmt: skip
NEW = {"text.": "model.language_model.", "vision.": "model.vision_tower.", "lm_head.": "lm_head.",
       "connector.": "model.multi_modal_projector.", "image_newline.": "model.image_newline"}  # fmt: skip
QWEN_OLD = {"text.": "model.", "vision.": "visual.", "lm_head.": "lm_head."}
QWEN_NEW = {"text.": "model.language_model.", "vision.": "model.visual.", "lm_head.": "lm_head."}
PADDLE_OLD = {**QWEN_OLD, "vision.": "visual.vision_model.", "connector.": "mlp_AR."}
PADDLE_NEW = {**QWEN_NEW, "vision.": "model.visual.vision_model.", "connector.": "model.projector."}


def spellings_of(name: str) -> tuple[dict[str, str], dict[str, str]]:
    """The prefixes of older and newer folders of a case."""
    if "paddle" in name:
        return PADDLE_OLD, PADDLE_NEW
    return (QWEN_OLD, QWEN_NEW) if "-vl" in name or "glm" in name else (OLD, NEW)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("age", ["old", "new"])
def test_old_and_new_names_of_tensors_are_both_read(name, age, tmp_path):
    wanted = made(name, tmp_path)
    spellings = spellings_of(name)[age == "new"]

    def change(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        common = {names.common_name(key): value for key, value in tensors.items()}
        found = {names.foreign_name(key, {k[:-1]: v for k, v in spellings.items()}): v for key, v in common.items()}
        assert len(found) == len(tensors)
        return found

    rewritten(tmp_path, change)
    _, found = read(tmp_path)
    assert_same(found.params, wanted)
    assert found.spare == []


def apart(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each expert's tensors by themselves."""
    found = {}
    for name, value in tensors.items():
        prefix, experts, part = name.rpartition("experts.")
        halves = np.split(value, 2, axis=1) if part == "gate_up_proj" else [value]
        for kind, of_all in zip(("gate", "up") if len(halves) > 1 else ("down",), halves, strict=True):
            each = {f"{prefix}experts.{n}.{kind}_proj.weight": np.ascontiguousarray(x) for n, x in enumerate(of_all)}
            found |= each if experts else {name: value}
    return found


def test_experts_of_a_layer_in_one_tensor_or_each_in_its_own_are_one_model(tmp_path):
    """The first is how releases of Qwen3.5 have them, the second what ``transformers`` writes."""
    wanted = made("qwen3.5, experts", tmp_path)
    names_of = {name for name in tensor_files.Checkpoint(tmp_path).entries if ".experts." in name}
    assert {name.rpartition(".")[2] for name in names_of} == {"gate_up_proj", "down_proj"}
    rewritten(tmp_path, apart)
    assert sum(".experts.4." in name for name in tensor_files.Checkpoint(tmp_path).entries) == 3 * 3
    _, found = read(tmp_path)
    assert_same(found.params, wanted)
    rewritten(tmp_path, lambda tensors: {n: x for n, x in tensors.items() if "layers.1.mlp.experts.2.up" not in n})
    with pytest.raises(UserError, match=r"lacks 1 tensors that its config asks for: .*layers.1.mlp.experts.2.up_proj"):
        read(tmp_path)


def test_a_layer_that_guesses_further_tokens_is_kept_and_not_used(tmp_path):
    """GLM-4.5's, behind the last: its ``eh_proj`` tells it from a layer that the config forgot."""
    wanted = made("glm4, experts", tmp_path)
    behind = {f"model.language_model.layers.3.{n}.weight": np.ones(2, np.float32) for n in ("eh_proj", "mlp.gate")}
    rewritten(tmp_path, lambda tensors: tensors | behind)
    _, found = read(tmp_path)
    assert_same(found.params, wanted)
    assert set(found.spare) == behind.keys()
    rewritten(tmp_path, lambda tensors: {name: x for name, x in tensors.items() if "eh_proj" not in name})
    with pytest.raises(UserError, match=r"1 tensors that this model has no place for: .*layers.3.mlp.gate.weight"):
        read(tmp_path)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_in_many_files_is_the_same_model(dtype, tmp_path):
    wanted = made("qwen3-vl", tmp_path, dtype, shard_bytes=1 << 15)
    assert len(list(tmp_path.glob("*.safetensors"))) > 5
    _, found = read(tmp_path)
    assert_same(found.params, {path: value.astype(dtype).astype(np.float32) for path, value in wanted.items()})


def test_a_head_that_is_the_embedding_once_more_is_read_and_not_written(tmp_path):
    wanted = made("gemma3", tmp_path)
    embedding = ("decoder", "embedding")
    rewritten(tmp_path, lambda tensors: {**tensors, "lm_head.weight": wanted[embedding]})
    layout, found = read(tmp_path)
    assert layout.spec.decoder.tie_embeddings
    assert_same(found.params, wanted)
    assert "lm_head" not in " ".join(tensor.name for tensor in hf.outgoing(layout, found.params, np.float32))


def test_a_head_of_its_own_is_used_whatever_the_config_says_of_ties(tmp_path):
    """As ``transformers`` does; configs of InternVL 3, say, leave it out."""
    wanted = made("gemma3", tmp_path)
    head = wanted["decoder", "embedding"][::-1].copy()
    rewritten(tmp_path, lambda tensors: {**tensors, "language_model.lm_head.weight": head})
    layout, found = read(tmp_path)
    assert not layout.spec.decoder.tie_embeddings
    assert_same(found.params, wanted | {("decoder", "head"): head})
    begun = pretrained.read_start(str(tmp_path), None, 1, 0)
    assert begun is not None
    assert begun.config["tie_word_embeddings"] is begun.config["text_config"]["tie_word_embeddings"] is False


def test_layers_that_nobody_listens_to_are_kept_and_strange_tensors_in_the_others_are_not(tmp_path):
    made("llava, clip", tmp_path)  # of 3 layers, the second last one's output is taken
    layer = "vision_tower.vision_model.encoder.layers"
    bias = np.ones(24, np.float32)
    rewritten(tmp_path, lambda tensors: {**tensors, f"{layer}.2.layer_norm1.bias": bias})
    assert read(tmp_path)[1].spare == [f"{layer}.2.layer_norm1.bias"]
    rewritten(tmp_path, lambda tensors: {**tensors, f"{layer}.1.layer_norm3.bias": bias})
    with pytest.raises(UserError, match=r"1 tensors that this model has no place for: .*layers.1.layer_norm3.bias"):
        read(tmp_path)


def test_a_part_is_taken_from_a_whole_model(tmp_path):
    whole = made("qwen3", tmp_path / "whole")
    begun = pretrained.read_start(f"vision:{tmp_path / 'whole'},decoder:{tmp_path / 'whole'}", None, 2, 20)
    assert begun is not None
    where = sharding.replicated(sharding.make_mesh({"data": 1}, jax.devices()[:1]))
    found = pretrained.read_params(begun, lambda path, shape: where)
    assert_same(found.params, {path: value for path, value in whole.items() if path[0] != "connector"})


def test_a_program_that_is_given_a_broken_folder_says_so_in_one_line_and_exits_with_1(tmp_path, monkeypatch, capsys):
    made("llama, biases, tied", tmp_path / "model")  # a tie is checked first
    file = tmp_path / "model" / tensor_files.SINGLE
    file.write_bytes(file.read_bytes()[:-20])
    flags = [f"--workdir={tmp_path / 'run'}", f"--config.init_from={tmp_path / 'model'}"]
    monkeypatch.setattr(sys, "argv", ["train", f"--config={small_run.ROOT / 'configs' / 'base.py'}", *flags])
    with pytest.raises(SystemExit) as ended:
        command.run(train.main)
    assert ended.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert "model.safetensors is not whole" in last


def test_a_vocabulary_that_is_smaller_than_its_tokenizers_is_one_line(tmp_path):
    made("siglip2 + llama", tmp_path)
    tokenizer = byte_level_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    flags = [f"--config={small_run.ROOT / 'configs' / 'base.py'}", f"--workdir={tmp_path / 'run'}"]
    told = rf"has {len(tokenizer)} tokens, the model's vocabulary only 203: .* two models"
    with pytest.raises(UserError, match=told) as caught:
        train.main([*flags, f"--config.init_from={tmp_path}"])
    assert "\n" not in str(caught.value)


def test_files_outside_the_folder_are_not_opened(tmp_path):
    made("gemma3", tmp_path / "model")
    (tmp_path / "model" / tensor_files.SINGLE).rename(tmp_path / "other.safetensors")
    index = {"weight_map": {"a": "../other.safetensors"}}
    (tmp_path / "model" / tensor_files.INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"names ../other.safetensors, which is not a file of this folder"):
        read(tmp_path / "model")
