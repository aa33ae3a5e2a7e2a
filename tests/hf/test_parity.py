"""Every family against ``transformers``: logits and gradients of packed documents, and tensors there and back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

from parity_models import CASES  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def world(request, tmp_path_factory):
    import parity

    return parity.world(request.param, tmp_path_factory.mktemp("theirs"))


@pytest.fixture(scope="module")
def difference(world):
    import parity

    return parity.difference(world)


def test_packed_documents_give_the_logits_of_transformers(difference):
    import parity

    assert difference.logits < parity.LOGITS


def test_the_gradient_of_every_tensor_is_that_of_transformers(difference):
    import parity

    assert difference.gradients < parity.GRADIENTS, difference.tensor


def test_what_is_read_and_written_again_is_the_same_to_the_bit(world, tmp_path):
    import parity

    assert parity.bits_differ(world, tmp_path) == []
