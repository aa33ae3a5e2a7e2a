"""Metrics of a run's steps: read one step late, counted and logged; a run that goes wrong is ended here."""

from __future__ import annotations

import collections
import functools
import shlex
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxmm.data.assemble import Loaded, Skipped
from jaxmm.data.documents import split_origin
from jaxmm.data.packing.rows import begun
from jaxmm.errors import UserError
from jaxmm.models.flops import batch_flops, forward_flops
from jaxmm.models.routing import Load
from jaxmm.report.plan_lines import rows_of
from jaxmm.runtime.barrier import Barrier
from jaxmm.training.balance import Balance, with_gradients
from jaxmm.training.goodput import RunTime, clock
from jaxmm.training.group_gradients import Pulls
from jaxmm.training.logger import Logger
from jaxmm.training.objectives import parts_of_reference
from jaxmm.training.preference import told
from jaxmm.training.run import Run
from jaxmm.training.slow_steps import SlowSteps
from jaxmm.training.step import Metrics
from jaxmm.training.step_ends import StepEnds
from jaxmm.training.stragglers import Stragglers
from jaxmm.training.throughput import Counts, Meter, peak_memory_bytes
from jaxmm.workdir.spool import name_of

MAX_BAD_STEPS = 20  # non-finite steps in a row that end a run
# Examples, before which config.data.max_skipped of them do not end a run, but more than half do; below FEW, at its end.
MIN_SEEN, FEW = 100, 10


def counts_of(loaded: Loaded, run: Run) -> Counts:
    """What a global batch of a run holds, for the rates and fills."""
    recipe, batch = run.recipe, loaded.batch
    flops = batch_flops(recipe.model, batch, recipe.trainable)
    flops += forward_flops(recipe.model.base, batch, parts_of_reference(recipe))
    return count(loaded, run.config.batch_size, flops)


def count(loaded: Loaded, batch_size: int, flops: float) -> Counts:
    """What a global batch holds; of what is in ``throughput.OF_ROWS``, this process's part."""
    text, patches, audio = loaded.batch.text, loaded.batch.patches, loaded.batch.media.get("audio")
    return Counts(
        examples=begun(loaded.all_rows),
        tokens=int((text.segments > 0).sum()),
        token_capacity=batch_size * text.segments.shape[1],
        images=loaded.media.get("image", 0) + loaded.media.get("features", 0),
        videos=loaded.media.get("video", 0) + loaded.media.get("video_features", 0),
        recordings=loaded.media.get("audio", 0) + loaded.media.get("audio_features", 0),
        patches=int((patches.segments > 0).sum()),
        patch_capacity=batch_size * patches.segments.shape[1],
        frames=int((audio.segments > 0).sum()) if audio else 0,
        frame_capacity=batch_size * audio.segments.shape[1] if audio else 0,
        flops=flops,
    )


