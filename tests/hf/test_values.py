"""Numbers of a folder's config.json that no model can have are told by file and key, before all else."""

from __future__ import annotations

import json
import math

import pytest
from released_configs import GEMMA3, LLAMA3, LLAVA, QWEN3_VL
from test_releases import changed

from jaxmm.errors import UserError
from jaxmm.hf import folder as hf
from jaxmm.hf.decoders import decoder_of
from jaxmm.hf.pretrained import read_start

pytestmark = pytest.mark.usefixtures("whole_transformers")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(LLAVA, text__num_hidden_layers=10**9), "text_config.num_hidden_layers is 1000000000: it must be an"),
        (changed(LLAVA, text__rope_theta=-1), "text_config.rope_theta is -1: it must be a number, 1 to"),
        (changed(LLAVA, text__rope_theta=math.nan), "text_config.rope_theta is nan: it must be finite"),
        (changed(LLAVA, vision__layer_norm_eps=-1e-5), "vision_config.layer_norm_eps is -1e-05"),
        (changed(LLAVA, text__rms_norm_eps=math.inf), "text_config.rms_norm_eps is inf: it must be finite"),
        (changed(LLAVA, text__rms_norm_eps=0), "text_config.rms_norm_eps is 0: it must be a number"),
        (changed(LLAVA, text__vocab_size=0), "text_config.vocab_size is 0: it must be an integer, 1 to"),
        (changed(LLAVA, text__num_attention_heads="32"), "text_config.num_attention_heads is '32': it must be an"),
        (changed(LLAVA, text__hidden_size=True), "text_config.hidden_size is True: it must be an integer"),
        (changed(LLAVA, text__hidden_size=1e3), "text_config.hidden_size is 1000.0: it must be an integer"),
        (changed(LLAVA, vision__patch_size=0), "vision_config.patch_size is 0: it must be an integer"),
        (changed(LLAVA, vision__image_size=[336, -1]), r"vision_config.image_size is \[336, -1\]: it must be"),
        (changed(LLAVA, text_config="llama"), "text_config is 'llama', not an object of keys"),
        (changed(LLAVA, text__rope_scaling={"type": "linear", "factor": -4.0}), "rope_scaling.factor is -4.0"),
        (changed(QWEN3_VL, vision__depth=-1), "vision_config.depth is -1"),
        (changed(LLAVA, text__num_attention_heads=31), "not a multiple of the number of attention heads"),
        (changed(LLAVA, text__head_dim=127), "even rotary dimension, but got .head_dim.=127"),
        (changed(GEMMA3, text__query_pre_attn_scalar=0), "text_config.query_pre_attn_scalar is 0"),
        ({**LLAMA3, "rope_scaling": {**LLAMA3["rope_scaling"], "high_freq_factor": 1.0}}, ""),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_one_line_with_file_and_key(config, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    if not message:  # a decoder by itself
        with pytest.raises(UserError, match="low_frequency_factor must be below"), hf.of_folder(tmp_path):
            decoder_of(hf.read_config(tmp_path), False)
        return
    with pytest.raises(UserError, match=message) as caught:
        hf.read_whole(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("preprocessor_config.json", {"image_std": [0.5, 0.0, 0.5]}, "image_mean and image_std, .* std above 0"),
        ("preprocessor_config.json", {"image_mean": [math.nan] * 3}, "image_mean and image_std, .* finite numbers"),
        ("preprocessor_config.json", {"image_mean": [0.5]}, "image_mean and image_std, .* one number a channel"),
        ("preprocessor_config.json", {"image_mean": "half"}, "image_mean and image_std, .* are not right"),
        ("generation_config.json", {"eos_token_id": "</s>"}, "generation_config.json: eos_token_id is '</s>'"),
        ("generation_config.json", {"eos_token_id": [2, None]}, "eos_token_id is \\[2, None\\]"),
    ],
)
def test_what_stands_beside_the_config_is_checked_too(file, content, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAVA))
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_start(str(tmp_path), None, 2, 0)
