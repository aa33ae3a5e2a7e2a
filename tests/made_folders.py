"""Folders as Hugging Face has them: small models of random weights, one for each family, with a tokenizer of bytes."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import jax
import numpy as np
from parities import models as parity_models
from parities.tiny import llava

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
    "llava_next": {
        "size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8},
        "image_grid_pinpoints": llava.GRIDS,
    },
    "llava_onevision": {
        "size": {"height": llava.OVER, "width": llava.OVER},
        "image_grid_pinpoints": llava.ALL_GRIDS,
    },
    "qwen2_vl": {"size": {"shortest_edge": 64, "longest_edge": 1024}},
    "qwen2_5_vl": {"size": {"shortest_edge": 64, "longest_edge": 1024}},
    "qwen3_vl": {"size": {"shortest_edge": 64, "longest_edge": 1024}},
    "qwen3_5": {"size": {"shortest_edge": 64, "longest_edge": 1024}},
    "qwen3_5_moe": {"size": {"shortest_edge": 64, "longest_edge": 1024}},
    "qwen3_vl_moe": {"size": {"shortest_edge": 64, "longest_edge": 1024}},
    "gemma4": {"max_soft_tokens": 70},
    "paligemma": {"size": SQUARE, "image_seq_length": 16},
    "gemma3": {"size": SQUARE}, "internvl": {"size": SQUARE, "max_patches": 4},
    "glm4v": {"size": {"shortest_edge": 128, "longest_edge": 2048}, "patch_size": 4},
    "glm46v": {"size": {"shortest_edge": 128, "longest_edge": 2048}},
    "glm4v_moe": {"size": {"shortest_edge": 128, "longest_edge": 2048}},
    "glm_ocr": {"size": {"shortest_edge": 128, "longest_edge": 2048}},
    "paddleocr_vl": {"size": {"shortest_edge": 64, "longest_edge": 1024}, "patch_size": 4},
    "mistral3": {"size": {"longest_edge": 32}, "patch_size": {"height": 4, "width": 4}},
    "llava_pixtral": {"size": {"longest_edge": 32}, "patch_size": {"height": 4, "width": 4}},
    "idefics3": {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 16}, "do_image_splitting": False},
    "smolvlm": {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 16}, "do_image_splitting": False},
}  # fmt: skip
PIXTRAL = {"mistral3": 2, "llava_pixtral": 1}  # families with its processor, and how many patches a side make one
# What a folder says besides whose pictures are split.
SPLIT = {
    "siglip2 + llama": {
        "do_image_splitting": True, "min_tiles": 2, "max_tiles": 6, "tile_size": 24, "resample": 2,
        "encoder_patch_size": 4, "downsample_factor": 2,
    },
    "idefics3": {"do_image_splitting": True, "resample": 1},
    "gemma3": {
        "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16, "pan_and_scan_max_num_crops": None,
        "pan_and_scan_min_ratio_to_activate": 1.5,
    },
}  # fmt: skip
# InternVL's own.
CHAT = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n'}}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\\n' }}{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{'<|im_end|>\\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\\n' }}{% endif %}"
)
# As Mistral's.
INST = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ '[INST]' }}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '[IMG]' }}"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{ '[/INST]' }}{% endif %}{% endfor %}"
)
# As LLaVA-NeXT's of Mistral: pictures first.
FIRST = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ ' ' + (message['content'] if "
    "message['content'] is string else message['content'][0]['text']) + eos_token }}{% else %}{{ '[INST] ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<image>\\n' }}{% endif %}{% endfor %}"
    "{% for content in message['content'] %}{% if content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ ' [/INST]' }}{% endif %}{% endfor %}"
)
# As LLaVA-OneVision's: pictures first, a line's end before the text.
LEAD = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\\n' + content['text'] }}"
    "{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# As GLM's.
GLM = (
    "[gMASK]<sop>{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<|begin_of_image|><|image|><|end_of_image|>' }}"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
# As PaddleOCR-VL's: what is said is a list of parts.
PADDLE = (
    "{{ '<|begin_of_sentence|>' }}{% for message in messages %}"
    "{{ 'User: ' if message['role'] == 'user' else 'Assistant:\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '\n' if message['role'] == 'user' else eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)

# SmolVLM's own; Idefics 3's begins alike.
USER_CHAT = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'] is string %}"
    "{{': ' + message['content']}}{% else %}{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}"
    "{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endif %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
# As Gemma 3's.
TURNS = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ item['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def gemma_tokenizer():
    """As Gemma's: a text is one word, so that tokens go over spaces and over the edges of what was joined."""
    import tokenizers
    import transformers

    letters = [f"<0x{byte:02X}>" for byte in range(256)] + ["\n", "▁", *map(chr, range(33, 127))]
    merges = [
        ("\n", "\n"), ("▁", "\n"), ("r", "e"), ("H", "e"), ("\n", "He"), ("?", "He"), ("▁", "a"), ("▁", "\n\n"),
        ("\n\n", "▁a"), ("\n\n", "W"),
    ]  # fmt: skip
    vocabulary = {token: i for i, token in enumerate([*letters, *map("".join, merges)])}
    inner = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True)
    )
    inner.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    inner.decoder = tokenizers.decoders.Sequence([
        tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse(),
    ])  # fmt: skip
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="</s>", pad_token="<pad>", extra_special_tokens=named
    )
    tokenizer.add_tokens(["<start_of_turn>", "<end_of_turn>"], special_tokens=True)
    tokenizer.chat_template = TURNS
    return tokenizer


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
    if family == "paddleocr_vl":
        more = {"extra_special_tokens": {"image_token": "<|IMAGE_PLACEHOLDER|>"}}
    more |= {"bos_token": "<bos>"} if family == "paligemma" else {}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", **more
    )  # fmt: skip
    around = ["<|vision_start|>", "<|vision_end|>", "<start_of_image>", "<end_of_image>", "<fake_token_around_image>"]
    around += ["<|image>", "<image|>"]
    tokenizer.add_tokens(around, special_tokens=True)
    if family == "internvl":
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
        tokenizer.chat_template = CHAT
    if family == "paligemma":
        tokenizer.add_tokens(["<image>"], special_tokens=True)
        tokenizer.add_tokens(["<loc0000>", "<loc1023>"])  # words of its answers
    if family.startswith("glm"):
        names = ["<|begin_of_image|>", "<|image|>", "<|end_of_image|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>"]
        names += ["<|begin_of_video|>", "<|end_of_video|>"]
        tokenizer.add_tokens(names, special_tokens=True)
        tokenizer.chat_template = GLM
    if family == "paddleocr_vl":
        tokenizer.add_tokens(["<|begin_of_sentence|>", "<|IMAGE_START|>", "<|IMAGE_END|>"], special_tokens=True)
        tokenizer.chat_template = PADDLE
    if family == "llava_next":
        tokenizer.add_tokens(["<image>"], special_tokens=True)
        tokenizer.chat_template = FIRST
    if family == "llava_onevision":
        tokenizer.add_tokens(["<image>", "<video>", "<|im_start|>", "<|im_end|>"], special_tokens=True)
        tokenizer.chat_template = LEAD
    if family in PIXTRAL:
        names = ["[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
        tokenizer.add_tokens(names, special_tokens=True)
        tokenizer.chat_template = INST
    return tokenizer


def folder_of(name: str, folder: Path, has_weights: bool = True, seed: int = 1, is_split: bool = False) -> Path:
    """A model of random weights as a folder, with a tokenizer of bytes; ``is_split``: of a processor of ``SPLIT``."""
    config = parity_models.case(name).config(np.random.default_rng(0))
    config.text_config.vocab_size = config.text_config.vocab_size_per_layer_input = VOCABULARY
    case = parity_models.case(name)
    is_gemma = is_split and case.family == "gemma3"
    tokenizer = gemma_tokenizer() if is_gemma else byte_level_tokenizer(case.family)
    if is_gemma:
        config.image_token_id = tokenizer.convert_tokens_to_ids("<image_soft_token>")
    elif is_split:
        pictures, grid = FAMILIES[case.family].pictures, itertools.product(range(1, 7), repeat=2)
        marks = [pictures.square_text.format(row=row, column=column) for row, column in grid]
        around = re.findall(r"<[^<>\s]+>", "".join(FAMILIES[case.family].markup.around(1)) + pictures.whole_text)
        ends = ["<|im_start|>", "<|im_end|>", "<end_of_utterance>"]
        tokenizer.add_tokens(["<image>", *ends, *around, *marks], special_tokens=True)
        tokenizer.chat_template = (
            USER_CHAT if case.family == "idefics3" else CHAT.replace("<IMG_CONTEXT>\\n", "<image>")
        )
        config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    if case.family == "internvl":
        config.image_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    if case.family.startswith("glm"):
        config.image_token_id = tokenizer.convert_tokens_to_ids("<|image|>")
    if case.family == "paddleocr_vl":
        config.image_token_id = tokenizer.convert_tokens_to_ids("<|IMAGE_PLACEHOLDER|>")
    if case.family in (*PIXTRAL, "paligemma"):
        mark = "<image>" if case.family == "paligemma" else "[IMG]"
        config.image_token_index = tokenizer.convert_tokens_to_ids(mark)
    if case.family in ("llava_next", "llava_onevision"):
        config.image_token_index = tokenizer.convert_tokens_to_ids("<image>")
    if case.family == "llava_onevision":
        config.video_token_index = tokenizer.convert_tokens_to_ids("<video>")
    folder.mkdir()
    if has_weights:
        layout = family_of(config).layout(config)
        init, _ = make_model(layout.spec)
        weights.write(folder, hf.outgoing(layout, flat(jax.jit(init)(jax.random.key(seed))), np.float32))
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    tokenizer.save_pretrained(folder)
    processor = (IMAGES.get(name) or IMAGES[case.family]) | (SPLIT[name] if is_split else {})
    kind = processor.get("image_processor_type", FAMILIES[case.family].image_processor)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind, **processor}))
    if is_gemma:
        whole = {"processor_class": "Gemma3Processor", "image_seq_length": 4}
        (folder / "processor_config.json").write_text(json.dumps(whole))
    if case.family == "idefics3":
        whole = {"processor_class": "Idefics3Processor", "image_seq_len": 4}
        (folder / "processor_config.json").write_text(json.dumps(whole))
    if case.family == "internvl":
        whole = {"processor_class": "InternVLProcessor", "image_seq_length": 4}
        (folder / "processor_config.json").write_text(json.dumps(whole))
    if case.family == "glm4v":
        for file, whole in (
            ("processor_config.json", {"processor_class": "Glm4vProcessor"}),
            ("video_preprocessor_config.json", {"video_processor_type": "Glm4vVideoProcessor"}),
        ):
            (folder / file).write_text(json.dumps(whole))
    if case.family == "paddleocr_vl":
        whole = {"processor_class": "PaddleOCRVLProcessor"}
        (folder / "processor_config.json").write_text(json.dumps(whole))
    if case.family == "paligemma":
        (folder / "processor_config.json").write_text(json.dumps({"processor_class": "PaliGemmaProcessor"}))
    if case.family == "llava_next":
        whole = {
            "processor_class": "LlavaNextProcessor", "patch_size": 4, "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1, "image_token": "<image>",
        }  # fmt: skip
        (folder / "processor_config.json").write_text(json.dumps(whole))
    if case.family == "llava_onevision":
        whole = {
            "processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 9, "image_token": "<image>",
            "vision_feature_select_strategy": "full", "vision_aspect_ratio": config.vision_aspect_ratio,
        }  # fmt: skip
        (folder / "processor_config.json").write_text(json.dumps(whole))
        videos = {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": processor["size"]}
        (folder / "video_preprocessor_config.json").write_text(json.dumps(videos))
    if case.family in PIXTRAL:
        whole = {"processor_class": "PixtralProcessor", "patch_size": 4, "spatial_merge_size": PIXTRAL[case.family]}
        (folder / "processor_config.json").write_text(json.dumps(whole))
    return folder
