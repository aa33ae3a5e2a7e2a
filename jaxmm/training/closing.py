"""The end of a run: a last evaluation, checkpoint, samples, summary, table, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from jaxmm import formatting
from jaxmm.atomic import read_lines, write_json
from jaxmm.data import files
from jaxmm.data.packing.plan import Lengths
from jaxmm.inference.answers import answers, make_generator
from jaxmm.training import curves, goodput, samples, throughput
from jaxmm.training.evaluator import Evaluator, Figures, closing_rows, mean_loss
from jaxmm.training.goodput import RunTime
from jaxmm.training.logger import OF_CLIPS, Logger, Summary
from jaxmm.training.progress import Progress
from jaxmm.training.run import Run
from jaxmm.training.step import TrainState

SUMMARY = "summary.json"
SAMPLES = 16  # questions of each source that are drawn
ANSWER_TOKENS = 32  # the longest answer under one


def close(
    run: Run, progress: Progress, logger: Logger, evaluator: Evaluator | None, state: TrainState,
    save: Callable[..., None], run_time: RunTime,
) -> None:  # fmt: skip
    """Ends a run whose last step is done. ``save``: as ``(step, state, metric, is_last=)``."""
    figures: dict[str, Figures] = {}
    run_time.mark("evaluating")
    if evaluator:
        logger.status("the last evaluation", at_once=True)
        figures = evaluator(state.params, blind=True)
    if figures and run.start < run.steps:  # else they were logged before the last save
        logger.log(run.steps, {"eval": figures})
    save(run.steps, state, mean_loss(figures), is_last=True)
    summary = _summary(run, progress, figures, run_time)
    if run.is_first:
        write_json(run.workdir / SUMMARY, summary._asdict())
        curves.draw(read_lines(run.workdir / "metrics.jsonl"), run.workdir / "curves.png")
    logger.status("answering samples", at_once=True)
    with run.barrier.together("the closing samples"):
        drawn = _draw_samples(run, state)
    summary = summary._replace(goodput=run_time.summary())  # with the samples' time
    if run.is_first:
        write_json(run.workdir / SUMMARY, summary._asdict())
    if run.is_first:
        logger.pictures(run.steps, _pictures(run, drawn))
    for line in _closing_lines(run, summary, drawn):
        run.say(line)


def _summary(run: Run, progress: Progress, figures: dict[str, Figures], run_time: RunTime) -> Summary:
    return Summary(
        steps=run.steps,
        loss=progress.loss if progress.loss is not None else _logged_loss(run),
        eval=figures,
        **progress.meter.totals(),
        first_step_seconds=progress.meter.first_step_seconds,
        wall_seconds=progress.meter.wall_seconds,
        examples_seen=progress.examples_seen,
        examples_skipped=len(run.skipped),
        peak_memory_bytes=throughput.peak_memory_bytes(jax.local_devices()),
        attention=run.recipe.compute.attention,
        cut_short=_cut_short(run.corpus.lengths),
        goodput=run_time.summary(),
    )


def _cut_short(sources: Sequence[Lengths]) -> dict[str, dict[str, list[float]]]:
    """Of each source's media that are not taken whole: how many, and the part that they keep on average."""
    return {
        source.name: {cut.medium: [cut.media, cut.part] for cut in cuts}
        for source in sources
        if (cuts := source.cut_short())
    }


def _logged_loss(run: Run) -> float | None:
    """Of the last line of the log, where this process made no step: it only closes what another has trained."""
    losses = [line["loss"] for line in read_lines(run.workdir / "metrics.jsonl") if "loss" in line]
    return losses[-1] if losses else None


def _draw_samples(run: Run, state: TrainState) -> str:
    """Draws held-out questions with the model's answers; returns the pictures' folder, or ''."""
    if not run.held_out:
        return ""
    recipe, folder, drawn = run.recipe, run.workdir / "samples", ""
    generate = make_generator(recipe.model, recipe.compute, recipe.template.stop_ids)
    for source in run.held_out.lengths:
        asked = samples.questions(source.prepared, recipe.template, SAMPLES, recipe.image)
        if asked:
            prompts = [prompt for prompt, _ in asked]
            given = answers(
                generate, state.params, prompts, recipe.template, recipe.image, ANSWER_TOKENS, fits_row=True
            )
            if run.is_first:
                path = folder / f"{files.bare(source.name)}.png"
                samples.draw(asked, given, path, recipe.template, recipe.image)
            drawn = str(folder)
    return drawn


def _pictures(run: Run, drawn: str) -> dict[str, Path]:
    """What the run has drawn, by names for the trackers."""
    sources = [files.bare(source.name) for source in run.held_out.lengths] if run.held_out and drawn else []
    drawings = {"curves": run.workdir / "curves.png"}
    drawings |= {f"samples/{name}": run.workdir / "samples" / f"{name}.png" for name in sources}
    return {name: path for name, path in drawings.items() if path.exists()}


def _asked_with(run: Run) -> str:
    """The flags for media of the kinds that the run has learnt from; a picture if that is none of them."""
    names = {"image": "PICTURE.png", "video": "CLIP.mp4", "audio": "CLIP.wav"}
    learnt = run.corpus.media | {name for source in run.corpus.lengths for name in source.media_counts()}
    return " ".join(f"--{kind}={name}" for kind, name in names.items() if kind in learnt) or "--image=PICTURE.png"


def _closing_lines(run: Run, summary: Summary, drawn: str) -> Iterator[str]:
    told = {key: value for key, value in summary._asdict().items() if key not in ("eval", "cut_short", "goodput")}
    figures = [(key, value) for key, value in told.items() if value is not None or key not in OF_CLIPS]
    yield ""
    of_time = goodput.closing_rows(summary.goodput) if summary.goodput else []
    yield formatting.table(figures + of_time + closing_rows(summary.eval))
    yield ""
    yield f"look at the curves: {run.workdir / 'curves.png'}" + (f", and the model's answers: {drawn}" if drawn else "")
    if best := run.checkpoints.best_line():
        yield f"checkpoints: {', '.join(map(str, run.checkpoints.steps()))}{best}"
    workdir = shlex.quote(str(run.workdir))
    yield f'ask it:   python -m jaxmm.generate --workdir={workdir} {_asked_with(run)} --prompt="..."'
    own = "" if run.held_out else " --config.eval.path=HELD_OUT"
    yield f"evaluate: python -m jaxmm.evaluate --workdir={workdir}{own}"
    if not run.config.data.path:
        yield "your own data: --config.data.path=dataset_info.json --config.data.mixture=name:share --workdir=NEW"
