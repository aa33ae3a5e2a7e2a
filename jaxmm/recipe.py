"""From a config to the parts that every command needs: template, sources, specs. Below here nobody sees a config."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from jaxmm import sharding
from jaxmm.batch import ImageSpec
from jaxmm.data import demo, files
from jaxmm.data.assemble import Assembler
from jaxmm.data.budgets import MULTIPLE
from jaxmm.data.documents import Source
from jaxmm.data.plan import Budgets, Lengths, Origin, Plan, choose_budgets, make_mixture
from jaxmm.data.prepare import prepare
from jaxmm.data.prepared import Prepared, holds_prepared, open_prepared
from jaxmm.data.progress import Progress
from jaxmm.data.remote import default_cache
from jaxmm.data.sources import read_sources
from jaxmm.data.text import IMAGE, OURS, Markup, Template
from jaxmm.data.tokenizer import load_tokenizer
from jaxmm.errors import UserError
from jaxmm.hf.start import MARKUP, MODEL, Start, image_settings, read_start
from jaxmm.models.attention import choose_backend
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.decoder import DecoderSpec
from jaxmm.models.multimodal import PARTS, Compute, ModelSpec
from jaxmm.models.vit import VisionSpec
from jaxmm.shares import parse_mixture, parse_names, parse_numbers, parse_schedule

MOST_EXAMPLES = 10**10  # of a run that ends with its epochs, whose batches are counted before it starts
VOCABULARY_MULTIPLE = 128  # the embedding's rows are padded to a multiple, for even shards and aligned matmuls


def cache_folder(config: ConfigDict) -> Path:
    """Where prepared data and compiled programs are kept: outside any workdir."""
    return Path(config.data.cache).expanduser() if config.data.cache else default_cache()


class Corpus(NamedTuple):
    """Prepared sources with their share of tokens, and what it becomes from a step on: (step, shares)."""

    lengths: list[Lengths]
    shares: list[float]
    folders: list[Path]
    later: tuple[tuple[int, list[float]], ...] = ()

    @property
    def names(self) -> list[str]:
        return [source.name for source in self.lengths]


def load_corpus(
    path: str,
    mixture: str,
    template: Template,
    image: ImageSpec,
    cache: Path,
    default: Source,
    media_dir: str = "",
    follow_outside: bool = False,
) -> Corpus:
    """Opens the sources of a ``data`` or ``eval`` group, preparing what is not in the cache yet."""
    shares = parse_mixture(mixture)
    path = files.absolute(path) if path else ""
    is_info = path and files.is_file(files.join(path, "dataset_info.json"))
    if path and not is_info and holds_prepared(path):
        opened = open_prepared(path, list(shares), cache)
    else:
        sources = [default]
        if path:
            sources = read_sources(path, list(shares), media_dir=media_dir, follow_outside=follow_outside)
        progress = Progress()
        opened = [Prepared(prepare(source, template, cache / "prepared", progress=progress)) for source in sources]
    for prepared in opened:
        if prepared.meta["template"] != template.fingerprint:
            raise UserError(
                f"{prepared.folder} was prepared with another tokenizer, objective or codebook: prepare it "
                f"again, or set config.data.tokenizer, objective, image_tokens and predict_image_tokens as they were"
            )
    lengths = [Lengths(prepared, image, cache / "plans") for prepared in opened]
    sizes = [float(source.tokens_E.sum()) for source in lengths]
    asked = [shares.get(source.name, 0.0) for source in lengths]
    return Corpus(lengths, asked if all(asked) else sizes, [prepared.folder for prepared in opened])


class DataRecipe(NamedTuple):
    """What the data side needs of a config: enough to plan and to fill batches, and no JAX device is looked for.

    ``start``: the Hugging Face model that ``config.init_from`` names, if it does.
    """

    template: Template
    image: ImageSpec
    cache: Path
    start: Start | None


def read_data(config: ConfigDict, workdir: Path | None = None) -> DataRecipe:
    """Builds the data side's specs; mistakes in them are UserErrors that name the group.

    Args:
      workdir: of the run, which keeps the small files of the model that it started from.
    """
    data, image = config.data, dict(config.image)
    start = read_start(config.init_from, workdir and workdir / MODEL, config.image.merge, config.connector.mlp)
    tokenizer = load_tokenizer(data.tokenizer or (str(start.tokenizer) if start else ""))
    if start:
        rows = start.family.spec.decoder.vocab_size
        if len(tokenizer) > rows and not data.tokenizer:
            raise UserError(
                f"{start.tokenizer}: its tokenizer has {len(tokenizer)} tokens, the model's vocabulary only {rows}: "
                f"the folder is not whole, or its files are of two models"
            )
        image |= image_settings(start)
    markup = Markup(*MARKUP.get(start.config["model_type"], OURS)) if start else OURS
    template = Template(
        tokenizer, data.objective, data.image_tokens, data.predict_image_tokens, markup, start.ends if start else ()
    )  # fmt: skip
    try:
        spec = ImageSpec(**image)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.image: {error}") from error
    return DataRecipe(template, spec, cache_folder(config), start)


class Recipe(NamedTuple):
    """The specs a config asks for."""

    template: Template
    image: ImageSpec
    model: ModelSpec
    compute: Compute
    frozen: tuple[str, ...]
    cache: Path
    start: Start | None = None


def read_recipe(config: ConfigDict, workdir: Path | None = None, platform: str = "") -> Recipe:
    """Builds the specs; mistakes in them are UserErrors that name the group.

    Args:
      workdir: as of ``read_data``.
      platform: that the model will run on, "cpu", "gpu" or "tpu"; "" is this process's.
    """
    template, image, cache, start = read_data(config, workdir)
    is_lfm2 = not start or start.config["model_type"] == "lfm2_vl"
    rows = template.vocab_size + (is_lfm2 and IMAGE not in template.tokenizer.get_vocab())  # an export adds it
    vocabulary = -(-rows // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    if start:
        if rows > start.family.spec.decoder.vocab_size:
            start = start.grown(vocabulary)
        model = start.family.spec
    else:
        model = _model_of(config, image, vocabulary)
    frozen = parse_names(config.optimizer.freeze, "config.optimizer.freeze", PARTS, "part")
    if set(frozen) == set(PARTS):
        raise UserError("config.optimizer.freeze freezes every part: nothing is left to train")
    compute = read_compute(config, model, image, platform or jax.default_backend())
    return Recipe(template, image, model, compute, frozen, cache, start)


def _model_of(config: ConfigDict, image: ImageSpec, vocabulary: int) -> ModelSpec:
    """The model whose sizes the config has."""
    try:
        return ModelSpec(
            vision=VisionSpec(**config.vision, patch_size=image.patch_size),
            connector=ConnectorSpec(**config.connector, merge=image.merge),
            decoder=DecoderSpec(**config.decoder, vocab_size=vocabulary),
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"config.vision, connector or decoder: {error}") from error


def read_compute(config: ConfigDict, model: ModelSpec, image: ImageSpec, platform: str) -> Compute:
    on_cpu = platform == "cpu"
    layers = max(model.vision.layers, model.decoder.layers)
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


def _load(config: ConfigDict, path: str, mixture: str, recipe: Recipe | DataRecipe, default: Source) -> Corpus:
    corpus = load_corpus(
        path,
        mixture,
        recipe.template,
        recipe.image,
        recipe.cache,
        default,
        media_dir=config.data.media_dir,
        follow_outside=config.data.follow_outside,
    )
    for source in corpus.lengths:
        others = [n for n in source.prepared.meta["feature_widths"] if n != config.vision.width]
        if others:
            raise UserError(
                f"{source.name} has feature vectors of width {others[0]}, but config.vision.width is "
                f"{config.vision.width}: set it to what the tower that made them has, or make them with this one"
            )
    return corpus


def train_corpus(config: ConfigDict, recipe: Recipe | DataRecipe) -> Corpus:
    default = demo.training_source(seed=0)
    stages = parse_schedule(config.data.mixture)
    names = ",".join(dict.fromkeys(name for _, shares in stages for name in shares))
    corpus = _load(config, config.data.path, names, recipe, default)

    def shares_of(asked: dict[str, float]) -> list[float]:
        by_size = not any(asked.values())
        return [
            size if by_size and (not asked or name in asked) else asked.get(name, 0.0)
            for name, size in zip(corpus.names, corpus.shares, strict=True)
        ]

    shares = [(step, shares_of(asked)) for step, asked in stages]
    return corpus._replace(shares=shares[0][1], later=tuple(shares[1:]))


def eval_corpus(config: ConfigDict, recipe: Recipe) -> Corpus | None:
    """The held-out sources: the demo's for the demo, else what ``config.eval.path`` names, or None."""
    if not config.eval.path and config.data.path:
        return None
    default = demo.test_source(seed=0)
    return _load(config, config.eval.path, config.eval.mixture, recipe, default)


