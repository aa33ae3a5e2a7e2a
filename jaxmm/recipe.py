"""From a config to the parts that every command needs: template, specs and sources. Below here nobody sees a config."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from jaxmm.batch import AudioSpec, ImageSpec
from jaxmm.config.file import load_workdir
from jaxmm.config.keys import CLIPS
from jaxmm.config.shares import parse_names, parse_schedule
from jaxmm.corpus import Corpus, load_corpus, make_assembler, make_plan, read_budgets
from jaxmm.data import demos, files
from jaxmm.data.documents import Source
from jaxmm.data.media.table import described_widths
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.reading import Reading
from jaxmm.data.text.own_format import IMAGE
from jaxmm.data.text.template import Template
from jaxmm.data_recipe import OWN_PIXELS, DataRecipe, read_data
from jaxmm.errors import UserError
from jaxmm.hf import adapter_record
from jaxmm.hf.adapter_record import Begun
from jaxmm.hf.families.registry import FAMILIES
from jaxmm.hf.init_from import run_and_step
from jaxmm.hf.peft_read import is_peft, read_peft
from jaxmm.hf.pretrained import Pretrained
from jaxmm.models.attention import choose_backend
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.decoder import DecoderSpec
from jaxmm.models.multimodal import PARTS, Compute, ModelSpec
from jaxmm.models.towers.audio import AudioTowerSpec
from jaxmm.models.towers.vit import VisionSpec
from jaxmm.models.trainable import Trainable, check_patterns
from jaxmm.training.preference import PreferenceSpec
from jaxmm.tuning import check_begun, make_adapter, make_frozen, make_trainable
from jaxmm.workdir.folder import has_saved

# Those of ``jaxmm.corpus`` and ``jaxmm.data_recipe`` too, as whoever wants a config's parts looks here first.
__all__ = [
    "OWN_PIXELS", "Corpus", "DataRecipe", "Recipe", "clips_of", "eval_corpus", "fitted", "make_assembler", "make_plan",
    "own_media", "parse_clips", "read_boxes", "read_budgets", "read_compute", "read_data", "read_reading",
    "read_recipe", "train_corpus",
]  # fmt: skip

VOCABULARY_MULTIPLE = 128  # the embedding's rows are padded to a multiple, for even shards and aligned matmuls


class Recipe(NamedTuple):
    """The specs a config asks for.

    Attributes:
      image: how media are taken, of those that the run has: see ``fitted``.
      whole: the same of all media.
    """

    template: Template
    image: ImageSpec
    whole: ImageSpec
    model: ModelSpec
    compute: Compute
    trainable: Trainable
    cache: Path
    start: Pretrained | None = None
    init_from: str = ""  # of the config
    preference: PreferenceSpec | None = None
    begun: Begun | None = None  # the adapters that the run goes on from


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


def fitted(recipe: Recipe, media: Collection[str]) -> Recipe:
    """Returns the recipe of a run that has these media, see ``Corpus.media``.

    Raises:
      UserError: if the model does not take one of them.
    """
    vision, video = recipe.model.vision, recipe.whole.video
    check_media(recipe, media)
    if "video" in media and (vision is None or video is None or video.frames != vision.frames):
        raise _not_taken(recipe, "video")
    if "audio" in media and recipe.model.audio is None:
        raise _not_taken(recipe, "audio")
    check_patterns(recipe.trainable.frozen, "config.optimizer.freeze", recipe.model)
    return recipe._replace(image=recipe.whole.only(media))


def check_media(recipe: Recipe | DataRecipe, media: Collection[str]) -> None:
    """Raises UserError for media of data or of prompts that the model has no way to take."""
    if "image" in media and not recipe.whole.is_sighted:
        raise UserError(f"there are pictures, which {_whose(recipe)} does not take: it has no vision tower")
    for name, spec in (("video", recipe.whole.video), ("audio", recipe.whole.audio)):
        if name in media and spec is None:
            raise _not_taken(recipe, name)


def _not_taken(recipe: Recipe | DataRecipe, medium: str) -> UserError:
    what = {"video": "videos", "audio": "recordings"}[medium]
    takes = {"video": lambda family: family.videos, "audio": lambda family: family.audio_extractor}[medium]
    can = [family.model_type for family in FAMILIES.values() if takes(family)]
    return UserError(
        f"there are {what}, which {_whose(recipe)} does not take here: of pretrained models {', '.join(can)} do, and "
        f"models that begin from random weights on data with {what} (config.data.media); leave them out"
    )


def _whose(recipe: Recipe | DataRecipe) -> str:
    return f"a {recipe.start.name}" if recipe.start else "this model"


def read_recipe(config: ConfigDict, workdir: Path | None = None, platform: str = "") -> Recipe:
    """Builds the specs; mistakes in them are UserErrors that name the group.

    Args:
      workdir: as of ``read_data``.
      platform: that the model will run on, "cpu", "gpu" or "tpu"; "" is this process's.
    """
    template, image, cache, start = read_data(config, workdir)
    is_added = not start or bool(start.family.image_token_key)  # by an export, if it is not there
    rows = template.vocab_size + (is_added and IMAGE not in template.tokenizer.get_vocab())
    vocabulary = -(-rows // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    if start:
        if rows > start.layout.spec.decoder.vocab_size:
            start = start.grown(vocabulary)
        model = start.layout.spec
    else:
        model = _model_of(config, image, vocabulary, own_media(config, workdir))
    # Which parts a model from random weights has is known when its data is.
    known = model.parts if start or config.data.media else PARTS
    begun = _begun(config, start, model, workdir)
    adapter = begun.spec if begun else make_adapter(config.adapter, start, model)
    model = dataclasses.replace(model, adapter=adapter)
    trainable = make_trainable(config.optimizer.freeze, config.adapter.modules_to_save, model, known, begun)
    model = dataclasses.replace(model, frozen=make_frozen(config.adapter.base_dtype, model, trainable))
    compute = read_compute(config, model, image, platform or jax.default_backend())
    preference = read_preference(config)
    if begun and preference and preference.has_reference:
        raise UserError(
            f"config.adapter.init_from does not go with config.objective={preference.objective}: its reference would "
            f"be the model without these adapters; merge them into it (`jaxmm export --merge`), and begin with that"
        )
    return Recipe(
        template, image.only(()), image, model, compute, trainable, cache, start, config.init_from, preference, begun
    )  # fmt: skip


def read_preference(config: ConfigDict) -> PreferenceSpec | None:
    """The loss of preferences that is asked for; None where targets are learnt."""
    if not config.objective:
        return None
    asked = dict(config.preference)
    is_mean, was_asked = asked.pop("length_normalised"), asked.pop("reference") == "asked"
    return PreferenceSpec(config.objective, is_mean=is_mean, asked=was_asked, **asked)


def _begun(config: ConfigDict, start: Pretrained | None, model: ModelSpec, workdir: Path | None) -> Begun | None:
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
        begun = _begun_by_peft(config, source, folder, start, model)
    elif (folder / "config.json").is_file() and has_saved(folder):
        their = read_recipe(load_workdir(str(folder)), folder)
        if their.model.adapter is None:
            raise UserError(f"config.adapter.init_from: {folder} is a run without adapters: begin with it by init_from")
        begun = Begun(source, their.model.adapter, their.trainable.whole)
        if their.model.base.plain != model:
            raise UserError(f"config.adapter.init_from: {folder} has adapters of another base, of other sizes")
    else:
        raise UserError(
            f"config.adapter.init_from: {folder} holds no adapters: give a PEFT folder, or the workdir of a run with "
            f"adapters that has saved"
        )
    check_begun(config.adapter, begun, start, model)
    return begun


def _begun_by_peft(
    config: ConfigDict, source: str, folder: Path, start: Pretrained | None, model: ModelSpec
) -> Begun:  # fmt: skip
    if start is None:
        raise UserError(
            f"config.adapter.init_from names adapters for PEFT, which go with a model's folder: {config.init_from} "
            f"(config.init_from) is a run that began from random weights"
        )
    read = read_peft(folder, start.layout, model, start.decoder)
    told = list(read.told)
    if read.dropout and not config.adapter.dropout:
        told.append(f"its dropout of {read.dropout:g} is not taken over: set config.adapter.dropout for one")
    if read.base:
        told.append(f"it names {read.base} as its base")
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


def read_compute(config: ConfigDict, model: ModelSpec, image: ImageSpec, platform: str) -> Compute:
    on_cpu = platform == "cpu"
    layers = max(part.layers for part in (model.vision, model.audio, model.decoder) if part)
    try:
        backend = choose_backend(config.compute.attention, platform, config.seq_len if model.decoder.window else 0)
    except ValueError as error:
        raise UserError(f"config.compute.attention: {error}") from error
    return Compute(
        dtype=config.compute.dtype or ("float32" if on_cpu else "bfloat16"),
        remat=config.compute.remat,
        unroll=config.compute.unroll or (layers if on_cpu else 1),
        attention=backend,
        tile=image.tile_patches if image.side else 0,
    )


def read_reading(config: ConfigDict, recipe: Recipe | DataRecipe, evaluation: bool = False) -> Reading:
    """How the config's data is read."""
    beside = ("boxes", "image", "evaluation", "held_out", "preferences")
    keys = [field.name for field in dataclasses.fields(Reading) if field.name not in beside]
    kind, spec = read_boxes(config, recipe.start), read_preference(config)
    return Reading(
        **{key: config.data[key] for key in keys}, boxes=kind, image=recipe.whole.only(()) if kind else None,
        evaluation=evaluation, preferences=("judged" if spec.judges else "pairs") if spec else "",
    )  # fmt: skip


