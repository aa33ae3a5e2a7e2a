"""Runs whose linear maps multiply in float8: what they say at the start, and that they learn as in bfloat16."""

from __future__ import annotations

import json

import numpy as np
import pytest
import small_run

from jaxmm import train

pytestmark = pytest.mark.slow  # the numbers themselves are in tests/models/test_float8.py


@pytest.mark.full
def test_sixty_steps_have_the_losses_of_bfloat16_within_a_few_percent(tmp_path, capsys):
    data = small_run.make_data(tmp_path)
    arguments = [*small_run.arguments(data, tmp_path / "cache"), small_run.SCANNED, *small_run.UNSEEN]
    arguments += ["--config.steps=60", "--config.checkpoint.every=60", "--config.compute.dtype=bfloat16"]
    losses = {}
    for matmul in ("", "fp8"):
        workdir = tmp_path / f"run{matmul}"
        assert train.main([*arguments, f"--config.compute.matmul={matmul}", f"--workdir={workdir}"]) == 0
        told = capsys.readouterr().err
        assert ("multiply in float8, the others in bfloat16; MFU stays a part of the bfloat16 peak" in told) == bool(
            matmul
        )
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        losses[matmul] = np.array([line["loss"] for line in lines if "loss" in line])
    plain, narrow = losses[""], losses["fp8"]
    assert len(plain) == len(narrow) == 30
    assert plain[-1] < 0.7 * plain[0], "it learns"
    assert (plain != narrow).any(), "it is float8"
    assert narrow.sum() == pytest.approx(plain.sum(), rel=0.03)
    assert narrow[-10:].mean() == pytest.approx(plain[-10:].mean(), rel=0.05)
    assert np.abs(narrow / plain - 1).max() < 0.2, "where the loss falls to a tenth in ten steps, a step is much"
