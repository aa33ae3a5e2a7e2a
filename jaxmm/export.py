"""Writes a run's model as a Hugging Face folder, which ``transformers`` loads and other programs serve.

python -m jaxmm.export --workdir=runs/base --output=hf_model

Of a run with adapters it writes these alone, as a PEFT folder; with --merge the whole model, the adapters in it.
"""

from __future__ import annotations

if __name__ == "__main__":
    from jaxmm.runtime import startup

    startup.end_on_interrupt()  # before large imports

import contextlib
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError

from jaxmm import command, sharding
from jaxmm.batch import ImageSpec
from jaxmm.checkpoints.base import found_again, kept
from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.checkpoints.chosen import chosen_step
from jaxmm.checkpoints.params import full_params, own_params
from jaxmm.data.text.byt5 import ByT5Tokenizer
from jaxmm.data.text.codebook import image_codes
from jaxmm.data.text.own_format import IMAGE
from jaxmm.data.text.template import Template
from jaxmm.errors import UserError, nearest
from jaxmm.hf import folder as hf
from jaxmm.hf import weights
from jaxmm.hf.chat_templates import chat_template, with_media
from jaxmm.hf.families.family import Family, HearingFamily, Layout
from jaxmm.hf.families.registry import OWN
from jaxmm.hf.init_from import parse, run_and_step
from jaxmm.hf.model_card import evaluation, model_card
from jaxmm.hf.parts import write_folders, write_parts
from jaxmm.hf.peft_write import peft_of
from jaxmm.hf.pictures import AnyShape
from jaxmm.hf.pretrained import GENERATION, HEARING, MODEL, SPARE, Pretrained
from jaxmm.hf.processors import PROCESSOR_FILES, json_object
from jaxmm.hf.videos import VIDEO_FILE
from jaxmm.inference.generation_config import said_by
from jaxmm.json_text import parse_json
from jaxmm.models.adapters import is_factor, merged
from jaxmm.models.multimodal import model_maps
from jaxmm.models.tree import flat
from jaxmm.recipe import Recipe, read_recipe

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}

FLAGS: command.Flags = {
    "workdir": ("", "folder of the run to export"),
    "output": ("", "folder to write; it must not exist, or be empty"),
    "step": ("", "checkpoint to export: its step, or best; the newest if left out"),
    "merge": (False, "of a run with adapters: write the whole model, the adapters merged into it"),
    "dtype": ("", "of the weights: float32, bfloat16 or float16; if left out, the base model's; of adapters float32"),
}


def main(argv: list[str]) -> int:
    """Exports one checkpoint."""
    args = command.parse(argv, FLAGS, config="workdir", about=__doc__ or "")
    if not args.output:
        raise UserError("--output is missing: the folder to write")
    if args.dtype and args.dtype not in DTYPES:
        raise UserError(f"--dtype '{args.dtype}' is not one of {', '.join(DTYPES)}{nearest(args.dtype, DTYPES)}")
    output, workdir = Path(args.output), Path(args.workdir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} exists: give another folder, or delete it")
    recipe = read_recipe(args.config, workdir)
    if recipe.model.adapter and not args.merge:
        return export_adapters(recipe, workdir, output, args.dtype or "float32", args.step)
    if args.merge and not recipe.model.adapter:
        raise UserError(f"--merge: {workdir} has no adapters that could be merged: leave it out")
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step = chosen_step(workdir, args.step) or checkpoints.latest()
        mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
        params = merged(flat(full_params(workdir, recipe, mesh, step)), model_maps(recipe.model))
        if recipe.model.frozen:
            how = "as stored" if kept(workdir) else "as the run held them, for they are nowhere else"
            print(f"adapters learnt over weights held as {recipe.model.frozen.kind} are merged into these {how}")
        recipe = recipe._replace(model=recipe.model.base.plain)
        of_run = checkpoints.meta(step)["config"]
    base = base_dtype(recipe.start)
    dtype = args.dtype or base or "float32"
    if recipe.start and (line := recipe.start.family.cannot_run(recipe.start.config)):
        print(f"warning: {line}", file=sys.stderr)
    if not recipe.start and (recipe.model.audio or (recipe.model.vision and recipe.model.vision.frames > 1)):
        return _export_parts(recipe, params, output, dtype, of_run, step or 0)
    if recipe.start and recipe.start.hearing:
        return export_joined(recipe, params, workdir, output, dtype, of_run, step or 0)
    with _whole_or_none(output) as half:
        layout, config = write_config(recipe, half, dtype, bool(of_run["data"]["tokenizer"]))
        spare = workdir / MODEL / SPARE
        total = weights.write(half, hf.outgoing(layout, params, DTYPES[dtype], spare))
        write_tokenizer(recipe, half)
        write_processor(recipe, workdir, half)
        write_generation(recipe, config, workdir, half)
        facts = model_card(workdir.resolve().name, config["architectures"][0], of_run, step or 0, recipe.image)
        (half / "README.md").write_text("\n".join([*facts, *evaluation(workdir, step or 0), ""]))
    why = ", as the model has that it started from" if base and not args.dtype else ""
    print(f"wrote {output}: {total / 1e6:,.1f} MB of {dtype}{why}, as {config['architectures'][0]}, of step {step}")
    return 0


