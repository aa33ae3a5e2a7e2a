"""Each family from its folder to a folder: read, trained on a mesh, written, and read again to the bit."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import small_run

from jaxmm import export, train
from jaxmm.hf import folder as hf
from jaxmm.hf import specs, weights
from jaxmm.models.multimodal import make_model

sys.path.insert(0, str(small_run.ROOT / "tools"))
import parity_models

CASES = ("siglip2 + llama", "qwen3", "llava, clip", "llava, siglip", "qwen2.5-vl", "qwen3-vl", "gemma3")
VOCABULARY = 512
IMAGES = {"min_pixels": 64, "max_pixels": 1024, "size": {"shortest_edge": 64, "longest_edge": 1024}, "resample": 3}


@pytest.fixture(scope="module", autouse=True)
def whole_transformers():
    """A torchvision that does not load would keep transformers from its configs."""
    if importlib.util.find_spec("torch"):
        parity_models.let_torchvision_import()


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    data = small_run.make_data(tmp_path_factory.mktemp("data"))
    mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
    plain = small_run.arguments(data, tmp_path_factory.getbasetemp() / "cache")
    return [*plain, *mesh, "--config.eval.every=0", "--config.eval.examples=8", "--config.checkpoint.every=100"]


def byte_level_tokenizer():
    """Of bytes, with an end, and with what families put around images."""
    import tokenizers
    import transformers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="<pad>")
    around = ["<|vision_start|>", "<|vision_end|>", "<start_of_image>", "<end_of_image>"]
    tokenizer.add_tokens(around, special_tokens=True)
    return tokenizer


def folder_of(name: str, folder: Path) -> Path:
    """A model of random weights as a folder, with a tokenizer of bytes."""
    config = parity_models.case(name).config(np.random.default_rng(0))
    config.text_config.vocab_size = VOCABULARY
    family = specs.family_of(config)
    init, _ = make_model(family.spec)
    folder.mkdir()
    weights.write(folder, hf.outgoing(family, hf.flat(jax.jit(init)(jax.random.key(1))), np.float32))
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    byte_level_tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGES))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_family_is_read_trained_written_and_read_again(name, arguments, tmp_path):
    theirs = folder_of(name, tmp_path / "theirs")
    run = [*arguments, f"--config.init_from={theirs}", "--config.optimizer.rate=1e-3", "--config.steps=20"]
    assert train.main([*run, f"--workdir={tmp_path / 'run'}"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-2:]) < 0.8 * losses[0], losses
    assert export.main([f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"]) == 0
    written = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == safetensors.numpy.load_file(theirs / "model.safetensors").keys()
    again = [*arguments, f"--config.init_from={tmp_path / 'out'}", "--config.optimizer.rate=0.0", "--config.steps=1"]
    assert train.main([*again, f"--workdir={tmp_path / 'again'}"]) == 0
    last, first = small_run.saved(tmp_path / "run", 20), small_run.saved(tmp_path / "again", 1)
    names = [name for name in last if name.startswith("params.")]
    small_run.assert_same_bits({n: last[n] for n in names}, {n: first[n] for n in names})
