"""Resolves ``config.init_from`` to a family with sizes: a whole model's folder, or one folder for each part.

A run keeps the small files in its workdir, so that it can be evaluated, asked and exported without these folders.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from jaxmm.errors import UserError
from jaxmm.hf import folder as hf
from jaxmm.hf.families.family import Family, Layout
from jaxmm.hf.joined import join, join_to_hear
from jaxmm.hf.pictures import AnyShape, model_settings, resample_settings, token_area
from jaxmm.hf.processors import DEFAULTS, PROCESSOR_FILES, Limits, json_object, limits, read_processor
from jaxmm.hf.recordings import audio_settings
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec

MODEL = "model"  # folder of a workdir: the small files of the model that the run started from
SPARE = "spare.safetensors"
PIXELS = "pixels.json"  # in that folder: the limits of picture sizes, as settled at the run's first start
# The files of a tokenizer.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt",
    "added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
GENERATION = "generation_config.json"


class Pretrained(NamedTuple):
    """Where a model comes from.

    Attributes:
      family: of the model.
      layout: its sizes and names, by the folder's config.
      config: the model's ``config.json``.
      folders: that hold tensors: "model", or "vision" and "decoder", or "audio" and "decoder".
      tokenizer: its folder.
      processor: the folder's image settings, {} if it has none.
      ends: end-of-text ids from generation_config.json, which may be more than those of the chat template.
      run: the workdir of a run that started from such a model, if its parameters are to be used.
      pixels: (least, most) pixels of pictures, if settled already, or different from the folder's.
      told: lines for people on what of the config is not followed.
    """

    family: Family
    layout: Layout
    config: dict[str, Any]
    folders: dict[str, Path]
    tokenizer: Path
    processor: dict[str, Any]
    ends: tuple[int, ...] = ()
    run: Path | None = None
    pixels: Limits | None = None
    told: tuple[str, ...] = ()

    @property
    def processor_folder(self) -> Path:
        """The folder of the settings of its processors."""
        return next(self.folders[part] for part in ("model", "vision", "audio") if part in self.folders)

    def differences(self) -> list[str]:
        """Lines for people on what the folder does with images and we do not."""
        not_followed = [
            f"the folder's {key} is not followed: {instead}"
            for key, instead in self.family.not_followed.items()
            if self.processor.get(key)
        ]
        return [*not_followed, *self.told]

    def own_limits(self, pictures: AnyShape) -> Limits:
        """Limits in pixels for resizing pictures of any shape: the folder's, or its family's if the folder has none."""
        return pictures.own_limits(self.processor, DEFAULTS[self.family.image_processor], self.layout.spec)

    def settled(self, asked: Limits) -> Pretrained:
        """With the limits of picture sizes for a run that begins: those asked for, where 0 is the folder's own."""
        pictures, spec = self.family.pictures, self.layout.spec
        if pictures is None:  # it only hears
            return self
        if not isinstance(pictures, AnyShape):  # squares of one size have no limits
            if not any(asked):
                return self
            side = image_settings(self)["side"]
            line = f"config.image.min_pixels and max_pixels are not followed: this tower takes {side} x {side} pixels"
            return self._replace(told=(*self.told, line))
        whole, own, told = pictures.whole(asked, spec), self.pixels or self.own_limits(pictures), self.told
        if whole != asked:
            area = token_area(spec)
            line = f"config.image.min_pixels and max_pixels are made whole soft tokens of {area} pixels: {whole}"
            told = (*told, line)
        return self._replace(pixels=limits(whole, own), told=told)

    def grown(self, vocabulary: int) -> Pretrained:
        """With an embedding of ``vocabulary`` rows."""
        model = self.layout.spec
        decoder = dataclasses.replace(model.decoder, vocab_size=vocabulary)
        config = json.loads(json.dumps(self.config))
        config["text_config"]["vocab_size"] = vocabulary
        layout = self.layout._replace(spec=dataclasses.replace(model, decoder=decoder))
        return self._replace(layout=layout, config=config)


def run_and_step(text: str) -> tuple[str, str]:
    """Reads ``RUN@best`` and ``RUN@STEP`` as (folder, checkpoint); '' is the newest. A name may have an ``@``."""
    folder, at, step = text.rpartition("@")
    if at and (step in ("best", "newest") or step.isdecimal()) and not Path(text).expanduser().exists():
        return folder, step
    return text, ""