def read_budgets(config: ConfigDict, corpus: Corpus) -> Budgets:
    """The budgets of a row, enough for every stage of the mixture."""
    merge = corpus.lengths[0].spec.merge  # a folder's model may have another than the config
    asked = config.seq_len, config.patch_budget, config.target_budget
    dealt = sharding.dealt_multiple(config.mesh.context)
    found = [
        choose_budgets(corpus.lengths, shares, *asked, merge, dealt)
        for shares in (corpus.shares, *(shares for _, shares in corpus.later))
    ]
    return Budgets(*map(max, zip(*found, strict=True)))


def unseen_budgets(config: ConfigDict, image: ImageSpec) -> Budgets:
    """Budgets where no data is there to pick them from: what the config leaves open is as if half of a row's positions
    were images, of 64 soft tokens or more."""
    group = image.merge**2
    multiple = math.lcm(MULTIPLE, group, sharding.dealt_multiple(config.mesh.context))
    patches = config.patch_budget or -(-config.seq_len * group // (2 * multiple)) * multiple
    items = max(8, patches // (64 * group))
    return Budgets(config.seq_len, patches, items, config.target_budget or config.seq_len)


def make_plan(config: ConfigDict, corpus: Corpus, budgets: Budgets, origin: Origin = Origin()) -> Plan:  # noqa: B008
    """The rows of every batch of a run."""
    if config.epochs < 0:
        raise UserError(f"config.epochs is {config.epochs}: it must be above 0, or 0 for a run of config.steps")
    data, names = config.data, corpus.names
    counts = parse_numbers(data.max_examples, "config.data.max_examples", names, least=0.5)
    mixture = make_mixture(
        corpus.lengths,
        [(0, corpus.shares), *corpus.later],
        max_examples={name: round(count) for name, count in counts.items()},
        max_epochs=parse_numbers(data.max_epochs, "config.data.max_epochs", names),
        epochs=config.epochs,
    )
    if not mixture.is_endless and sum(mixture.ends) > MOST_EXAMPLES:
        raise UserError(
            f"config.epochs and config.data.max_epochs ask for {sum(mixture.ends)} examples, which nobody waits for: "
            f"lower them, or give config.steps"
        )
    return Plan(
        corpus.lengths, mixture, budgets, config.batch_size, config.seed, data.long_documents,
        table=cache_folder(config) / "plans", origin=origin,
    )  # fmt: skip


def read_steps(config: ConfigDict, plan: Plan) -> int:
    """The steps of a run: ``config.steps``; with ``config.epochs`` as many as the plan has, and never more than that.

    Raises:
      UserError: if there are none.
    """
    if config.epochs:
        return plan.batches()
    if config.steps < 1:
        raise UserError(f"config.steps is {config.steps}: it must be at least 1, or config.epochs above 0")
    return config.steps if plan.mixture.is_endless else min(config.steps, plan.batches())


def make_assembler(config: ConfigDict, image: ImageSpec, corpus: Corpus, budgets: Budgets) -> Assembler:
    """What fills the batches of a run with planned rows."""
    if not 0 <= config.data.jitter < 0.5:
        raise UserError(f"config.data.jitter is {config.data.jitter}: it must be 0, or less than 0.5")
    weights = parse_numbers(config.data.loss_weight, "config.data.loss_weight", corpus.names, least=-1e-9)
    return Assembler(
        corpus.lengths, budgets, image, jitter=config.data.jitter, seed=config.seed,
        loss_weights=[weights.get(name, 1.0) for name in corpus.names], fast_decode=config.data.fast_decode,
    )  # fmt: skip
