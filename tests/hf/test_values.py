"""Numbers of a folder's config.json that no model can have are told by file and key, before all else."""

from __future__ import annotations

import json
import math

import pytest
from released_configs import (
    GEMMA3,
    GEMMA4,
    GLM4V,
    GLM_OCR,
    LLAMA3,
    LLAVA,
    LLAVA_NEXT,
    PADDLEOCR_VL,
    PALIGEMMA,
    QWEN2_5_VL,
    QWEN2_VL,
    QWEN3_5,
    QWEN3_MOE,
    QWEN3_VL,
    QWEN3_VL_MOE,
)
from test_releases import changed

from jaxmm.errors import UserError
from jaxmm.hf import folder as hf
from jaxmm.hf.decoders import decoder_of
from jaxmm.hf.pretrained import read_start

WITHOUT_WINDOWS = (LLAVA, PALIGEMMA, QWEN3_VL, QWEN3_VL_MOE, GLM4V, GLM_OCR, PADDLEOCR_VL)

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
    ("config", "part", "key", "value"),
    [
        *((config, "text_config", "sliding_window", 3) for config in WITHOUT_WINDOWS),
        *((config, "text_config", "hidden_act", "relu") for config in (GEMMA3, GEMMA4)),
        *((config, "vision_config", "layer_norm_eps", 0.05) for config in (QWEN2_VL, QWEN2_5_VL, QWEN3_VL)),
        (QWEN3_5, "vision_config", "deepstack_visual_indexes", [0]),
        (QWEN3_VL, "text_config", "model_type", "qwen3"),  # a decoder without axes: a class has one kind of decoder
        (changed(LLAVA_NEXT, text__sliding_window=4), "text_config", "layer_types", "full_attention"),  # of all layers
    ],
)
def test_a_key_that_the_family_s_class_does_not_read_changes_nothing(config, part, key, value, tmp_path):
    """Whoever converts a checkpoint may leave keys of another class in it, which ``transformers`` passes over."""

    def layout(changes):
        found = json.loads(json.dumps(config))
        found.get(part, found).update(changes)
        (tmp_path / "config.json").write_text(json.dumps(found))
        return hf.read_whole(tmp_path).layout

    plain = layout({})
    assert layout({key: [value] * plain.spec.decoder.layers if key == "layer_types" else value}) == plain


@pytest.mark.parametrize("config", [LLAVA, QWEN3_VL, GEMMA3, GLM4V])
def test_attention_that_is_not_causal_is_refused(config, tmp_path):
    """transformers reads this key wherever it makes a causal mask."""
    (tmp_path / "config.json").write_text(json.dumps(changed(config, text__is_causal=False)))
    with pytest.raises(UserError, match="with is_causal=False is not supported: only True"):
        hf.read_whole(tmp_path)


def test_experts_of_qwen_3_have_one_window_in_all_layers(tmp_path):
    config = {**QWEN3_MOE, "use_sliding_window": True, "sliding_window": 7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = decoder_of(hf.read_config(tmp_path), False).spec
    assert (spec.window, spec.global_layers) == (7, ())


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
