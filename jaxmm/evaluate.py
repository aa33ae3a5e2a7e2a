"""Evaluation on held-out data, in the loop and as a command: loss, exact match of the assistant's answers, and both
with other examples' pictures, films and recordings in place of their own.

An answer is right if every token of it, its end marker included, is the model's most likely one after the true tokens
before it. For a greedy decoder that is the same as generating it, so that no decoding loop is needed.
"""

from __future__ import annotations

if __name__ == "__main__":
    from jaxmm.runtime import startup

    startup.end_on_interrupt()  # before large imports

import sys
from pathlib import Path

import jax

from jaxmm import atomic, command, formatting, sharding
from jaxmm.capacity import check_states
from jaxmm.checkpoints import references
from jaxmm.checkpoints.agreement import check_config, check_start, contents_of
from jaxmm.checkpoints.base import Base
from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.checkpoints.chosen import chosen_step
from jaxmm.checkpoints.params import saved_params
from jaxmm.corpus import cache_folder, read_budgets
from jaxmm.data.packing.unfit import check_held_out
from jaxmm.errors import UserError
from jaxmm.recipe import eval_corpus, fitted, read_recipe
from jaxmm.runtime import startup
from jaxmm.runtime.barrier import Barrier
from jaxmm.training.evaluator import closing_rows
from jaxmm.training.media_gain import idle_lines
from jaxmm.training.objectives import needs_answers
from jaxmm.training.preference_evaluator import make_evaluator
from jaxmm.workdir import spool

FLAGS: command.Flags = {
    "workdir": ("", "folder of the run to evaluate"),
    "step": ("", "checkpoint to evaluate: its step, or best; the newest if left out"),
}


def main(argv: list[str]) -> int:
    """Evaluates a run's checkpoint on the held-out data of its config; the first process writes eval.json."""
    args = command.parse(argv, FLAGS, config="workdir", about=__doc__ or "")
    workdir = Path(args.workdir)
    startup.join_processes()
    startup.keep_compiled(cache_folder(args.config))
    startup.split_cpu(args.config.mesh, args.config.batch_size)
    check_config(args.config, step=args.step)
    recipe = read_recipe(args.config, workdir)
    corpus = eval_corpus(args.config, recipe)
    if corpus is None:
        raise UserError("this run has no held-out data: give --config.eval.path (and --config.eval.mixture)")
    recipe = fitted(recipe, corpus.media)
    if jax.process_index() == 0:
        for source in corpus.lengths:
            for line in source.cut_lines():
                print(f"{source.name}, {line}", file=sys.stderr)
    if needs_answers(recipe):
        reference = references.noted(workdir)
        if not reference:  # a run of another objective, or one whose steps ask it
            base = Base.find(args.config.init_from)
            reference = references.fingerprint_of(base, recipe, args.config.seed)
        references.attach(corpus.lengths, reference, recipe, read_budgets(args.config, corpus), trains=False)
    mesh = sharding.make_mesh(args.config.mesh)
    check_states(recipe.model.decoder, mesh)
    sharding.check_experts(mesh, recipe.model.decoder.experts)
    with jax.set_mesh(mesh):
        with Barrier("start").together("the checkpoint"):
            reader = Checkpoints(workdir / "checkpoints")  # one, so that no byte is compared twice
            step = chosen_step(workdir, args.step) or reader.latest()
            check_start({"checkpoint": step, **contents_of(corpus, "held-out data")})
            params = saved_params(workdir, recipe, mesh, step, reader)
            which = f"the checkpoint of step {step}{reader.best_line()}"  # all processes read them together
        evaluator = make_evaluator(
            corpus, recipe, mesh, seq_len=args.config.seq_len, batch_size=args.config.batch_size,
            examples=args.config.eval.examples,
        )  # fmt: skip
        for source in corpus.lengths:
            check_held_out(source, evaluator.budgets, evaluator.examples)
        for line in evaluator.notes if jax.process_index() == 0 else ():
            print(line, file=sys.stderr)
        figures = evaluator(params, backwards=True)
    if jax.process_index() == 0:  # every process has the same figures
        atomic.write_json(workdir / "eval.json", figures)
        print(which)
        print(formatting.table(closing_rows(figures)))
        for line in idle_lines([figures], step or 0, recipe.trainable.frozen):
            print(line)
        spool.publish(workdir / "eval.json")  # last: a store that cannot be written to must not cost the figures
    return 0


if __name__ == "__main__":
    command.run(main)