def parse(text: str) -> dict[str, Path]:
    """Reads ``DIR``, or ``vision:DIR,decoder:DIR``, or ``audio:DIR,decoder:DIR``; {} for ''.

    Raises:
      UserError: if these are other parts, or a folder is not there.
    """
    if not text:
        return {}
    parts = dict(entry.strip().split(":", 1) for entry in text.split(",") if ":" in entry)
    if set(parts) & {"vision", "decoder", "connector", "audio"} and not Path(text).exists():
        if set(parts) not in ({"vision", "decoder"}, {"audio", "decoder"}):
            raise UserError(
                f"config.init_from '{text}': name both parts, as vision:DIR,decoder:DIR or audio:DIR,decoder:DIR; a "
                f"model that sees and hears cannot be joined from three folders yet"
            )
        folders = {part: Path(folder).expanduser() for part, folder in parts.items()}
    else:
        folders = {"model": Path(text).expanduser()}
    for folder in folders.values():
        if not folder.is_dir():
            raise UserError(f"config.init_from: there is no folder {folder}")
    return folders


def read_start(text: str, saved: Path | None, merge: int, mlp: int) -> Pretrained | None:
    """Returns what a run starts from, or None if that is no Hugging Face model.

    Args:
      text: ``config.init_from``.
      saved: the folder where an earlier start of the run has kept the small files.
      merge, mlp: settings of the new connector between a tower and a decoder.
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
    family, layout, config = hf.read_whole(folder)
    processor = read_processor(folder, family.image_processor) if family.pictures else {}
    if layout.spec.vision:
        layout = layout._replace(spec=_normalised(layout.spec, processor))
    if layout.audio:
        layout = layout._replace(audio=audio_settings(layout.audio, folder, family.audio_extractor))
    return Pretrained(
        family, layout, config, {"model": folder}, folder, processor, _ends(folder), pixels=_pixels(folder)
    )  # fmt: skip


def _pixels(folder: Path) -> Limits | None:
    """The limits that a run has settled; None for a model's own folder, and for a run of jaxmm 0.1."""
    if not (folder / PIXELS).exists():
        return None
    saved = json_object(folder / PIXELS)
    return int(saved["min_pixels"]), int(saved["max_pixels"])


def _normalised(spec: ModelSpec, processor: dict[str, Any]) -> ModelSpec:
    """Returns the spec with the mean and standard deviation of pixels from the folder's processor."""
    if processor.get("do_normalize") is False:
        processor = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    if spec.vision is None:
        return spec
    statistics = {
        ours: processor[theirs]
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))
        if theirs in processor
    }
    try:
        as_numbers = {ours: tuple(map(float, of_channels)) for ours, of_channels in statistics.items()}
        if any(len(numbers) != 3 for numbers in as_numbers.values()):
            raise ValueError("one number a channel")
        return dataclasses.replace(spec, vision=dataclasses.replace(spec.vision, **as_numbers))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the image processor's image_mean and image_std, {statistics}, are not right: {error}"
        ) from error


def _joined(folders: dict[str, Path], merge: int, mlp: int) -> Pretrained:
    """A tower and a decoder from two folders, in the layout that fits them."""
    if "audio" in folders:
        return _joined_to_hear(folders)
    vision, text = (hf.read_config(folders[part]) for part in ("vision", "decoder"))
    tied = hf.is_tied(folders["decoder"], bool(getattr(text, "tie_word_embeddings", False)))
    vision, text = getattr(vision, "vision_config", vision), getattr(text, "text_config", text)
    joined = join(vision, text, tied, folders["vision"], ConnectorSpec(merge=merge, mlp=mlp))
    layout = joined.layout._replace(spec=_normalised(joined.layout.spec, joined.processor))
    decoder = folders["decoder"]
    return Pretrained(
        joined.family, layout, joined.config, folders, decoder, joined.processor, _ends(decoder), told=joined.told
    )


