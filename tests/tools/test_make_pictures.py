"""tools/make_pictures.py: pictures of README.md are small enough, and what is missing is told."""

from __future__ import annotations

import json

import make_pictures as tool
import numpy as np
import PIL.Image
import pytest
import small_run

from jaxmm.errors import UserError


def test_a_picture_is_made_smaller_until_it_fits(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)  # nothing packs worse
    size = tool.write(PIL.Image.fromarray(noise), tmp_path / "pictures" / "noise.png", 20_000)
    assert size == (tmp_path / "pictures" / "noise.png").stat().st_size <= 20_000
    with PIL.Image.open(tmp_path / "pictures" / "noise.png") as written:
        assert written.width < 400
        assert abs(written.width / written.height - 4 / 3) < 0.1
    flat = PIL.Image.new("RGB", (300, 200), "white")
    tool.write(flat, tmp_path / "flat.png", 20_000)
    with PIL.Image.open(tmp_path / "flat.png") as written:
        assert written.size == (300, 200)


def test_a_run_without_samples_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="let the run come to its end first"):
        tool.main([f"--workdir={tmp_path}", f"--output={tmp_path / 'pictures'}"])
    assert not (tmp_path / "pictures").exists()


def test_the_pictures_of_readme_are_small():
    pictures = list((small_run.ROOT / "docs" / "pictures").iterdir())
    assert {path.name for path in pictures} == {"samples.png", "inspect.png", "healthy_run.png", "sick_run.png"}
    assert all(path.stat().st_size <= 300_000 for path in pictures)
