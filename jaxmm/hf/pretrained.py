"""What ``config.init_from`` names, as a family with sizes: a whole model's folder, or one folder for each part.

A run keeps the small files in its workdir, so that it can be evaluated, asked and exported where the folders are not.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from jaxmm.errors import UserError
from jaxmm.hf import folder as hf
from jaxmm.hf import names, specs
from jaxmm.hf.joined import LLAVA, join, save_processor
from jaxmm.hf.processors import (
    OF_FAMILY,
    PROCESSOR_FILES,
    RESAMPLES,
    Limits,
    json_object,
    limits,
    own_limits,
    processor_kind,
    read_processor,
)
from jaxmm.hf.specs import Family
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec

MODEL = "model"  # folder of a workdir: the small files of the model that the run started from
SPARE = "spare.safetensors"
PIXELS = "pixels.json"  # there: the limits of pictures' sizes as the run's first start settled them
# What a tokenizer and an image processor are saved as.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt",
    "added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
GENERATION = "generation_config.json"
FIXED = ("llava", "gemma3", "internvl")  # families whose tower takes pictures of one size


class Pretrained(NamedTuple):
    """Where a model comes from.

    Attributes:
      family: with the sizes of the folder's config.
      config: the family's ``config.json``.
      folders: of tensors: "model", or "vision" and "decoder".
      tokenizer: its folder.
      processor: the folder's image processing, {} where it says nothing.
      ends: the tokens that an answer ends at by the tokenizer's folder, which may be more than its chat template has.
      run: the workdir of a run that started from such a model, and whose parameters count.
      pixels: what pictures are resized between, where that is settled already, or other than the folder says.
      told: what of the config is not followed, for people to know.
    """

    family: Family
    config: dict[str, Any]
    folders: dict[str, Path]
    tokenizer: Path
    processor: dict[str, Any]
    ends: tuple[int, ...] = ()
    run: Path | None = None
    pixels: Limits | None = None
    told: tuple[str, ...] = ()

    def differences(self) -> list[str]:
        """What the folder does with images and we do not, for people to know."""
        found = [
            f"the folder's {key} is not followed: each image is one tile"
            for key in ("do_image_splitting", "do_pan_and_scan")
            if self.processor.get(key)
        ]
        if self.config["model_type"] == "llava" and self.processor.get("do_pad"):
            found.append("the folder's do_pad is not followed: images are not padded to squares")
        return [*found, *self.told]

    def settled(self, asked: Limits) -> Pretrained:
        """With the limits of pictures' sizes of a run that begins: those asked for, 0 being the folder's own."""
        vision, merge, kind = self.family.spec.vision, self.family.spec.connector.merge, self.config["model_type"]
        if kind in FIXED:
            if not any(asked):
                return self
            side = image_settings(self)["side"]
            line = f"config.image.min_pixels and max_pixels are not followed: this tower takes {side} x {side} pixels"
            return self._replace(told=(*self.told, line))
        area = (vision.patch_size * merge) ** 2
        whole = asked
        if kind == "lfm2_vl" and asked[1] >= area:  # its processor counts in soft tokens
            whole = -(-asked[0] // area) * area, asked[1] // area * area
        own = self.pixels or own_limits(self.processor, kind, vision.patch_size, merge)
        told = self.told
        if whole != asked:
            line = f"config.image.min_pixels and max_pixels are made whole soft tokens of {area} pixels: {whole}"
            told = (*told, line)
        return self._replace(pixels=limits(whole, own), told=told)

    def grown(self, vocabulary: int) -> Pretrained:
        """With an embedding of so many rows."""
        model = self.family.spec
        decoder = dataclasses.replace(model.decoder, vocab_size=vocabulary)
        config = json.loads(json.dumps(self.config))
        config["text_config"]["vocab_size"] = vocabulary
        family = self.family._replace(spec=dataclasses.replace(model, decoder=decoder))
        return self._replace(family=family, config=config)


def run_and_step(text: str) -> tuple[str, str]:
    """Reads ``RUN@best`` and ``RUN@STEP`` as (folder, which checkpoint); '' is the newest. A name may have an ``@``."""
    folder, at, step = text.rpartition("@")
    if at and (step in ("best", "newest") or step.isdecimal()) and not Path(text).expanduser().exists():
        return folder, step
    return text, ""


def parse(text: str) -> dict[str, Path]:
    """Reads ``DIR``, or ``vision:DIR,decoder:DIR``; {} for ''.

    Raises:
      UserError: if only one part is named, or a folder is not there.
    """
    if not text:
        return {}
    parts = dict(entry.strip().split(":", 1) for entry in text.split(",") if ":" in entry)
    if set(parts) & {"vision", "decoder", "connector"} and not Path(text).exists():
        if set(parts) != {"vision", "decoder"}:
            raise UserError(f"config.init_from '{text}': name both parts, as vision:DIR,decoder:DIR")
        folders = {part: Path(folder).expanduser() for part, folder in parts.items()}
    else:
        folders = {"model": Path(text).expanduser()}
    for folder in folders.values():
        if not folder.is_dir():
            raise UserError(f"config.init_from: there is no folder {folder}")
    return folders


def read_start(text: str, saved: Path | None, merge: int, mlp: int) -> Pretrained | None:
    """What a run starts from, or None where that is no Hugging Face model.

    Args:
      text: ``config.init_from``.
      saved: where a run of before has kept the small files.
      merge, mlp: of the fresh connector between a tower and a decoder.
    """
    if saved is not None and hf.is_folder(saved):
        return _whole(saved)
    named, step = run_and_step(text)
    folders = parse(named)
    if "model" in folders:
        folder = folders["model"]
        if hf.is_folder(folder):
            if step:
                raise UserError(f"config.init_from '{text}': {folder} is a model's folder, which has no checkpoints")
            return _whole(folder)
        return _whole(folder / MODEL)._replace(run=folder) if hf.is_folder(folder / MODEL) else None
    return _joined(folders, merge, mlp) if folders else None


def _whole(folder: Path) -> Pretrained:
    family, config = hf.read_family(folder)
    processor = read_processor(folder, config["model_type"])
    family = family._replace(spec=_normalised(family.spec, processor))
    return Pretrained(family, config, {"model": folder}, folder, processor, _ends(folder), pixels=_pixels(folder))


def _pixels(folder: Path) -> Limits | None:
    """What a run has settled; None for a model's own folder, and for a run of jaxmm 0.1."""
    if not (folder / PIXELS).exists():
        return None
    found = json_object(folder / PIXELS)
    return int(found["min_pixels"]), int(found["max_pixels"])


