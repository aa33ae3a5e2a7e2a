"""Each family from its folder to a folder: read, trained on a mesh, written, and read again to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import small_run
from parities import models as parity_models

from jaxmm import export, train
from jaxmm.hf import folder as hf
from jaxmm.hf import weights
from jaxmm.hf.families.registry import FAMILIES, family_of
from jaxmm.models.multimodal import make_model

CASES = (
    "siglip2 + llama", "qwen3", "llava, clip", "llava, siglip", "qwen2.5-vl", "qwen3-vl", "gemma3", "internvl",
)  # fmt: skip
VOCABULARY = 512
# What a folder says of its images, by family.
SQUARE = {"height": 16, "width": 16}
IMAGES = {
    "lfm2_vl": {"resample": 3, "do_image_splitting": False, "min_image_tokens": 1, "max_image_tokens": 16},
    "llava, clip": {"size": {"shortest_edge": 16}, "crop_size": SQUARE},
    "llava, siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 20, "width": 20}},
    "qwen2_5_vl": {"size": {"shortest_edge": 64, "longest_edge": 1024}},
    "qwen3_vl": {"size": {"shortest_edge": 64, "longest_edge": 1024}},
    "gemma3": {"size": SQUARE}, "internvl": {"size": SQUARE, "max_patches": 4},
}  # fmt: skip
# InternVL's own.
CHAT = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n'}}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\\n' }}{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{'<|im_end|>\\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\\n' }}{% endif %}"
)


pytestmark = pytest.mark.usefixtures("whole_transformers")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    data = small_run.make_data(tmp_path_factory.mktemp("data"))
    mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
    plain = small_run.arguments(data, tmp_path_factory.getbasetemp() / "cache")
    return [*plain, *mesh, "--config.eval.every=0", "--config.eval.examples=8", "--config.checkpoint.every=100"]


def byte_level_tokenizer(family: str = ""):
    """Of bytes, with an end, and with what families put around images; InternVL's with its names for them."""
    import tokenizers
    import transformers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    more = {"extra_special_tokens": named | {"video_token": "<video>"}} if family == "internvl" else {}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", **more
    )  # fmt: skip
    around = ["<|vision_start|>", "<|vision_end|>", "<start_of_image>", "<end_of_image>"]
    tokenizer.add_tokens(around, special_tokens=True)
    if family == "internvl":
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
        tokenizer.chat_template = CHAT
    return tokenizer


def folder_of(name: str, folder: Path, has_weights: bool = True) -> Path:
    """A model of random weights as a folder, with a tokenizer of bytes."""
    config = parity_models.case(name).config(np.random.default_rng(0))
    config.text_config.vocab_size = VOCABULARY
    case = parity_models.case(name)
    tokenizer = byte_level_tokenizer(case.family)
    if case.family == "internvl":
        config.image_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    folder.mkdir()
    if has_weights:
        layout = family_of(config).layout(config)
        init, _ = make_model(layout.spec)
        weights.write(folder, hf.outgoing(layout, hf.flat(jax.jit(init)(jax.random.key(1))), np.float32))
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    tokenizer.save_pretrained(folder)
    processor = IMAGES.get(name) or IMAGES[case.family]
    kind = processor.get("image_processor_type", FAMILIES[case.family].image_processor)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind, **processor}))
    if case.family == "internvl":
        whole = {"processor_class": "InternVLProcessor", "image_seq_length": 4}
        (folder / "processor_config.json").write_text(json.dumps(whole))
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
