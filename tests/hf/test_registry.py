"""What sets families apart is in ``hf/families`` alone: no other file names a model, and a new one is one class."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_folders import byte_level_tokenizer
from parities.tiny.llava import SIGLIP
from parities.tiny.parts import text

import jaxmm
from jaxmm import command
from jaxmm.data.text.template import Markup
from jaxmm.errors import UserError
from jaxmm.exporting.configs import write_config
from jaxmm.exporting.processors import write_processor
from jaxmm.hf.decoders import DECODERS, decoder_of
from jaxmm.hf.families.family import NEW, PROJECTOR, Family, Layout
from jaxmm.hf.families.registry import FAMILIES, NOT_HERE, OWN, family_of
from jaxmm.hf.pictures import ByPixels
from jaxmm.hf.processors import DEFAULTS
from jaxmm.hf.recordings import EXTRACTORS
from jaxmm.hf.towers import TOWERS, TWO_TOWERS, tower_of
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec
from jaxmm.recipe import read_boxes, read_recipe

ROOT = Path(jaxmm.__file__).parent
MODELS = {*FAMILIES, *DECODERS, *TOWERS, *TWO_TOWERS}
MAY_NAME = (
    "hf/families/",
    "hf/decoders.py",
    "hf/towers.py",
    "data/readers/kinds.py",
)  # the last has a column called clip


def named(source: str) -> list[str]:
    """The models that a source names, but for values of dicts: these write a config, and decide nothing."""
    tree = ast.parse(source)
    written = {id(value) for node in ast.walk(tree) if isinstance(node, ast.Dict) for value in node.values}
    return [
        f"{node.lineno}: {node.value}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in MODELS and id(node) not in written
    ]


def sources() -> Iterator[tuple[str, str]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def test_no_file_outside_of_the_families_and_their_parts_names_a_model():
    found = {name: told for name, source in sources() if not name.startswith(MAY_NAME) and (told := named(source))}
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "if kind == 'qwen3_vl': pass",
        "found = kind in ('llava', 'gemma3')",
        "TABLE = {'internvl': 1}",
        "side = TABLE['siglip_vision_model']",
        "side = TABLE.get('lfm2_vl')",
        "match kind:\n    case 'qwen2' | 'other': pass",
        "KIND = 'gemma3_text'",
    ],
)
def test_a_line_that_names_a_model_is_found(line):
    assert named(line)


def test_a_config_that_is_written_and_prose_are_no_such_lines():
    assert named("config = {'model_type': 'llava'}\n'''It is like llava.'''\nname = 'llava.json'") == []


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_a_family_has_what_all_are_asked_for(family):
    assert family.image_processor in DEFAULTS or family.audio_extractor in EXTRACTORS
    assert bool(family.image_processor) == (family.pictures is not None)
    assert family.architecture.endswith("ForConditionalGeneration")
    assert family.boxes in ("", "pixels", "thousandths")
    assert family.__module__.rpartition(".")[2] == family.name, "its file has its name"
    about = __import__(family.__module__, fromlist=["x"]).__doc__
    assert "Where the facts come from" in about


class Toy(Family):
    """VipLLaVA's config, read in a way of our own."""

    model_type = "vipllava"
    architecture = "ToyForConditionalGeneration"
    image_processor = "Qwen2VLImageProcessor"
    pictures = ByPixels()
    markup = Markup("<start_of_image>", "<end_of_image>")
    boxes = "thousandths"

    def layout(self, config: Any) -> Layout:
        tower, decoder = tower_of(config.vision_config), decoder_of(config.text_config, config.tie_word_embeddings)
        connector = ConnectorSpec(merge=2, mlp=40)
        rules = [*tower.rules, *PROJECTOR, *decoder.rules]
        return Layout(ModelSpec(tower.spec, connector, decoder.spec), rules, NEW)


@pytest.mark.usefixtures("whole_transformers")
def test_a_new_family_is_one_class_and_one_entry_of_the_table(monkeypatch, tmp_path):
    from transformers import VipLlavaConfig

    folder = tmp_path / "theirs"
    folder.mkdir()
    decoder = text("llama", vocab_size=512)
    config = VipLlavaConfig(vision_config=SIGLIP, text_config=decoder)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    byte_level_tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"max_pixels": 4096}))
    base = ROOT.parent / "configs/base.py"
    given = command.parse([f"--config={base}", f"--config.init_from={folder}", "--config.data.boxes=model"], {}).config
    with pytest.raises(UserError, match=r"model 'vipllava' is not supported: those are lfm2_vl, llava"):
        read_recipe(given)
    monkeypatch.setitem(FAMILIES, Toy.model_type, Toy())
    recipe = read_recipe(given)
    assert (recipe.model.connector.merge, recipe.model.vision.positions) == (2, 5)
    assert recipe.template.markup == Toy.markup
    assert read_boxes(given, recipe.start) == "thousandths"
    assert (recipe.image.thin, recipe.image.max_pixels) == (True, 4096)
    (tmp_path / "out").mkdir()
    layout, written = write_config(recipe, tmp_path / "out", "float32")
    assert written["architectures"] == ["ToyForConditionalGeneration"]
    assert layout.rules[-1].name == "text.layers.{i}.mlp.down_proj.bias"


@pytest.mark.parametrize(
    ("vision", "text", "told"),
    [
        ("siglip_vision_model", "llama", "its tower 'siglip_vision_model' and its decoder 'llama' are: name both"),
        ("pixtral_tower", "qwen3", "; its decoder 'qwen3' is known, but not how it joins them"),
        ("internvl_vision", "qwen3", "; its tower 'internvl_vision' and its decoder 'qwen3' are known, but not how"),
    ],
)
def test_an_unknown_model_is_told_what_it_has_in_common_with_those_here(vision, text, told):
    """Not the nearest by its spelling, which says nothing."""
    parts = {"vision_config": SimpleNamespace(model_type=vision), "text_config": SimpleNamespace(model_type=text)}
    config = SimpleNamespace(model_type="llava3", **parts)
    with pytest.raises(UserError, match=r"model 'llava3' is not supported: those are lfm2_vl, llava") as error:
        family_of(config)
    assert told in str(error.value)
    with pytest.raises(UserError) as error:
        family_of(SimpleNamespace(model_type="mllama"))
    assert str(error.value).endswith(", qwen3_asr")


@pytest.mark.parametrize("kind", NOT_HERE)
def test_a_model_that_is_left_out_is_told_with_the_reason_that_the_docs_have(kind):
    with pytest.raises(UserError, match=rf"model '{kind}' is not supported, as {NOT_HERE[kind]}: those are lfm2_vl"):
        family_of(SimpleNamespace(model_type=kind))
    said = " ".join((ROOT.parent / "docs/models.md").read_text().split())
    assert f"(`{kind}`): {NOT_HERE[kind]}" in said


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family is not OWN])
def test_an_export_has_no_other_family_s_processor_where_the_folder_had_none(name, tmp_path, capsys):
    start = SimpleNamespace(family=FAMILIES[name], processor={}, pixels=None)
    write_processor(SimpleNamespace(start=start), tmp_path, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert f"preprocessor_config.json of a {FAMILIES[name].image_processor}" in capsys.readouterr().err
