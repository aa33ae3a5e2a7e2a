"""Checkpoints of sizes and features that nobody chose, each family's config drawn from what it may hold."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

from parity_draws import FAMILIES, drawn  # noqa: E402

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
