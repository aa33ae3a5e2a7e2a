"""The end of a run: a last evaluation, checkpoint, samples, summary, table, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from jaxmm import formatting
from jaxmm.atomic import read_lines, write_json
from jaxmm.data.packing.plan import Lengths
from jaxmm.report.run_page import NAME as REPORT
from jaxmm.report.run_page import write_report
from jaxmm.training import curves, goodput, throughput
from jaxmm.training.evaluator import Evaluator, Figures, closing_rows, mean_loss
from jaxmm.training.goodput import RunTime
from jaxmm.training.logger import OF_CLIPS, Logger, Summary
from jaxmm.training.media_gain import idle_lines
from jaxmm.training.monitor import Monitor
from jaxmm.training.progress import Progress
from jaxmm.training.run import Run
from jaxmm.training.step import TrainState
from jaxmm.workdir.spool import name_of

SUMMARY = "summary.json"


def close(
    run: Run, progress: Progress, logger: Logger, evaluator: Evaluator | None, monitor: Monitor,
    state: TrainState, save: Callable[..., None], run_time: RunTime,
) -> None:  # fmt: skip
    """Ends a run whose last step is done. ``save``: as ``(step, state, metric, is_last=)``."""
    figures: dict[str, Figures] = {}
    run_time.mark("evaluating")
    if evaluator:
        logger.status("the last evaluation", at_once=True)
        figures = evaluator(state.params, backwards=True)
    if figures and run.start < run.steps:  # else they were logged before the last save
        logger.log(run.steps, {"eval": figures})
    save(run.steps, state, mean_loss(figures), is_last=True)
    summary = _summary(run, progress, figures, run_time)
    if run.is_first:
        write_json(run.workdir / SUMMARY, summary._asdict())
        path = run.workdir / "curves.png"
        if curves.draw(read_lines(run.workdir / "metrics.jsonl"), path):
            logger.pictures(run.steps, {"curves": path})
    drawn = monitor.draw_samples(run.steps, state.params)
    summary = summary._replace(goodput=run_time.summary())  # with the samples' time
    if run.is_first:
        write_json(run.workdir / SUMMARY, summary._asdict())
    has_page = run.is_first and write_report(run.workdir, run.say)
    for line in _closing_lines(run, summary, drawn, has_page):
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
        media_gain={name: of["media_gain"] for name, of in figures.items() if of.get("media_gain")},
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


def _last_evaluations(run: Run, summary: Summary) -> list[Mapping[str, Mapping[str, Any]]]:
    """The figures of the evaluation before the last one, where there was one, and of the last."""
    lines = read_lines(run.workdir / "metrics.jsonl")
    before = [line["eval"] for line in lines if line.get("eval") and line["step"] < run.steps]
    return [*before[-1:], summary.eval]


def _asked_with(run: Run) -> str:
    """The flags for media of the kinds that the run has learnt from."""
    names = {"image": "PICTURE.png", "video": "CLIP.mp4", "audio": "CLIP.wav"}
    learnt = run.corpus.media | {name for source in run.corpus.lengths for name in source.media_counts()}
    return "".join(f"--{kind}={name} " for kind, name in names.items() if kind in learnt)


def _closing_lines(run: Run, summary: Summary, drawn: str, has_page: bool) -> Iterator[str]:
    apart = ("eval", "cut_short", "media_gain", "goodput")
    told = {key: value for key, value in summary._asdict().items() if key not in apart}
    figures = [(key, value) for key, value in told.items() if value is not None or key not in OF_CLIPS]
    yield ""
    of_time = goodput.closing_rows(summary.goodput) if summary.goodput else []
    yield formatting.table(figures + of_time + closing_rows(summary.eval))
    yield ""
    yield from idle_lines(_last_evaluations(run, summary), run.steps, run.recipe.trainable.frozen)
    if has_page:
        yield f"look at the run: {run.workdir / REPORT}"
    yield f"look at the curves: {run.workdir / 'curves.png'}" + (f", and the model's answers: {drawn}" if drawn else "")
    if run.is_first and (saved := run.checkpoints.closing_line()):
        yield f"checkpoints: {saved}"
    workdir = shlex.quote(name_of(run.workdir))
    yield f'ask it:   python -m jaxmm.generate --workdir={workdir} {_asked_with(run)}--prompt="..."'
    own = "" if run.held_out else " --config.eval.path=HELD_OUT"
    yield f"evaluate: python -m jaxmm.evaluate --workdir={workdir}{own}"
    if not run.config.data.path:
        yield "your own data: --config.data.path=dataset_info.json --config.data.mixture=name:share --workdir=NEW"
