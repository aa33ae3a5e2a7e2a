"""Writes a run's model as a Hugging Face folder, which ``transformers`` loads and other programs serve.

python -m jaxmm.export --workdir=runs/base --output=hf_model
"""

from __future__ import annotations

if __name__ == "__main__":
    from jaxmm import startup

    startup.end_on_interrupt()  # before large imports

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

import jaxmm
from jaxmm import command, sharding
from jaxmm.data.byt5 import ByT5Tokenizer
from jaxmm.data.text import END, IMAGE, IMAGE_END, IMAGE_START, ROLE_MARKERS, Template, image_codes
from jaxmm.errors import UserError, nearest
from jaxmm.hf import folder as hf
from jaxmm.hf import specs, weights
from jaxmm.hf.specs import Family
from jaxmm.hf.start import GENERATION, MODEL, PROCESSOR_FILES, RESAMPLES, SPARE, generation, is_of_family
from jaxmm.parameters import saved_params
from jaxmm.recipe import Recipe, read_recipe

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}

# Before a decoder's own chat template, which knows text alone: parts of a message become one text.
WITH_IMAGES = (
    "{%- set flat = namespace(messages=[]) %}{%- for message in messages %}"
    "{%- set text = namespace(value='') %}{%- if message.content is string or message.content is none %}"
    "{%- set text.value = message.content %}{%- else %}{%- for part in message.content %}"
    "{%- set text.value = text.value + ('" + IMAGE + "' if part.type == 'image' else part.text | default('')) %}"
    "{%- endfor %}{%- endif %}{%- set flat.messages = flat.messages + [dict(message, content=text.value)] %}"
    "{%- endfor %}{%- set messages = flat.messages %}"
)

FLAGS: command.Flags = {
    "workdir": ("", "folder of the run to export"),
    "output": ("", "folder to write; it must not exist, or be empty"),
    "step": (0, "checkpoint to export; 0 is the newest"),
    "dtype": ("float32", "of the weights: float32, as they are trained, bfloat16 or float16"),
}


def main(argv: list[str]) -> int:
    """Exports one checkpoint."""
    args = command.parse(argv, FLAGS, config="workdir", about=__doc__ or "")
    if not args.output:
        raise UserError("--output is missing: the folder to write")
    if args.dtype not in DTYPES:
        raise UserError(f"--dtype '{args.dtype}' is not one of {', '.join(DTYPES)}{nearest(args.dtype, DTYPES)}")
    output, workdir = Path(args.output).expanduser(), Path(args.workdir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} exists: give another folder, or delete it")
    recipe = read_recipe(args.config, workdir)
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    params = hf.flat(saved_params(workdir, recipe, mesh, args.step or None))
    half = output.with_name(output.name + ".unfinished")
    if half.exists():
        shutil.rmtree(half)
    half.mkdir(parents=True)
    family, config = write_config(recipe, half, args.dtype)
    spare = workdir / MODEL / SPARE
    total = weights.write(half, hf.outgoing(family, params, DTYPES[args.dtype], spare))
    write_tokenizer(recipe, config, workdir, half)
    write_processor(recipe, workdir, half)
    write_generation(recipe, workdir, half)
    (half / "README.md").write_text(model_card(recipe, config, workdir, args))
    if output.exists():
        output.rmdir()
    os.replace(half, output)
    print(f"wrote {output}: {total / 1e6:,.1f} MB of {args.dtype}, as {config['architectures'][0]}")
    return 0


def write_config(recipe: Recipe, folder: Path, dtype: str) -> tuple[Family, dict[str, Any]]:
    """Writes ``config.json``; of a model of our own as LFM2-VL's layout has it."""
    if recipe.start:
        family, config = recipe.start.family, dict(recipe.start.config)
    else:
        vision, text = specs.configs_of(recipe.model)
        connector = recipe.model.connector
        config = specs.lfm2_vl_config(vision, text, connector, recipe.model.decoder.tie_embeddings)
        family = Family(recipe.model, "siglip2", "llama", "mlp", specs.NEW)
    config["architectures"] = [hf.ARCHITECTURES[config["model_type"]]]
    config["dtype"] = dtype
    template = recipe.template
    if isinstance(template.tokenizer, ByT5Tokenizer):
        template.tokenizer = template.tokenizer.as_transformers()
    template.tokenizer.add_tokens(image_codes(template.image_tokens), special_tokens=True)
    if config["model_type"] == "lfm2_vl" and not _has_image_token(recipe, config):
        config["image_token_id"] = _image_token(template)
    config |= {
        "bos_token_id": template.bos_id,
        "eos_token_id": list(template.stop_ids),
        "pad_token_id": template.pad_id,
    }
    config["text_config"] |= {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    rows = config["text_config"]["vocab_size"]
    if config.get("image_token_id", 0) >= rows:
        raise UserError(f"there is no room for {IMAGE} in a vocabulary of {rows}: raise it to a larger multiple")
    (folder / hf.CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True, default=str))
    return family, config


def _has_image_token(recipe: Recipe, config: dict[str, Any]) -> bool:
    """Whether the config's image token is the tokenizer's: a config that has none is read with LFM2-VL's own number."""
    token, tokenizer = config.get("image_token_id"), recipe.template.tokenizer
    if not recipe.start or not isinstance(token, int) or token >= len(tokenizer):
        return False
    return tokenizer.convert_ids_to_tokens(token) == getattr(tokenizer, "image_token", IMAGE)