def export_adapters(recipe: Recipe, workdir: Path, output: Path, dtype: str, step_asked: str) -> int:
    """Exports the adapters of a run alone, as a PEFT folder over the model that the run started from."""
    folder = _beneath(recipe, workdir)
    model, start = recipe.model, recipe.start
    assert start is not None
    assert model.adapter is not None
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step = chosen_step(workdir, step_asked) or checkpoints.latest()
        mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
        own, _ = own_params(workdir, recipe, mesh, step)
        of_run = checkpoints.meta(step)["config"]
    params = flat(own)
    whole = [path for path in params if not is_factor(path)]
    peft = peft_of(start.layout, model, params, whole, base=folder, dropout=of_run["adapter"]["dropout"])
    spec = model.adapter
    told = f"{spec.kind}, rank {spec.rank}, alpha {spec.alpha:g}"
    with _whole_or_none(output) as half:
        total = peft.write(half, DTYPES[dtype])
        write_tokenizer(recipe, half)
        write_processor(recipe, workdir, half)
        facts = model_card(
            workdir.resolve().name, start.family.architecture, of_run, step or 0, recipe.image, adapters=told
        )  # fmt: skip
        version = importlib.metadata.version("transformers")
        use = (
            f"`peft.PeftModel.from_pretrained(model, DIR)` loads them, where `model` is what they were trained on, in "
            f"`transformers` 5 ({version} when they were written): they name its modules."
        )
        (half / "README.md").write_text("\n".join([*facts, *evaluation(workdir, step or 0), "", use, ""]))
    print(
        f"wrote {output}: {total / 1e6:,.1f} MB of {dtype}, adapters ({told}) of {folder} for PEFT, of step {step}; "
        f"--merge writes the whole model"
    )
    if others := peft.not_served():
        print(f"vLLM serves no adapters with {' and '.join(others)}: for it write the whole model by --merge")
    return 0


def _beneath(recipe: Recipe, workdir: Path) -> Path:
    """The folder of the model beneath a run's adapters.

    Raises:
      UserError: if that is none that ``transformers`` loads, so that adapters alone would be of no use.
    """
    way_out = "adapters alone would have no model beneath them: write the whole model by --merge"
    noted = kept(workdir)
    if noted is None or recipe.start is None:
        raise UserError(f"{workdir} did not begin with a model's folder: {way_out}")
    base = found_again(noted, recipe.init_from, workdir)
    folders = parse(run_and_step(base.init_from)[0])
    folder = folders.get("model")
    if folder is None:
        raise UserError(f"{workdir} began with parts of models ({', '.join(folders)}), which it joined: {way_out}")
    if not hf.is_folder(folder):
        raise UserError(f"{workdir} began with the run {folder}: {way_out}, or export that run, and begin with it")
    rows, has = recipe.model.decoder.vocab_size, hf.read_whole(folder).layout.spec.decoder.vocab_size
    if rows != has:
        raise UserError(f"{workdir} has a vocabulary of {rows} rows, {folder} one of {has}: write it by --merge")
    return folder


def _export_parts(
    recipe: Recipe, params: dict[Any, Any], output: Path, dtype: str, of_run: dict[str, Any], step: int
) -> int:  # fmt: skip
    """Exports a model of our own that takes videos or recordings, for which ``transformers`` has no class."""
    with _whole_or_none(output) as half:
        total = write_parts(half, params, recipe.model, recipe.whole, DTYPES[dtype])
        template = recipe.template
        if isinstance(template.tokenizer, ByT5Tokenizer):
            template.tokenizer = template.tokenizer.as_transformers()
        template.tokenizer.save_pretrained(half)
        (half / "config-of-run.json").write_text(json.dumps(of_run, indent=2))
    print(
        f"wrote {output}: {total / 1e6:,.1f} MB of {dtype}, of step {step}. transformers has no class for a model from "
        f"random weights that takes videos or recordings: these are its parts ({', '.join(recipe.model.parts)}), by "
        f"our names, with their sizes in parts.json"
    )
    return 0


