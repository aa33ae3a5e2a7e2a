"""The training loop: from the first state to the last checkpoint, or to a signal."""

from __future__ import annotations

import collections
import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

import jaxmm
from jaxmm import command, sharding
from jaxmm.batch import Batch
from jaxmm.checkpoints.record import PlanRecord, Record
from jaxmm.data.assemble import Loaded
from jaxmm.data.loader import batches
from jaxmm.report.run_page import write_report
from jaxmm.runtime.barrier import Stop, collectives
from jaxmm.training.closing import close
from jaxmm.training.compiled_step import CompiledStep
from jaxmm.training.evaluator import Evaluator, Figures, mean_loss
from jaxmm.training.goodput import RunTime, clock
from jaxmm.training.logger import Logger
from jaxmm.training.media_gain import worth
from jaxmm.training.monitor import Monitor
from jaxmm.training.opening import opening_lines
from jaxmm.training.preference_evaluator import make_evaluator
from jaxmm.training.progress import Progress, counts_of
from jaxmm.training.prometheus import Endpoint
from jaxmm.training.run import Run
from jaxmm.training.step import TrainState
from jaxmm.training.step_ends import StepEnds


def train(run: Run, run_time: RunTime | None = None, endpoint: Endpoint | None = None) -> int:
    """Runs to the last step, or to a signal. Returns the exit status.

    Args:
      run_time: counts the seconds of this start since it began; None begins here.
      endpoint: gets the figures of the log too.
    """
    run_time = run_time or RunTime()
    near = run.near or contextlib.nullcontext()
    with jax.set_mesh(run.mesh), run.checkpoints, near, Stop(run.barrier) as stop:
        compiled_step = None
        if run.start < run.steps:
            compiled_step = run.compiled_step()  # first, as it takes longest: it compiles in a thread
        workdir = run.workdir if run.is_first else None
        try:
            with (
                Logger(
                    workdir, run.steps, run.start, run.writers, command.to_json(run.config), endpoint=endpoint
                ) as logger,
                _told_end(run_time) as ending,
                StepEnds(clock) as step_ends,
                collectives(),
            ):
                run.say = logger.say
                run_time.busy_until = step_ends.busy_until
                status = _Loop(run, logger, compiled_step, run_time, step_ends)(stop)
                if status:
                    ending.append(signal.Signals(status - 128).name)
                return status
        finally:
            run.forget_unused_start()


@contextlib.contextmanager
def _told_end(run_time: RunTime) -> Iterator[list[str]]:
    """Writes the end of this start into the timeline. Why it ended is an error, or the last of the list."""
    why = ["done"]
    try:
        yield why
    except BaseException as error:
        why.append(type(error).__name__)
        raise
    finally:
        run_time.end(why[-1])


class _Due(NamedTuple):
    """What comes after a step."""

    log: bool
    evaluate: bool
    save: bool
    look: bool  # at attention
    save_near: bool

    @classmethod
    def after(cls, step: int, run: Run) -> _Due:
        config = run.config
        look = config.monitor.attention_every or config.eval.every
        checkpoint = config.checkpoint
        log, evaluate, save, look, save_near = (
            step == run.steps or (n > 0 and step % n == 0)
            for n in (config.log.every, config.eval.every, checkpoint.every, look, checkpoint.near_every)
        )
        return cls(log, evaluate, save, look and config.monitor.attention_every >= 0, save_near)


