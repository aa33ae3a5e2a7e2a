"""``jaxmm families``: the list in the docs, and what a folder holds, by its config alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
from parities import models as parity_models
from small_run import ROOT

from jaxmm import families
from jaxmm.hf.families.registry import FAMILIES


def test_the_docs_have_the_list(capsys):
    """As ``python -m jaxmm.families`` prints it."""
    assert families.main([]) == 0
    assert f"```text\n{capsys.readouterr().out}```" in (ROOT / "docs/models.md").read_text()


def test_readme_counts_them():
    kinds = [families.takes(family) for family in FAMILIES.values()]
    images, videos, heard = (sum(word in kind for kind in kinds) for word in ("images", "videos", "recordings"))
    readme = (ROOT / "README.md").read_text()
    assert f"| image-text models | {images} families, and {heard} of audio |" in readme
    assert f"| both, packed as images are; {videos} families with video, {heard} with audio |" in readme


def test_every_family_names_releases():
    assert [name for name, family in FAMILIES.items() if not family.releases] == []


@pytest.mark.usefixtures("whole_transformers")
@pytest.mark.parametrize(
    ("name", "told"),
    [("qwen3-vl", "qwen3_vl, takes images, videos"), ("pixtral", "llava_pixtral, takes images")],  # a LLaVA's config
)
def test_a_folder_is_told_by_its_config(name, told, tmp_path, capsys):
    config = parity_models.case(name).config(np.random.default_rng(0))
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    assert families.main([f"--folder={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path}: {told}; ")
    assert [word in out for word in ("parameters: ", "vision ", "connector ", "decoder ")] == [True] * 4
