"""Asks the model that a run begins from about all pairs of its data, once: what a loss of preferences compares with.

    python -m jaxmm.reference --config=configs/dpo.py --config.data.path=dataset_info.json --config.init_from=MODEL
    python -m jaxmm.train --config=configs/dpo.py --config.data.path=dataset_info.json --config.init_from=MODEL

Give it the config of the run. What it finds is kept in the cache, where the run finds it by the data and the weights.
Runs of adapters alone need none of it: the reference is beneath them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax
import numpy as np

from jaxmm import command, sharding
from jaxmm.checkpoints import references
from jaxmm.checkpoints.params import started_params
from jaxmm.corpus import Corpus, cache_folder
from jaxmm.data.packing.lengths import Reference
from jaxmm.errors import UserError
from jaxmm.models.trainable import EVERYTHING
from jaxmm.recipe import Recipe, eval_corpus, fitted, read_recipe, train_corpus
from jaxmm.runtime import startup
from jaxmm.training.preference_evaluator import PreferenceEvaluator

FLAGS: command.Flags = {}


def main(argv: list[str]) -> int:
    """Asks about each source of the config, and says how many pairs there were."""
    args = command.parse(argv, FLAGS, about=__doc__ or "")
    config = args.config
    startup.join_processes()
    startup.keep_compiled(cache_folder(config))
    startup.split_cpu(config.mesh, config.batch_size)
    recipe = read_recipe(config)
    if recipe.preference is None or not recipe.preference.has_reference:
        raise UserError(f"config.objective is '{config.objective}', which has no reference: dpo, ipo and kto have one")
    fingerprint = references.fingerprint_of(config.init_from)
    recipe = recipe._replace(model=recipe.model.base, trainable=EVERYTHING)
    corpora = [train_corpus(config, recipe), eval_corpus(config, recipe)]
    recipe = fitted(recipe, frozenset().union(*(corpus.media for corpus in corpora if corpus)))
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as unused:
        params = started_params(recipe, mesh, Path(unused), init_from=config.init_from, seed=config.seed)
        for corpus in filter(None, corpora):
            ask(corpus, recipe, mesh, params, fingerprint, config.seq_len, config.batch_size)
    return 0


def ask(
    corpus: Corpus, recipe: Recipe, mesh: jax.sharding.Mesh, params: dict, fingerprint: str, seq_len: int, rows: int
) -> None:
    """Keeps what the model says of all pairs of a corpus."""
    asked = PreferenceEvaluator(corpus, recipe, mesh, seq_len=seq_len, batch_size=rows, examples=0)
    for source, found in zip(corpus.lengths, asked.answers(params), strict=True):
        is_long_E = source.is_long(source.all_needs, asked.budgets)
        logps_E2 = np.where(is_long_E[:, None], np.nan, np.inf).astype(np.float32).repeat(2, 1)
        checksums_E = np.zeros(len(source), np.uint32)
        logps_E2[found.examples], checksums_E[found.examples] = found.logps, found.checksums
        if jax.process_index() == 0:
            file = references.save(source, fingerprint, recipe, Reference(logps_E2, checksums_E))
            unread = len(source) - int(is_long_E.sum()) - len(found.examples)
            left = f", {unread} could not be read" if unread else ""
            print(f"{source.name}: asked about {len(found.examples)} of {len(source)} pairs{left}: {file}")


if __name__ == "__main__":
    command.run(main)