class _Loop:
    """Steps through a run. A step's figures are read while the next one runs, or at once if it is logged."""

    def __init__(
        self, run: Run, logger: Logger, compiled_step: CompiledStep | None, run_time: RunTime, step_ends: StepEnds
    ):
        self.run, self.logger, self.compiled_step = run, logger, compiled_step
        self.run_time, self.step_ends = run_time, step_ends
        self.evaluated: tuple[int, dict[str, Figures]] = (-1, {})  # at which step, and what
        self.monitor = Monitor(run, logger)
        self.has_compiled = False
        self.has_saved = bool(run.start)  # a shared checkpoint, without which no near one counts

    def __call__(self, stop: Stop) -> int:
        run, run_time = self.run, self.run_time
        if run.start:
            self._begin_time()
        state = self._first_state()
        for line in opening_lines(run, state):
            run.say(line)
        if run.start and run.is_first:
            write_report(run.workdir, run.say)  # it may say that the run was stopped
        self.evaluator = _evaluator(run)
        for line in self.evaluator.notes if self.evaluator else ():
            run.say(f"held out: {line}")
        self.progress = progress = Progress(run, self.logger, run_time, self.step_ends)
        step, stopped_by = run.start, 0
        if self.compiled_step:
            run.say("compiling the step")
        run_time.mark("stepping")
        for wait, loaded, batch in _timed(_placed_batches(run), run_time):
            came = clock()
            stopped_by = stop.agreed(step + 1, progress.too_many_skipped())
            progress.stragglers.met(clock() - came)
            if stopped_by:
                break
            assert self.compiled_step, "there are steps to do"
            with run_time.of("compiling"), self._all_compiling():
                dispatch = self.compiled_step.of(batch)
            state, metrics = dispatch(state, batch)
            self.step_ends.begun(metrics)
            run.begin()
            self._begin_time()
            step += 1
            progress.add(metrics, counts_of(loaded, run), loaded, wait)
            self.logger.status(f"step {step} of {run.steps}")
            if any(due := _Due.after(step, run)):
                self._after(step, due, state, loaded, batch)
        progress.finish(step)
        if stopped_by:
            self._save(step, state, None, is_last=True)
            if run.is_first:
                with run_time.of("evaluating"):
                    write_report(run.workdir, run.say, "stopped")
            run.say(f"stopped after step {step} of {run.steps} and saved; "
                    f"the same command goes on at step {step + 1}")  # fmt: skip
            return 128 + stopped_by
        close(run, progress, self.logger, self.evaluator, self.monitor, state, self._save, run_time)
        return 0

    def _begin_time(self) -> None:
        """Makes this start a part of the run's life: at once, or with the run's first step, before which it is none."""
        run = self.run
        self.run_time.begin(run.workdir if run.is_first else None, run.start, run.say)

    def _all_compiling(self) -> contextlib.AbstractContextManager[None]:
        """The first time all processes leave it together: XLA:CPU's collectives give up on one that comes 30 s later
        to the first of them, and one whose caches are empty may compile for longer than another by any time."""
        has_compiled, self.has_compiled = self.has_compiled, True
        return contextlib.nullcontext() if has_compiled else self.run.barrier.together("the compiled step")

    def _first_state(self) -> TrainState:
        with self.run.barrier.together("the first state"):
            state = self.run.initial_state()
            if jax.process_count() > 1:
                jax.block_until_ready(state)
        return state

    def _after(self, step: int, due: _Due, state: TrainState, loaded: Loaded, batch: Batch) -> None:
        run, progress = self.run, self.progress
        progress.settle()
        progress.judge_skipped(step)
        pulls = None
        with progress.meter.pause(), self.run_time.of("evaluating"):
            if due.look:
                self.monitor.look(step, state.params, loaded, batch)
            if due.evaluate and run.config.monitor.attention_every >= 0:
                pulls = self.monitor.pulls(step, state.params, loaded, batch)
        if due.log:
            progress.log(step, pulls)
        elif pulls and pulls.norms:
            self.logger.log(step, {"gradients": pulls.norms, "losses": pulls.means})
        if step == run.steps:
            return  # the end evaluates and saves once more, with everything
        with progress.meter.pause():
            if due.evaluate and self.evaluator:
                self.logger.status("evaluating", at_once=True)
                with self.run_time.of("evaluating"):
                    figures = self.evaluator(state.params)
                self.run_time.beat()
                self.evaluated = step, figures
                self.logger.log(step, {"eval": figures})
                run.say(f"step {step}: " + "  ".join(_one_line(figures)))
            if due.evaluate and run.config.monitor.attention_every >= 0:
                with self.run_time.of("evaluating"):
                    self.monitor.draw_samples(step, state.params)
            if due.evaluate and run.is_first:
                with self.run_time.of("evaluating"):
                    write_report(run.workdir, run.say)
            if due.save or (due.save_near and not self.has_saved):
                at, figures = self.evaluated
                self._save(step, state, mean_loss(figures) if at == step else None)
                self.has_saved = True
            if due.save_near:
                self._save_near(step, state)
        self.step_ends.paused()

    def _save(self, step: int, state: TrainState, metric: float | None, *, is_last: bool = False) -> None:
        if step == self.run.start and not self.run.is_from_near:  # it is what the run has begun with
            if self.run.near and is_last:
                self.run.near.clear(step)  # what a kill after that save has left
            return
        self.run_time.beat_steps()  # what comes after this one may be done again
        with self.run_time.of("saving"):
            self._save_now(step, state, metric, is_last)
        self.run_time.beat()

    def _save_now(self, step: int, state: TrainState, metric: float | None, is_last: bool) -> None:
        run = self.run
        run.plan.save()
        if run.near and is_last:
            run.near.wait()
        with run.barrier.together(f"the checkpoint of step {step}"):
            run.checkpoints.save(step, run.held(state), self._record(step).to_json(), metric)
            if is_last:
                run.checkpoints.wait()
        if run.near and is_last:
            run.near.clear(step)

    def _save_near(self, step: int, state: TrainState) -> None:
        run = self.run
        assert run.near
        self.run_time.beat_steps()
        with self.run_time.of("saving"):
            record = self._record(step)
            run.near.wait()
            run.barrier.largest(0, f"the near checkpoint of step {step}")
            run.near.save(step, run.held(state), record.to_json())
        self.run_time.beat()

    def _record(self, step: int) -> Record:
        """Of the run after a step; where all processes meet before it, so that none is a step ahead."""
        run = self.run
        origin = run.plan.origin
        return Record(
            position=step,
            steps=run.steps,
            config=run.identity.config,
            data=run.identity.data,
            versions={"jaxmm": jaxmm.__version__, "jax": jax.__version__},
            examples_seen=self.progress.examples_seen,
            plan=PlanRecord(origin.batch, run.by_source(origin.seen), run.by_source(run.plan.seen(step))),
            skipped_lines=run.skipped.lines(),
        )


