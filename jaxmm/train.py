"""Trains a vision-language model end to end.

    python -m jaxmm.train --config=configs/base.py --workdir=runs/base --config.KEY=VALUE

If the workdir holds a checkpoint, the run goes on from it. Ctrl-C, SIGTERM and SIGHUP save first.
"""

from __future__ import annotations

if __name__ == "__main__":
    from jaxmm.runtime import startup

    startup.end_on_interrupt()
    startup.use_huge_pages()  # may start this process again, so before large imports
    startup.pause_collection()

import collections
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import jaxmm
from jaxmm import capacity, command, sharding
from jaxmm.batch import Batch
from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.checkpoints.params import once, started_params
from jaxmm.checkpoints.resume import Identity, as_it_was
from jaxmm.data import files
from jaxmm.data.assemble import Loaded
from jaxmm.data.documents import split_origin
from jaxmm.data.loader import batches
from jaxmm.data.packing.plan import Origin
from jaxmm.data.prepare.statistics import special_lines
from jaxmm.errors import UserError, printable
from jaxmm.evaluate import Evaluator, Figures, best_line, closing_rows, mean_loss
from jaxmm.generate import answers, make_generator
from jaxmm.hf.pretrained import MODEL, parse, run_and_step
from jaxmm.models.flops import batch_flops, parameter_counts
from jaxmm.models.multimodal import flat_axes
from jaxmm.recipe import (
    Recipe,
    cache_folder,
    eval_corpus,
    make_assembler,
    make_plan,
    read_budgets,
    read_recipe,
    read_steps,
    train_corpus,
)
from jaxmm.runtime import startup
from jaxmm.runtime.barrier import Meeting, Stop
from jaxmm.training import logger, samples
from jaxmm.training.compiled_step import CompiledStep
from jaxmm.training.program import abstract_batch, fresh_state, make_program, make_rates
from jaxmm.training.step import Metrics, TrainState
from jaxmm.workdir import own_folders
from jaxmm.workdir.folder import Claim, has_saved, note_first_save
from jaxmm.workdir.kept_folders import TOKENIZER, keep_tokenizer

FLAGS: command.Flags = {
    "workdir": ("", "folder of the run; default: runs/<name of the config file>"),
}
MAX_BAD_STEPS = 20  # non-finite steps in a row that end a run
MIN_SEEN = 100  # examples, before which config.data.max_skipped of them are not judged


def prefetch(source: Iterator[Loaded], place: Callable[[Any], Any], depth: int = 2) -> Iterator[tuple[Loaded, Any]]:
    """Keeps ``depth`` batches on the device ahead of the loop."""
    queue: collections.deque[tuple[Loaded, Any]] = collections.deque()
    for loaded in source:
        queue.append((loaded, place(loaded.batch)))
        if len(queue) == depth:
            yield queue.popleft()
    yield from queue


def count(loaded: Loaded, batch_size: int, flops: float, wait: float) -> logger.Counts:
    """What a global batch holds, for the rates and fills; of what is in ``monitor.OF_ROWS``, this process's part."""
    text, patches, features = loaded.batch.text, loaded.batch.patches, loaded.batch.features
    ready = 0 if features is None else int(features.segments.max(1).sum())
    return logger.Counts(
        examples=sum(piece.first == 0 for row in loaded.all_rows for piece in row),
        tokens=int((text.segments > 0).sum()),
        token_capacity=batch_size * text.segments.shape[1],
        images=int((loaded.batch.grids_BM3[..., 0] > 0).sum()) + ready,
        patches=int((patches.segments > 0).sum()),
        patch_capacity=batch_size * patches.segments.shape[1],
        flops=flops,
        wait_seconds=wait,
    )


def jump_of_rate(config: ConfigDict, meta: Mapping[str, Any], start: int, steps: int) -> str:
    """What a schedule of another length does to the rate at the step that a run goes on with, or ''.

    Args:
      meta: of the checkpoint; version 0.1 did not note the steps of its schedule.
    """
    before = meta.get("steps") or (0 if meta["config"].get("epochs") else meta["config"]["steps"])
    if before in (0, steps):
        return ""
    old, new = (float(make_rates(config, n)(start)) for n in (before, steps))
    if abs(new - old) <= 0.01 * max(old, new):
        return ""
    return (
        f"the schedule was of {before} steps and is of {steps}: the learning rate at step {start + 1} is {new:.3g}, "
        f"and would have been {old:.3g}"
    )


