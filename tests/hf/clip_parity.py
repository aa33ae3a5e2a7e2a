"""What the parity tests of videos and of recordings share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmm.batch import Batch
from jaxmm.data.documents import Media, Text, Turn
from jaxmm.inference.answers import Prompt, make_generator, prompt_batch

WRITTEN = 12  # tokens of a greedy answer


def within_a_page(part: Media) -> Prompt:
    """A prompt that goes on within a page: "ab", a medium, "cd"."""
    return Prompt.of([Turn("document", (Text("ab"), part, Text("cd")), False)])


def attention_difference(recipe: Any, model: Any, batch: Batch, alone: Sequence[tuple[slice, dict[str, Any]]]) -> float:
    """The largest difference of a probability of attention, of all layers, heads, positions and keys.

    Args:
      alone: where a document stands in the batch's row, and the same document as the processor has made it.
    """
    import jax
    import torch

    from jaxmm import sharding
    from jaxmm.hf.pretrained import read_params
    from jaxmm.models.probe import Queries
    from jaxmm.models.tree import nested
    from jaxmm.monitor.attention import Probe

    segments_BT = batch.text.segments
    everywhere = np.arange(segments_BT.shape[1], dtype=np.int32)[None]
    nothing = np.zeros_like(everywhere)
    queries = Queries(everywhere, np.where(segments_BT > 0, 0, -1), nothing, nothing, nothing, everywhere)
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = nested(read_params(recipe.start, lambda *_: sharding.replicated(mesh)).params)
        maps_LHTT = jax.device_get(Probe(recipe.model, recipe.compute)(params, batch, queries).maps_LBHQC)[:, 0]
    model.set_attn_implementation("eager")
    worst = 0.0
    for here, theirs in alone:
        with torch.no_grad():
            wanted_LHTT = np.stack([layer[0].numpy() for layer in model(**theirs, output_attentions=True).attentions])
        worst = max(worst, float(np.abs(maps_LHTT[:, :, here, here] - wanted_LHTT).max()))
    return worst


def assert_greedy_answers_agree(recipe: Any, model: Any, given: Sequence[tuple[Media, dict[str, Any]]]) -> None:
    """Compares what both sides write; ``given``: each medium, and the same prompt as the processor has made it."""
    import jax
    import torch

    from jaxmm import sharding
    from jaxmm.hf.pretrained import read_params
    from jaxmm.inference.sampling import GREEDY
    from jaxmm.models.tree import nested

    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = nested(read_params(recipe.start, lambda *_: sharding.replicated(mesh)).params)
        batch = prompt_batch([within_a_page(part) for part, _ in given], recipe.template, recipe.image)
        generate = make_generator(recipe.model, recipe.compute, ())
        writing = generate.begin(params, batch, 64, GREEDY, 0)
        writing = generate.go_on(params, writing, np.zeros(len(given), bool), WRITTEN)
        ours = sharding.fetched(writing.tokens_BW)[:, :WRITTEN]
    for tokens, (_, theirs) in zip(ours, given, strict=True):
        with torch.no_grad():
            written = model.generate(**theirs, max_new_tokens=WRITTEN, do_sample=False, eos_token_id=None)
        assert tokens.tolist() == written[0, theirs["input_ids"].shape[1] :].tolist()