def read_boxes(config: ConfigDict, start: Pretrained | None) -> str:
    """How boxes in texts are written: as ``boxes.KINDS``.

    Raises:
      UserError: if that is to be the model's way, and nobody knows it.
    """
    if config.data.boxes != "model":
        return str(config.data.boxes)
    if not start or not start.family.boxes:
        known = ", ".join(family.model_type for family in FAMILIES.values() if family.boxes)
        whose = f"the family {start.family.model_type}" if start else "a model from random weights"
        raise UserError(f"config.data.boxes=model is known of {known}, not of {whose}: say pixels or thousandths")
    return start.family.boxes


def _load(
    config: ConfigDict, path: str, mixture: str, recipe: Recipe | DataRecipe, default: Source, reading: Reading
) -> Corpus:
    check = functools.partial(check_media, recipe)
    corpus = load_corpus(path, mixture, recipe.template, recipe.whole, recipe.cache, default, reading, check)
    for source in corpus.lengths:
        if not recipe.whole.is_sighted and (source.patches_E.any() or "features" in source.widths):
            raise UserError(f"{source.name} has pictures, which this model does not take: it has no vision tower")
        _check_widths(config, recipe, source)
    return corpus


def _check_widths(config: ConfigDict, recipe: Recipe | DataRecipe, source: Lengths) -> None:
    """Raises UserError for feature vectors that are none of the model's towers."""
    model = recipe.start.layout.spec if recipe.start else None
    own = {
        "features": (model.vision.feature_width if model and model.vision else config.vision.width, "vision"),
        "audio_features": (model.audio.width if model and model.audio else config.audio.width, "audio"),
    }
    for stream, widths in described_widths(source.prepared.meta).items():
        width, tower = own[stream]
        key = f"the {tower} tower's width" if model else f"config.{tower}.width"
        if others := [n for n in widths if n != width]:
            raise UserError(
                f"{source.name} has feature vectors of width {others[0]}, but {key} is {width}: "
                f"{'' if model else 'set it to what the tower that made them has, or '}make them with this one"
            )


