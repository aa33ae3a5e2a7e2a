"""From a config to its data: sources with their shares, budgets of a row, the plan, and what fills its batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxmm import zigzag
from jaxmm.config.keys import KEYS, flat
from jaxmm.config.shares import parse_mixture, parse_numbers
from jaxmm.data import files
from jaxmm.data.assemble import Assembler, row_bytes
from jaxmm.data.documents import Source
from jaxmm.data.media.table import taken_as
from jaxmm.data.memory import PIECE_BYTES, check_rows
from jaxmm.data.packing.budgets import MULTIPLE
from jaxmm.data.packing.lengths import widths_of
from jaxmm.data.packing.plan import Budgets, Lengths, Origin, Plan, choose_budgets, make_mixture
from jaxmm.data.prepare.prepare import prepare
from jaxmm.data.prepare.prepared import Prepared, holds_prepared, open_prepared
from jaxmm.data.prepare.progress import Progress
from jaxmm.data.prepare.remote import default_cache
from jaxmm.data.reading import Reading
from jaxmm.data.sources import read_sources
from jaxmm.data.text import boxes, intros
from jaxmm.data.text.chat_options import ChatOptions
from jaxmm.data.text.template import Template
from jaxmm.errors import UserError
from jaxmm.image_spec import ImageSpec
from jaxmm.workdir.folder import local

MAX_STEPS = 10_000_000  # that epochs may be: all are planned to count them
SAID_FROM = 100_000  # steps from which on that is said
AUTOMATIC = -1.0  # where 0 means something
DEMO_BUDGETS = Budgets(512, 640, 16, 256)  # of the demo of pictures under the default config, as ``read_budgets`` picks
NOT_OF_BUDGETS = ("data.cache", "data.threads", "data.workers", "data.jitter", "data.fast_decode", "data.allow_change")
TEMPLATE_KEYS = (
    "tokenizer",
    "objective",
    "image_tokens",
    "predict_image_tokens",
    *ChatOptions._fields,
)  # its fingerprint
# Keys that prepared data has settled.
SETTLED = (
    "media_dir", "follow_outside", "placeholder", "video_placeholder", "audio_placeholder", "bare_placeholder",
    "on_error", "max_skipped", "drop_image",
)  # fmt: skip


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
    def media(self) -> frozenset[str]:
        """What its sources need a model to take, beside pictures, feature vectors of them and image tokens."""
        return taken_as(name for source in self.lengths for name in source.prepared.meta.get("media", ()))

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
    check: Callable[[Collection[str]], None] = lambda media: None,
) -> Corpus:
    """Opens the sources of a ``data`` or ``eval`` group, preparing what is not in the cache yet.

    Args:
      check: raises UserError for media that the model does not take, by their names.
    """
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
        progress, sources = Progress(), [intros.of_source(source, image) for source in sources]
        opened = [Prepared(prepare(source, template, cache / "prepared", progress=progress)) for source in sources]
    for prepared in opened:
        check(taken_as(prepared.meta.get("media", ())))
        _check_boxes(prepared, reading)
        _check_intros(prepared, image)
        _check_preferences(prepared, reading)
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
    lengths = [Lengths(prepared, image, cache / "plans", template.stamp) for prepared in opened]
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


def _check_intros(prepared: Prepared, image: ImageSpec) -> None:
    """Raises UserError for text before pictures that was written for other tiles than the run's."""
    was, wanted = prepared.meta.get("intros", {}), intros.settings(image)
    if was != wanted:
        raise UserError(
            f"{prepared.folder} was prepared with the text before {intros.in_words(was)}, this run has "
            f"{intros.in_words(wanted)}: set do_pan_and_scan and pan_and_scan_* of the model folder's "
            f"preprocessor_config.json as they were, or give the raw data"
        )