def _joined_to_hear(folders: dict[str, Path]) -> Pretrained:
    """An audio tower and a decoder from two folders."""
    audio, text = (hf.read_config(folders[part]) for part in ("audio", "decoder"))
    tied = hf.is_tied(folders["decoder"], bool(getattr(text, "tie_word_embeddings", False)))
    audio, text = getattr(audio, "audio_config", audio), getattr(text, "text_config", text)
    joined = join_to_hear(audio, text, tied, folders["audio"])
    assert joined.layout.audio is not None
    settings = audio_settings(joined.layout.audio, folders["audio"], joined.family.audio_extractor)
    decoder, extractor = folders["decoder"], folders["audio"] / "preprocessor_config.json"
    processor = json_object(extractor) if extractor.exists() else {"feature_size": settings.mels}
    return Pretrained(
        joined.family, joined.layout._replace(audio=settings), joined.config, folders, decoder, processor,
        _ends(decoder), told=joined.told,
    )  # fmt: skip


def generation(folder: Path) -> dict[str, Any]:
    """The content of generation_config.json, {} if there is none."""
    return json_object(folder / GENERATION) if (folder / GENERATION).exists() else {}


def _ends(folder: Path) -> tuple[int, ...]:
    eos_token_id = generation(folder).get("eos_token_id")
    ends = eos_token_id if isinstance(eos_token_id, list) else [] if eos_token_id is None else [eos_token_id]
    if not all(isinstance(end, int) and not isinstance(end, bool) and end >= 0 for end in ends):
        raise UserError(f"{folder / GENERATION}: eos_token_id is {eos_token_id!r}: it must be an id, or a list of them")
    return tuple(ends)


def read_params(start: Pretrained, where: hf.ShardingOf) -> hf.Read:
    """Reads the parameters that the folders have; for a tower and a decoder, all but the connector's."""
    layout = start.layout
    if "model" in start.folders:
        return hf.read_model(start.folders["model"], layout, where)
    if "audio" in start.folders:
        tower = hf.read_audio_tower(start.folders["audio"], layout.rules, layout.spec, where)
    else:
        tower = hf.read_tower(start.folders["vision"], layout.rules, layout.spec, where)
    decoder = hf.read_decoder(start.folders["decoder"], layout.rules, layout.spec, where)
    # A whole model has no place for a tower's other tensors, except layers that LLaVA's class runs but does not use.
    spare = tower.spare if start.family.keeps_whole_tower else []
    return hf.Read({**tower.params, **decoder.params}, spare)


def save(start: Pretrained, spare: list[str], folder: Path) -> None:
    """Saves the small files, and the tensors that our model does not use."""
    folder.mkdir(parents=True, exist_ok=True)
    if start.run and (start.run / MODEL / SPARE).exists():
        shutil.copyfile(start.run / MODEL / SPARE, folder / SPARE)
    for name in (*TOKENIZER_FILES, GENERATION):
        if (start.tokenizer / name).exists():
            shutil.copyfile(start.tokenizer / name, folder / name)
    for name in PROCESSOR_FILES:
        if (start.processor_folder / name).exists():
            shutil.copyfile(start.processor_folder / name, folder / name)
    if "model" not in start.folders:
        for name, settings in start.family.joined_processor(start.config, start.processor).items():
            (folder / name).write_text(json.dumps(settings, indent=2))
        if "vision" in start.folders:
            hf.save_spare_of_tower(start.folders["vision"], spare, start.layout, folder / SPARE)
    elif not start.run:
        hf.save_spare(start.folders["model"], spare, folder / SPARE)
    if start.pixels:
        least, most = start.pixels
        (folder / PIXELS).write_text(json.dumps({"min_pixels": least, "max_pixels": most}))
    # The config comes last: with it the folder is complete.
    (folder / hf.CONFIG).write_text(json.dumps(start.config, indent=2, sort_keys=True))


def image_settings(start: Pretrained) -> dict[str, Any]:
    """The settings of ``ImageSpec`` that the folder decides: patches, merge and order by the model, sizes by its
    processor.

    Raises:
      UserError: for a processor that is not in DEFAULTS, and for settings of it that are not supported.
    """
    try:
        return _image_settings(start)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # values of unexpected types
        raise UserError(f"{start.tokenizer}: its image processor's settings cannot be read: {error}") from error


def _image_settings(start: Pretrained) -> dict[str, Any]:
    spec, processor, where = start.layout.spec, start.processor, start.tokenizer
    if start.family.pictures is None:
        return {"is_sighted": False, "text_axes": spec.decoder.text_axes}
    settings = model_settings(spec) | resample_settings(processor, where)
    settings |= start.family.pictures.settings(processor, start.config, spec, where)
    if start.pixels and not settings.get("side"):
        settings |= dict(zip(("min_pixels", "max_pixels"), start.pixels, strict=True))
    return settings
