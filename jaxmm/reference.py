"""Asks the model that a run begins from about all pairs of its data, once: what a loss of preferences compares with.

    python -m jaxmm.reference --config=configs/base.py --config.objective=dpo --config.init_from=MODEL
    python -m jaxmm.train --config=configs/base.py --config.objective=dpo --config.init_from=MODEL --workdir=runs/dpo

Give it the config of the run, whose data are pairs or judged answers. What it finds is kept in the cache, where the run
finds it by the data and the weights. Pairs that it was asked about before are left out, unless their pictures or clips
have been replaced since. Runs of adapters alone need none of it, as the reference is beneath them: for these it stops,
unless config.preference.reference=asked.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from jaxmm import command, sharding
from jaxmm.checkpoints import references
from jaxmm.checkpoints.agreement import check_config, check_start, contents_of
from jaxmm.checkpoints.base import Base
from jaxmm.checkpoints.params import started_params
from jaxmm.corpus import cache_folder
from jaxmm.data.packing.lengths import Reference
from jaxmm.errors import UserError
from jaxmm.models.trainable import EVERYTHING
from jaxmm.models.tree import Params
from jaxmm.recipe import eval_corpus, fitted, read_recipe, train_corpus
from jaxmm.runtime import startup
from jaxmm.runtime.barrier import Barrier
from jaxmm.training import cpu_dtype
from jaxmm.training.objectives import asks_reference
from jaxmm.training.preference_evaluator import PreferenceEvaluator

FLAGS: command.Flags = {}


def main(argv: list[str]) -> int:
    """Asks about each source of the config, and says how many pairs there were."""
    args = command.parse(argv, FLAGS, about=__doc__ or "")
    config = args.config
    startup.join_processes()
    startup.keep_compiled(cache_folder(config))
    startup.split_cpu(config.mesh, config.batch_size)
    check_config(config)
    if line := cpu_dtype.settle(config):  # as the run will
        print(line, file=sys.stderr)
    recipe = read_recipe(config)
    if recipe.preference is None or not recipe.preference.has_reference:
        raise UserError(f"config.objective is '{config.objective}', which has no reference: dpo, ipo and kto have one")
    if asks_reference(recipe):
        raise UserError(
            "config.adapter: adapters alone learn here, so that each step of the run asks the model beneath them and "
            "reads none of this: train as it is, or set config.preference.reference=asked for it, here and in the run"
        )
    base = Base.find(config.init_from)  # once: another run's newest checkpoint may be another one later
    fingerprint = references.fingerprint_of(base, recipe, config.seed)
    recipe = recipe._replace(model=recipe.model.base, trainable=EVERYTHING)
    corpora = [train_corpus(config, recipe), eval_corpus(config, recipe)]
    contents = contents_of(corpora[0], "data") | contents_of(corpora[1], "held-out data")
    check_start({"weights": fingerprint, **contents})
    recipe = fitted(recipe, frozenset().union(*(corpus.media for corpus in corpora if corpus)))
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_experts(mesh, recipe.model.decoder.experts)
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as unused:
        params = started_params(recipe, mesh, Path(unused), init_from=base.init_from, seed=config.seed)
        barrier = Barrier("reference")
        for corpus in filter(None, corpora):
            asked = PreferenceEvaluator(
                corpus, recipe, mesh, seq_len=config.seq_len, batch_size=config.batch_size, examples=0
            )
            ask(asked, params, fingerprint, barrier)
    return 0


def ask(asked: PreferenceEvaluator, params: Params, fingerprint: str, barrier: Barrier) -> None:
    """Keeps what the model says of the pairs of a corpus, beside what it was asked about before."""
    sources, recipe = asked.corpus.lengths, asked.recipe
    before = [references.said(source, fingerprint, recipe) for source in sources]
    known = known_pairs(asked, before)
    counts = [float(is_known_E.sum()) for is_known_E in known.values()]
    if any(others != counts for others in barrier.each(counts, "what the reference was asked before")):
        raise UserError("the processes have not the same cache: set config.data.cache to a folder that all of them see")
    answers = asked.answers(params, {name: ~is_known_E for name, is_known_E in known.items()})
    for source, (logps_E2, checksums_E), answer in zip(sources, before, answers, strict=True):
        is_known_E, is_long_E = known[source.name], source.is_long(source.all_needs, asked.budgets)
        logps_E2[~is_known_E & is_long_E], logps_E2[~is_known_E & ~is_long_E] = np.nan, np.inf
        logps_E2[answer.examples] = np.reshape(answer.logps, (-1, 2))
        checksums_E[answer.examples] = answer.checksums
        with barrier.agreed(f"what the reference says of {source.name}"):
            if jax.process_index() == 0:
                file = references.save(source, fingerprint, recipe, Reference(logps_E2, checksums_E))
                noun = references.noun_of(source)
                print(f"{source.name}: {told(noun, logps_E2, is_known_E, len(answer.examples))}: {file}")


def known_pairs(asked: PreferenceEvaluator, before: Sequence[Reference]) -> dict[str, np.ndarray]:
    """bool (E,) by source: the pairs that were asked about before, and whose media are not known to be others now."""
    sources = asked.corpus.lengths
    known = {
        source.name: np.isfinite(said.logps_E2).all(1) for source, said in zip(sources, before, strict=True)
    }  # fmt: skip
    in_files = {
        source.name: known[source.name] & (said.checksums_E > 0) for source, said in zip(sources, before, strict=True)
    }
    for source, said, checksums in zip(sources, before, asked.checksums(in_files), strict=True):
        for example, checksum in checksums.items():
            known[source.name][example] = checksum == said.checksums_E[example]
    return known


def told(noun: str, logps_E2: np.ndarray, is_known_E: np.ndarray, asked: int) -> str:
    """About how many pairs (or what ``noun`` says) of a source was asked, and why not about the others."""
    left = {
        "known from before": int(is_known_E.sum()),
        "longer than a row": int(np.isnan(logps_E2).any(1).sum()),
        "could not be read": int(np.isinf(logps_E2).any(1).sum()),
    }
    counts = [f"asked about {asked} of {len(logps_E2)} {noun}"]
    return ", ".join(counts + [f"{count} {why}" for why, count in left.items() if count])


if __name__ == "__main__":
    command.run(main)
