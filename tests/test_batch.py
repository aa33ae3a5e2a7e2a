"""The batch: a pytree of arrays that names what it holds; and limits of pictures that make sense."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import pytest
from conftest import IMAGE

from jaxmm import batch as batch_module
from jaxmm.data.assemble import empty_batch
from jaxmm.data.packing.plan import Budgets
from jaxmm.image_spec import ImageSpec


def test_a_batch_is_a_pytree_whose_arrays_all_start_with_rows():
    batch = empty_batch(3, Budgets(32, 16, 4, 8), IMAGE)
    leaves = jax.tree.leaves(batch)
    assert len(leaves) == 12
    assert {leaf.shape[0] for leaf in leaves} == {3}
    assert str(batch.patches.values.dtype) == "uint8", "pixels are transferred as bytes"


def test_every_shape_letter_in_the_package_is_in_the_legend():
    legend = set(re.findall(r"(?:^|\s{2,})([A-Z])  ", batch_module.__doc__ or "", re.M))
    assert {"B", "T", "N", "P", "D", "H", "K", "V"} <= legend
    local = set("bnGCRWI1234")  # said where they are used: blocks, groups, chunks, targets
    used = set()
    for path in Path(batch_module.__file__).parent.rglob("*.py"):
        used |= set("".join(re.findall(r"\b[a-z]\w*?_([A-Z][A-Zbn0-9]{1,4})\b", path.read_text())))
    assert used <= legend | local


@pytest.mark.parametrize(
    "limits",
    [
        {"patch_size": 0},
        {"merge": 0},
        {"min_pixels": 100, "max_pixels": 99},
        {"patch_size": 16, "merge": 2, "min_pixels": 1, "max_pixels": 1023},
    ],
)
def test_image_limits_that_hold_no_image_are_refused(limits):
    with pytest.raises(ValueError, match="must be"):
        ImageSpec(**limits)
