"""Checkpoints of sizes and features that nobody chose, each family's config drawn from what it may hold."""

from __future__ import annotations

import pytest
from parities.draws import FAMILIES, drawn

pytestmark = pytest.mark.parity

SEEDS = (1, 2, 3)  # of each family; any others have to pass too


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_drawn_model_gives_the_numbers_of_transformers_and_its_own_tensors_back(family, seed):
    import parity

    found = parity.measured(drawn(family), seed)
    assert found["logits"] < parity.LOGITS
    assert found["gradients"] < parity.GRADIENTS, found["worst_gradient"]
    assert found["bits_differ"] == []