def _check_preferences(prepared: Prepared, reading: Reading) -> None:
    """Raises UserError for data that has other preferences than the objective learns from."""
    has, wanted = prepared.meta.get("preferences", ""), reading.preferences
    if has != wanted:
        objectives = {"": "''", "pairs": "dpo, ipo, simpo or orpo", "judged": "kto"}
        what = {"": "no preferences", "pairs": "pairs of answers", "judged": "judged answers"}
        # Pairs are read as pairs alone, and nothing else has a second answer; a label need not count.
        can_be = has == "" or (has, wanted) == ("judged", "")
        again = f"prepare it again with --preferences={wanted or repr('')}" + ", if its records have them" * (not has)
        raise UserError(
            f"{prepared.meta['name']} has {what[has]} ({prepared.folder}), and the run learns from {what[wanted]}: set "
            f"config.objective to {objectives[has]}, or {again if can_be else 'give it other data'}"
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


def read_budgets(config: ConfigDict, corpus: Corpus) -> Budgets:
    """The budgets of a row, enough for every stage of the mixture."""
    spec = corpus.lengths[0].spec
    merge = spec.merge  # a folder's model may have another than the config
    least = Budgets(config.seq_len, config.patch_budget, 0, config.target_budget)
    check_rows(1, row_bytes(least, spec), "the arrays")  # before so large a row is filled to see what it needs
    asked = config.seq_len, config.patch_budget, config.target_budget
    multiple = zigzag.multiple(config.mesh.context)
    stage_budgets = [
        choose_budgets(corpus.lengths, shares, *asked, merge, multiple)
        for shares in (corpus.shares, *(shares for _, shares in corpus.later))
    ]
    return Budgets.most(stage_budgets)


def unseen_budgets(config: ConfigDict, image: ImageSpec) -> Budgets:
    """Budgets where no data is there to pick them from: what the config leaves open is as if half of a row's positions
    were images, of 64 soft tokens or more. Recordings share this half; a model that only hears has them alone.
    """
    group, dealt = image.merge**2, zigzag.multiple(config.mesh.context)
    parts = 2 * max(image.is_sighted + (image.audio is not None), 1)  # of a row, of which each kind takes one

    def whole(units: int, *groups: int) -> int:
        multiple = math.lcm(MULTIPLE, dealt, *groups)
        return -(-units // multiple) * multiple

    patches = config.patch_budget or whole(-(-config.seq_len * group // parts), group)
    items = max(8, patches // (64 * group))
    if not image.is_sighted:
        patches = items = 0
    budgets = Budgets(config.seq_len, patches, items, config.target_budget or config.seq_len)
    if audio := image.audio:
        frames = config.seq_len * audio.chunk // (parts * audio.chunk_tokens)
        budgets = budgets._replace(audio=whole(frames, audio.chunk))
    # Two answers with their prompt, of 128 tokens each or more.
    return budgets._replace(pairs=max(1, config.seq_len // 256)) if config.objective else budgets


def foreseen_budgets(config: ConfigDict) -> Budgets | None:
    """What ``read_budgets`` will pick for the demo of pictures, before they are drawn; None for all other data, rows
    and pictures.
    """
    values = flat(config)
    settled = [key for key in KEYS if key.startswith(("data.", "image.")) and key not in NOT_OF_BUDGETS]
    settled += ["seq_len", "patch_budget", "target_budget", "objective", "init_from", "mesh.context"]
    return DEMO_BUDGETS if all(values[key] == KEYS[key].default for key in settled) else None


def make_plan(
    config: ConfigDict,
    corpus: Corpus,
    budgets: Budgets,
    origin: Origin = Origin(),  # noqa: B008
    plan_format: int = 0,
) -> Plan:
    """The rows of every batch of a run; ``plan_format``: of the run which goes on, 0 is the newest."""
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
    row = row_bytes(budgets, image, widths_of(corpus.lengths))
    check_rows(-(-config.batch_size // processes), row, "the arrays")
    weights = parse_numbers(config.data.loss_weight, "config.data.loss_weight", corpus.names, least=-1e-9)
    return Assembler(
        corpus.lengths, budgets, image, jitter=read_jitter(config), seed=config.seed,
        loss_weights=[weights.get(name, 1.0) for name in corpus.names], fast_decode=config.data.fast_decode,
    )  # fmt: skip