class Run:
    """One training run: everything built once, then ``train`` steps through it."""

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.workdir = config, workdir
        self.is_first, self.meeting = jax.process_index() == 0, Meeting("step")
        self.mesh = sharding.make_mesh(config.mesh)
        sharding.check_rows(self.mesh, config.batch_size, config.accumulation)
        self._say: Callable[[str], None] = lambda line: print(printable(line), file=sys.stderr, flush=True)
        self.has_begun = False
        self.checkpoints = Checkpoints(
            workdir / "checkpoints", config.checkpoint.keep, config.checkpoint.keep_best,
            on_save=lambda step: note_first_save(workdir, step), say=lambda line: self._say(line),
        )  # fmt: skip
        self.start = self._first_step()
        if not self.start:
            self._refuse_foreign()
        # Until a save is complete the run is what its config says, whatever a start that died has left.
        self.recipe: Recipe = read_recipe(config, workdir if self.start else None)
        self.meta: dict[str, Any] = self.checkpoints.meta(self.start) if self.start else {"examples_seen": 0}
        template = self.recipe.template
        if self.start and (older := self.meta["data"].get("template")) in template.older:
            self.recipe = self.recipe._replace(template=template.as_of(older))  # its prepared data goes by that name
        capacity.check_model(self.recipe.model, self.recipe.frozen, self.mesh)
        self.corpus = train_corpus(config, self.recipe)
        self.held_out = eval_corpus(config, self.recipe)
        self.budgets = read_budgets(config, self.corpus)
        self.assemble = make_assembler(config, self.recipe.image, self.corpus, self.budgets, jax.process_count())
        self.identity = Identity.of(
            command.to_json(config), self.corpus, self.budgets, self.recipe.template.fingerprint
        )
        self.changed: list[str] = []
        if self.start:
            self.identity = self.identity.going_on(self.meta)
            if self.meta["position"] != self.start:
                raise UserError(
                    f"{self.checkpoints.folder / str(self.start)} is a checkpoint of step {self.meta['position']}: its "
                    f"name must be its step"
                )
            self.changed = self.identity.check(self.meta, workdir, config.data.allow_change)
        self.plan = make_plan(config, self.corpus, self.budgets, self._origin(), self.identity.data["plan"])
        self.steps = read_steps(config, self.plan)
        known = self.meta.get("skipped_lines") if self.start else 0  # version 0.1 did not count them
        self.skipped = logger.SkippedFile(workdir / "skipped.jsonl", known, writes=self.is_first)
        self.program = make_program(
            config, self.recipe, steps=self.steps, targets=self.budgets.targets, sources=len(self.corpus.lengths)
        )

    def _first_step(self) -> int:
        """The step of the checkpoint to go on from; 0 for a run that begins.

        Raises:
          UserError: if there is none, though there had been.
        """
        if latest := self.checkpoints.latest():
            return latest
        broken = self.checkpoints.faults()
        if has_saved(self.workdir, self.config.checkpoint.every):
            why = "; ".join(f"{step}: {fault}" for step, fault in broken.items()) or "there is none left"
            raise UserError(
                f"{self.workdir} holds a run that has saved, and no checkpoint of it can be used ({why}): nothing was "
                f"changed; put a whole one back into {self.checkpoints.folder}, or give another --workdir to start anew"
            )
        return 0

    def _refuse_foreign(self) -> None:
        """Stops where what the run will keep would take the place of what somebody else has put into the workdir."""
        named = [("config.init_from", folder) for folder in parse(run_and_step(self.config.init_from)[0]).values()]
        kept, tokenizer = self.workdir / TOKENIZER, Path(self.config.data.tokenizer).expanduser()
        is_there = bool(self.config.data.tokenizer) and tokenizer.resolve() == kept.resolve()
        if self.config.data.tokenizer and not is_there:
            named.append(("config.data.tokenizer", tokenizer))
        made = [self.workdir / MODEL] if is_there else [self.workdir / MODEL, kept]
        own_folders.refuse_foreign(made, named, self.workdir)

    def _origin(self) -> Origin:
        """Where the plan begins: with the run, or, after a change of the data, with the examples seen until then."""
        if not self.start:
            return Origin()
        saved = self.meta["plan"]
        if self.changed:
            saved = {"batch": self.start, "begun_after": saved["seen"]}
        return Origin(saved["batch"], tuple(int(saved["begun_after"].get(name, 0)) for name in self.corpus.names))

    def _begin(self) -> None:
        """Writes what a run has from its first step on: a start that fails before leaves nothing."""
        if self.has_begun:
            return
        self.has_begun = True
        with self.meeting.agreed("the run's first files"):
            if self.is_first:
                logger.write_json(self.workdir / "config.json", command.to_json(self.config))
                keep_tokenizer(self.config.data.tokenizer, self.workdir)
                note_first_save(self.workdir, self.start)
            for folder in self.corpus.folders + (self.held_out.folders if self.held_out else []):
                self.skipped.note(logger.read_lines(folder / "skipped.jsonl"))

    def abstract_batch(self) -> Batch:
        """Shapes and shardings of a global batch."""
        rows, width = self.config.batch_size, self.assemble.feature_width
        return abstract_batch(self.recipe, self.budgets, rows, self.mesh, width)

    def initial_state(self) -> TrainState:
        """The state at ``self.start``: restored onto this mesh, from ``init_from``, or fresh."""
        if self.start:
            return self.checkpoints.restore(self.program.abstract_state(self.mesh), self.start)
        if self.is_first:
            own_folders.remove(self.workdir / MODEL)  # of a start from another model that never came to a save
        if not self.config.init_from:
            return fresh_state(self.program, self.mesh, self.config.seed)
        params = started_params(
            self.recipe, self.mesh, self.workdir, init_from=self.config.init_from, seed=self.config.seed
        )  # fmt: skip
        first_state = jax.jit(self.program.first_state, out_shardings=self.program.shardings(self.mesh))
        return once(first_state.lower(params))(params)

    def train(self) -> int:
        """Runs to the last step, or to a signal. Returns the exit status."""
        self.compiled_step = CompiledStep(  # first, as it takes longest
            self.program, self.mesh, self.abstract_batch(), lambda text: self._say(text)
        )
        with jax.set_mesh(self.mesh), self.checkpoints, Stop(self.meeting) as stop:
            self.monitor = logger.Monitor(
                self.workdir if self.is_first else None, self.steps, self.start, self.config.log.tensorboard
            )
            self._say = self.monitor.say
            try:
                with self.monitor:
                    return self._train(stop)
            finally:
                if not (self.has_begun or self.start) and self.is_first:
                    own_folders.remove(self.workdir / MODEL)

    def _train(self, stop: Stop) -> int:
        config, say = self.config, self._say
        with self.meeting.together("the first state"):
            state = self.initial_state()
            if jax.process_count() > 1:
                jax.block_until_ready(state)
        self._greet(state)
        self.evaluator = None
        if self.held_out:
            self.evaluator = Evaluator(
                self.held_out, self.recipe, self.mesh,
                seq_len=config.seq_len, batch_size=config.batch_size, examples=config.eval.examples,
            )  # fmt: skip
        local, log_meeting = sharding.local_rows(self.mesh, config.batch_size), Meeting("log")
        self.meter = logger.Meter(
            jax.devices()[0].device_kind, len(jax.devices()),
            total=lambda counts: log_meeting.total(counts, local[0], "a line of the log"),
        )  # fmt: skip
        self.sums: list[Metrics] = []
        self.run_out = self.plan.run_out(self.start)
        self.recent: collections.deque[Loaded] = collections.deque(maxlen=MAX_BAD_STEPS)
        self.loss: float | None = None
        source = batches(
            self.plan, self.assemble, self.start, self.steps, local_rows=local,
            threads=config.data.threads, workers=config.data.workers,
        )  # fmt: skip
        ahead = prefetch(source, lambda batch: sharding.place_batch(batch, self.mesh))
        pending: tuple[Metrics, logger.Counts, Loaded] | None = None
        step, figures, evaluated = self.start, {}, -1
        stopped = 0
        while step < self.steps:
            began = time.perf_counter()
            loaded, batch = next(ahead)
            wait = time.perf_counter() - began
            if stopped := stop.agreed(step + 1, self._too_many_skipped()):
                break
            state, metrics = self.compiled_step(state, batch)
            self._begin()
            step += 1
            flops = batch_flops(self.recipe.model, loaded.batch, self.recipe.frozen)
            counts = count(loaded, config.batch_size, flops, wait)
            if pending:
                self._finish(*pending)
            pending = metrics, counts, loaded
            log, save, evaluate = (self._is_due(step, every) for every in
                                   (config.log.every, config.checkpoint.every, config.eval.every))  # fmt: skip
            if not (log or save or evaluate):
                continue
            self._finish(*pending)
            pending = None
            self._judge_skipped(step)
            if log:
                self._log(step)
            if step == self.steps:
                continue  # the end evaluates and saves once more, with everything
            with self.meter.pause():
                if evaluate and self.evaluator:
                    figures, evaluated = self.evaluator(state.params), step
                    self.monitor.log(step, {"eval": figures})
                    say(f"step {step}: " + "  ".join(_one_line(figures)))
                if save:
                    self._save(step, state, mean_loss(figures) if evaluated == step else None)
        if pending:
            self._finish(*pending)
        if self.sums:
            self._log(step)
        self._judge_skipped(step)
        if step < self.steps:
            self._save(step, state, None, is_last=True)
            say(f"stopped after step {step} of {self.steps} and saved; the same command goes on at step {step + 1}")
            return 128 + stopped
        self._close(state)
        return 0

    def _is_due(self, step: int, every: int) -> bool:
        return step == self.steps or (every > 0 and step % every == 0)

    def _greet(self, state: TrainState) -> None:
        config, say = self.config, self._say
        counts = parameter_counts(state.params)
        sizes = ", ".join(f"{part} {logger.short(n)}" for part, n in counts.items())
        shape = " x ".join(f"{axis} {n}" for axis, n in self.mesh.shape.items() if n > 1) or "one device"
        say(f"jaxmm {jaxmm.__version__} on {jax.devices()[0].device_kind}, {shape}; compute in "
            f"{self.recipe.compute.dtype}, attention by '{self.recipe.compute.attention}'")  # fmt: skip
        say(f"parameters: {sizes}" + (f"; frozen: {', '.join(self.recipe.frozen)}" if self.recipe.frozen else ""))
        for line in self.recipe.start.differences() if self.recipe.start else ():
            say(f"init_from: {line}")
        for line in self.recipe.template.notes:
            say(f"template: {line}")
        if self.config.optimizer.warmup >= self.steps:
            say(f"optimizer.warmup is {self.config.optimizer.warmup} steps and the run has {self.steps}: "
                f"the rate rises to the end")  # fmt: skip
        total = sum(self.corpus.shares)
        for source, share in zip(self.corpus.lengths, self.corpus.shares, strict=True):
            say(f"data: {source.name}, {len(source)} documents, {logger.short(float(source.tokens_E.sum()))} tokens, "
                f"{len(source.units_I)} images, share {share / total:.3f}")  # fmt: skip
        for source in self.corpus.lengths:
            for line in special_lines(source.prepared.meta.get("special", {})):
                say(f"data: {source.name}: {line}")
        for source, long in zip(self.corpus.lengths, self.plan.long, strict=True):
            if line := long.line(source.name, self.config.data.long_documents):
                say(f"data: {line}")
        for step, shares in self.corpus.later:
            changed = ", ".join(f"{n} {s / sum(shares):.3f}" for n, s in zip(self.corpus.names, shares, strict=True))
            say(f"data: shares from step {step} on: {changed}")
        if not self.plan.mixture.is_endless:
            ends = self.plan.about_batches()
            told = f"step {self.plan.batches()}" if ends <= 4 * self.steps else f"about {ends:,.0f} steps"
            say(f"data: all of it ends after {told}; this run has {self.steps} steps")
        b = self.budgets
        say(f"a row holds {b.tokens} tokens, {b.patches} patches, {b.items} images, {b.targets} targets; "
            f"a batch {self.config.batch_size} rows")  # fmt: skip
        whole = sharding.report_whole_rows(self.mesh, {"seq_len": b.tokens, "patch_budget": b.patches})
        for line in sharding.report_replicated(self.mesh, flat_axes(self.recipe.model)) + whole:
            say(line)
        if self.start:
            if self.changed:
                seen = ", ".join(f"{n} of {name}" for name, n in self._by_name(self.plan.origin.seen).items())
                say(f"the data has changed ({'; '.join(self.changed)}); examples seen so far: {seen}")
            say(f"{self.workdir} has a checkpoint: going on at step {self.start + 1} of {self.steps}")
            if line := jump_of_rate(config, self.meta, self.start, self.steps):
                say(line)

    def _finish(self, metrics: Metrics, counts: logger.Counts, loaded: Loaded) -> None:
        """Reads a step's metrics, which waits for it, and counts it."""
        self.meeting.wait_for(metrics, f"the end of step {self.start + self.meter.steps + 1}")
        metrics = jax.device_get(metrics)
        self.meter.step(counts)
        self.sums.append(metrics)
        self.recent.append(loaded)
        self.meta["examples_seen"] += counts.examples
        for skip in loaded.skipped:
            self.skipped.add(*split_origin(skip.origin), skip.reason)
        if int(metrics.bad_steps) >= MAX_BAD_STEPS:
            pieces = sorted({(p.source, p.example) for batch in self.recent for row in batch.all_rows for p in row})
            names = ", ".join(f"{self.corpus.names[s]}:{e}" for s, e in pieces[:50])
            more = f" and {len(pieces) - 50} more" if len(pieces) > 50 else ""
            raise UserError(
                f"the loss or its gradient was not finite in {MAX_BAD_STEPS} steps in a row, none of which changed a "
                f"parameter; lower config.optimizer.rate or look at these examples: {names}{more}"
            )

    def _judge_skipped(self, step: int) -> None:
        """Ends the run, in all processes, before it saves what counts too many documents that could not be used."""
        with self.meeting.agreed(f"the end of step {step}"):
            if jax.process_count() > 1:
                self.skipped.reread()
            if refused := self._too_many_skipped():
                raise refused

    def _too_many_skipped(self) -> UserError | None:
        """Why the run cannot go on, where too many of the examples seen could not be used."""
        seen, most = self.meta["examples_seen"], self.config.data.max_skipped
        if seen < MIN_SEEN or self.skipped.met <= most * seen:
            return None
        return UserError(
            f"{self.skipped.met} of {seen} documents could not be used, more than {most:.1%}: see "
            f"{self.workdir / 'skipped.jsonl'}; once they can be read, or with a higher config.data.max_skipped, the "
            f"same command goes on from the last checkpoint, and counts only what that had counted"
        )

    def _log(self, step: int) -> None:
        if not self.sums:
            return
        total = jax.tree.map(lambda *x: np.sum(x, axis=0), *self.sums)
        weight = float(total.weight_sum)
        self.loss = float(total.loss_sum) / weight if weight else None
        last = self.sums[-1]
        by_source = {
            name: {
                "loss": float(total.source_loss_sum[i] / total.source_weight_sum[i])
                if total.source_weight_sum[i] else None,
                "targets": float(total.source_weight_sum[i]),
            }
            for i, name in enumerate(self.corpus.names)
        }  # fmt: skip
        by_modality = {
            name: {"loss": float(loss / of) if of else None, "targets": float(of)}
            for name, (loss, of) in total.modality_sums.items()
        }
        window = self.meter.window()
        if jax.process_count() > 1:
            self.skipped.reread()
        self.monitor.log(step, {
            "loss": self.loss,
            "target_accuracy": float(total.correct_sum) / weight if weight else None,
            "learning_rate": float(self.program.schedule(step - 1)),
            "grad_norm": float(last.grad_norms["all"]),
            "grad_norm_by_part": {k: float(v) for k, v in last.grad_norms.items() if k != "all"},
            "bad_steps": int(last.bad_steps),
            "sources": by_source,
            **({"modalities": by_modality} if by_modality else {}),
            "examples_seen": self.meta["examples_seen"],
            "examples_skipped": len(self.skipped),
            **window,
        })  # fmt: skip
        self.sums = []
        self.checkpoints.settle()
        for name in self.plan.run_out(step):
            if name not in self.run_out:
                self.run_out.append(name)
                self._say(f"data: {name} has run out before step {step}; the others share what it had")

    def _save(self, step: int, state: TrainState, metric: float | None, *, is_last: bool = False) -> None:
        versions = {"jaxmm": jaxmm.__version__, "jax": jax.__version__}
        meta = {
            "position": step,
            "steps": self.steps,
            "config": self.identity.config,
            "data": self.identity.data,
            "versions": versions,
            "examples_seen": self.meta["examples_seen"],
            "plan": {
                "batch": self.plan.origin.batch,
                "begun_after": self._by_name(self.plan.origin.seen),
                "seen": self._by_name(self.plan.seen(step)),
            },
        }
        self.plan.save()
        with self.meeting.together(f"the checkpoint of step {step}"):
            meta["skipped_lines"] = self.skipped.lines()  # in here no process is a step ahead
            self.checkpoints.save(step, state, meta, metric)
            if is_last:
                self.checkpoints.wait()

    def _by_name(self, counts: Sequence[int]) -> dict[str, int]:
        return dict(zip(self.corpus.names, counts, strict=False))

    def _close(self, state: TrainState) -> None:
        """The end of a run: a last evaluation, checkpoint, samples, summary, table, and what to do next."""
        say = self._say
        figures: dict[str, Figures] = self.evaluator(state.params, blind=True) if self.evaluator else {}
        if figures:
            self.monitor.log(self.steps, {"eval": figures})
        self._save(self.steps, state, mean_loss(figures), is_last=True)
        summary = logger.Summary(
            steps=self.steps,
            loss=self.loss,
            eval=figures,
            **self.meter.totals(),
            first_step_seconds=self.meter.first_step_seconds,
            wall_seconds=self.meter.wall_seconds,
            examples_seen=self.meta["examples_seen"],
            examples_skipped=len(self.skipped),
            peak_memory_bytes=logger.peak_memory_bytes(jax.local_devices()),
            attention=self.recipe.compute.attention,
        )
        if self.is_first:
            logger.write_json(self.workdir / "summary.json", summary._asdict())
        with self.meeting.together("the closing samples"):
            drawn = self._draw_samples(state)
        rows = [(k, v) for k, v in summary._asdict().items() if k != "eval"] + closing_rows(figures)
        say("")
        say(logger.table(rows))
        say("")
        if drawn:
            say(f"look at the model's answers: {drawn}")
        if best := best_line(self.checkpoints):
            say(f"checkpoints: {', '.join(map(str, self.checkpoints.steps()))}{best}")
        say(f'ask it:   python -m jaxmm.generate --workdir={self.workdir} --image=PICTURE.png --prompt="..."')
        say(f"evaluate: python -m jaxmm.evaluate --workdir={self.workdir}")
        say("your own data: --config.data.path=dataset_info.json --config.data.mixture=name:share --workdir=NEW")

    def _draw_samples(self, state: TrainState, number: int = 16) -> str:
        """Draws held-out questions with the model's answers; returns the pictures' folder, or ''."""
        if not self.held_out:
            return ""
        generate = make_generator(self.recipe.model, self.recipe.compute, self.recipe.template.stop_ids)
        folder = self.workdir / "samples"
        drawn = ""
        for source in self.held_out.lengths:
            asked = samples.questions(source.prepared, self.recipe.template, number)
            if asked:
                given = answers(
                    generate, state.params, [prompt for prompt, _ in asked], self.recipe.template, self.recipe.image, 32
                )
                if self.is_first:
                    samples.draw(asked, given, folder / f"{files.bare(source.name)}.png")
                drawn = str(folder)
        return drawn