def export_joined(
    recipe: Recipe, params: dict[Any, Any], workdir: Path, output: Path, dtype: str, of_run: dict[str, Any], step: int
) -> int:  # fmt: skip
    """Exports a model that sees as one family and hears as another, for which ``transformers`` has no class."""
    start = recipe.start
    assert start is not None
    assert start.hearing is not None
    layout, config = _completed(recipe, dtype, bool(of_run["data"]["tokenizer"]))
    tied = {"tie_word_embeddings": recipe.model.decoder.tie_embeddings}
    configs = {
        "vision": config["vision_config"], "audio": start.hearing.config["audio_config"],
        "decoder": config["text_config"] | tied,
    }  # fmt: skip
    configs = {part: own | {"dtype": dtype} for part, own in configs.items()}
    new = [part for part in recipe.model.parts if part not in configs]
    with _whole_or_none(output) as half:
        total = write_parts(half, params, recipe.model, recipe.whole, DTYPES[dtype], new)
        total += write_folders(half, params, layout, configs, DTYPES[dtype], workdir / MODEL / SPARE)
        write_processor(recipe, workdir, half / "vision")
        for name in PROCESSOR_FILES:
            if (workdir / MODEL / HEARING / name).exists():
                shutil.copyfile(workdir / MODEL / HEARING / name, half / "audio" / name)
        write_tokenizer(recipe, half / "decoder")
        write_generation(recipe, config, workdir, half / "decoder")
        (half / "config-of-run.json").write_text(json.dumps(of_run, indent=2))
    print(
        f"wrote {output}: {total / 1e6:,.1f} MB of {dtype}, of step {step}. transformers has no class for a model that "
        f"sees and hears as this one: these are its parts: vision, audio and decoder as folders, which it loads and "
        f"config.init_from takes, and {' and '.join(new)} as files by our names, with all sizes in parts.json"
    )
    return 0


def base_dtype(start: Pretrained | None) -> str:
    """The dtype of the model that the run started from, '' for random weights and where its config does not say it."""
    config = start.config if start else {}
    said = [part.get("dtype") for part in (config, config.get("text_config", {}), config.get("vision_config", {}))]
    return next((str(dtype) for dtype in said if str(dtype) in DTYPES), "")


@contextlib.contextmanager
def _whole_or_none(output: Path) -> Iterator[Path]:
    """A folder that gets the name ``output`` when it is whole; of one that is not nothing stays.

    Raises:
      UserError: if it cannot be written.
    """
    half = output.with_name(output.name + ".unfinished")
    try:
        if half.exists():
            shutil.rmtree(half)
        half.mkdir(parents=True)
        yield half
        if output.exists():
            output.rmdir()
        os.replace(half, output)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"--output {output} could not be written ({reason}); nothing of it is left") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)


def write_config(
    recipe: Recipe, folder: Path, dtype: str, has_other_tokenizer: bool = False
) -> tuple[Layout, dict[str, Any]]:
    """Writes ``config.json``; of a model of our own as LFM2-VL's layout has it.

    Args:
      has_other_tokenizer: than the folder's that the run started from, whose ids mean nothing then.
    """
    layout, config = _completed(recipe, dtype, has_other_tokenizer)
    (folder / hf.CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True, default=str))
    return layout, config


def _completed(recipe: Recipe, dtype: str, has_other_tokenizer: bool) -> tuple[Layout, dict[str, Any]]:
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
    template.tokenizer.add_tokens(image_codes(template.image_tokens), special_tokens=True)
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


def write_tokenizer(recipe: Recipe, folder: Path) -> None:
    """Writes the tokenizer with our special tokens and the chat template that the model was trained on."""
    tokenizer, family, hears = recipe.template.tokenizer, family_of(recipe), recipe.start and recipe.start.hears
    written = getattr(tokenizer, "chat_template", None)
    wanted = [IMAGE] if family.image_token_key else []
    wanted += [hears.audio_token] if hears else []
    if not written:
        tokenizer.chat_template = chat_template(recipe.template, family, hears)
    elif any(token not in written for token in wanted):
        tokenizer.chat_template = with_media(recipe.template, family, hears) + written
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = parse_json(path.read_text()) | family.tokenizer_settings()
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
        if recipe.start and recipe.start.pixels:
            _write_limits(recipe.start, recipe.image, folder)
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


def _write_limits(start: Pretrained, image: ImageSpec, folder: Path) -> None:
    """Puts the limits of pictures' sizes that the run has had into its processor's files, where they are other ones."""
    pixels, pictures, spec = (image.min_pixels, image.max_pixels), start.family.pictures, start.layout.spec
    if not isinstance(pictures, AnyShape) or pixels == start.own_limits(pictures):
        return
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        whole = json_object(path) if path.exists() else {}
        if isinstance(inner := whole.get("image_processor"), dict):
            whole["image_processor"] = pictures.resized(inner, pixels, spec)
        elif name == "preprocessor_config.json" and whole:
            whole = pictures.resized(whole, pixels, spec)
        if whole:
            path.write_text(json.dumps(whole, indent=2))


def write_generation(recipe: Recipe, config: dict[str, Any], workdir: Path, folder: Path) -> None:
    """Writes how the model generates: as its folder, or that of its decoder, says; it ends where ours does."""
    template = recipe.template
    said = said_by(recipe.start, workdir)
    ids = {key: config[key] for key in ("bos_token_id", "pad_token_id")}
    settings = ids | (said or {"do_sample": False}) | {"eos_token_id": list(template.stop_ids)}
    (folder / GENERATION).write_text(json.dumps(settings, indent=2))


if __name__ == "__main__":
    command.run(main)
