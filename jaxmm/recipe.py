"""From a config to the parts that every command needs: template, sources, specs. Below here nobody sees a config."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from jaxmm import sharding
from jaxmm.batch import ImageSpec
from jaxmm.config.shares import parse_mixture, parse_names, parse_numbers, parse_schedule
from jaxmm.data import demo, files
from jaxmm.data.assemble import Assembler, row_bytes
from jaxmm.data.documents import Source
from jaxmm.data.memory import PIECE_BYTES, check_rows
from jaxmm.data.packing.budgets import MULTIPLE
from jaxmm.data.packing.plan import FORMAT as PLAN_FORMAT
from jaxmm.data.packing.plan import Budgets, Lengths, Origin, Plan, choose_budgets, make_mixture
from jaxmm.data.prepare.prepare import prepare
from jaxmm.data.prepare.prepared import Prepared, holds_prepared, open_prepared
from jaxmm.data.prepare.progress import Progress
from jaxmm.data.prepare.remote import default_cache
from jaxmm.data.reading import Reading
from jaxmm.data.sources import read_sources
from jaxmm.data.text import boxes
from jaxmm.data.text.template import IMAGE, OURS, ChatOptions, Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.errors import UserError
from jaxmm.hf.families.registry import FAMILIES
from jaxmm.hf.pretrained import MODEL, Pretrained, image_settings, read_start
from jaxmm.hf.processors import limits
from jaxmm.models.attention import choose_backend
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.decoder import DecoderSpec
from jaxmm.models.multimodal import PARTS, Compute, ModelSpec
from jaxmm.models.towers.vit import VisionSpec
from jaxmm.workdir.folder import has_saved, local
from jaxmm.workdir.kept_folders import tokenizer_folder

MAX_STEPS = 10_000_000  # that epochs may be: all are planned to count them
SAID_FROM = 100_000  # steps from which on that is said
AUTOMATIC = -1.0  # where 0 means something
OWN_PIXELS = 48 * 48, 96 * 96  # least and most of a picture, where no folder says it
TEMPLATE_KEYS = (
    "tokenizer",
    "objective",
    "image_tokens",
    "predict_image_tokens",
    *ChatOptions._fields,
)  # its fingerprint
# Keys that prepared data has settled.
SETTLED = (
    "media_dir", "follow_outside", "placeholder", "bare_placeholder", "on_error", "max_skipped", "drop_image",
)  # fmt: skip
VOCABULARY_MULTIPLE = 128  # the embedding's rows are padded to a multiple, for even shards and aligned matmuls


def cache_folder(config: ConfigDict) -> Path:
    """Where prepared data and compiled programs are kept: outside any workdir."""
    return Path(local("config.data.cache", config.data.cache)) if config.data.cache else default_cache()


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
    reading: Reading = Reading(),  # noqa: B008
) -> Corpus:
    """Opens the sources of a ``data`` or ``eval`` group, preparing what is not in the cache yet."""
    shares = parse_mixture(mixture)
    path = files.absolute(path) if path else ""
    is_info = path and files.is_file(files.join(path, "dataset_info.json"))
    if path and not is_info and holds_prepared(path):
        if reading.val_size:
            raise UserError(f"config.data.val_size: {path} is prepared data: give the raw data, or prepare both parts")
        if not reading.evaluation:
            _check_settled(path, reading)
        opened = open_prepared(path, list(shares), cache, reading)
    else:
        sources = [default]
        if not path and reading.boxes:
            raise UserError("config.data.boxes: the demo has no boxes: leave it out")
        if not path and reading.val_size:
            raise UserError("config.data.val_size: the demo has held-out data of its own: leave it out")
        if path:
            sources = read_sources(path, list(shares), reading)
        progress = Progress()
        opened = [Prepared(prepare(source, template, cache / "prepared", progress=progress)) for source in sources]
    for prepared in opened:
        _check_boxes(prepared, reading)
        if not prepared.is_checked:
            Progress().say(
                f"{prepared.folder} was prepared by version 0.1, without checksums: damage to its index may go "
                f"unnoticed; delete it and prepare it again to have them"
            )
        if prepared.meta["template"] not in (template.fingerprint, *template.older):
            raise UserError(
                f"{prepared.folder} was prepared with another tokenizer, objective or codebook, or other keys of "
                f"conversations: prepare it again, or set config.data.{', '.join(TEMPLATE_KEYS[:-1])} and "
                f"{TEMPLATE_KEYS[-1]} as they were"
            )
        if prepared.meta["template"] != template.fingerprint:
            Progress().say(
                f"{prepared.folder} was prepared by version 0.1: what the chat template writes between prompt and "
                f"answer is not learnt in it; prepare it again to have it learnt"
            )
    lengths = [Lengths(prepared, image, cache / "plans") for prepared in opened]
    sizes = [float(source.tokens_E.sum()) for source in lengths]
    asked = [shares.get(source.name, 0.0) for source in lengths]
    return Corpus(lengths, asked if all(asked) else sizes, [prepared.folder for prepared in opened])


def _check_boxes(prepared: Prepared, reading: Reading) -> None:
    """Raises UserError for boxes that were written for other pictures than the run's."""
    was, wanted = prepared.meta.get("boxes", {}), boxes.settings(reading.boxes, reading.image)
    if was != wanted:
        kind = was.get("kind", "")
        keys = f"config.data.boxes={kind or repr('')}" + " and config.image or init_from" * (kind == boxes.PIXELS)
        raise UserError(
            f"{prepared.folder} was prepared with {boxes.in_words(was)}, this run asks for {boxes.in_words(wanted)}: "
            f"set {keys} as they were, or prepare it again"
        )


