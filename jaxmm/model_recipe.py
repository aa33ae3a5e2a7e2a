"""From a config to the model: the one beneath adapters, and these, of its own or those that it goes on from."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxmm.clip_spec import AudioSpec
from jaxmm.config.file import load_workdir
from jaxmm.config.keys import CLIPS
from jaxmm.config.shares import parse_names, parse_patterns
from jaxmm.data.text.own_format import IMAGE
from jaxmm.data_recipe import DataRecipe, read_data
from jaxmm.errors import UserError
from jaxmm.hf import adapter_record
from jaxmm.hf.adapter_record import Begun
from jaxmm.hf.init_from import run_and_step
from jaxmm.hf.peft_read import is_peft, read_peft
from jaxmm.hf.pretrained import Pretrained
from jaxmm.image_spec import ImageSpec
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.decoder import DecoderSpec
from jaxmm.models.multimodal import PARTS, ModelSpec
from jaxmm.models.towers.audio import AudioTowerSpec
from jaxmm.models.towers.vit import VisionSpec
from jaxmm.models.trainable import Trainable
from jaxmm.tuning import check_begun, make_adapter, make_trainable
from jaxmm.workdir.folder import has_saved

VOCABULARY_MULTIPLE = 128  # the embedding's rows are padded to a multiple, for even shards and aligned matmuls


class Beneath(NamedTuple):
    """What lies beneath adapters.

    Attributes:
      start: the folder's model that a run begins with, its vocabulary grown where the tokenizer needs it; None for
        random weights, and for another run's.
      model: without adapters.
      parts: that patterns of a config may name; more than the model's where the data is still to say which it has.
    """

    start: Pretrained | None
    model: ModelSpec
    parts: Collection[str]


def parse_clips(text: str) -> tuple[str, ...]:
    """Reads ``config.data.media``. Raises UserError for a name that is no medium of CLIPS."""
    return parse_names(text, "config.data.media", CLIPS, "medium")


def clips_of(media: Collection[str]) -> str:
    """The ``config.data.media`` of a model from random weights whose data has these media."""
    return ",".join(name for name in CLIPS if name in media)


def own_media(config: ConfigDict, workdir: Path | None = None) -> str:
    """The ``config.data.media`` of a model with the config's sizes: where it begins as another run's, that run's.

    Raises:
      UserError: if the config asks for others than that run has, whose towers are as they are.
    """
    asked = config.data.media
    run = Path(run_and_step(config.init_from)[0]).expanduser()
    if not config.init_from or has_saved(workdir) or not (run / "config.json").is_file():
        return asked
    theirs = load_workdir(str(run)).data.media
    if asked and set(parse_clips(asked)) != set(parse_clips(theirs)):
        raise UserError(
            f"config.data.media is '{asked}', but the model of {run} (config.init_from) was made for '{theirs}': leave "
            f"config.data.media out, or begin from random weights, without config.init_from"
        )
    return theirs


def read_beneath(config: ConfigDict, data: DataRecipe, workdir: Path | None) -> Beneath:
    """The model without adapters, and what it begins with."""
    template, start = data.template, data.start
    is_added = not start or bool(start.family.image_token_key)  # by an export, if it is not there
    rows = template.vocab_size + (is_added and IMAGE not in template.tokenizer.get_vocab())
    vocabulary = -(-rows // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    if start:
        if rows > start.layout.spec.decoder.vocab_size:
            start = start.grown(vocabulary)
        return Beneath(start, start.layout.spec, start.layout.spec.parts)
    model = _model_of(config, data.image, vocabulary, own_media(config, workdir))
    # Which parts a model from random weights has is known when its data is.
    return Beneath(None, model, model.parts if config.data.media else PARTS)


def adapted(config: ConfigDict, beneath: Beneath, begun: Begun | None) -> tuple[ModelSpec, Trainable]:
    """The model with its adapters, and what of it learns; ``begun``: the adapters that it goes on from."""
    frozen = _frozen(config, beneath)
    spec = begun.spec if begun else make_adapter(config.adapter, beneath.start, beneath.model, frozen)
    model = dataclasses.replace(beneath.model, adapter=spec)
    asked = config.optimizer.freeze, config.adapter.modules_to_save
    return model, make_trainable(*asked, model, beneath.parts, begun)


def _frozen(config: ConfigDict, beneath: Beneath) -> tuple[str, ...]:
    return parse_patterns(config.optimizer.freeze, "config.optimizer.freeze", list(beneath.parts))


def read_begun(config: ConfigDict, beneath: Beneath, workdir: Path | None) -> Begun | None:
    """The adapters that the run goes on from; None for a run whose adapters are its own."""
    if workdir and has_saved(workdir) and (noted := adapter_record.kept(workdir)):
        return noted
    source = config.adapter.init_from
    if not source:
        return None
    if not config.init_from:
        raise UserError(
            "config.adapter.init_from needs config.init_from: the model that the adapters were trained on, which "
            "they do not hold"
        )
    named, step = run_and_step(source)
    folder = Path(named).expanduser()
    if is_peft(folder) and not step:
        begun = _begun_by_peft(config, source, folder, beneath)
    elif (folder / "config.json").is_file() and has_saved(folder):
        begun = _begun_by_run(source, folder, beneath.model)
    else:
        raise UserError(
            f"config.adapter.init_from: {folder} holds no adapters: give a PEFT folder, or the workdir of a run with "
            f"adapters that has saved"
        )
    check_begun(config.adapter, begun, beneath.start, beneath.model, _frozen(config, beneath))
    return begun


def _begun_by_run(source: str, folder: Path, model: ModelSpec) -> Begun:
    """The adapters of a run that has saved: all that they are stands in its own folder, and no further run is read.

    Raises:
      UserError: if it has none, or those of another model than this one.
    """
    config, noted = load_workdir(str(folder)), adapter_record.kept(folder)
    if config.adapter.init_from and noted is None:
        raise UserError(
            f"config.adapter.init_from: {folder} lacks {adapter_record.FILE}, which says what adapters it went on "
            f"from: copy the whole run"
        )
    beneath = read_beneath(config, read_data(config, folder), folder)
    their, trainable = adapted(config, beneath, noted)
    if their.adapter is None:
        raise UserError(f"config.adapter.init_from: {folder} is a run without adapters: begin with it by init_from")
    if beneath.model != model:
        raise UserError(
            f"config.adapter.init_from: {folder} has adapters of another base, of other sizes: set config.init_from to "
            f"the model that they were learnt over{f', {config.init_from}' if config.init_from else ''}"
        )
    return Begun(source, their.adapter, trainable.whole)


def _begun_by_peft(config: ConfigDict, source: str, folder: Path, beneath: Beneath) -> Begun:
    if beneath.start is None:
        raise UserError(
            f"config.adapter.init_from names adapters for PEFT, which go with a model's folder: {config.init_from} "
            f"(config.init_from) is a run that began from random weights"
        )
    read = read_peft(folder, beneath.start.layout, beneath.model, beneath.start.decoder)
    told = list(read.told)
    if read.dropout and not config.adapter.dropout:
        told.append(f"its dropout of {read.dropout:g} is not taken over: set config.adapter.dropout for one")
    if read.base:
        own = run_and_step(config.init_from)[0]
        is_other = Path(read.base).name != Path(own).name
        other = f", and config.init_from is {own}: an adapter is of use over its own base alone" if is_other else ""
        told.append(f"it names {read.base} as its base{other}")
    return Begun(source, read.spec, tuple(".".join(path) for path in read.whole), tuple(told))


def _model_of(config: ConfigDict, image: ImageSpec, vocabulary: int, clips: str) -> ModelSpec:
    """The model whose sizes the config has, for these media beside pictures."""
    media = parse_clips(clips)
    frames = image.video.frames if image.video and "video" in media else 1
    try:
        audio = _audio_tower_of(config, image.audio) if image.audio and "audio" in media else None
        return ModelSpec(
            vision=VisionSpec(**config.vision, patch_size=image.patch_size, frames=frames),
            connector=ConnectorSpec(**config.connector, merge=image.merge),
            audio=audio,
            audio_connector=ConnectorSpec(**config.connector, merge=1) if audio else None,
            decoder=DecoderSpec(**config.decoder, vocab_size=vocabulary),
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"config.vision, connector, audio or decoder: {error}") from error


def _audio_tower_of(config: ConfigDict, audio: AudioSpec) -> AudioTowerSpec:
    sizes = {key: config.audio[key] for key in ("width", "layers", "heads", "mlp")}
    return AudioTowerSpec(mels=audio.mels, positions=audio.piece // 2, pool=audio.pool, **sizes)
