"""Models that hear: families read and written, audio towers joined with decoders, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL.Image
import pytest
from made_folders import byte_level_tokenizer
from parities.tiny.parts import rope, text

from jaxmm import sharding
from jaxmm.api import load_config, make_plan
from jaxmm.data.text.own_format import has_chat_template
from jaxmm.errors import UserError
from jaxmm.exporting.configs import write_config
from jaxmm.exporting.processors import write_tokenizer
from jaxmm.hf import folder as hf
from jaxmm.hf import weights
from jaxmm.hf.families.family import HearingFamily
from jaxmm.hf.families.registry import FAMILIES, family_of
from jaxmm.hf.pretrained import read_params, read_start
from jaxmm.models.multimodal import make_model
from jaxmm.models.tree import flat
from jaxmm.recipe import fitted, read_recipe

SIZES = {"num_mel_bins": 16, "d_model": 24, "encoder_layers": 2, "encoder_attention_heads": 3, "encoder_ffn_dim": 44}
HEARING = [family for family in FAMILIES.values() if isinstance(family, HearingFamily)]


def config_of(kind: str) -> Any:
    import transformers

    if kind == "qwen2_audio":
        audio = SIZES | {"model_type": "qwen2_audio_encoder"}
        decoder = text("qwen2", head_dim=8, **rope("default"))
        return transformers.Qwen2AudioConfig(audio_config=audio, text_config=decoder)
    audio = SIZES | {"model_type": "qwen3_asr_encoder", "output_dim": 48, "downsample_hidden_size": 8}
    decoder = text("qwen3", **rope("default"))
    return transformers.Qwen3ASRConfig(audio_config=audio, text_config=decoder, tie_word_embeddings=False)


def drawn(layout: Any) -> dict[Any, Any]:
    """Parameters of random weights, by path."""
    init, _ = make_model(layout.spec)
    return flat(jax.jit(init)(jax.random.key(1)))


def tensors(layout: Any, params: Any) -> dict[str, weights.Outgoing]:
    return {one.name: one for one in hf.outgoing(layout, params, np.float32)}


def write(folder: Path, config: dict[str, Any], named: dict[str, weights.Outgoing], has_tokenizer: bool = True) -> Path:
    folder.mkdir()
    weights.write(folder, [one._replace(name=name) for name, one in named.items()])
    (folder / "config.json").write_text(json.dumps(config, default=str))
    if has_tokenizer:
        byte_level_tokenizer().save_pretrained(folder)
    return folder


def whole_folder(kind: str, folder: Path) -> Path:
    config = config_of(kind)
    config.text_config.vocab_size = 512
    layout = family_of(config).layout(config)
    return write(folder, config.to_dict(), tensors(layout, drawn(layout)))


def where(*_: Any) -> Any:
    return sharding.replicated(sharding.make_mesh({"data": 1}, jax.devices()[:1]))


@pytest.mark.parametrize("family", HEARING, ids=lambda family: family.model_type)
def test_a_whole_model_is_read_and_takes_recordings_alone(family, tmp_path):
    folder = whole_folder(family.model_type, tmp_path / "model")
    recipe = read_recipe(load_config("base", init_from=str(folder)))
    assert recipe.model.vision is None
    assert recipe.model.parts == ("audio", "audio_connector", "decoder")
    assert fitted(recipe, {"audio"}).image.audio is not None
    for medium, told in (("video", "there are videos, which a "), ("image", "there are pictures, which a ")):
        with pytest.raises(UserError, match=told):
            fitted(recipe, {medium})
    read = read_params(recipe.start, where)
    assert read.spare == []
    assert read.params.keys() == drawn(recipe.start.layout).keys()
    for token in family.special_tokens():
        assert token in recipe.template.tokenizer.get_vocab()


@pytest.mark.parametrize(("key", "value"), [("sampling_rate", 8000), ("mels", 80), ("pool", 4), ("chunk", 10.0)])
def test_what_a_folder_settles_cannot_be_set(key, value, tmp_path):
    folder = whole_folder("qwen3_asr", tmp_path / "model")
    with pytest.raises(UserError, match=rf"config\.audio\.{key}.*leave it out"):
        read_recipe(load_config("base", init_from=str(folder), **{f"audio.{key}": value}))


@pytest.mark.parametrize("key", ["feature_size", "dither"])
def test_an_extractor_that_is_not_followed_is_one_line(key, tmp_path):
    folder = whole_folder("qwen2_audio", tmp_path / "model")
    settings = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 16, key: 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="the tower takes 16 bands, without dither"):
        read_recipe(load_config("base", init_from=str(folder)))


@pytest.fixture
def joined(tmp_path) -> tuple[Any, dict[Any, Any]]:
    """Whisper's encoder and a Qwen 3 decoder as folders of their own, joined; and the parameters in them."""
    import transformers

    whisper = transformers.WhisperConfig(vocab_size=100, decoder_layers=1, decoder_attention_heads=2, **SIZES)
    decoder = transformers.Qwen3Config(
        **{k: v for k, v in text("qwen3", **rope("default")).items() if k != "model_type"}
    )
    decoder.vocab_size = 272
    family = FAMILIES["qwen2_audio"]
    assert isinstance(family, HearingFamily)
    layout = family.join(whisper, decoder, False).layout
    params = drawn(layout)
    named = tensors(layout, params)
    of_tower = {f"model.encoder.{name.removeprefix('audio_tower.')}": one for name, one in named.items()
                if name.startswith("audio_tower.")}  # fmt: skip
    of_decoder = {name.removeprefix("language_model."): one for name, one in named.items()
                  if name.startswith("language_model.")}  # fmt: skip
    audio = write(tmp_path / "whisper", whisper.to_dict(), of_tower, has_tokenizer=False)
    read = write(tmp_path / "qwen", decoder.to_dict(), of_decoder)
    return read_recipe(load_config("base", init_from=f"audio:{audio},decoder:{read}")), params


