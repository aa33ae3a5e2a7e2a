"""Every family against ``transformers``: logits, attention, gradients of packed documents; patches; tensors there and
back."""

from __future__ import annotations

import pytest
from chosen import ONE_A_MECHANISM, chosen
from parities.models import CASES

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("case", chosen(CASES, ONE_A_MECHANISM))
def test_packed_documents_give_the_numbers_of_transformers_and_its_own_tensors_come_back(case):
    """Logits, probabilities of attention, gradients, patches; what is written again is the same to the bit."""
    import parity

    found = parity.measured(case, seed=0)
    assert found["logits"] < parity.LOGITS
    assert found["attention"] < parity.ATTENTION
    assert found["gradients"] < parity.GRADIENTS, found["worst_gradient"]
    assert found["patches"] <= parity.PATCHES + 1e-3
    assert found["bits_differ"] == []
