"""From a config to what the data side needs: template, sizes of media, and the model that it begins with."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ml_collections import ConfigDict

from jaxmm.clip_spec import AudioSpec, VideoSpec
from jaxmm.corpus import cache_folder
from jaxmm.data.media.log_mel import mel_filters
from jaxmm.data.text.chat_options import ChatOptions
from jaxmm.data.text.own_format import OURS
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.errors import UserError
from jaxmm.hf.families.registry import FAMILIES
from jaxmm.hf.folder import is_folder
from jaxmm.hf.peft_read import is_peft
from jaxmm.hf.pretrained import MODEL, Pretrained, image_settings, read_start
from jaxmm.hf.processors import limits
from jaxmm.hf.videos import asked_for
from jaxmm.image_spec import ImageSpec
from jaxmm.workdir.folder import has_saved
from jaxmm.workdir.kept_folders import tokenizer_folder

OWN_VIDEO = {"frames": 2, "fps": 2.0, "min_frames": 4, "max_frames": 32, "sampling": "stride"}  # so too its frames
FRAME_SIZES = ("min_pixels", "max_pixels", "total_pixels")  # of ``config.video``
OWN_PIXELS = 48 * 48, 96 * 96  # least and most of a picture, where no folder says it


class DataSide(Protocol):
    """What corpora are made by: a ``DataRecipe``, or the ``Recipe`` of a run.

    Attributes:
      whole: how media are taken, of all that the model takes.
    """

    @property
    def template(self) -> Template: ...

    @property
    def whole(self) -> ImageSpec: ...

    @property
    def cache(self) -> Path: ...

    @property
    def start(self) -> Pretrained | None: ...


class DataRecipe(NamedTuple):
    """What the data side needs of a config: enough to plan and to fill batches, and no JAX device is looked for.

    ``start``: the Hugging Face model that ``config.init_from`` names, if it does.
    """

    template: Template
    image: ImageSpec
    cache: Path
    start: Pretrained | None

    @property
    def whole(self) -> ImageSpec:
        return self.image


def read_data(config: ConfigDict, workdir: Path | None = None) -> DataRecipe:
    """Builds the data side's specs; mistakes in them are UserErrors that name the group.

    Args:
      workdir: of the run, which keeps the small files of the model that it started from.
    """
    data, image = config.data, dict(config.image)
    asked = image["min_pixels"], image["max_pixels"]
    init_from = "" if has_saved(workdir) else config.init_from  # what has saved needs no folder that it began with
    folder = Path(init_from).expanduser()
    if init_from and is_peft(folder) and not is_folder(folder):
        raise UserError(
            f"config.init_from: {init_from} has adapters alone: name them by config.adapter.init_from, and the model "
            f"that they were trained on by config.init_from"
        )
    start = read_start(init_from, workdir and workdir / MODEL, config.image.merge, config.connector.mlp)
    named = tokenizer_folder(data.tokenizer, workdir)
    tokenizer = load_tokenizer(named or (str(start.tokenizer) if start else ""))
    if start:
        rows = start.layout.spec.decoder.vocab_size
        if len(tokenizer) > rows and not data.tokenizer:
            raise UserError(
                f"{start.tokenizer}: its tokenizer has {len(tokenizer)} tokens, the model's vocabulary only {rows}: "
                f"the folder is not whole, or its files are of two models"
            )
        is_kept = workdir is not None and start.folders.get("model") == workdir / MODEL
        settled = start.settled(asked)
        if not is_kept:
            start = settled
        elif start.pixels and settled.pixels != start.pixels:
            print(
                f"warning: config.image.min_pixels and max_pixels do not count: this run's pictures have "
                f"{start.pixels[0]} to {start.pixels[1]} pixels since its first start",
                file=sys.stderr,
            )
        if start.hears:
            tokenizer.add_tokens(start.hears.special_tokens(), special_tokens=True)
    image["min_pixels"], image["max_pixels"] = limits(asked, OWN_PIXELS)
    if start:
        image |= image_settings(start)
    markup = start.family.markup if start else OURS
    template = Template(
        tokenizer, data.objective, data.image_tokens, data.predict_image_tokens, markup, start.ends if start else (),
        ChatOptions(*(data[key] for key in ChatOptions._fields)), start.hears.markup if start and start.hears else None,
        start.family.video_markup if start else None,
        has_prefix=bool(start and start.layout.spec.decoder.prefix_blocks),
    )  # fmt: skip
    try:
        spec = ImageSpec(**image)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.image: {error}") from error
    if spec.row_break and len(template.stamp(spec.row_break)) != 1:
        raise UserError(
            f"the tokenizer lacks {spec.row_break}, which this family writes after rows of images: use the model "
            f"folder's one"
        )
    spec = dataclasses.replace(spec, video=_video_of(config, spec, start), audio=_audio_of(config, start))
    return DataRecipe(template, spec, cache_folder(config), start)


def _video_of(config: ConfigDict, image: ImageSpec, start: Pretrained | None) -> VideoSpec | None:
    """How videos are taken; None if the model takes none."""
    own: dict[str, Any] = {"min_pixels": image.min_pixels, "max_pixels": image.max_pixels, **OWN_VIDEO}
    if start:
        vision = start.layout.spec.vision
        if start.family.videos is None or vision is None:
            return None
        own = start.family.videos.settings(start.processor_folder, start.config, vision.frames)
    asked = dict(config.video)
    if start and asked["frames"] not in (0, own["frames"]):
        raise UserError(
            f"config.video.frames is {asked['frames']}, but this tower's patches span {own['frames']} frames"
        )
    if image.side and (key := next((key for key in FRAME_SIZES if asked[key]), "")):
        raise UserError(
            f"config.video.{key} is {asked[key]}, but this tower takes frames of {image.side} x {image.side} pixels: "
            f"leave it out"
        )
    return asked_for(own | {"row_tokens": config.seq_len, "row_patches": config.patch_budget}, asked)


def _audio_of(config: ConfigDict, start: Pretrained | None) -> AudioSpec | None:
    """How recordings are taken; None if the model takes none."""
    asked = config.audio
    if start:
        own_audio = start.layout.audio
        if own_audio is None:
            return None
        fixed = {"sampling_rate": own_audio.rate, "mels": own_audio.mels, "pool": own_audio.pool}
        for key, value in fixed.items():
            if asked[key] not in (0, value):
                raise UserError(f"config.audio.{key} is {asked[key]}, but this model's is {value}: leave it out")
        if asked.chunk:
            raise UserError("config.audio.chunk: this model's own cannot be changed: leave it out")
        return dataclasses.replace(own_audio, max_seconds=asked.max_seconds)
    rate, pool = asked.sampling_rate or 16000, asked.pool or 4
    own = AudioSpec()
    hop, window = round(own.hop * rate / own.rate), round(own.window * rate / own.rate)
    chunk = 2 * pool  # frames of a soft token
    piece = -(-round((asked.chunk or 30.0) * rate / hop) // chunk) * chunk
    mels = asked.mels or 80
    if deaf := int((mel_filters(mels, rate, window).max(0) == 0).sum()):
        raise UserError(
            f"config.audio.mels: {deaf} of {mels} would hear nothing at a sampling_rate of {rate}: have fewer, or a "
            f"higher rate"
        )
    try:
        return AudioSpec(
            rate=rate, mels=mels, hop=hop, window=window, chunk=chunk, chunk_positions=pool, pool=pool,
            attend=0, halo=2, piece=piece, silence=True, max_seconds=asked.max_seconds,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"config.audio: {error}") from error


def check_media(recipe: DataSide, media: Collection[str]) -> None:
    """Raises UserError for media of data or of prompts that the model has no way to take."""
    if "image" in media and not recipe.whole.is_sighted:
        raise UserError(f"there are pictures, which {_whose(recipe)} does not take: it has no vision tower")
    for name, spec in (("video", recipe.whole.video), ("audio", recipe.whole.audio)):
        if name in media and spec is None:
            raise not_taken(recipe, name)
    start = recipe.start
    if "video" in media and start and start.family.videos and (vision := start.layout.spec.vision):
        start.family.videos.check(start.processor_folder, start.config, vision.mean, vision.std)


def not_taken(recipe: DataSide, medium: str) -> UserError:
    """The error that there are videos or recordings, and the model takes none."""
    what = {"video": "videos", "audio": "recordings"}[medium]
    takes = {"video": lambda family: family.videos, "audio": lambda family: family.audio_extractor}[medium]
    can = [family.name for family in FAMILIES.values() if takes(family)]
    return UserError(
        f"there are {what}, which {_whose(recipe)} does not take here: of pretrained models {', '.join(can)} do, and "
        f"models that begin from random weights on data with {what} (config.data.media); leave them out"
    )


def _whose(recipe: DataSide) -> str:
    return f"a {recipe.start.name}" if recipe.start else "this model"
