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
from jaxmm.hf.families.family import Family, HearingFamily, Joined, Layout
from jaxmm.hf.init_from import parse, run_and_step
from jaxmm.hf.joined import join_to_hear, join_to_see
from jaxmm.hf.pictures import AnyShape, model_settings, normalised, resample_settings
from jaxmm.hf.processors import DEFAULTS, PROCESSOR_FILES, Limits, json_object, limits, read_processor
from jaxmm.hf.recordings import audio_settings
from jaxmm.models.connector import ConnectorSpec

MODEL = "model"  # folder of a workdir: the small files of the model that the run started from
HEARING = "audio"  # folder in it: those of the family as which the model hears, where it sees as another one
SPARE = "spare.safetensors"
# In that folder, as settled at the run's first start: the limits of picture sizes, and whether large ones are split.
PIXELS = "pixels.json"
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
      folders: that hold tensors: "model", or "decoder" and one or both of "vision" and "audio".
      tokenizer: its folder.
      processor: the folder's image settings, {} if it has none.
      ends: end-of-text ids from generation_config.json, which may be more than those of the chat template.
      run: the workdir of a run that started from such a model, if its parameters are to be used.
      pixels: (least, most) pixels of pictures, if settled already, or different from the folder's.
      told: lines for people on what of the config is not followed.
      hearing: the audio tower and the decoder as a model of a family that hears, where ``family`` is one that sees.
      may_split: whether pictures are split where the processor says so: not those of runs that began before they could
        be, nor of towers that are joined with a decoder, whose tokenizer has no names of tiles.
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
    hearing: Joined | None = None
    may_split: bool = False

    @property
    def is_split(self) -> bool:
        """Whether large pictures are split into several tiles."""
        return self.may_split and bool(self.split_key and self.processor.get(self.split_key))

    @property
    def split_key(self) -> str:
        """The setting of the processor by which they are; "" if none is followed."""
        return self.family.pictures.split_key if self.family.pictures else ""

    @property
    def decoder(self) -> Path | None:
        """The folder with the decoder's tensors; None if a run has them."""
        return self.folders.get("model") or self.folders.get("decoder")

    @property
    def hears(self) -> HearingFamily | None:
        """The family as which it takes recordings; None if it takes none."""
        family = self.hearing.family if self.hearing else self.family
        return family if isinstance(family, HearingFamily) else None

    @property
    def name(self) -> str:
        """Its family, or both, by their names."""
        return self.family.name + (f" that hears as {self.hearing.family.name}" if self.hearing else "")

    def also_hearing(self, hearing: Joined) -> Pretrained:
        """A model that sees, with the audio tower of another family."""
        layout = self.layout.also_hearing(hearing.layout)
        return self._replace(layout=layout, hearing=hearing, told=(*self.told, *hearing.told))

    @property
    def processor_folder(self) -> Path:
        """The folder of the settings of its processors."""
        return next(self.folders[part] for part in ("model", "vision", "audio") if part in self.folders)

    def differences(self) -> list[str]:
        """Lines for people on what the folder does with images and we do not."""
        not_followed = [
            f"the folder's {key} is not followed: {instead}"
            for key, instead in self.family.not_followed.items()
            if self.processor.get(key) and not (self.is_split and key == self.split_key)
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
            told = (*told, pictures.told(whole, spec))
        return self._replace(pixels=limits(whole, own), told=told)

    def grown(self, vocabulary: int) -> Pretrained:
        """With an embedding of ``vocabulary`` rows."""
        model = self.layout.spec
        decoder = dataclasses.replace(model.decoder, vocab_size=vocabulary)
        layout = self.layout._replace(spec=dataclasses.replace(model, decoder=decoder))
        hearing = self.hearing and self.hearing._replace(config=_grown(self.hearing.config, vocabulary))
        return self._replace(layout=layout, config=_grown(self.config, vocabulary), hearing=hearing)


def _grown(config: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    sizes = [key for key in ("vocab_size", "vocab_size_per_layer_input") if key in config["text_config"]]
    return config | {"text_config": config["text_config"] | dict.fromkeys(sizes, vocabulary)}


def read_start(text: str, saved: Path | None, merge: int, mlp: int) -> Pretrained | None:
    """Returns what a run starts from, or None if that is no Hugging Face model.

    Args:
      text: ``config.init_from``.
      saved: the folder where an earlier start of the run has kept the small files.
      merge, mlp: settings of the new connector between a tower and a decoder.
    """
    if saved is not None and hf.is_folder(saved):
        return _kept(saved)
    named, step = run_and_step(text)
    folders = parse(named)
    if "model" in folders:
        folder = folders["model"]
        if hf.is_folder(folder):
            if step:
                raise UserError(f"config.init_from '{text}': {folder} is a model's folder, which has no checkpoints")
            return _whole(folder)._replace(may_split=True)
        return _kept(folder / MODEL)._replace(run=folder) if hf.is_folder(folder / MODEL) else None
    return _joined(folders, merge, mlp) if folders else None


def _whole(folder: Path) -> Pretrained:
    family, layout, config = hf.read_whole(folder)
    processor = read_processor(folder, family.image_processor) if family.pictures else {}
    layout = layout._replace(spec=normalised(layout.spec, processor))
    if layout.audio:
        layout = layout._replace(audio=audio_settings(layout.audio, folder, family.audio_extractor))
    return Pretrained(
        family, layout, config, {"model": folder}, folder, processor, _ends(folder), pixels=_pixels(folder),
        told=layout.told,
    )  # fmt: skip


def _kept(folder: Path) -> Pretrained:
    """What a run has kept of the model that it started from."""
    start = _whole(folder)
    start = start._replace(may_split=bool(_settled(folder).get("split")))
    if not hf.is_folder(folder / HEARING):
        return start
    heard = _whole(folder / HEARING)
    return start.also_hearing(Joined(heard.family, heard.layout, heard.config, {}))


def _pixels(folder: Path) -> Limits | None:
    """The limits that a run has settled; None for a model's own folder, and for a run of jaxmm 0.1."""
    saved = _settled(folder)
    return (int(saved["min_pixels"]), int(saved["max_pixels"])) if "min_pixels" in saved else None


def _settled(folder: Path) -> dict[str, Any]:
    """What a run has settled of pictures."""
    return json_object(folder / PIXELS) if (folder / PIXELS).exists() else {}


def _joined(folders: dict[str, Path], merge: int, mlp: int) -> Pretrained:
    """Towers and a decoder from two or three folders, each tower in the layout that fits it."""
    decoder = folders["decoder"]
    seeing = (
        join_to_see(folders["vision"], decoder, ConnectorSpec(merge=merge, mlp=mlp)) if "vision" in folders else None
    )
    hearing = join_to_hear(folders["audio"], decoder) if "audio" in folders else None
    joined = seeing or hearing
    assert joined is not None, "parse knows no other forms"
    family, layout, config, processor, told = joined
    start = Pretrained(family, layout, config, folders, decoder, processor, _ends(decoder), told=told)
    return start.also_hearing(hearing) if seeing and hearing else start


def generation(folder: Path) -> dict[str, Any]:
    """The content of generation_config.json, {} if there is none."""
    return json_object(folder / GENERATION) if (folder / GENERATION).exists() else {}


def _ends(folder: Path) -> tuple[int, ...]:
    eos_token_id = generation(folder).get("eos_token_id")
    ends = eos_token_id if isinstance(eos_token_id, list) else [] if eos_token_id is None else [eos_token_id]
    if not all(isinstance(end, int) and not isinstance(end, bool) and end >= 0 for end in ends):
        raise UserError(f"{folder / GENERATION}: eos_token_id is {eos_token_id!r}: it must be an id, or a list of them")
    return tuple(ends)


READERS = {"vision": hf.read_tower, "audio": hf.read_audio_tower, "decoder": hf.read_decoder}


def read_params(start: Pretrained, where: hf.ShardingOf) -> hf.Read:
    """Reads the parameters that the folders have; for towers and a decoder, all but the connectors'."""
    layout = start.layout
    if "model" in start.folders:
        return hf.read_model(start.folders["model"], layout, where)
    params, spare = dict[hf.Path_, Any](), list[str]()
    for part, folder in start.folders.items():
        read = READERS[part](folder, layout.rules, layout.spec, where)
        params |= read.params
        # A whole model has no place for other tensors of towers, except layers that LLaVA's class runs without using.
        spare += read.spare if part == "vision" and start.family.keeps_whole_tower else []
    return hf.Read(params, spare)


def save(start: Pretrained, spare: list[str], folder: Path) -> None:
    """Saves the small files, and the tensors that our model does not use."""
    folder.mkdir(parents=True, exist_ok=True)
    if start.run and (start.run / MODEL / SPARE).exists():
        shutil.copyfile(start.run / MODEL / SPARE, folder / SPARE)
    for name in (*TOKENIZER_FILES, GENERATION):
        if (start.tokenizer / name).exists():
            shutil.copyfile(start.tokenizer / name, folder / name)
    is_whole = "model" in start.folders
    _save_processor(
        start.processor_folder, folder, {} if is_whole else start.family.joined_processor(start.config, start.processor)
    )
    if start.hearing:
        family, _, config, processor, _ = start.hearing
        of_tower = start.folders["model"] / HEARING if is_whole else start.folders["audio"]
        _save_processor(of_tower, folder / HEARING, {} if is_whole else family.joined_processor(config, processor))
        (folder / HEARING / hf.CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
    if "vision" in start.folders:
        hf.save_spare_of_tower(start.folders["vision"], spare, start.layout, folder / SPARE)
    elif is_whole and not start.run:
        hf.save_spare(start.folders["model"], spare, folder / SPARE)
    settled: dict[str, Any] = dict(zip(("min_pixels", "max_pixels"), start.pixels or (), strict=False))
    settled |= {"split": True} if start.is_split else {}
    if settled:
        (folder / PIXELS).write_text(json.dumps(settled))
    # The config comes last: with it the folder is complete.
    (folder / hf.CONFIG).write_text(json.dumps(start.config, indent=2, sort_keys=True))


def _save_processor(source: Path, folder: Path, made: dict[str, dict[str, Any]]) -> None:
    """Copies the settings of a folder's processor, except those that are made anew."""
    folder.mkdir(exist_ok=True)
    for name in PROCESSOR_FILES:
        if name not in made and (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    for name, settings in made.items():
        (folder / name).write_text(json.dumps(settings, indent=2))


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
    if start.split_key and processor and not start.is_split:
        processor = processor | {start.split_key: False}
    settings |= start.family.pictures.settings(processor, start.config, spec, where)
    if start.pixels and not settings.get("side"):
        settings |= dict(zip(("min_pixels", "max_pixels"), start.pixels, strict=True))
    return settings
