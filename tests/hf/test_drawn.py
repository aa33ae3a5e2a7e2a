"""Checkpoints of sizes and features that nobody chose, each family's config drawn from what it may hold."""

from __future__ import annotations

import pytest
from chosen import DRAWS, chosen
from parities.draws import DRAWN

pytestmark = pytest.mark.parity

SEED = 1  # any other has to pass too: tools/parity.py --draws


@pytest.mark.parametrize("case", chosen(DRAWN, DRAWS))
def test_a_drawn_model_gives_the_numbers_of_transformers_and_its_own_tensors_back(case):
    import parity

    found = parity.measured(case, SEED)
    assert found["logits"] < parity.LOGITS
    assert found["attention"] < parity.ATTENTION
    assert found["gradients"] < parity.GRADIENTS, found["worst_gradient"]
    assert found["patches"] <= parity.PATCHES + 1e-3
    assert found["bits_differ"] == []