def test_a_tower_and_a_decoder_are_joined(joined):
    recipe, params = joined
    assert recipe.start.family.model_type == "qwen2_audio"
    assert "positions are pooled in pairs" in recipe.start.differences()[0]
    read = read_params(recipe.start, where).params
    assert {path[0] for path in read} == {"audio", "decoder"}, "the connector is new"
    for path, value in read.items():
        np.testing.assert_array_equal(np.asarray(value)[: params[path].shape[0]], params[path], err_msg=str(path))


def test_an_export_of_a_joined_model_has_its_tokens_and_its_template(joined, tmp_path):
    recipe, _ = joined
    _, config = write_config(recipe, tmp_path, "float32")
    tokenizer = recipe.template.tokenizer
    assert config["audio_token_index"] == tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    assert config["architectures"] == ["Qwen2AudioForConditionalGeneration"]
    assert not has_chat_template(tokenizer)
    write_tokenizer(recipe, tmp_path)
    said = [{"type": "audio"}, {"type": "text", "text": "What?"}, {"type": "audio"}]
    written = tokenizer.apply_chat_template([{"role": "user", "content": said}], tokenize=False)
    first, second = (f"Audio {n}: <|audio_bos|><|AUDIO|><|audio_eos|>\n" for n in (1, 2))
    assert f"{first}What?{second}" in written


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("audio:{0}", "its parts are audio; a model is made of vision:DIR,decoder:DIR, of audio:DIR,decoder:DIR, or"),
        ("audio:{0},decoder:{0}", "is no audio tower that is joined with a decoder"),
    ],
)
def test_parts_that_do_not_go_together_are_one_line(named, told, tmp_path):
    import transformers

    decoder = transformers.Qwen3Config(
        **{k: v for k, v in text("qwen3", **rope("default")).items() if k != "model_type"}
    )
    (tmp_path / "config.json").write_text(json.dumps(decoder.to_dict(), default=str))
    with pytest.raises(UserError, match=told):
        read_start(named.format(tmp_path), None, 2, 256)


def test_data_that_a_model_does_not_take_is_one_line_before_it_is_planned(tmp_path):
    folder = whole_folder("qwen3_asr", tmp_path / "model")
    PIL.Image.new("RGB", (16, 16)).save(tmp_path / "0.png")
    for column, value in (("videos", [["0.png", "0.png"]]), ("images", ["0.png"])):
        turns = [{"role": "user", "content": f"<{column[:-1]}>What?"}, {"role": "assistant", "content": "red"}]
        (tmp_path / f"{column}.json").write_text(json.dumps([{"messages": turns, column: value}]))
        config = load_config("base", **{"init_from": str(folder), "data.path": str(tmp_path / f"{column}.json"),
                                        "data.cache": str(tmp_path / "cache")})  # fmt: skip
        with pytest.raises(UserError, match="does not take"):
            make_plan(config)


def test_a_layout_without_a_tensor_of_the_model_stops_an_export():
    config = config_of("qwen3_asr")
    layout = family_of(config).layout(config)
    fewer = layout._replace(rules=[rule for rule in layout.rules if "conv_out" not in rule.name])
    with pytest.raises(UserError, match=r"has no tensor for audio\.stem\.out"):
        list(hf.outgoing(fewer, drawn(layout), np.float32))
