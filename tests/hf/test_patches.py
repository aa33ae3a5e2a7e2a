"""The patches of each family's image processor, from the folder's own file."""

from __future__ import annotations

import sys

import pytest
import small_run

sys.path.insert(0, str(small_run.ROOT / "tools"))
from parity import LEVELS
from parity_patches import PROCESSORS, patch_difference

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", PROCESSORS)
def test_patches_are_those_of_the_familys_processor_within_one_level(name, tmp_path):
    assert patch_difference(name, tmp_path) <= LEVELS
