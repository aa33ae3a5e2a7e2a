"""The tokenizer and the processors of an export: how text and pictures become what the model was trained on."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from jaxmm.data.text.own_format import IMAGE
from jaxmm.exporting.configs import family_of
from jaxmm.hf.chat_templates import chat_template, with_media
from jaxmm.hf.families.registry import OWN
from jaxmm.hf.pictures import AnyShape
from jaxmm.hf.pretrained import MODEL, Pretrained
from jaxmm.hf.processors import PROCESSOR_FILES, json_object
from jaxmm.hf.videos import VIDEO_FILE
from jaxmm.image_spec import ImageSpec
from jaxmm.json_text import parse_json
from jaxmm.recipe import Recipe


def write_tokenizer(recipe: Recipe, folder: Path) -> None:
    """Writes the tokenizer with our special tokens and the chat template that the model was trained on."""
    tokenizer, family, hears = recipe.template.tokenizer, family_of(recipe), recipe.start and recipe.start.hears
    written = getattr(tokenizer, "chat_template", None)
    wanted = [IMAGE] if family.image_token_key else []
    wanted += [hears.audio_token] if hears else []
    if not written and not recipe.template.has_prefix:  # whose processor writes what stands around a question
        tokenizer.chat_template = chat_template(recipe.template, family, hears)
    elif written and any(token not in written for token in wanted):
        tokenizer.chat_template = with_media(recipe.template, family, hears) + written
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = parse_json(path.read_text()) | family.tokenizer_settings(tokenizer.get_vocab())
    if hears and hears is not family:  # a processor of both is none of ``transformers``
        settings |= hears.tokenizer_settings()
        del settings["processor_class"]
    path.write_text(json.dumps(settings, indent=2))


def write_processor(recipe: Recipe, workdir: Path, folder: Path) -> None:
    """Writes how images are processed, so that ``transformers`` gives the patches that the model was trained on."""
    kept = workdir / MODEL
    # Where it is not of the family, it is a tower's own, whose images were resized by our rule.
    is_followed = recipe.start and recipe.start.family.is_own_processor(recipe.start.processor)
    if is_followed and any((kept / name).exists() for name in PROCESSOR_FILES):
        for name in PROCESSOR_FILES:
            if (kept / name).exists():
                shutil.copyfile(kept / name, folder / name)
        if recipe.start:
            _write_sizes(recipe.start, recipe.image, folder)
        if recipe.start and recipe.start.family.videos and recipe.whole.video:
            vision = recipe.model.seeing[0]
            settings = recipe.start.family.videos.written(kept, recipe.whole, vision.mean, vision.std)
            (folder / VIDEO_FILE).write_text(json.dumps(settings, indent=2))
        return
    if recipe.start and recipe.start.family is not OWN:
        family = recipe.start.family
        what, kind = ("image processor", family.image_processor) if family.pictures else (
            "feature extractor", family.audio_extractor
        )  # fmt: skip
        print(
            f"warning: the model's folder had no {what}, so the export has none: transformers needs a "
            f"preprocessor_config.json of a {kind} in it",
            file=sys.stderr,
        )
        return
    for name, settings in OWN.own_processor(recipe.image, recipe.model.seeing[0]).items():
        (folder / name).write_text(json.dumps(settings, indent=2))


def _write_sizes(start: Pretrained, image: ImageSpec, folder: Path) -> None:
    """Puts the limits of pictures' sizes that the run has had, and that it did not split them, into its processor's
    files, where these say otherwise, and tells what these cannot say."""
    pixels, pictures, spec = (image.min_pixels, image.max_pixels), start.family.pictures, start.layout.spec
    is_resized = start.pixels and isinstance(pictures, AnyShape) and pixels != start.own_limits(pictures)
    not_split = {start.split_key: False} if start.processor.get(start.split_key) and not start.is_split else {}

    if image.split and pictures and pictures.call_keys:
        asked = {key: start.processor[key] for key in pictures.call_keys if start.processor.get(key) is not None}
        print(
            f"warning: the model learnt from pictures with {start.split_key}, which transformers' processor of a "
            f"{start.family.name} follows at its call alone: call it with images_kwargs={asked}",
            file=sys.stderr,
        )

    def changed(settings: dict[str, Any]) -> dict[str, Any]:
        resized = (
            pictures.resized(settings, pixels, spec) if is_resized and isinstance(pictures, AnyShape) else settings
        )
        return resized | not_split

    if not is_resized and not not_split:
        return
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        whole = json_object(path) if path.exists() else {}
        if isinstance(inner := whole.get("image_processor"), dict):
            whole["image_processor"] = changed(inner)
        elif name == "preprocessor_config.json" and whole:
            whole = changed(whole)
        if whole:
            path.write_text(json.dumps(whole, indent=2))