def _check_settled(path: str, reading: Reading) -> None:
    """Says which keys do not count with prepared data.

    Raises:
      UserError: for one that would choose other data.
    """
    plain = Reading()
    for key in ("columns", "split"):
        if getattr(reading, key):
            raise UserError(f"config.data.{key}: {path} is prepared data, of which all is settled: leave it out")
    if idle := [f"config.data.{key}" for key in SETTLED if getattr(reading, key) != getattr(plain, key)]:
        Progress().say(f"{path} is prepared data, of which all is settled: {', '.join(idle)} do not count")


class DataRecipe(NamedTuple):
    """What the data side needs of a config: enough to plan and to fill batches, and no JAX device is looked for.

    ``start``: the Hugging Face model that ``config.init_from`` names, if it does.
    """

    template: Template
    image: ImageSpec
    cache: Path
    start: Pretrained | None


def read_data(config: ConfigDict, workdir: Path | None = None) -> DataRecipe:
    """Builds the data side's specs; mistakes in them are UserErrors that name the group.

    Args:
      workdir: of the run, which keeps the small files of the model that it started from.
    """
    data, image = config.data, dict(config.image)
    asked = image["min_pixels"], image["max_pixels"]
    init_from = "" if has_saved(workdir) else config.init_from  # what has saved needs no folder that it began with
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
    image["min_pixels"], image["max_pixels"] = limits(asked, OWN_PIXELS)
    if start:
        image |= image_settings(start)
    markup = start.family.markup if start else OURS
    template = Template(
        tokenizer, data.objective, data.image_tokens, data.predict_image_tokens, markup, start.ends if start else (),
        ChatOptions(*(data[key] for key in ChatOptions._fields)),
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
    start: Pretrained | None = None


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
        model = _model_of(config, image, vocabulary)
    frozen = parse_names(config.optimizer.freeze, "config.optimizer.freeze", PARTS, "part")
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


def read_reading(config: ConfigDict, recipe: Recipe | DataRecipe, evaluation: bool = False) -> Reading:
    """How the config's data is read."""
    beside = ("boxes", "image", "evaluation", "held_out")
    keys = [field.name for field in dataclasses.fields(Reading) if field.name not in beside]
    kind = read_boxes(config, recipe.start)
    return Reading(
        **{key: config.data[key] for key in keys}, boxes=kind, image=recipe.image if kind else None,
        evaluation=evaluation,
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
    corpus = load_corpus(path, mixture, recipe.template, recipe.image, recipe.cache, default, reading)
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
    corpus = _load(config, config.data.path, names, recipe, default, read_reading(config, recipe))
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
    return _load(config, path, mixture, recipe, demo.test_source(seed=0), reading)


def read_budgets(config: ConfigDict, corpus: Corpus) -> Budgets:
    """The budgets of a row, enough for every stage of the mixture."""
    spec = corpus.lengths[0].spec
    merge = spec.merge  # a folder's model may have another than the config
    least = Budgets(config.seq_len, config.patch_budget, 0, config.target_budget)
    check_rows(1, row_bytes(least, spec), "the arrays")  # before so large a row is filled to see what it needs
    asked = config.seq_len, config.patch_budget, config.target_budget
    multiple = sharding.zigzag_multiple(config.mesh.context)
    found = [
        choose_budgets(corpus.lengths, shares, *asked, merge, multiple)
        for shares in (corpus.shares, *(shares for _, shares in corpus.later))
    ]
    return Budgets.most(found)


def unseen_budgets(config: ConfigDict, image: ImageSpec) -> Budgets:
    """Budgets where no data is there to pick them from: what the config leaves open is as if half of a row's positions
    were images, of 64 soft tokens or more."""
    group = image.merge**2
    multiple = math.lcm(MULTIPLE, group, sharding.zigzag_multiple(config.mesh.context))
    patches = config.patch_budget or -(-config.seq_len * group // (2 * multiple)) * multiple
    items = max(8, patches // (64 * group))
    return Budgets(config.seq_len, patches, items, config.target_budget or config.seq_len)


def make_plan(
    config: ConfigDict,
    corpus: Corpus,
    budgets: Budgets,
    origin: Origin = Origin(),  # noqa: B008
    plan_format: int = PLAN_FORMAT,
) -> Plan:
    """The rows of every batch of a run; ``plan_format`` is that of the run which goes on."""
    examples = max(len(source) * budgets.tokens / max(1, source.total_tokens) for source in corpus.lengths)
    check_rows(config.batch_size, max(1.0, examples) * PIECE_BYTES, "the pieces of documents")
    data, names = config.data, corpus.names
    counts = parse_numbers(data.max_examples, "config.data.max_examples", names, least=0.5)
    mixture = make_mixture(
        corpus.lengths,
        [(0, corpus.shares), *corpus.later],
        max_examples={name: round(count) for name, count in counts.items()},
        max_epochs=parse_numbers(data.max_epochs, "config.data.max_epochs", names),
        epochs=config.epochs,
    )
    return Plan(
        corpus.lengths, mixture, budgets, config.batch_size, config.seed, data.long_documents,
        table=cache_folder(config) / "plans", origin=origin, format=plan_format,
    )  # fmt: skip


def read_steps(config: ConfigDict, plan: Plan) -> int:
    """The steps of a run: ``config.steps``; with ``config.epochs`` as many as the plan has, and never more than that.

    Raises:
      UserError: if they are too many to be counted.
    """
    about = plan.about_batches()
    if config.epochs:
        if about > MAX_STEPS:
            raise UserError(
                f"config.epochs {config.epochs:g} is about {about:.3g} steps, more than the {MAX_STEPS:,} that can be "
                f"counted ahead: lower it, or give config.steps in its place"
            )
        if about > SAID_FROM:
            Progress().say(
                f"data: config.epochs {config.epochs:g} is about {about:,.0f} steps, which are counted first"
            )
        return plan.batches()
    return config.steps if about > 4 * config.steps else plan.batches(config.steps)


def read_jitter(config: ConfigDict) -> float:
    """How far edges of pictures move; automatic is off where weights have been trained before, and beside boxes."""
    if config.data.jitter == AUTOMATIC:
        return 0.0 if config.init_from or config.data.boxes else 0.15
    return float(config.data.jitter)


def make_assembler(
    config: ConfigDict, image: ImageSpec, corpus: Corpus, budgets: Budgets, processes: int = 1
) -> Assembler:
    """What fills the batches of a run with planned rows; of each one, that of ``processes`` has its part."""
    width = max(source.feature_width for source in corpus.lengths)
    check_rows(-(-config.batch_size // processes), row_bytes(budgets, image, width), "the arrays")
    weights = parse_numbers(config.data.loss_weight, "config.data.loss_weight", corpus.names, least=-1e-9)
    return Assembler(
        corpus.lengths, budgets, image, jitter=read_jitter(config), seed=config.seed,
        loss_weights=[weights.get(name, 1.0) for name in corpus.names], fast_decode=config.data.fast_decode,
    )  # fmt: skip
