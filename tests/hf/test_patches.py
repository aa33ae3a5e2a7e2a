"""Pictures become the patches that each family's own image processor in ``transformers`` makes of them.

Those of tiny models are compared in ``test_parity.py``.
"""

from __future__ import annotations

import pytest
from parities.models import case

pytestmark = pytest.mark.parity

PUBLISHED = (
    "siglip2 + llama", "llava, clip", "llava, siglip", "llava-next", "llava-onevision", "qwen2-vl", "qwen2.5-vl",
    "qwen3-vl", "gemma3", "internvl", "idefics3", "smolvlm", "mistral3", "pixtral", "gemma4", "glm-4.1v",
    "paddleocr-vl", "paligemma",
)  # fmt: skip


TWINS = ("llava, siglip", "qwen2-vl", "qwen2.5-vl", "idefics3", "paligemma")  # of others, by their processors' classes


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full if name in TWINS else []) for name in PUBLISHED]
)
def test_patches_of_published_sizes_are_those_of_transformers_to_one_level(name, tmp_path):
    from parities import patches as parity_patches

    difference, where = parity_patches.patch_difference(case(name), tmp_path / "theirs", published=True)
    assert difference <= parity_patches.PATCHES + 1e-3, where
