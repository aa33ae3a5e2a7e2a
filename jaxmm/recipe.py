"""From a config to the parts that every command needs: template, specs and sources. Below here nobody sees a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from jaxmm.corpus import Corpus, make_assembler, make_plan, read_budgets
from jaxmm.corpus_recipe import eval_corpus, read_boxes, read_reading, train_corpus
from jaxmm.data.text.template import Template
from jaxmm.data_recipe import OWN_PIXELS, DataRecipe, check_media, not_taken, read_data
from jaxmm.errors import UserError
from jaxmm.hf.adapter_record import Begun
from jaxmm.hf.pretrained import Pretrained
from jaxmm.image_spec import ImageSpec
from jaxmm.model_recipe import adapted, clips_of, own_media, parse_clips, read_begun, read_beneath
from jaxmm.models.attention import check_mask, choose_backend
from jaxmm.models.multimodal import Compute, ModelSpec
from jaxmm.models.trainable import Trainable, check_patterns
from jaxmm.training.preference import PreferenceSpec, make_preference
from jaxmm.tuning import make_frozen

# Those of the modules beside this one too, as whoever wants a config's parts looks here first.
__all__ = [
    "OWN_PIXELS", "Corpus", "DataRecipe", "Recipe", "clips_of", "eval_corpus", "fitted", "make_assembler", "make_plan",
    "own_media", "parse_clips", "read_boxes", "read_budgets", "read_compute", "read_data", "read_reading",
    "read_recipe", "train_corpus",
]  # fmt: skip


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


def fitted(recipe: Recipe, media: Collection[str]) -> Recipe:
    """Returns the recipe of a run that has these media, see ``Corpus.media``.

    Raises:
      UserError: if the model does not take one of them.
    """
    vision, video = recipe.model.vision, recipe.whole.video
    check_media(recipe, media)
    if "video" in media and (vision is None or video is None or video.frames != vision.frames):
        raise not_taken(recipe, "video")
    if "audio" in media and recipe.model.audio is None:
        raise not_taken(recipe, "audio")
    check_patterns(recipe.trainable.frozen, "config.optimizer.freeze", recipe.model)
    return recipe._replace(image=recipe.whole.only(media))


def read_recipe(config: ConfigDict, workdir: Path | None = None, platform: str = "") -> Recipe:
    """Builds the specs; mistakes in them are UserErrors that name the group.

    Args:
      workdir: as of ``read_data``.
      platform: that the model will run on, "cpu", "gpu" or "tpu"; "" is this process's.
    """
    data = read_data(config, workdir)
    beneath = read_beneath(config, data, workdir)
    begun = read_begun(config, beneath, workdir)
    model, trainable = adapted(config, beneath, begun)
    frozen = make_frozen(config.adapter.base_dtype, model, trainable)
    model = dataclasses.replace(model, frozen=frozen, matmul=config.compute.matmul)
    compute = read_compute(config, model, data.image, platform or jax.default_backend())
    preference = make_preference(config.objective, config.preference)
    if begun and preference and preference.has_reference:
        raise UserError(
            f"config.adapter.init_from does not go with config.objective={preference.objective}: its reference would "
            f"be the model without these adapters; merge them into it (`jaxmm export --merge`), and begin with that"
        )
    return Recipe(
        data.template, data.image.only(()), data.image, model, compute, trainable, data.cache, beneath.start,
        config.init_from, preference, begun,
    )  # fmt: skip


def read_compute(config: ConfigDict, model: ModelSpec, image: ImageSpec, platform: str) -> Compute:
    on_cpu = platform == "cpu"
    layers = max(part.layers for part in (model.vision, model.audio, model.decoder) if part)
    dtype = config.compute.dtype or ("float32" if on_cpu else "bfloat16")
    try:
        longest = config.seq_len if model.decoder.window else 0
        backend = choose_backend(config.compute.attention, platform, longest, dtype, model.head_widths)
        decoder = model.decoder
        check_mask(backend, decoder.mask, decoder.attention_softcap, is_split=config.mesh.context != 1)
    except ValueError as error:
        raise UserError(f"config.compute.attention: {error}") from error
    return Compute(
        dtype=dtype,
        remat=config.compute.remat,
        unroll=config.compute.unroll or (layers if on_cpu else 1),
        attention=backend,
        tile=image.tile_patches if image.side else 0,
    )
