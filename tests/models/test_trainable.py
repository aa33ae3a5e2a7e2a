"""What learns is what no pattern means, to the leaf; a pattern that means nothing is told."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from jaxmm.errors import UserError
from jaxmm.models.multimodal import flat_axes, kernel_dims
from jaxmm.models.trainable import EVERYTHING, Trainable, check_patterns
from jaxmm.models.tree import joined, matches

PATTERNS = ("vision", "decoder.blocks", "*.bias", "decoder.blocks.mlp.*.kernel", "*embedding", "connector.up", "none")


def paths_of(tree) -> set[tuple[str, ...]]:
    return {tuple(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


@hypothesis.given(patterns=st.sets(st.sampled_from(PATTERNS)))
def test_every_parameter_is_on_one_side_and_both_make_the_whole_again(tiny, patterns):
    trainable = Trainable(tuple(sorted(patterns)))
    learnt, fixed = trainable.split(tiny.params)
    assert paths_of(learnt) == {path for path in flat_axes(tiny.spec) if trainable.learns(path)}
    assert paths_of(learnt).isdisjoint(paths_of(fixed))
    jax.tree.map(np.testing.assert_array_equal, joined(learnt, fixed), tiny.params)


def test_what_pissa_begins_with_never_learns_whatever_is_trained_whole():
    trainable = Trainable(adapters=True, whole=("decoder.blocks",))
    at = ("decoder", "blocks", "mlp", "up")
    learnt = [path for path in (("kernel",), ("lora", "into"), ("lora", "first_into"), ("lora", "first_out"))
              if trainable.learns((*at, *path))]  # fmt: skip
    assert learnt == [("kernel",), ("lora", "into")]


def test_a_pattern_means_all_below_it_and_nothing_that_only_begins_alike():
    mlp = ("decoder", "blocks", "mlp", "up", "kernel")
    for pattern in ("decoder", "decoder.blocks.mlp", "*.kernel", "*.mlp", "decoder.*.up.kernel", "*"):
        assert matches(mlp, pattern), pattern
    for pattern in ("dec", "decoder.blocks.ml", "blocks", "mlp", "*.bias", "vision"):
        assert not matches(mlp, pattern), pattern


def test_the_share_of_a_part_s_maps_that_learns_is_counted_by_their_weights(tiny):
    assert EVERYTHING.shares(tiny.spec) == dict.fromkeys(tiny.spec.parts, 1.0)
    sizes = {path: np.prod(flat_axes(tiny.spec)[path][0]) for path in kernel_dims(tiny.spec) if path[0] == "decoder"}
    mlp = sum(size for path, size in sizes.items() if "mlp" in path)
    found = Trainable(("vision", "connector.*.kernel", "decoder.blocks.mlp")).shares(tiny.spec)
    assert found == {"vision": None, "connector": 0.0, "decoder": pytest.approx(1 - mlp / sum(sizes.values()))}


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("visoin", "config.k: no part 'visoin': the parts are vision, connector, decoder; did you mean 'vision'"),
        ("decoder.block.mlp", "'decoder.block.mlp' is no parameter: there are .*; did you mean 'decoder.blocks.mlp"),
        ("decoder.blocks.0.mlp", "'decoder.blocks.0.mlp' is no parameter: layers have no numbers here"),
        ("*.lora_a", "'.*lora_a' is no parameter"),
    ],
)
def test_a_pattern_that_means_nothing_is_told(tiny, pattern, told):
    with pytest.raises(UserError, match=told):
        check_patterns(("decoder", pattern), "config.k", tiny.spec)
