"""The lines that a run prints before its first step: machine, model, data, and what is unusual."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Collection, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

import jaxmm
from jaxmm import formatting, sharding, zigzag
from jaxmm.atomic import read_lines
from jaxmm.checkpoints.near import is_alive
from jaxmm.data.encoding_file import settled_otherwise
from jaxmm.data.media.table import MEDIA
from jaxmm.data.packing.limits import FIRST
from jaxmm.data.packing.plan import Lengths
from jaxmm.data.prepare.statistics import special_lines
from jaxmm.image_spec import ImageSpec
from jaxmm.models.attention import in_words
from jaxmm.models.flops import parameter_counts
from jaxmm.models.matmuls import has_float8_units, is_float8, is_grouped
from jaxmm.models.multimodal import ModelSpec, abstract_params, flat_axes, holdings, kernel_dims, model_maps
from jaxmm.models.tree import flat
from jaxmm.training.preference import PreferenceSpec
from jaxmm.training.program import make_rates
from jaxmm.training.run import Run
from jaxmm.training.step import TrainState
from jaxmm.workdir.spool import name_of


def opening_lines(run: Run, state: TrainState) -> Iterator[str]:
    """The lines, in their order."""
    yield from _model_lines(run, state)
    yield from _data_lines(run)
    yield from _row_lines(run)
    if run.near:
        yield f"near checkpoints: every {run.config.checkpoint.near_every} steps, on each node in {run.near.folder}"
    elif is_alive(run.workdir):
        yield (
            "near checkpoints of this run are passed over, and no longer count from the next step on: "
            "config.checkpoint.near_every is 0"
        )
    if run.start:
        yield from _resume_lines(run)


def _model_lines(run: Run, state: TrainState) -> Iterator[str]:
    recipe, warmup = run.recipe, run.config.optimizer.warmup
    counts = parameter_counts(abstract_params(recipe.model.plain))
    sizes = ", ".join(f"{part} {formatting.short(n)}" for part, n in counts.items())
    shape = " x ".join(f"{axis} {n}" for axis, n in run.mesh.shape.items() if n > 1) or "one device"
    yield (
        f"jaxmm {jaxmm.__version__} on {jax.devices()[0].device_kind}, {shape}; compute in {recipe.compute.dtype}, "
        f"attention by {in_words(recipe.compute.attention)}"
    )
    if run.dtype_line:
        yield run.dtype_line
    if line := matmul_line(recipe.model, jax.devices()[0], recipe.compute.dtype):
        yield line
    frozen = ", ".join(recipe.trainable.frozen)
    yield f"parameters: {sizes}" + (f"; frozen: {frozen}" if frozen else "")
    if line := _adapter_line(run):
        yield line
    if line := frozen_line(recipe.model):
        yield line
    if line := _held_line(run, state):
        yield line
    if run.recipe.preference:
        yield _preference_line(run, run.recipe.preference)
    for line in recipe.begun.told if recipe.begun else ():
        yield f"adapter.init_from: {line}"
    for line in recipe.start.differences() if recipe.start else ():
        yield f"init_from: {line}"
    for line in recipe.template.notes:
        yield f"template: {line}"
    if warmup >= run.steps:
        yield f"optimizer.warmup is {warmup} steps and the run has {run.steps}: the rate rises to the end"


def matmul_line(model: ModelSpec, device: Any, dtype: str) -> str:
    """Which linear maps multiply in float8, and what it is worth on a device; '' where none does.

    Args:
      dtype: of activations.
    """
    if not model.matmul:
        return ""
    sizes = {path: math.prod(flat_axes(model.plain)[path][0]) for path in kernel_dims(model.base)}
    narrow = sum(size for path, size in sizes.items() if is_float8(path[:-1]))
    experts = sum(size for path, size in sizes.items() if is_grouped(path[:-1]))
    wide = f"the others{f', {formatting.short(experts)} of experts among them,' if experts else ''} in {dtype}"
    units = (
        "" if has_float8_units(device) else f"; {device.device_kind} has no units for it: a step is slower, not faster"
    )
    return (
        f"compute.matmul: linear maps of {formatting.short(narrow)} of {formatting.short(sum(sizes.values()))} weights "
        f"multiply in float8, {wide}; MFU stays a part of the bfloat16 peak{units}"
    )


def _held_line(run: Run, state: TrainState) -> str:
    """How the weights beneath adapters are held; '' where that is as float32."""
    model = run.recipe.model
    if model.frozen is None:
        return ""
    kinds = collections.Counter[str]()
    for path, one in holdings(model).items():
        kinds[one.kind] += math.prod(flat_axes(model.plain)[path][0])
    told = ", ".join(f"{formatting.short(count)} as {kind}" for kind, count in kinds.items())
    size = sum(x.nbytes for x in jax.tree.leaves(state.params))
    return f"frozen weights are held {told}; all parameters are {size / 1e6:,.0f} MB, over all devices"


def _adapter_line(run: Run) -> str:
    """What learns in a run with adapters; '' in another."""
    spec, trainable = run.recipe.model.adapter, run.recipe.trainable
    if spec is None:
        return ""
    by_path = flat(abstract_params(run.recipe.model.plain))
    learnt = sum(x.size for path, x in by_path.items() if trainable.learns(path))
    on = _adapted_words(run.recipe.model)
    whole = f", and {', '.join(trainable.whole)} whole" if trainable.whole else ""
    source = f", from {run.recipe.begun.source}" if run.recipe.begun else ""
    return (
        f"adapters: {spec.kind} of rank {spec.rank}, alpha {spec.alpha:g}, on {on}{whole}{source}: "
        f"{formatting.short(learnt)} parameters learn, {learnt / sum(x.size for x in by_path.values()):.2%} of all"
        + ("" if run.config.init_from else "; the model beneath has random weights, which stay as they are")
    )


def frozen_line(model: ModelSpec) -> str:
    """What config.adapter.targets means and config.optimizer.freeze keeps as it is; '' where that is nothing."""
    if model.adapter is None or not model.adapter.frozen:
        return ""
    meant = model_maps(dataclasses.replace(model, adapter=dataclasses.replace(model.adapter, frozen=())))
    parts = collections.Counter(one.path[0] for one in meant if not model.adapter.adapts(one.path))
    if not parts:
        return ""
    told = ", ".join(f"{count} of {part}" for part, count in parts.items())
    return f"adapter.targets: maps that optimizer.freeze freezes have no adapter: {told}"


def _adapted_words(model: ModelSpec) -> str:
    """What has adapters, as "12 linear maps and the embedding"."""
    maps = model_maps(model)
    count = sum(not one.is_table for one in maps)
    words = [f"{count} linear map{'s' * (count != 1)}"] if count else []
    for name in (one.path[-1] for one in maps if one.is_table):
        is_both = name == "embedding" and model.decoder.tie_embeddings
        words.append("the vocabulary projection" if name == "head" else f"the embedding{' in both its uses' * is_both}")
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _preference_line(run: Run, spec: PreferenceSpec) -> str:
    """By which loss preferences are learnt, and next to what."""
    keys = [f"margin {spec.margin:g}"] * (spec.objective == "simpo") + [f"sft {spec.sft:g}"] * bool(spec.sft)
    keys += [f"label_smoothing {spec.label_smoothing:g}"] * bool(spec.label_smoothing)
    if not spec.has_reference:
        reference = "without a reference"
    elif run.reference:
        reference = "next to what the model that it began from was asked before"
    else:
        reference = "next to the model beneath its adapters"
    idle = "; config.optimizer.z_loss does not count" if run.config.optimizer.z_loss else ""
    return f"objective: {', '.join([f'{spec.objective}, beta {spec.beta:g}', *keys])}, {reference}{idle}"


def _data_lines(run: Run) -> Iterator[str]:
    corpus, plan = run.corpus, run.plan
    for source, share in zip(corpus.lengths, corpus.shares, strict=True):
        tokens = formatting.short(float(source.tokens_E.sum()))
        yield (
            f"data: {source.name}, {len(source)} documents, {tokens} tokens, {_media(source)}, share "
            f"{share / sum(corpus.shares):.3f}"
        )
    for source in corpus.lengths:
        for line in special_lines(source.prepared.meta.get("special", {})):
            yield f"data: {source.name}: {line}"
    for source in corpus.lengths:
        for line in source.cut_lines():
            yield f"data: {source.name}, {line}"
    for source in run.held_out.lengths if run.held_out else ():
        for line in source.cut_lines():
            yield f"held out: {source.name}, {line}"
    for source in corpus.lengths:
        for line in _ready_made(source, run):
            yield f"data: {source.name}, {line}"
    for source, long in zip(corpus.lengths, plan.long, strict=True):
        if line := long.line(source, run.config.data.long_documents):
            yield f"data: {line}"
    for step, shares in corpus.later:
        changed = ", ".join(f"{n} {s / sum(shares):.3f}" for n, s in zip(corpus.names, shares, strict=True))
        yield f"data: shares from step {step} on: {changed}"
    if not plan.mixture.is_endless:
        ends = plan.about_batches()
        told = f"step {plan.batches()}" if ends <= 4 * run.steps else f"about {ends:,.0f} steps"
        yield f"data: all of it ends after {told}; this run has {run.steps} steps"


def _media(source: Lengths) -> str:
    """``40 images, 3 videos``."""
    counts: collections.Counter[str] = collections.Counter()
    for name, count in source.media_counts().items():
        counts[MEDIA[name].plural] += count
    return ", ".join(f"{count} {plural}" for plural, count in counts.items()) or "0 images"


def _ready_made(source: Lengths, run: Run) -> Iterator[str]:
    """What of a run's settings does not count, as clips come as feature vectors."""
    for name, count in source.media_counts().items():
        if made_of := MEDIA[name].made_of:
            otherwise = settled_otherwise(str(run.config.data.path), made_of, run.recipe.whole)
            yield (
                f"{count:,} {MEDIA[name].plural} are feature vectors: how they were taken is settled, config.{made_of} "
                f"does not count for them{f'; they were made with {otherwise}' if otherwise else ''}"
            )