def train_corpus(config: ConfigDict, recipe: Recipe | DataRecipe) -> Corpus:
    reading = read_reading(config, recipe)
    default = demos.training_source(config.data.demo, reading.preferences)
    stages = parse_schedule(config.data.mixture)
    names = ",".join(dict.fromkeys(name for _, shares in stages for name in shares))
    corpus = _load(config, config.data.path, names, recipe, default, reading)
    for source in corpus.lengths:
        if not source.targets_E.any():
            raise UserError(
                f"{source.name} has nothing to learn: not one of its {len(source)} documents has an assistant's turn "
                f"that is not turned off by a weight, or a text; leave it out of config.data.mixture, or learn all of "
                f"it by config.data.objective=pretrain"
            )

    def shares_of(asked: dict[str, float]) -> list[float]:
        by_size = not any(asked.values())
        return [
            size if by_size and (not asked or name in asked) else asked.get(name, 0.0)
            for name, size in zip(corpus.names, corpus.shares, strict=True)
        ]

    shares = [(step, shares_of(asked)) for step, asked in stages]
    return corpus._replace(shares=shares[0][1], later=tuple(shares[1:]))


def eval_corpus(config: ConfigDict, recipe: Recipe) -> Corpus | None:
    """The held-out sources: the demo's for the demo, else what ``config.eval.path`` names, or None.

    With ``config.data.val_size``, no path or that of the training data is the part that is kept from training.
    """
    path, mixture = config.eval.path, config.eval.mixture
    reading = read_reading(config, recipe, evaluation=True)
    is_same = bool(path) and files.absolute(path) == files.absolute(config.data.path)
    if reading.val_size and config.data.path and (is_same or not path):
        # Of the same files, and so of the same split.
        reading = dataclasses.replace(reading, evaluation=False, held_out=True)
        path = config.data.path
        mixture = mixture or ",".join(dict.fromkeys(n for _, s in parse_schedule(config.data.mixture) for n in s))
    elif not path and config.data.path:
        return None
    else:
        reading = dataclasses.replace(reading, val_size=0.0, split=config.eval.split)
    default = demos.test_source(config.data.demo, reading.preferences)
    return _load(config, path, mixture, recipe, default, reading)