def _one_line(figures: dict[str, Figures]) -> Iterator[str]:
    for name, found in figures.items():
        if found["loss"] is None:
            yield f"{name}: nothing to predict"
            continue
        right = found["answer_accuracy"]
        yield f"{name} loss {found['loss']:.4f}" + ("" if right is None else f", answers right {right:.3f}")


def main(argv: list[str]) -> int:
    args = command.parse(argv, FLAGS, about=__doc__ or "")
    workdir = Path(args.workdir or f"runs/{args.config_name}")
    command.check_folder("--workdir", workdir)
    startup.join_processes()
    startup.keep_compiled(cache_folder(args.config))
    startup.split_cpu(args.config.mesh, args.config.batch_size // max(args.config.accumulation, 1))
    with claimed(workdir):
        args.config = as_it_was(args.config, workdir)
        run = Run(args.config, workdir)
        if run.start >= run.steps:
            key = "config.steps" if run.steps == args.config.steps else "config.epochs or data.max_epochs"
            print(
                f"{workdir} is finished: {run.start} of {run.steps} steps are done. "
                f"To go on, raise {key}; to start anew, give another --workdir."
            )
            return 0
        return run.train()


@contextlib.contextmanager
def claimed(workdir: Path) -> Iterator[None]:
    """Holds the workdir, by process 0 of the job; if it cannot, all end."""
    refused: UserError | None = None
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            try:
                stack.enter_context(Claim(workdir))
            except UserError as error:
                refused = error
        if Meeting("workdir").largest(int(refused is not None), "the workdir"):
            raise refused or UserError(f"process 0 cannot train in {workdir}: its log says why")
        yield


if __name__ == "__main__":
    command.run(main)
