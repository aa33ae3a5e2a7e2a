"""Builds a training run from its config and its workdir: mesh, model, data, plan, checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxmm import capacity, command, sharding
from jaxmm.atomic import read_lines, write_json
from jaxmm.batch import Batch
from jaxmm.checkpoints import references
from jaxmm.checkpoints.agreement import check_start, contents_of
from jaxmm.checkpoints.base import Base, folders_fingerprint, found_again, held, keep, kept
from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.checkpoints.near import Near, forget
from jaxmm.checkpoints.params import compile_unoptimized, started_params, with_base
from jaxmm.checkpoints.record import Record
from jaxmm.checkpoints.resume import Identity
from jaxmm.config.keys import WRITERS
from jaxmm.config.shares import parse_names
from jaxmm.corpus import foreseen_budgets, make_assembler, make_plan, read_budgets, read_steps
from jaxmm.data.media.table import MEDIA
from jaxmm.data.packing.plan import Origin
from jaxmm.errors import UserError, printable
from jaxmm.hf import adapter_record
from jaxmm.hf.init_from import parse, run_and_step
from jaxmm.hf.pretrained import MODEL
from jaxmm.models.multimodal import flat_axes
from jaxmm.recipe import Recipe, clips_of, eval_corpus, fitted, own_media, parse_clips, read_recipe, train_corpus
from jaxmm.runtime.barrier import Barrier
from jaxmm.training import cpu_dtype
from jaxmm.training.compiled_step import CompiledStep
from jaxmm.training.machine_record import MACHINE, machine_record
from jaxmm.training.objectives import needs_answers
from jaxmm.training.program import abstract_batch, fresh_state, make_program
from jaxmm.training.skipped import SkippedFile
from jaxmm.training.step import TrainState
from jaxmm.workdir import own_folders
from jaxmm.workdir.folder import has_saved, note_first_save
from jaxmm.workdir.kept_folders import TOKENIZER, keep_tokenizer
from jaxmm.workdir.spool import Spool, name_of


class Run:
    """A run as it begins or goes on, built once.

    Attributes:
      start: the step it goes on from; 0 for one that begins.
      writers: names of the trackers that get its figures.
      beginning: what a run that begins takes its weights from, where it notes that or a reference is of it; None
        elsewhere. Of another run it has the step, so that its newest checkpoint is chosen once.
      base: the model beneath its adapters; None where checkpoints hold everything.
      record: of the checkpoint gone on from; None for a run that begins.
      near: its near checkpoints; None for none.
      dtype_line: why it computes in its dtype; '' where that is what its config or its device says.
      is_from_near: whether it goes on from one of them.
      say: prints a line; a logger's, once there is one.
    """

    def __init__(self, config: ConfigDict, workdir: Path, config_name: str = "", *, compile_ahead: bool = False):
        """
        Args:
          compile_ahead: whether the step begins to compile before the data is prepared, where its shapes are foreseen.
        """
        self.config, self.workdir, self._config_name = config, workdir, config_name
        self.is_first, self.barrier = jax.process_index() == 0, Barrier("step")
        self.mesh = sharding.make_mesh(config.mesh)
        sharding.check_rows(self.mesh, config.batch_size, config.accumulation)
        self.local_rows = sharding.local_rows(self.mesh, config.batch_size)
        self.writers = writers_of(config)
        self.say: Callable[[str], None] = lambda line: print(printable(line), file=sys.stderr, flush=True)
        self._has_begun = False
        self.base: Base | None = None
        self.checkpoints = Checkpoints(
            workdir / "checkpoints", config.checkpoint.keep, config.checkpoint.keep_best,
            on_save=lambda step: note_first_save(workdir, step), say=lambda line: self.say(line),
        )  # fmt: skip
        self.near: Near | None = None
        if config.checkpoint.near_every:
            # Processes but the first keep what prints now: their loggers print nothing.
            say: Callable[[str], None] = (lambda line: self.say(line)) if self.is_first else self.say
            self.near = Near(config.checkpoint.near_dir, workdir, self.mesh, say)
        self.start, self.record = self._first_step()
        if not self.start:
            self._refuse_foreign()
        self.dtype_line = cpu_dtype.settle(config, self.record and self.record.config)
        self.recipe = self._recipe()
        self.beginning = self._beginning()
        self.base = self._base()
        capacity.check_states(self.recipe.model.decoder, self.mesh)
        sharding.check_experts(self.mesh, self.recipe.model.decoder.experts)
        capacity.check_model(self.recipe.model, self.recipe.trainable, self.mesh)
        ahead = self._compiled_ahead() if compile_ahead else None
        self.corpus = train_corpus(config, self.recipe)
        self.held_out = eval_corpus(config, self.recipe)
        self.recipe = self._fitted()
        self.budgets = read_budgets(config, self.corpus)
        self._attach_reference()
        self.assemble = make_assembler(config, self.recipe.image, self.corpus, self.budgets, jax.process_count())
        self.identity, self.changed = self._identity()
        self.plan = make_plan(config, self.corpus, self.budgets, self._origin(), self.identity.data["plan"])
        self.steps = read_steps(config, self.plan)
        self._check_agreed()
        known = self.record.skipped_lines if self.record else 0
        meeting = Barrier("skipped")
        has_own = jax.process_count() > 1 and Spool.of(workdir) is not None  # a file of its own in each process
        self.skipped = SkippedFile(
            workdir / "skipped.jsonl", known, writes=self.is_first or has_own,
            gather=(lambda items: meeting.gathered(items, "what was skipped")) if has_own else None,
        )  # fmt: skip
        self.program = make_program(
            config, self.recipe, steps=self.steps, targets=self.budgets.targets, sources=len(self.corpus.lengths)
        )
        self._ahead = ahead if ahead and ahead.is_of(self.program, self.abstract_batch()) else None

    def _first_step(self) -> tuple[int, Record | None]:
        """The step of the checkpoint to go on from, and its record; 0 and None for a run that begins.

        Raises:
          UserError: if there is none, though there had been.
        """
        latest = self.checkpoints.latest() or 0
        chosen = self.near.choose(latest) if self.near else None
        self.is_from_near = chosen is not None
        if self.near and chosen:
            return chosen.key.step, Record.read(chosen.record, self.near.folder / str(chosen.key.step))
        if latest:
            return latest, Record.read(self.checkpoints.meta(latest), self.checkpoints.folder / str(latest))
        broken = self.checkpoints.faults()
        saved = has_saved(self.workdir, self.config.checkpoint.every)
        if self.barrier.largest(int(saved), "the choice of a checkpoint"):  # if any process sees that it has
            why = "; ".join(f"{step}: {fault}" for step, fault in broken.items()) or "there is none left"
            raise UserError(
                f"{name_of(self.workdir)} holds a run that has saved, and no checkpoint of it can be used ({why}): "
                f"nothing was changed; put a whole one back into {self.checkpoints.place}, or give another --workdir "
                f"to start anew"
            )
        return 0, None

    def _refuse_foreign(self) -> None:
        """Stops where what the run will keep would take the place of what somebody else has put into the workdir."""
        named = [("config.init_from", folder) for folder in parse(run_and_step(self.config.init_from)[0]).values()]
        kept, tokenizer = self.workdir / TOKENIZER, Path(self.config.data.tokenizer).expanduser()
        is_there = bool(self.config.data.tokenizer) and tokenizer.resolve() == kept.resolve()
        if self.config.data.tokenizer and not is_there:
            named.append(("config.data.tokenizer", tokenizer))
        made = [self.workdir / MODEL] if is_there else [self.workdir / MODEL, kept]
        own_folders.refuse_foreign(made, named, self.workdir)

    def _recipe(self) -> Recipe:
        # Until a save is complete the run is what its config says, whatever a start that died has left.
        recipe = read_recipe(self.config, self.workdir if self.record else None)
        if self.record and (older := self.record.data.get("template")) in recipe.template.older:
            recipe = recipe._replace(template=recipe.template.as_of(older))  # its prepared data goes by that name
        return recipe

    def _beginning(self) -> Base | None:
        """What the weights are taken from, where a note of it is kept; None elsewhere, and for a run that goes on."""
        is_noted = self.recipe.model.adapter is not None or needs_answers(self.recipe)
        return Base.find(self.config.init_from) if is_noted and not self.start else None

    def _base(self) -> Base | None:
        """The model beneath the run's adapters; None where checkpoints hold everything."""
        if self.recipe.model.adapter is None or not self.config.init_from:
            return None
        if not self.start:
            return self.beginning
        noted = kept(self.workdir)
        return noted and found_again(noted, self.config.init_from, self.workdir)

    def _attach_reference(self) -> None:
        """Finds what the reference says of the data's preferences, where it must have been asked before."""
        recipe, self.reference = self.recipe, ""
        if not needs_answers(recipe):
            return
        self.reference = references.noted(self.workdir) if self.start else ""
        if not self.reference:
            base = self.beginning or Base.find(self.config.init_from)
            self.reference = references.fingerprint_of(base, recipe, self.config.seed)
        if not self.start:  # one that goes on has the settings that it had
            references.check_pictures(self.config, self.corpus.lengths)
        sources = [*self.corpus.lengths, *(self.held_out.lengths if self.held_out else [])]
        references.attach(sources, self.reference, recipe, self.budgets)

    def _fitted(self) -> Recipe:
        """The recipe for the media that the data has. A model from random weights gets what it needs for them."""
        config, media = self.config, self.corpus.media | (self.held_out.media if self.held_out else frozenset())
        if self.start or self.recipe.start:
            return fitted(self.recipe, media)
        if config.init_from:
            config.data.media = own_media(config)
            lacking = [name for name in parse_clips(clips_of(media)) if name not in parse_clips(config.data.media)]
            if lacking:
                raise UserError(
                    f"the data has {' and '.join(MEDIA[name].plural for name in lacking)}, which the model of "
                    f"{config.init_from} (config.init_from) was not made for: its config.data.media is "
                    f"'{config.data.media}'; leave them out, or begin from random weights, without config.init_from"
                )
        elif not config.data.media and clips_of(media):
            config.data.media = clips_of(media)
            self.recipe = self._recipe()
        return fitted(self.recipe, media)

    def _compiled_ahead(self) -> CompiledStep | None:
        """The step of a run on the demo, as far as its budgets are foreseen: it compiles while pictures are drawn."""
        config, budgets = self.config, foreseen_budgets(self.config)
        if budgets is None or self.start or config.epochs or not config.steps or jax.process_count() > 1:
            return None
        recipe = fitted(self.recipe, frozenset())
        program = make_program(config, recipe, steps=config.steps, targets=budgets.targets, sources=1)
        batch = abstract_batch(recipe, budgets, config.batch_size, self.mesh)
        return CompiledStep(program, self.mesh, batch, lambda line: self.say(line))

    def compiled_step(self) -> CompiledStep:
        """The training step, which begins to compile in a thread unless it has begun already."""
        ahead, self._ahead = self._ahead, None
        return ahead or CompiledStep(self.program, self.mesh, self.abstract_batch(), lambda line: self.say(line))

    def _identity(self) -> tuple[Identity, list[str]]:
        """Which run this is, and how its data differs from the checkpoint's, as far as that is allowed."""
        identity = Identity.of(
            command.to_json(self.config), self.corpus, self.budgets, self.recipe.template.fingerprint
        )  # fmt: skip
        if not self.record:
            return identity, []
        identity = identity.going_on(self.record)
        if self.record.position != self.start:
            folder = self.near.folder if self.near and self.is_from_near else self.checkpoints.folder
            raise UserError(
                f"{folder / str(self.start)} is a checkpoint of step {self.record.position}: its name must be its step"
            )
        return identity, identity.check(self.record, self.workdir, self.config.data.allow_change)

    def _check_agreed(self) -> None:
        """Ends all processes with a line where one is about to start from another step, data or weights."""
        if jax.process_count() == 1:
            return
        weights = "" if self.start else self.config.init_from
        check_start(
            {
                "first step": f"{self.start}{' of a near checkpoint' if self.is_from_near else ''}",
                "steps": int(self.steps),
                "origin of the plan": list(self.plan.origin),
                "template": self.identity.data["template"],
                "budgets": self.identity.data["budgets"],
                "parameters": {".".join(path): list(of[0]) for path, of in flat_axes(self.recipe.model).items()},
                **contents_of(self.corpus, "data"),
                **contents_of(self.held_out, "held-out data"),
                "config.init_from": folders_fingerprint(weights),
                "model beneath the adapters": self.base.fingerprint if self.base else {},
                "reference": self.reference,
            }
        )

    def _origin(self) -> Origin:
        """Where the plan begins: with the run, or, after a change of the data, with the examples seen until then."""
        if not self.record:
            return Origin()
        plan = self.record.plan
        assert plan is not None, "else Identity.check refuses the run"
        batch, before = (self.start, plan.seen) if self.changed else (plan.batch, plan.begun_after)
        return Origin(batch, tuple(int(before.get(name, 0)) for name in self.corpus.names))

    def begin(self) -> None:
        """Writes, once, what a run has from its first step on: a start that fails before leaves nothing."""
        if self._has_begun:
            return
        self._has_begun = True
        with self.barrier.agreed("the run's first files"):
            if self.is_first:
                write_json(self.workdir / "config.json", command.to_json(self.config))
                machine = machine_record(
                    self._config_name, self.steps, self.mesh, self.recipe.compute, self.recipe.model
                )  # fmt: skip
                write_json(self.workdir / MACHINE, machine)
                # Of a start that never came to a save something else may be there.
                keep(self.workdir, self.base)
                references.note(self.workdir, self.reference)
                adapter_record.keep(self.workdir, self.recipe.begun)
                keep_tokenizer(self.config.data.tokenizer, self.workdir)
                note_first_save(self.workdir, self.start)
                if self.near is None:
                    forget(self.workdir)
            for folder in self.corpus.folders + (self.held_out.folders if self.held_out else []):
                self.skipped.note(read_lines(folder / "skipped.jsonl"))
        if self.near:
            self.near.begin()

    def forget_unused_start(self) -> None:
        """Removes what ``init_from`` left in the workdir of a run that never came to its first step."""
        if not (self._has_begun or self.start) and self.is_first:
            own_folders.remove(self.workdir / MODEL)

    def abstract_batch(self) -> Batch:
        """Shapes and shardings of a global batch."""
        rows, widths = self.config.batch_size, self.assemble.widths
        return abstract_batch(self.recipe, self.budgets, rows, self.mesh, widths)

    def held(self, state: TrainState) -> TrainState:
        """What a checkpoint holds of a state: with adapters, all but the model beneath them."""
        return state._replace(params=held(state.params, self.recipe.trainable, self.base)) if self.base else state

    def initial_state(self) -> TrainState:
        """The state at ``self.start``: restored onto this mesh, from ``init_from``, or fresh."""
        if self.start:
            wanted = self.held(self.program.abstract_state(self.mesh))
            if self.near and self.is_from_near:
                state = self.near.restore(wanted)
            else:
                state = self.checkpoints.restore(wanted, self.start)
            if self.base is None:
                return state
            return state._replace(params=with_base(state.params, self.recipe, self.mesh, self.base))
        if self.is_first:
            own_folders.remove(self.workdir / MODEL)  # of a start from another model that never came to a save
        if not self.config.init_from:
            return fresh_state(self.program, self.mesh, self.config.seed)
        init_from = self.beginning.init_from if self.beginning else self.config.init_from
        params = started_params(self.recipe, self.mesh, self.workdir, init_from=init_from, seed=self.config.seed)
        first_state = jax.jit(
            self.program.first_state, out_shardings=self.program.shardings(self.mesh), donate_argnums=0
        )  # fmt: skip
        return compile_unoptimized(first_state.lower(params))(params)

    def by_source(self, counts: Sequence[int]) -> dict[str, int]:
        """Counts of each source, by its name."""
        return dict(zip(self.corpus.names, counts, strict=False))


def writers_of(config: ConfigDict) -> tuple[str, ...]:
    """Names of the trackers that a config asks for, each once."""
    names = dict.fromkeys(parse_names(config.log.writers, "config.log.writers", WRITERS, "writer"))
    return tuple(name for name in names if name != "tensorboard" or config.log.tensorboard)