def _row_lines(run: Run) -> Iterator[str]:
    b = run.budgets
    names = _names_of_budgets(
        run.recipe.image, {name for source in run.corpus.lengths for name in source.media_counts()}
    )
    held = ", ".join(f"{b.get(name):,} {words}" for name, words in names.items() if b.get(name))
    further = "".join(f", {b.get(name):,} {name}" for name in b.names if name not in (*FIRST, *names))
    yield f"a row holds {held}{further}; a batch {run.config.batch_size} rows"
    yield from sharding.report_replicated(run.mesh, flat_axes(run.recipe.model))
    yield from zigzag.report_whole_rows(run.mesh, {"seq_len": b.tokens, "patch_budget": b.patches})


def _names_of_budgets(image: ImageSpec, media: Collection[str]) -> dict[str, str]:
    """What a row's budgets count, by their names, for the media of a run; without those that it has no use for."""
    tiles = "tiles" if image.has_tiles else "images"
    names = {"tokens": "tokens", "patches": "patches", "items": tiles, "targets": "targets"}
    names |= {"features": "feature vectors", "audio_features": "feature vectors of recordings"}
    if image.video and "video" in media:
        temporal = f"temporal patches of {image.video.frames} frames"
        of, items = ("images and videos", f"{tiles} or {temporal}") if "image" in media else ("videos", temporal)
        names |= {"patches": f"patches of {of}", "items": items}
    if image.audio:
        names["audio"] = f"audio frames of {1000 * image.audio.hop / image.audio.rate:g} ms"
    taken = {budget for name in media for budget in MEDIA[name].budgets}
    # Of text alone, all are told: a model that sees has room for pictures in its rows.
    return {name: words for name, words in names.items() if not media or name in {"tokens", "targets", *taken}}


