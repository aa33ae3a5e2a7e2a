"""Adapters over experts from their training to what is exported of them, on a mesh that splits the experts."""

from __future__ import annotations

import numpy as np
import pytest
import small_run
from made_folders import folder_of
from small_run import params_of

import jaxmm
from jaxmm import evaluate, export, train
from jaxmm.errors import UserError
from jaxmm.models.adapters import is_factor

pytestmark = pytest.mark.usefixtures("whole_transformers")
ADAPTERS = (
    "--config.adapter.rank=2", "--config.adapter.targets=experts.gate_up_proj,experts.down_proj,q_proj",
    "--config.optimizer.name=adamw", "--config.optimizer.rate=1e-2",
)  # fmt: skip


def test_adapters_of_experts_are_trained_gone_on_with_evaluated_asked_and_exported(tmp_path):
    data, base = tmp_path / "data", folder_of("qwen3-vl, experts", tmp_path / "base")
    data.mkdir()
    start = [*small_run.arguments(small_run.make_data(data), tmp_path / "cache"), small_run.SCANNED]
    start = [*start, "--config.mesh.fsdp=4", "--config.mesh.expert=2", f"--config.init_from={base}"]
    arguments, run, parts = [*start, *ADAPTERS], tmp_path / "run", tmp_path / "parts"
    for workdir, steps in ((run, 4), (parts, 2), (parts, 4)):
        steps_of = [*arguments, *small_run.UNSEEN, f"--config.steps={steps}", f"--workdir={workdir}"]
        assert train.main(steps_of) == 0
    small_run.assert_same_bits(small_run.saved(run, 4), small_run.saved(parts, 4))

    learnt, begun = params_of(run), small_run.first_params(*arguments)
    for path, x in learnt.items():
        assert np.array_equal(x, begun[".".join(("params", *path))]) != is_factor(path), path
    factors = {".".join(path[:-1]) for path in learnt if is_factor(path) and "experts" in path}
    assert factors == {f"decoder.blocks.experts.{part}.lora" for part in ("gate", "up", "down")}

    held_out = [one for one in arguments if one.startswith(("--config.eval.path", "--config.eval.mixture"))]
    asked = [f"--workdir={run}", *held_out, "--config.eval.examples=8"]
    with pytest.raises(UserError, match=r"config\.mesh\.expert 4 does not divide the 6 experts of the model"):
        evaluate.main([*asked, "--config.mesh.fsdp=2", "--config.mesh.expert=4"])
    assert evaluate.main(asked) == 0

    assert export.main([f"--workdir={run}", f"--output={tmp_path / 'peft'}"]) == 0
    assert export.main([f"--workdir={run}", f"--output={tmp_path / 'whole'}", "--merge", "--dtype=float32"]) == 0
    of_peft = [one for one in arguments if not one.startswith("--config.adapter")]
    of_peft = small_run.first_params(*of_peft, f"--config.adapter.init_from={tmp_path / 'peft'}")
    small_run.assert_same_bits(of_peft, {".".join(("params", *path)): x for path, x in learnt.items()})
    said, whole = (jaxmm.load(one).answer(data / "1.png", "Colour?", max_tokens=6) for one in (run, tmp_path / "whole"))
    assert whole == said
