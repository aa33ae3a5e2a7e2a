"""Greedy answers of 32 tokens against ``transformers``' own ``generate``: alone, and rows of all lengths together."""

from __future__ import annotations

import copy
from typing import Any

import jax
import numpy as np
import pytest
from chosen import CACHES, chosen
from parities.models import CASES

from jaxmm.inference.sampling import GREEDY, Sampling

pytestmark = pytest.mark.parity

TOKENS = 32


def theirs(world: Any, document: Any, **options: Any) -> list[int]:
    import torch
    from parities import batch as parity_batch

    # With "dynamic" frequencies a model remembers the longest row it has seen: each document has a model of its own.
    model = copy.deepcopy(world.model)
    model.generation_config.eos_token_id = None  # on and on
    inputs = parity_batch.alone(document, world.case, world.layout.spec)
    with torch.no_grad():
        found = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, **options)
    return found[0, inputs["input_ids"].shape[1] :].tolist()


def rows(documents: list[Any], spec: Any) -> Any:
    """One document a row."""
    from parities import batch as parity_batch

    batches = [parity_batch.packed([document], spec) for document in documents]

    def joined(*arrays: np.ndarray) -> np.ndarray:
        widest = np.max([array.shape for array in arrays], axis=0)
        return np.concatenate([np.pad(array, [(0, n) for n in widest - array.shape]) for array in arrays])

    batch = jax.tree.map(joined, *batches)
    return batch._replace(slots_BT=np.where(batch.text.segments > 0, batch.slots_BT, -1))


def ours(world: Any, documents: list[Any], sampling: Sampling = GREEDY) -> list[list[int]]:
    from jaxmm.inference.decode import Generator
    from jaxmm.models.multimodal import Compute

    generator = Generator(world.layout.spec, Compute(), ())
    writing = generator.begin(world.params, rows(documents, world.layout.spec), TOKENS, sampling)
    writing = generator.go_on(world.params, writing, np.zeros(len(documents), bool), TOKENS)
    return np.asarray(writing.tokens_BW).tolist()


@pytest.mark.parametrize("case", chosen(CASES, CACHES))
def test_greedy_answers_are_those_of_transformers_token_for_token(case, tmp_path):
    import parity

    world = parity.world(case, tmp_path)
    wanted = [theirs(world, document) for document in world.documents]
    assert [len(answer) for answer in wanted] == [TOKENS] * len(wanted)
    assert ours(world, world.documents[:1]) == wanted[:1]
    assert ours(world, world.documents) == wanted


def test_a_repetition_penalty_is_that_of_transformers(tmp_path):
    import parity

    world = parity.world(CASES[0], tmp_path)
    plain = world.documents[2:]  # without pictures, whose soft tokens are tokens there
    wanted = [theirs(world, document, repetition_penalty=1.4) for document in plain]
    assert ours(world, plain, Sampling(repetition_penalty=1.4)) == wanted != ours(world, plain)