def _image_token(template: Template) -> int:
    """The id of ``<image>``, added to the tokenizer: a row of the embedding that the padding of the vocabulary has."""
    template.tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    return int(template.tokenizer.convert_tokens_to_ids(IMAGE))


def write_tokenizer(recipe: Recipe, config: dict[str, Any], workdir: Path, folder: Path) -> None:
    """Writes the tokenizer with our special tokens and the chat template that the model was trained on."""
    tokenizer = recipe.template.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        tokenizer.chat_template = chat_template(recipe.template)
    elif config["model_type"] == "lfm2_vl" and IMAGE not in tokenizer.chat_template:
        tokenizer.chat_template = WITH_IMAGES + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    found = json.loads(path.read_text())
    if config["model_type"] == "lfm2_vl":
        found |= {"processor_class": "Lfm2VlProcessor", "image_token": IMAGE, "image_start_token": IMAGE_START}
        found |= {"image_end_token": IMAGE_END, "image_thumbnail_token": IMAGE}
    path.write_text(json.dumps(found, indent=2))


def chat_template(template: Template) -> str:
    """Our conversation format, in Jinja."""
    markers = "".join(
        f"{{% {'elif' if i else 'if'} message['role'] == '{role}' %}}{marker}"
        for i, (role, marker) in enumerate(ROLE_MARKERS.items())
    )
    return "".join([
        template.tokenizer.bos_token or "",
        "{% for message in messages %}", markers, "{% endif %}",
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}",
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}", IMAGE,
        "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}", END,
        "{% endfor %}{% if add_generation_prompt %}", ROLE_MARKERS["assistant"], "{% endif %}",
    ])  # fmt: skip


def write_processor(recipe: Recipe, workdir: Path, folder: Path) -> None:
    """Writes how images are processed, so that ``transformers`` gives the patches that the model was trained on."""
    kept = workdir / MODEL
    # A tower alone has a processor of its own, which knows nothing of soft tokens: its images were resized by our rule.
    is_followed = recipe.start and is_of_family(recipe.start)
    if is_followed and any((kept / name).exists() for name in PROCESSOR_FILES):
        for name in PROCESSOR_FILES:
            if (kept / name).exists():
                shutil.copyfile(kept / name, folder / name)
        return
    image, area = recipe.image, (recipe.image.patch_size * recipe.image.merge) ** 2
    settings = {
        "image_processor_type": "Lfm2VlImageProcessor",
        "do_image_splitting": False,
        "min_tiles": 1,
        "max_tiles": 1,
        "use_thumbnail": False,
        "downsample_factor": image.merge,
        "encoder_patch_size": image.patch_size,
        "min_image_tokens": -(-image.min_pixels // area),
        "max_image_tokens": image.max_pixels // area,
        "tile_size": image.patch_size * image.merge,
        "image_mean": list(recipe.model.vision.mean),
        "image_std": list(recipe.model.vision.std),
        "resample": next(number for number, name in RESAMPLES.items() if name == image.resample),
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_pad": True,
        "do_convert_rgb": True,
        "return_row_col_info": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2))
    processor = {"processor_class": "Lfm2VlProcessor", "image_processor": settings}
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2))


def write_generation(recipe: Recipe, workdir: Path, folder: Path) -> None:
    """Writes how the model generates: as its folder says, if that was of a whole model; it ends where ours does."""
    template, start = recipe.template, recipe.start
    said = generation(workdir / MODEL) if start and not start.is_joined else {}
    ids = {"bos_token_id": template.bos_id, "pad_token_id": template.pad_id}
    found = ids | (said or {"do_sample": False}) | {"eos_token_id": list(template.stop_ids)}
    (folder / GENERATION).write_text(json.dumps(found, indent=2))


def model_card(recipe: Recipe, config: dict[str, Any], workdir: Path, args: Any) -> str:
    """What the model is, and how it came to be, from the run's own files."""
    run = args.config
    lines = [
        "---", "library_name: transformers", "pipeline_tag: image-text-to-text", "tags: [jaxmm]", "---", "",
        f"# {folder_title(workdir)}", "",
        f"A {config['architectures'][0]}, trained with jaxmm {jaxmm.__version__}.", "",
        "| | |", "|---|---|",
        f"| started from | {run.init_from or 'random weights'} |",
        f"| data | {run.data.path or 'the demo'}{f', {run.data.mixture}' if run.data.mixture else ''} |",
        f"| objective | {run.data.objective} |",
        f"| steps | {args.step or 'the newest checkpoint'} of {run.steps} |",
        f"| a step | {run.batch_size} rows of {run.seq_len} tokens |",
        f"| optimizer | {run.optimizer.name}, rate {run.optimizer.rate} |",
        f"| frozen | {run.optimizer.freeze or 'nothing'} |",
        f"| image patches | {recipe.image.patch_size} pixels, {recipe.image.merge**2} of them a soft token |",
    ]  # fmt: skip
    summary = workdir / "summary.json"
    if summary.exists():
        for source, figures in (json.loads(summary.read_text()).get("eval") or {}).items():
            shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if isinstance(value, float))
            lines.append(f"| evaluation, {source} | {shown} |")
    return "\n".join([*lines, ""])


def folder_title(workdir: Path) -> str:
    return workdir.resolve().name


if __name__ == "__main__":
    command.run(main)