def _resume_lines(run: Run) -> Iterator[str]:
    if run.changed:
        seen = ", ".join(f"{n} of {name}" for name, n in run.by_source(run.plan.origin.seen).items())
        yield f"the data has changed ({'; '.join(run.changed)}); examples seen so far: {seen}"
    yield f"{name_of(run.workdir)} has a checkpoint: going on at step {run.start + 1} of {run.steps}"
    if run.is_from_near and run.is_first:
        yield from lost_lines(run)
    if line := jump_of_rate(run.config, run.record.schedule_steps if run.record else 0, run.start, run.steps):
        yield line


def lost_lines(run: Run) -> Iterator[str]:
    """What the workdir lacks of the steps before a near checkpoint: a store has not what died with a machine."""
    assert run.record
    every = run.record.config["log"]["every"]
    logged = [line["step"] for line in read_lines(run.workdir / "metrics.jsonl") if "loss" in line]
    last = max(logged, default=0)
    if every > 0 and last < run.start - run.start % every:
        yield (
            f"metrics.jsonl has nothing of steps {last + 1} to {run.start}, which are done: it was only on the machine "
            f"of process 0; in timeline.jsonl their time may count as down"
        )
    if (lost := (run.record.skipped_lines or 0) - run.skipped.lines()) > 0:
        yield f"skipped.jsonl lacks {lost} lines, which were only on that machine"


def jump_of_rate(config: ConfigDict, before: int, start: int, steps: int) -> str:
    """What a schedule of another length does to the rate at the step that a run goes on with, or ''.

    Args:
      before: steps of the schedule until now; 0 where that is not known.
      steps: of the schedule from now on.
    """
    if before in (0, steps):
        return ""
    old, new = (float(make_rates(config, n)(start)) for n in (before, steps))
    if abs(new - old) <= 0.01 * max(old, new):
        return ""
    return (
        f"the schedule was of {before} steps and is of {steps}: the learning rate at step {start + 1} is {new:.3g}, "
        f"and would have been {old:.3g}"
    )
