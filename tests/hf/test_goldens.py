"""Every family against what ``transformers`` once answered, where it, or torch, is not there to be asked."""

from __future__ import annotations

import json

import jax
import make_goldens
import numpy as np
import pytest
import safetensors.numpy
from parities import batch as parity_batch

from jaxmm import sharding
from jaxmm.hf import folder as hf
from jaxmm.models.multimodal import Compute, make_model
from jaxmm.models.tree import nested

pytestmark = pytest.mark.usefixtures("whole_transformers")


@pytest.mark.parametrize("name", make_goldens.CASES)
def test_packed_documents_give_the_logits_that_transformers_gave(name, tmp_path):
    golden = make_goldens.load(make_goldens.path_of(name))
    safetensors.numpy.save_file(golden.tensors(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(golden.config))
    layout = hf.read_whole(tmp_path).layout
    where = sharding.replicated(sharding.make_mesh({"data": 1}, jax.devices()[:1]))
    params = nested(hf.read_model(tmp_path, layout, lambda path, shape: where).params)
    _, apply = make_model(layout.spec)

    def logits(params, batch):
        hidden_BTD, _ = apply(params, batch, Compute())
        return apply(params, hidden_BTD[0], method="logits")

    found = np.asarray(jax.jit(logits)(params, parity_batch.packed(golden.documents, layout.spec)))
    wanted = np.concatenate(golden.logits)
    assert wanted.std() > 0.1
    np.testing.assert_allclose(found[: len(wanted)], wanted, rtol=0, atol=1e-4)


def test_all_goldens_are_here_and_small():
    files = set(make_goldens.FOLDER.glob("*"))
    assert files == {make_goldens.path_of(name) for name in make_goldens.CASES}
    assert sum(file.stat().st_size for file in files) < 2 << 20


@pytest.mark.parity
def test_goldens_are_what_transformers_gives_now(tmp_path):
    name = "qwen3-vl"
    kept, now = make_goldens.load(make_goldens.path_of(name)), make_goldens.made(name)
    assert kept.listed == now.listed
    for one, other in zip(kept.logits, now.logits, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
