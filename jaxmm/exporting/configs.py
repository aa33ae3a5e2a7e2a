"""``config.json`` and ``generation_config.json`` of an export: sizes, and the ids of the tokenizer of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxmm.data.text.byt5 import ByT5Tokenizer
from jaxmm.data.text.codebook import image_codes
from jaxmm.data.text.own_format import IMAGE
from jaxmm.data.text.template import Template
from jaxmm.errors import UserError
from jaxmm.hf import folder as hf
from jaxmm.hf.families.family import Family, HearingFamily, Layout
from jaxmm.hf.families.registry import OWN
from jaxmm.hf.pretrained import GENERATION
from jaxmm.inference.generation_config import said_by
from jaxmm.recipe import Recipe


def write_config(
    recipe: Recipe, folder: Path, dtype: str, has_other_tokenizer: bool = False
) -> tuple[Layout, dict[str, Any]]:
    """Writes ``config.json``; of a model of our own as LFM2-VL's layout has it.

    Args:
      has_other_tokenizer: than the folder's that the run started from, whose ids mean nothing then.
    """
    layout, config = completed_config(recipe, dtype, has_other_tokenizer)
    (folder / hf.CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True, default=str))
    return layout, config


def completed_config(recipe: Recipe, dtype: str, has_other_tokenizer: bool) -> tuple[Layout, dict[str, Any]]:
    """The layout, and ``config.json`` with the ids of the tokenizer, which gets the tokens that it lacks."""
    family = family_of(recipe)
    if recipe.start:
        layout, config = recipe.start.layout, dict(recipe.start.config)
    else:
        layout, config = OWN.own_layout(recipe.model)
    config["architectures"] = [family.architecture]
    config["dtype"] = dtype
    template = recipe.template
    if isinstance(template.tokenizer, ByT5Tokenizer):
        template.tokenizer = template.tokenizer.as_transformers()
    template.tokenizer.add_tokens(image_codes(template.codebook.size), special_tokens=True)
    if isinstance(family, HearingFamily):
        config[family.audio_token_key] = template.tokenizer.convert_tokens_to_ids(family.audio_token)
    key = family.image_token_key
    if key and not _has_image_token(recipe, config.get(key)):
        config[key] = _image_token(template)
    _put_ids(config, template, has_own=recipe.start is not None and not has_other_tokenizer)
    rows = config["text_config"]["vocab_size"]
    if config.get(key, 0) >= rows:
        raise UserError(f"there is no room for {IMAGE} in a vocabulary of {rows}: raise it to a larger multiple")
    return layout, config


def family_of(recipe: Recipe) -> Family:
    """The family that a run's model is exported as."""
    return recipe.start.family if recipe.start else OWN


def _put_ids(config: dict[str, Any], template: Template, has_own: bool) -> None:
    """Says where a text begins, ends and is padded. It ends where answers do.

    Args:
      has_own: whether what the config says of beginning and padding stays, which a tokenizer may not say.
    """
    text = config["text_config"]
    config["eos_token_id"] = text["eos_token_id"] = list(template.stop_ids)
    for key, ours in (("bos_token_id", template.bos_id), ("pad_token_id", template.pad_id)):
        own = [part.get(key) if has_own else None for part in (config, text)]
        other = next((value for value in own if value is not None), ours)
        config[key], text[key] = (other if value is None else value for value in own)


def _has_image_token(recipe: Recipe, token: Any) -> bool:
    """Whether the config's image token is the tokenizer's: a config that has none is read with LFM2-VL's own number."""
    tokenizer = recipe.template.tokenizer
    if not recipe.start or not isinstance(token, int) or token >= len(tokenizer):
        return False
    return tokenizer.convert_ids_to_tokens(token) == getattr(tokenizer, "image_token", IMAGE)


def _image_token(template: Template) -> int:
    """The id of ``<image>``, added to the tokenizer: a row of the embedding that the padding of the vocabulary has."""
    template.tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    return int(template.tokenizer.convert_tokens_to_ids(IMAGE))


def write_generation(recipe: Recipe, config: dict[str, Any], workdir: Path, folder: Path) -> None:
    """Writes how the model generates: as its folder, or that of its decoder, says; it ends where ours does."""
    template = recipe.template
    said = said_by(recipe.start, workdir)
    ids = {key: config[key] for key in ("bos_token_id", "pad_token_id")}
    settings = ids | (said or {"do_sample": False}) | {"eos_token_id": list(template.stop_ids)}
    (folder / GENERATION).write_text(json.dumps(settings, indent=2))