def _normalised(spec: ModelSpec, processor: dict[str, Any]) -> ModelSpec:
    """With the mean and standard deviation of pixels that the folder's processor has."""
    if processor.get("do_normalize") is False:
        processor = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    found = {
        ours: processor[theirs]
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))
        if theirs in processor
    }
    try:
        as_numbers = {ours: tuple(map(float, of_channels)) for ours, of_channels in found.items()}
        if any(len(numbers) != 3 for numbers in as_numbers.values()):
            raise ValueError("one number a channel")
        return dataclasses.replace(spec, vision=dataclasses.replace(spec.vision, **as_numbers))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise UserError(f"the image processor's image_mean and image_std, {found}, are not right: {error}") from error


def _joined(folders: dict[str, Path], merge: int, mlp: int) -> Pretrained:
    """A tower and a decoder, in the layout that fits them."""
    vision, text = (hf.read_config(folders[part]) for part in ("vision", "decoder"))
    tied = hf.is_tied(folders["decoder"], bool(getattr(text, "tie_word_embeddings", False)))
    vision, text = getattr(vision, "vision_config", vision), getattr(text, "text_config", text)
    joined = join(vision, text, tied, folders["vision"], ConnectorSpec(merge=merge, mlp=mlp))
    family = joined.family._replace(spec=_normalised(joined.family.spec, joined.processor))
    decoder = folders["decoder"]
    return Pretrained(
        family, joined.config, folders, decoder, joined.processor, _ends(decoder), told=joined.told
    )  # fmt: skip


def generation(folder: Path) -> dict[str, Any]:
    """What a folder says of how its model writes, {} where it says nothing."""
    return json_object(folder / GENERATION) if (folder / GENERATION).exists() else {}


def _ends(folder: Path) -> tuple[int, ...]:
    found = generation(folder).get("eos_token_id")
    ends = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(end, int) and not isinstance(end, bool) and end >= 0 for end in ends):
        raise UserError(f"{folder / GENERATION}: eos_token_id is {found!r}: it must be an id, or a list of them")
    return tuple(ends)


def read_params(start: Pretrained, where: hf.ShardingOf) -> hf.Read:
    """The parameters that the folders have: of parts, all but the connector's."""
    family = start.family
    if "model" in start.folders:
        return hf.read_model(start.folders["model"], family, where)
    tower = hf.read_tower(start.folders["vision"], names.TOWERS[family.tower], family.spec, where)
    decoder = hf.read_decoder(start.folders["decoder"], names.DECODERS[family.decoder], family.spec, where)
    # What a tower has besides belongs to no whole model, but for the layers that LLaVA's runs and does not use.
    spare = tower.spare if family.prefixes == specs.OLD else []
    return hf.Read({**tower.params, **decoder.params}, spare)