def _evaluator(run: Run) -> Evaluator | None:
    if not run.held_out:
        return None
    config = run.config
    return make_evaluator(
        run.held_out, run.recipe, run.mesh,
        seq_len=config.seq_len, batch_size=config.batch_size, examples=config.eval.examples,
    )  # fmt: skip


def _placed_batches(run: Run) -> Iterator[tuple[Loaded, Any]]:
    """The run's batches from its start on, with their arrays on the mesh."""
    if run.start >= run.steps:
        return iter(())
    config = run.config
    source = batches(
        run.plan, run.assemble, run.start, run.steps, local_rows=run.local_rows,
        threads=config.data.threads, workers=config.data.workers,
    )  # fmt: skip
    return prefetch(source, lambda batch: sharding.place_batch(batch, run.mesh))


def prefetch(source: Iterator[Loaded], place: Callable[[Any], Any], depth: int = 2) -> Iterator[tuple[Loaded, Any]]:
    """Keeps ``depth`` batches on the device ahead of the loop."""
    queue: collections.deque[tuple[Loaded, Any]] = collections.deque()
    for loaded in source:
        queue.append((loaded, place(loaded.batch)))
        if len(queue) == depth:
            yield queue.popleft()
    yield from queue


def _timed(source: Iterator[tuple[Loaded, Any]], run_time: RunTime) -> Iterator[tuple[float, Loaded, Any]]:
    """Adds the seconds that each took to come."""
    while True:
        began = time.perf_counter()
        try:
            with run_time.of("data"):
                loaded, batch = next(source)
        except StopIteration:
            return
        yield time.perf_counter() - began, loaded, batch


def _one_line(figures: dict[str, Figures]) -> Iterator[str]:
    for name, of_source in figures.items():
        if of_source["loss"] is None:
            yield f"{name}: nothing to predict"
            continue
        parts = [f"{name} loss {of_source['loss']:.4f}"]
        for key, words in (("answer_accuracy", "answers right"), ("preference_accuracy", "preferences right")):
            parts += [f"{words} {of_source[key]:.3f}"] if of_source.get(key) is not None else []
        yield ", ".join([*parts, *worth(of_source)])
