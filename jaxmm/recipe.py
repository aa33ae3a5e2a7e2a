"""From a config to the parts that every command needs: template, sources, specs. Below here nobody sees a config."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from jaxmm import sharding
from jaxmm.batch import ImageSpec
from jaxmm.checkpoint import Checkpoints
from jaxmm.data import demo, files
from jaxmm.data.assemble import Assembler
from jaxmm.data.documents import Source
from jaxmm.data.plan import Budgets, Lengths, Origin, Plan, choose_budgets, make_mixture
from jaxmm.data.prepare import prepare
from jaxmm.data.prepared import Prepared, holds_prepared, open_prepared
from jaxmm.data.progress import Progress
from jaxmm.data.remote import default_cache
from jaxmm.data.sources import read_sources
from jaxmm.data.text import Template, load_tokenizer
from jaxmm.errors import UserError, nearest
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.decoder import DecoderSpec
from jaxmm.models.multimodal import PARTS, Compute, ModelSpec, Params, flat_axes, make_model
from jaxmm.models.vit import VisionSpec

VOCABULARY_MULTIPLE = 128  # the embedding's rows are padded to a multiple, for even shards and aligned matmuls


def cache_folder(config: ConfigDict) -> Path:
    """Where prepared data and compiled programs are kept: outside any workdir."""
    return Path(config.data.cache).expanduser() if config.data.cache else default_cache()


def parse_mixture(text: str, key: str = "config.data.mixture") -> dict[str, float]:
    """Reads ``name:share,name:share``; a name without a share has 0, to be set from its size.

    Raises:
      UserError: for a share that is no positive number, or where only some names have one.
    """
    shares: dict[str, float] = {}
    for entry in filter(None, (e.strip() for e in text.split(","))):
        name, colon, share = entry.rpartition(":") if ":" in entry else (entry, "", "")
        try:
            shares[name] = float(share) if colon else 0.0
        except ValueError:
            shares[name] = -1.0
        if colon and not 0 < shares[name] < float("inf"):
            raise UserError(f"{key}: '{entry}' has no positive share; write name:share,name:share")
    if shares and 0 < sum(s > 0 for s in shares.values()) < len(shares):
        raise UserError(f"{key} '{text}': give every name a share, or none of them")
    return shares


def parse_schedule(text: str) -> list[tuple[int, dict[str, float]]]:
    """Reads shares that change: ``a:0.9,b:0.1 @1000 a:0.5,b:0.5`` has others from step 1000 on.

    Returns:
      (step, shares by name), the first of step 0; each as ``parse_mixture`` gives it.
    """
    first, *rest = re.split(r"\s*@\s*(\d+)\s+", text.strip())
    stages = [(0, parse_mixture(first))]
    for step, shares in zip(rest[::2], rest[1::2], strict=True):
        stages.append((int(step), parse_mixture(shares)))
        if stages[-1][0] <= stages[-2][0] or not stages[-1][1] or not stages[0][1]:
            raise UserError(
                f"config.data.mixture '{text}': shares change at steps above 0, in order, and each time name sources; "
                f"write name:share,name:share @STEP name:share,name:share"
            )
    if "@" in "".join([first, *rest[1::2]]):
        raise UserError(f"config.data.mixture '{text}': write a change of shares as ' @STEP name:share,name:share'")
    return stages


def parse_numbers(text: str, key: str, names: Sequence[str], least: float = 0.0) -> dict[str, float]:
    """Reads ``name:number,name:number`` for some of the sources.

    Raises:
      UserError: for a name that is no source, or a number that is not finite and above ``least``.
    """
    numbers: dict[str, float] = {}
    for entry in filter(None, (e.strip() for e in text.split(","))):
        name, _, number = entry.rpartition(":")
        try:
            numbers[name] = float(number)
        except ValueError:
            numbers[name] = math.nan
        if not least < numbers[name] < math.inf:
            raise UserError(f"{key}: '{entry}' has no number in range; write name:number,name:number")
        if name not in names:
            raise UserError(f"{key} '{text}': no source '{name}': there are {', '.join(names)}{nearest(name, names)}")
    return numbers


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
    """What the data side needs of a config: enough to plan and to fill batches, and no JAX device is looked for."""

    template: Template
    image: ImageSpec
    cache: Path


def read_data(config: ConfigDict) -> DataRecipe:
    """Builds the data side's specs; mistakes in them are UserErrors that name the group."""
    data = config.data
    template = Template(load_tokenizer(data.tokenizer), data.objective, data.image_tokens, data.predict_image_tokens)
    try:
        image = ImageSpec(**config.image)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.image: {error}") from error
    return DataRecipe(template, image, cache_folder(config))


