"""Folders as Hugging Face has them: small models of random weights, one for each family, with a tokenizer of bytes."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
from parities import models as parity_models

from jaxmm.hf import folder as hf
from jaxmm.hf import weights
from jaxmm.hf.families.registry import FAMILIES, family_of
from jaxmm.models.multimodal import make_model
from jaxmm.models.tree import flat

VOCABULARY = 512
# What a folder says of its images, by family.
SQUARE = {"height": 16, "width": 16}
IMAGES = {
    "lfm2_vl": {"resample": 3, "do_image_splitting": False, "min_image_tokens": 1, "max_image_tokens": 16},
    "llava, clip": {"size": {"shortest_edge": 16}, "crop_size": SQUARE},
    "llava, siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 20, "width": 20}},
    "qwen2_5_vl": {"size": {"shortest_edge": 64, "longest_edge": 1024}},
    "qwen3_vl": {"size": {"shortest_edge": 64, "longest_edge": 1024}},
    "qwen3_5": {"size": {"shortest_edge": 64, "longest_edge": 1024}},
    "qwen3_vl_moe": {"size": {"shortest_edge": 64, "longest_edge": 1024}},
    "gemma4": {"max_soft_tokens": 70},
    "gemma3": {"size": SQUARE}, "internvl": {"size": SQUARE, "max_patches": 4},
}  # fmt: skip
# InternVL's own.
CHAT = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n'}}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\\n' }}{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{'<|im_end|>\\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\\n' }}{% endif %}"
)


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
    around = ["<|vision_start|>", "<|vision_end|>", "<start_of_image>", "<end_of_image>", "<|image>", "<image|>"]
    tokenizer.add_tokens(around, special_tokens=True)
    if family == "internvl":
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
        tokenizer.chat_template = CHAT
    return tokenizer


def folder_of(name: str, folder: Path, has_weights: bool = True, seed: int = 1) -> Path:
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
        weights.write(folder, hf.outgoing(layout, flat(jax.jit(init)(jax.random.key(seed))), np.float32))
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    tokenizer.save_pretrained(folder)
    processor = IMAGES.get(name) or IMAGES[case.family]
    kind = processor.get("image_processor_type", FAMILIES[case.family].image_processor)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind, **processor}))
    if case.family == "internvl":
        whole = {"processor_class": "InternVLProcessor", "image_seq_length": 4}
        (folder / "processor_config.json").write_text(json.dumps(whole))
    return folder