def save(start: Pretrained, spare: list[str], folder: Path) -> None:
    """Keeps the small files, and the tensors that our model does not use."""
    folder.mkdir(parents=True, exist_ok=True)
    if start.run and (start.run / MODEL / SPARE).exists():
        shutil.copyfile(start.run / MODEL / SPARE, folder / SPARE)
    for name in (*TOKENIZER_FILES, GENERATION):
        if (start.tokenizer / name).exists():
            shutil.copyfile(start.tokenizer / name, folder / name)
    source = start.folders.get("model") or start.folders["vision"]
    for name in PROCESSOR_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    if "model" not in start.folders and start.config["model_type"] == LLAVA:
        save_processor(start.config, start.processor, folder)
        hf.save_spare_of_tower(start.folders["vision"], spare, start.family, folder / SPARE)
    elif "model" in start.folders and not start.run:
        hf.save_spare(start.folders["model"], spare, folder / SPARE)
    if start.pixels:
        least, most = start.pixels
        (folder / PIXELS).write_text(json.dumps({"min_pixels": least, "max_pixels": most}))
    # The config is last: with it the folder is whole.
    (folder / hf.CONFIG).write_text(json.dumps(start.config, indent=2, sort_keys=True))


# What stands around an image's soft tokens, by family; the others have our own. A line's end behind an image is its
# chat template's. LLaVA's template leaves the begin token to its processor.
MARKUP: dict[str, tuple[Any, ...]] = {
    "qwen2_5_vl": ("<|vision_start|>", "<|vision_end|>"),
    "qwen3_vl": ("<|vision_start|>", "<|vision_end|>"),
    "gemma3": ("\n\n<start_of_image>", "<end_of_image>\n\n"),
    "llava": ("", "\n", True),
    "internvl": ("<img>", "</img>\n"),
}
# How a family was taught to write boxes, in the words of config.data.boxes.
BOXES = {"qwen2_5_vl": "pixels", "qwen3_vl": "thousandths", "internvl": "thousandths"}


def is_of_family(start: Pretrained) -> bool:
    """Whether the folder's processor is one that ``transformers`` runs with the whole model."""
    kind = start.config["model_type"]
    return not start.processor or kind != "lfm2_vl" or processor_kind(start.processor, kind) == OF_FAMILY[kind]


def image_settings(start: Pretrained) -> dict[str, Any]:
    """What of ``ImageSpec`` the folder decides: patches, merge and order by the model, sizes by its processor.

    Raises:
      UserError: for a processor of another kind than DEFAULTS, and for what of it we cannot do.
    """
    try:
        return _image_settings(start)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # of values of odd types
        raise UserError(f"{start.tokenizer}: its image processor's settings cannot be read: {error}") from error


def _image_settings(start: Pretrained) -> dict[str, Any]:
    kind, processor, spec = start.config["model_type"], start.processor, start.family.spec
    vision, merge = spec.vision, spec.connector.merge
    found: dict[str, Any] = {
        "patch_size": vision.patch_size, "merge": merge, "window": vision.window,
        "class_tokens": vision.class_tokens, "text_axes": spec.decoder.text_axes,
        "bidirectional": spec.decoder.bidirectional_blocks,
    }  # fmt: skip
    if "resample" in processor:
        if processor["resample"] not in RESAMPLES:
            raise UserError(
                f"{start.tokenizer}: images resampled by Pillow's {processor['resample']} are not supported"
            )
        found["resample"] = RESAMPLES[processor["resample"]]
    if kind == "lfm2_vl":
        area = (vision.patch_size * merge) ** 2
        sizes = {"min_pixels": "min_image_tokens", "max_pixels": "max_image_tokens"}
        found |= {ours: int(processor[theirs]) * area for ours, theirs in sizes.items() if theirs in processor}
    elif kind in ("qwen2_5_vl", "qwen3_vl"):
        found["thin"] = True
        size = processor.get("size") or {}
        for ours, theirs in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            if processor.get(ours) or theirs in size:
                found[ours] = int(processor.get(ours) or size[theirs])
    else:
        size = start.config["vision_config"]["image_size"]
        side = size if isinstance(size, int) else size[0]
        found |= {"side": side, "crop": _is_cropped(start, side), "max_pixels": side**2, "min_pixels": 1}
    if start.pixels and not found.get("side"):
        found |= dict(zip(("min_pixels", "max_pixels"), start.pixels, strict=True))
    if kind == "internvl":
        # The model's processor cuts tiles, whatever crop_to_patches of its image processor says.
        least, most = (int(processor.get(key, 1)) for key in ("min_patches", "max_patches"))
        found |= {"min_tiles": least, "max_tiles": most} if most > 1 else {}
    return found


def _is_cropped(start: Pretrained, side: int) -> bool:
    """Whether pictures are cropped to a square of ``side``, or resized to it.

    Raises:
      UserError: if the folder's processor makes something else of them.
    """
    processor = start.processor
    if not processor:
        return False
    size, crop = processor.get("size"), processor.get("crop_size")
    square = {"height": side, "width": side}
    is_cropped = bool(processor.get("do_center_crop"))
    resized = {"shortest_edge": side} if is_cropped else square
    if size in (resized, square, side) and (not is_cropped or crop in (square, side)):
        return is_cropped and size == resized
    raise UserError(
        f"{start.tokenizer}: its image processor makes pictures of size {size}"
        f"{f', cropped to {crop}' if is_cropped else ''}, its tower takes {side} x {side}: that is not supported"
    )