class Recipe(NamedTuple):
    """The specs a config asks for."""

    template: Template
    image: ImageSpec
    model: ModelSpec
    compute: Compute
    frozen: tuple[str, ...]
    cache: Path


def read_recipe(config: ConfigDict) -> Recipe:
    """Builds the specs; mistakes in them are UserErrors that name the group."""
    template, image, cache = read_data(config)
    try:
        vocabulary = -(-template.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        model = ModelSpec(
            vision=VisionSpec(**config.vision, patch_size=image.patch_size),
            connector=ConnectorSpec(**config.connector, merge=image.merge),
            decoder=DecoderSpec(**config.decoder, vocab_size=vocabulary),
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"config.vision, connector or decoder: {error}") from error
    frozen = tuple(p.strip() for p in config.optimizer.freeze.split(",") if p.strip())
    for part in frozen:
        if part not in PARTS:
            raise UserError(f"config.optimizer.freeze: no part '{part}': the parts are {', '.join(PARTS)}")
    if set(frozen) == set(PARTS):
        raise UserError("config.optimizer.freeze freezes every part: nothing is left to train")
    return Recipe(template, image, model, read_compute(config), frozen, cache)


def read_compute(config: ConfigDict) -> Compute:
    on_cpu = jax.default_backend() == "cpu"
    layers = max(config.vision.layers, config.decoder.layers)
    return Compute(
        dtype=config.compute.dtype or ("float32" if on_cpu else "bfloat16"),
        remat=config.compute.remat,
        unroll=config.compute.unroll or (layers if on_cpu else 1),
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
    found = [
        choose_budgets(
            corpus.lengths, shares, config.seq_len, config.patch_budget, config.target_budget, config.image.merge
        )
        for shares in (corpus.shares, *(shares for _, shares in corpus.later))
    ]
    return Budgets(*map(max, zip(*found, strict=True)))


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


def place_params(model: ModelSpec, tree: Any, mesh: Mesh) -> Any:
    """Shardings of a tree that holds parameters, or moments of theirs, under the parameters' own paths.

    A leaf whose path ends in a parameter's path lies as that parameter does; all others are on every device.
    """
    axes = {path: (shape, names) for path, (shape, names) in flat_axes(model).items()}

    def where(path: tuple, leaf: Any) -> NamedSharding:
        keys = tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
        for start in range(len(keys)):
            found = axes.get(keys[start:])
            if found and found[0] == tuple(leaf.shape):
                return NamedSharding(mesh, sharding.partition(found[1], found[0], mesh))
        return sharding.replicated(mesh)

    return jax.tree_util.tree_map_with_path(where, tree)


def init_params(config: ConfigDict, recipe: Recipe, mesh: Mesh, restoring: bool = False) -> Params:
    """Parameters on the mesh: fresh from the seed, or from ``config.init_from``.

    With ``restoring`` only their shapes, for a checkpoint to fill.
    """
    init, _ = make_model(recipe.model)
    abstract = jax.eval_shape(init, jax.random.key(0))
    where = place_params(recipe.model, abstract, mesh)
    if restoring:
        return abstract
    if config.init_from:
        return saved_params(Path(config.init_from), recipe, mesh)
    # Sharded parameters get the same numbers as unsharded ones: JAX's keys are counters.
    return jax.jit(init, out_shardings=where)(jax.random.key(config.seed))


def load_params(workdir: Path, abstract: Params, step: int | None = None) -> Params:
    """The parameters of another run's newest checkpoint, onto the shardings of ``abstract``."""
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        kind = "a Hugging Face folder, which is not supported yet" if (workdir / "config.json").exists() else "no run"
        raise UserError(f"{workdir} holds no checkpoints ({kind}): give the workdir of a run that has saved")
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore_part(abstract, "params", step)


def saved_params(workdir: Path, recipe: Recipe, mesh: Mesh, step: int | None = None) -> Params:
    """The parameters of a run's checkpoint (the newest by default), on this mesh."""
    abstract = jax.eval_shape(make_model(recipe.model)[0], jax.random.key(0))
    where = place_params(recipe.model, abstract, mesh)
    shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, where)
    return load_params(workdir, shapes, step)
