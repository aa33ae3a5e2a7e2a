"""Configs in the shape of the releases, old spellings and missing fields included: their sizes come out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from released_configs import (
    GEMMA3,
    GEMMA4,
    GEMMA4_26B,
    GEMMA4_E2B,
    GEMMA4_E4B,
    GLM4_5_AIR,
    GLM4_5V,
    GLM4V,
    GLM_OCR,
    INTERNVL3,
    LFM2,
    LFM2_350M,
    LFM2_MOE,
    LLAMA3,
    LLAVA,
    LLAVA_NEXT,
    LLAVA_ONEVISION,
    MISTRAL,
    MISTRAL3,
    PADDLEOCR_VL,
    PALIGEMMA,
    PALIGEMMA2,
    PIXTRAL,
    QWEN2_5_VL,
    QWEN2_5_VL_3B,
    QWEN2_VL,
    QWEN2_VL_2B,
    QWEN3,
    QWEN3_5_MOE,
    QWEN3_MOE,
    QWEN3_VL,
    QWEN3_VL_MOE,
    SIGLIP2,
    SMOLVLM,
    SMOLVLM2_500M,
)

from jaxmm.errors import UserError
from jaxmm.hf import folder as hf
from jaxmm.hf.decoders import decoder_of, plain_decoder_of
from jaxmm.hf.families.registry import layout_of
from jaxmm.hf.towers import tower_of
from jaxmm.models.attention import choose_backend
from jaxmm.models.multimodal import ModelSpec, flat_axes
from jaxmm.models.rope import axis_of_frequency
from jaxmm.models.routing import ExpertSpec

pytestmark = pytest.mark.usefixtures("whole_transformers")


def config_of(config: dict[str, Any], folder: Path) -> Any:
    (folder / "config.json").write_text(json.dumps(config))
    return hf.read_config(folder)


def count(spec: ModelSpec, *parts: str) -> int:
    return sum(math.prod(shape) for path, (shape, _) in flat_axes(spec).items() if path[0] in parts)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        # Of LLaVA's tower the last layer (12,596,224) and the norm after it (2,048) are not used.
        (LLAVA, 7_063_427_072 - 12_596_224 - 2_048),
        (LLAVA_NEXT, 7_566_747_648 - 12_596_224 - 2_048),
        # Of LLaVA-OneVision's tower the norm behind its layers is not used.
        (LLAVA_ONEVISION, 893_618_208 - 2_304),
        (QWEN2_VL, 8_291_375_616),
        (QWEN2_VL_2B, 2_208_985_600),
        (QWEN2_5_VL, 8_292_166_656),
        (QWEN2_5_VL_3B, 3_754_622_976),
        (QWEN3_VL, 4_437_815_808),
        (QWEN3_VL_MOE, 31_070_754_032),
        # Of Qwen3.5's the weights that guess a second token (844,640,768) are not used.
        (QWEN3_5_MOE, 35_951_822_704 - 844_640_768),
        (PALIGEMMA, 2_923_466_480),
        (PALIGEMMA2, 3_032_242_416),
        (GEMMA3, 4_300_079_472),
        (SMOLVLM2_500M, 507_482_304),
        (SMOLVLM, 2_246_272_880),
        (MISTRAL3, 24_011_361_280),
        (PIXTRAL, 12_247_782_400 + 403_489_792 + 31_467_520),  # Mistral Nemo's, the tower's and the projector's
        (GLM4V, 10_292_777_472),
        (GEMMA4, 31_273_088_876),
        (GLM4_5V, 107_710_933_120),
        (GLM_OCR, 1_107_405_824),  # without the layer that guesses a further token, which is not used
        # Of PaddleOCR-VL a table of positions (37,748,736) and the tower's head (15,238,352) are not used. Its head of
        # the vocabulary (105,906,176) is the embedding by its config, and one of its own by its tensors.
        (PADDLEOCR_VL, 958_588_736 - 37_748_736 - 15_238_352 - 105_906_176),
    ],
    ids=lambda x: x["model_type"] if isinstance(x, dict) else "",
)
def test_a_released_config_gives_as_many_parameters_as_the_release_has(config, parameters, tmp_path):
    layout = layout_of(config_of(config, tmp_path))
    assert count(layout.spec, "vision", "connector", "decoder") == parameters


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (QWEN3, 596_049_920),
        (QWEN3_MOE, 30_532_122_624),
        (LLAMA3, 1_235_814_400),
        (MISTRAL, 7_241_732_096),
        (LFM2, 1_170_340_608),
        (LFM2_350M, 354_483_968),
        # Of GLM-4.5-Air a layer that guesses a further token, with an embedding and a head of its own, is not used.
        (GLM4_5_AIR, 110_468_824_832 - 3_616_573_568),
        (LFM2_MOE, 8_339_929_856 + 704),  # in bfloat16, and of the choice of experts in float32
    ],
    ids=lambda x: x["model_type"] if isinstance(x, dict) else "",
)
def test_a_released_decoder_has_as_many_parameters(config, parameters, tmp_path):
    found = config_of(config, tmp_path)
    decoder = plain_decoder_of(found, found.tie_word_embeddings)
    assert count(ModelSpec(decoder=decoder.spec), "decoder") == parameters


def test_what_sparse_configs_do_not_say_is_what_the_family_means(tmp_path):
    gemma = layout_of(config_of(GEMMA3, tmp_path)).spec
    assert (gemma.decoder.heads, gemma.decoder.kv_heads, gemma.decoder.head_dim) == (8, 4, 256)
    assert (gemma.decoder.rope_theta, gemma.decoder.local_rope_theta) == (1e6, 1e4)
    assert (gemma.decoder.rope_scaling.kind, gemma.decoder.rope_scaling.factor) == ("linear", 8.0)
    assert (gemma.decoder.window, gemma.decoder.global_layers) == (1024, (5, 11, 17, 23, 29))
    one, two = (layout_of(config_of(config, tmp_path)).spec.decoder for config in (PALIGEMMA, PALIGEMMA2))
    assert (one.activation, one.norm_offset, one.embed_scale, one.window) == ("gelu_tanh", 1.0, 2048**0.5, 0)
    assert (two.attention_scale, two.attention_softcap, two.logit_softcap) == (1 / 16, 50.0, 30.0)
    assert (two.window, two.global_layers, two.post_norms) == (4096, tuple(range(1, 26, 2)), True)
    assert (one.prefix_blocks, two.prefix_blocks) == (True, True)
    whole = layout_of(config_of(GEMMA4, tmp_path)).spec
    four = whole.decoder
    assert choose_backend("", "gpu", 8192, "bfloat16", whole.head_widths) == "fused+blocks", "no kernel takes 512"
    assert choose_backend("", "tpu", 8192, "bfloat16", whole.head_widths) == "splash+blocks"
    assert (four.global_attention, four.kv_heads, four.head_dim) == ((4, 512, True), 16, 256)
    assert (four.rope_scaling.kind, four.rope_scaling.fraction, four.window) == ("proportional", 0.25, 1024)
    assert four.layers_of("global_attention") == four.global_layers == tuple(range(5, 60, 6))
    assert (gemma.decoder.vocab_size, gemma.decoder.tie_embeddings, gemma.connector.merge) == (262208, True, 4)
    tower = tower_of(config_of(SIGLIP2, tmp_path).vision_config).spec
    assert (tower.width, tower.layers, tower.heads, tower.mlp) == (1152, 27, 16, 4304)
    assert (tower.patch_size, tower.positions, tower.activation) == (16, 16, "gelu_tanh")
    llava = layout_of(config_of(LLAVA, tmp_path)).spec
    assert (llava.decoder.layers, llava.decoder.kv_heads, llava.decoder.rope_theta) == (32, 32, 10000.0)
    assert (llava.vision.layers, llava.vision.positions, llava.vision.activation) == (23, 24, "quick_gelu")


def test_gemma_4_s_other_sizes_are_those_that_its_makers_name(tmp_path):
    """25.2 billion parameters of which 3.8 are active, and 2.3 beside the rows of tokens; of E4B those of its class."""
    experts, small, large = (
        layout_of(config_of(config, tmp_path)) for config in (GEMMA4_26B, GEMMA4_E2B, GEMMA4_E4B)
    )  # fmt: skip
    decoder = experts.spec.decoder
    shapes = {path: math.prod(shape) for path, (shape, _) in flat_axes(experts.spec).items() if path[0] == "decoder"}
    idle = sum(n for path, n in shapes.items() if path[2:4] in {("experts", part) for part in ("gate", "up", "down")})
    assert round(sum(shapes.values()) / 1e9, 1) == 25.2
    assert round((sum(shapes.values()) - idle * 120 / 128) / 1e9, 1) == 3.8
    assert len(decoder.layers_of("mlp")) == len(decoder.layers_of("experts")) == 30
    assert (decoder.global_attention, decoder.kv_heads) == ((2, 512, True), 8)
    decoder = small.spec.decoder
    assert round((count(small.spec, "decoder") - 262144 * 35 * 256) / 1e9, 1) == 2.3
    assert (decoder.first_handed, decoder.handed_mlp, decoder.layer_inputs, decoder.window) == (15, 12288, 256, 512)
    assert decoder.places_of_keys().tolist()[13:20] == [11, 2, 11, 11, 11, 11, 2]
    assert (decoder.global_attention, small.spec.vision.clipped) == ((1, 512, False), True)
    assert "audio tower is not built" in small.told[0]
    decoder = large.spec.decoder
    assert count(large.spec, "decoder") == 7_463_013_376 + 42  # in transformers the scales of layers are buffers
    assert (decoder.first_handed, decoder.handed_mlp, decoder.layer_inputs, decoder.window) == (24, 0, 256, 512)
    assert decoder.places_of_keys().tolist()[22:30] == [19, 3, 19, 19, 19, 19, 19, 3]
    assert (decoder.kv_heads, decoder.global_attention) == (2, (2, 512, False))
    assert large.spec.vision == small.spec.vision


def test_old_spellings_of_rotary_positions_are_read(tmp_path):
    qwen = layout_of(config_of(QWEN2_5_VL, tmp_path)).spec
    assert (qwen.decoder.rope_theta, qwen.decoder.rope_sections, qwen.decoder.window) == (1e6, (16, 24, 24), 0)
    assert (qwen.vision.window, qwen.vision.global_layers, qwen.vision.frames) == (8, (7, 15, 23, 31), 2)
    two = layout_of(config_of(QWEN2_VL_2B, tmp_path)).spec
    assert (two.decoder.rope_sections, two.decoder.window, two.decoder.tie_embeddings) == ((16, 24, 24), 0, True)
    assert (two.vision.width, two.vision.mlp, two.vision.activation, two.vision.window) == (1280, 5120, "quick_gelu", 0)
    three = layout_of(config_of(QWEN2_5_VL_3B, tmp_path)).spec
    assert three.decoder.tie_embeddings
    qwen3 = layout_of(config_of(QWEN3_VL, tmp_path)).spec
    assert (qwen3.decoder.rope_theta, qwen3.decoder.rope_sections) == (5e6, (24, 20, 20))
    assert (qwen3.vision.taps, qwen3.vision.positions) == ((5, 11, 17), 48)
    intern = layout_of(config_of(INTERNVL3, tmp_path)).spec
    assert (intern.vision.positions, intern.vision.patch_size, intern.vision.qkv_bias) == (32, 14, True)
    assert (intern.decoder.width, intern.decoder.head_dim, intern.decoder.window) == (896, 64, 0)
    scaling = intern.decoder.rope_scaling
    assert (scaling.kind, scaling.factor, scaling.trained_length) == ("dynamic", 2.0, 32768)
    llama = decoder_of(config_of(LLAMA3, tmp_path), True).spec
    assert (llama.rope_scaling.kind, llama.rope_scaling.trained_length, llama.rope_theta) == ("llama3", 8192, 5e5)
    old = {**MISTRAL, "model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}}
    assert decoder_of(config_of(old, tmp_path), False).spec.rope_scaling.factor == 4.0
    assert decoder_of(config_of(MISTRAL, tmp_path), False).spec.window == 4096


@pytest.mark.parametrize(
    ("changes", "dense"),
    [
        ({}, set()), ({"mlp_only_layers": [0, 47]}, {0, 47}), ({"decoder_sparse_step": 2}, set(range(0, 48, 2))),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [5]}, {*range(0, 48, 2), 5}),
        ({"decoder_sparse_step": 64}, None),
    ],
)  # fmt: skip
def test_a_config_says_which_layers_have_experts(changes, dense, tmp_path):
    """None: no layer has, and the decoder is one of MLPs."""
    spec = decoder_of(config_of(QWEN3_MOE | changes, tmp_path), False).spec
    assert (set(spec.dense_layers) if spec.experts else None) == dense
    assert len(spec.layers_of("mlp")) == (48 if dense is None else len(dense))


def test_what_a_router_does_is_read_from_the_config(tmp_path):
    lfm2 = decoder_of(config_of(LFM2_MOE, tmp_path), True).spec
    wanted = ExpertSpec(32, 4, 1792, gate="sigmoid", normalised=True, sum_offset=1e-6)
    assert (lfm2.experts, lfm2.dense_layers, lfm2.mlp) == (wanted, (0, 1), 7168)
    assert lfm2.layers_of("attention") == (2, 6, 10, 14, 18, 21)
    with pytest.raises(UserError, match="lfm2_moe with use_expert_bias=False is not supported"):
        decoder_of(config_of(LFM2_MOE | {"use_expert_bias": False}, tmp_path), True)
    glm = decoder_of(config_of(GLM4_5_AIR, tmp_path), False).spec
    wanted = ExpertSpec(128, 8, 1408, gate="sigmoid", normalised=True, sum_offset=1e-20, shared_mlp=1408)
    assert (glm.experts, glm.dense_layers, glm.rotary_dim, glm.qkv_bias) == (wanted, (0,), 64, True)
    qwen = layout_of(config_of(QWEN3_5_MOE, tmp_path)).spec.decoder
    wanted = ExpertSpec(256, 8, 512, normalised=True, shared_mlp=512, shared_gate=True, balance_loss=0.001)
    assert (qwen.experts, qwen.dense_layers, qwen.layers_of("mlp")) == (wanted, (), ())


def test_axes_that_take_turns_need_no_section_for_every_frequency(tmp_path):
    """As in transformers, where sections of small heads may be missing from the file: the first axis takes the rest."""
    small = config_of({"model_type": "qwen3_vl_text", "hidden_size": 84, "num_attention_heads": 6,
                       "num_key_value_heads": 3, "head_dim": 14, "vocab_size": 219}, tmp_path)  # fmt: skip
    spec = decoder_of(small, False).spec
    axes = axis_of_frequency(spec.rope_sections, spec.rope_interleaved, spec.head_dim // 2)
    assert axes.tolist() == [0, 1, 2, 0, 1, 2, 0]


def changed(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """With other values: ``vision__x`` and ``text__x`` go to x of these configs."""
    found = json.loads(json.dumps(config))
    for name, value in changes.items():
        part, _, key = name.rpartition("__")
        (found[f"{part}_config"] if part else found)[key] = value
    return found


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(GEMMA3, mm_tokens_per_image=250), "mm_tokens_per_image=250 is not supported: it is no square"),
        (changed(GEMMA3, mm_tokens_per_image=225), "15 soft tokens along 64 patches are not supported"),
        (changed(GEMMA3, text__use_bidirectional_attention=True), "use_bidirectional_attention=True is not supported"),
        (changed(PIXTRAL, vision_feature_layer=-2), "vision_feature_layer=-2 is not supported: only -1"),
        (changed(PIXTRAL, vision_feature_select_strategy="default"), "=default is not supported: only full"),
        (changed(LLAVA, vision_config=GLM4V["vision_config"]), "tower"),
        (changed(MISTRAL3, vision_config=LLAVA["vision_config"]), "mistral3 with a tower 'clip_vision_model'"),
        (changed(MISTRAL3, vision_feature_layer=-2), "vision_feature_layer=-2 is not supported: only -1"),
        (changed(LLAVA, vision_feature_layer=-30), "vision_feature_layer -30 is no layer of a tower of 24"),
        (changed(LLAVA, vision_feature_select_strategy="full"), "strategy 'full' with a tower with a class token"),
        (changed(LLAVA, vision__hidden_act="mish"), "activation 'mish' of the checkpoint is not supported"),
        (changed(LLAVA, text__num_key_value_heads=5), "32 attention heads are no multiple of 5 key-value heads"),
        (changed(LLAVA, vision__num_channels=4), "num_channels=4 is not supported: only 3"),
        (changed(QWEN3_VL, vision__num_heads=15), "vision width 1024 is no multiple of 15 heads"),
        (changed(LLAVA, vision__image_size=[336, 224]), "image_size of 336 x 224 is not supported: only squares"),
        (changed(LLAVA, text__model_type="opt"), "decoder 'opt' is not supported: those are llama, mistral"),
        (changed(LLAVA, vision__model_type="dinov2"), "vision tower 'dinov2' is not supported: those are siglip2"),
        (changed(QWEN3_VL, vision__deepstack_visual_indexes=[5, 11, 40]), r"deepstack_visual_indexes \[5, 11, 40\]"),
        (changed(QWEN3_VL, vision__num_position_embeddings=2300), "num_position_embeddings=2300 is not supported"),
        (changed(QWEN3_5_MOE, text__mlp_only_layers=[3]), r"qwen3_5_moe_text with mlp_only_layers=\[3\] is not"),
        (changed(QWEN3_VL_MOE, text__num_experts_per_tok=129), "129 experts a position are more than are open to it"),
        (changed(QWEN3_VL_MOE, text__moe_intermediate_size=1024), "moe_intermediate_size 1024 with hidden_size 2048"),
        (changed(QWEN2_5_VL, rope_scaling={"type": "mrope", "mrope_section": [16, 24, 8]}), "does not add up to half"),
        (changed(GEMMA4_E2B, text__vocab_size_per_layer_input=512), "vocab_size_per_layer_input=512 is not supported"),
        (changed(GEMMA4_E2B, text__pad_token_id=3), "pad_token_id=3 is not supported: only 0"),
        (changed(GEMMA4_E2B, text__num_kv_shared_layers=31), "last 31 layers see keys of layers before them, of which"),
        (changed(GEMMA4, text__use_bidirectional_attention="all"), "use_bidirectional_attention=all is not supported"),
        (changed(PALIGEMMA, projection_dim=1024), "projection_dim is 1024, and hidden_size of its decoder 2048"),
        (changed(PALIGEMMA, text__model_type="gemma3_text"), "decoder 'gemma3_text' is not supported: gemma and"),
        (changed(PALIGEMMA, text__rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "rope_type 'dynamic' is not"),
        (changed(INTERNVL3, vision_feature_layer=[-1, -2]), r"vision_feature_layer=\[-1, -2\] is not supported"),
        (changed(INTERNVL3, downsample_ratio=0.3), "downsample_ratio=0.3 is not supported: only 1 / n is"),
        (changed(INTERNVL3, vision__use_mean_pooling=False, vision__norm_type="rms_norm"), "norm_type=rms_norm is not"),
        (changed(INTERNVL3, text__model_type="gpt_oss"), "decoder 'gpt_oss' is not supported: those are llama"),
        ({"model_type": "qwen3"}, "'qwen3' is no whole model but a part of one: name both parts, as "
         "vision:DIR,decoder:DIR or audio:DIR,decoder:DIR$"),
        ({"model_type": "siglip2"}, "'siglip2' is no whole model but .*: name both parts, as vision:DIR,decoder:DIR$"),
        ({"model_type": "whisper"}, "'whisper' is no whole model but .*: name both parts, as audio:DIR,decoder:DIR$"),
        (changed(LLAVA_NEXT, vision_config=MISTRAL3["vision_config"]), "llava_next with a tower 'pixtral' is not"),
        (changed(LLAVA, model_type="llava_next_video"), "model 'llava_next_video' is not supported: those are lfm2_vl"),
        ({"model_type": "bert_of_mine"}, "model 'bert_of_mine' is not supported: those are lfm2_vl, llava"),
        (changed(LLAVA, quantization_config={"quant_method": "awq"}), "weights quantised by awq are not supported"),
        (changed(LLAVA, quantization_config="int4"), "weights quantised by some method are not supported"),
        (changed(LLAVA, text__compression_config={"quant_method": "compressed-tensors"}),
         "weights quantised by compressed-tensors are not supported"),
        ({"architectures": ["Mystery"]}, "model '' is not supported: those are lfm2_vl, llava"),
    ],
)  # fmt: skip
def test_what_a_config_asks_and_we_do_not_do_is_one_line(config, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        layout_of(config_of(config, tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "has no config.json"), ("{", "config.json cannot be read"), ("[1]", "config.json cannot be read"),
     (json.dumps(changed(LLAVA, text__hidden_size="wide")), "text_config.hidden_size is .wide.: it must be")],
)  # fmt: skip
def test_a_folder_without_a_readable_config_is_one_line(text, message, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        hf.read_config(tmp_path)
    assert "\n" not in str(caught.value)