class Progress:
    """The figures of a run's steps. A step's metrics are read when the next step is added, so that both overlap.

    Attributes:
      examples_seen: by the run so far, resumes included.
      loss: of the last line of the log.
    """

    def __init__(self, run: Run, logger: Logger, run_time: RunTime, step_ends: StepEnds):
        self.run, self.logger, self.run_time, self.step_ends = run, logger, run_time, step_ends
        self.examples_seen = run.record.examples_seen if run.record else 0
        self.loss: float | None = None
        log_barrier = Barrier("log")
        self.meter = Meter(
            jax.devices()[0].device_kind, len(jax.devices()),
            total=lambda counts: log_barrier.total(counts, run.local_rows[0], "a line of the log"),
            media=run.corpus.media, clock=clock,
        )  # fmt: skip
        self.balance = Balance(
            run.corpus.lengths, run.plan.mixture.stages, run.budgets.tokens,
            total=lambda counts: log_barrier.total(counts, run.local_rows[0], "the balance of a line of the log"),
        )  # fmt: skip
        look = f"python -m jaxmm.inspect --workdir={shlex.quote(name_of(run.workdir))}"
        self._slow_steps = SlowSteps(run.workdir if run.is_first else None, run.say, look)
        self._looped = self._loop_seconds()
        meeting = Barrier("stragglers")
        self.stragglers = Stragglers(lambda numbers: meeting.each(numbers, "a line of the log"), run.say)
        self.stragglers.begin_window(self._looped[1], step_ends.idle)  # what earlier starts did is not in it
        self._sums: list[Metrics] = []  # of the steps since the last line of the log
        self._run_out = run.plan.run_out(run.start)
        self._recent: collections.deque[Loaded] = collections.deque(maxlen=MAX_BAD_STEPS)
        self._pending: tuple[Metrics, Counts, Loaded] | None = None
        self._told: set[str] = set()  # reasons for which an example could not be used

    def add(self, metrics: Metrics, counts: Counts, loaded: Loaded, wait: float) -> None:
        """Takes a step that has been dispatched after ``wait`` seconds for its batch, and reads the one before."""
        self.meter.waited(wait)
        self.stragglers.waited(wait)
        self.settle()
        self.balance.add(self.run.start + self.meter.steps, loaded)
        self._pending = metrics, counts, loaded

    def settle(self) -> None:
        """Reads the last step's metrics, which waits for it, and counts it.

        Raises:
          UserError: naming the examples, after too many steps in a row that were not finite.
        """
        if not self._pending:
            return
        (metrics, counts, loaded), self._pending = self._pending, None
        self.run.barrier.wait_for(metrics, f"the end of step {self.run.start + self.meter.steps + 1}")
        metrics = jax.device_get(metrics)
        self.meter.step(counts, self.step_ends.next_end())
        self._count_seconds(loaded)
        self._sums.append(metrics)
        self._recent.append(loaded)
        self.examples_seen += counts.examples
        for skip in loaded.skipped:
            if self.run.skipped.add(*split_origin(skip.origin), skip.reason):
                self._tell(skip)
        if int(metrics.bad_steps) >= MAX_BAD_STEPS:
            raise self._not_finite()

    def _tell(self, skip: Skipped) -> None:
        """Says the first of each reason."""
        kind = skip.reason.partition(":")[0]
        if kind not in self._told:
            self._told.add(kind)
            self.run.say(
                f"warning: {skip.origin} could not be used ({skip.reason}); {self.run.workdir / 'skipped.jsonl'} has "
                f"it, and others like it"
            )

    def _count_seconds(self, loaded: Loaded) -> None:
        step = self.run.start + self.meter.steps
        self.run_time.done(step)
        data, both = (now - before for now, before in zip(self._loop_seconds(), self._looped, strict=True))
        self._looped = self._loop_seconds()
        if self.meter.steps > 1:  # the first is longer, even when it is compiled
            rows = functools.partial(rows_of, loaded.all_rows, self.run.corpus.lengths)
            self._slow_steps.add(step, both, data, rows)

    def _loop_seconds(self) -> tuple[float, float]:
        """Of the run so far: of waits for data, and of these and steps; without compiling, saving and evaluating."""
        seconds = self.run_time.seconds()
        return seconds["data"], seconds["data"] + seconds["stepping"]

    def _of_processes(self) -> dict[str, Any]:
        if jax.process_count() == 1:
            return {}
        return {"stragglers": self.stragglers.window(self._loop_seconds()[1], self.step_ends.idle)}

    def finish(self, step: int) -> None:
        """Reads, logs and judges what the loop left, after its last step."""
        self.settle()
        if self._sums:
            self.log(step)
        self.judge_skipped(step, is_end=True)

    def judge_skipped(self, step: int, is_end: bool = False) -> None:
        """Ends the run, in all processes, before it saves what counts too many documents that could not be used."""
        with self.run.barrier.agreed(f"the end of step {step}"):
            if jax.process_count() > 1:
                self.run.skipped.reread()
            if refused := self.too_many_skipped(is_end):
                raise refused

    def too_many_skipped(self, is_end: bool = False) -> UserError | None:
        """Why the run cannot go on, where too many of the examples seen could not be used."""
        seen, met = self.examples_seen, self.run.skipped.met
        most = float(self.run.config.data.max_skipped)
        if seen < MIN_SEEN:
            most = max(most, 0.5)
        if (seen < FEW and not is_end) or met <= most * seen:
            return None
        return UserError(
            f"{met} of {seen} documents could not be used, more than {most:.1%}: see "
            f"{self.run.workdir / 'skipped.jsonl'}; once they can be read, or with a higher config.data.max_skipped, "
            f"the same command goes on from the last checkpoint, and counts only what that had counted"
        )

    def log(self, step: int, pulls: Pulls | None = None) -> None:
        """Logs the steps since the last call; nothing where there were none.

        Args:
          pulls: gradient norms by group of the last step's batch, where they were measured.
        """
        if not self._sums:
            return
        run, window = self.run, self.meter.window()
        if jax.process_count() > 1:
            run.skipped.reread()
        figures, total = self._loss_figures(step), self._total()
        self.loss = figures["loss"]
        balance = self.balance.figures(total.source_loss_sum, total.source_weight_sum)
        if pulls and pulls.norms:
            figures["gradients"], figures["losses"] = pulls.norms, pulls.means
            balance = with_gradients(balance, pulls.norms, pulls.losses)
        self.logger.log(step, {
            **figures,
            "balance": balance,
            "examples_seen": self.examples_seen,
            "examples_skipped": len(run.skipped),
            **window,
            **self._of_processes(),
            "peak_memory_bytes": peak_memory_bytes(jax.local_devices()),
            "goodput": {kind: round(seconds, 3) for kind, seconds in self.run_time.seconds().items()},
        })  # fmt: skip
        self.run_time.beat()
        self._slow_steps.end_window()
        self._sums = []
        run.checkpoints.settle()
        for name in run.plan.run_out(step):
            if name not in self._run_out:
                self._run_out.append(name)
                run.say(f"data: {name} has run out before step {step}; the others share what it had")
        if line := self.balance.drift(self._run_out):
            run.say(line)
        self._looped = self._loop_seconds()  # logging is no step's
        self.step_ends.paused()
        self.stragglers.begin_window(self._looped[1], self.step_ends.idle)

    def _total(self) -> Metrics:
        """The sums of the steps since the last line."""
        return jax.tree.map(lambda *x: np.sum(x, axis=0), *self._sums)

    def _loss_figures(self, step: int) -> dict[str, Any]:
        """Of the steps since the last line: means over targets, and the last step's gradient norms."""
        total, last = self._total(), self._sums[-1]
        weight = float(total.weight_sum)
        sums = zip(self.run.corpus.names, total.source_loss_sum, total.source_weight_sum, strict=False)
        by_modality = {name: _mean(*of) for name, of in total.modality_sums.items()}
        right = float(total.correct_sum) / weight if weight else None
        return {
            "loss": float(total.loss_sum) / weight if weight else None,
            "preference_accuracy" if total.preferences else "target_accuracy": right,
            "learning_rate": float(self.run.program.schedule(step - 1)),
            "grad_norm": float(last.grad_norms["all"]),
            "grad_norm_by_part": {part: float(norm) for part, norm in last.grad_norms.items() if part != "all"},
            "bad_steps": int(last.bad_steps),
            "sources": {name: _mean(loss, of) for name, loss, of in sums},
            **({"modalities": by_modality} if by_modality else {}),
            **self._preferences(total.preferences),
            **({"expert_load": expert_load(total.load)} if total.load else {}),
        }

    def _preferences(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """What the steps say of preferences, by source; {} where they learn none."""
        spec, names = self.run.recipe.preference, self.run.corpus.names
        if spec is None:
            return {}
        by_source = [{key: float(of[i]) for key, of in sums.items()} for i in range(len(names))]
        return {"preferences": {name: told(one, spec) for name, one in zip(names, by_source, strict=True)}}

    def _not_finite(self) -> UserError:
        pieces = sorted({(p.source, p.example) for batch in self._recent for row in batch.all_rows for p in row})
        names = ", ".join(f"{self.run.corpus.names[source]}:{example}" for source, example in pieces[:50])
        more = f" and {len(pieces) - 50} more" if len(pieces) > 50 else ""
        return UserError(
            f"the loss or its gradient was not finite in {MAX_BAD_STEPS} steps in a row, none of which changed a "
            f"parameter; lower config.optimizer.rate or look at these examples: {names}{more}"
        )


def expert_load(load: Load) -> dict[str, Any]:
    """Choices of an expert over the mean of all: of the busiest and the idlest of a layer, where these are most and
    least; of the busiest by layer; and of each expert, over all layers together."""
    chosen_LE = np.asarray(load.chosen_E, np.float64)
    load_LE = chosen_LE / np.maximum(chosen_LE.mean(1, keepdims=True), 1e-9)
    return {
        "most": float(load_LE.max()),
        "least": float(load_LE.min()),
        "layers": {str(i): float(most) for i, most in enumerate(load_LE.max(1))},
        "experts": [round(float(one), 3) for one in load_LE.mean(0)],
    }


def _mean(total: Any, weight: Any) -> dict[str, float | None]:
    return {"loss": float(total / weight) if weight else None, "targets": float(weight)}
