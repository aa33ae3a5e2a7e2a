"""Sizes that cannot be are refused before anything is made of them: no hang, no death by the system."""

from __future__ import annotations

import jax
import pytest
from small_run import ROOT

from jaxmm import capacity, command, sharding
from jaxmm.batch import ImageSpec
from jaxmm.data.documents import Document, Text, Turn
from jaxmm.data.lengths import Budgets
from jaxmm.errors import UserError
from jaxmm.models.compute import Compute
from jaxmm.models.decoder import DecoderSpec
from jaxmm.models.multimodal import ModelSpec
from jaxmm.recipe import Corpus, make_plan

MANY = Budgets(1 << 20, 1 << 16, 8, 1 << 20)
DEVICE = jax.devices()[:1]


@pytest.fixture
def gigabyte(monkeypatch):
    monkeypatch.setattr(capacity, "host_memory", lambda: 10**9)


def test_a_model_that_no_device_holds_is_one_line(gigabyte):
    spec = ModelSpec(decoder=DecoderSpec(layers=100, width=2048, mlp=8192))
    mesh = sharding.make_mesh({"data": 1}, DEVICE)
    with pytest.raises(UserError, match=r"a model of 5.* parameters takes .* GB or more, and each device has 1 GB"):
        capacity.check_model(spec, (), mesh)
    capacity.check_model(ModelSpec(), (), mesh)
    half = ModelSpec(decoder=DecoderSpec(layers=1, width=1024, mlp=65536, vocab_size=128))  # 0.2 billion
    capacity.check_model(half, ("decoder",), mesh)
    with pytest.raises(UserError, match=r"make it smaller, or raise config\.mesh\.fsdp"):
        capacity.check_model(half, (), mesh)


def test_a_batch_that_the_host_does_not_hold_is_one_line(gigabyte):
    capacity.check_batch(8, MANY._replace(tokens=512, targets=512), ImageSpec())
    with pytest.raises(UserError, match=r"a batch of 1000 rows of 1048576 tokens takes .* GB .*lower config"):
        capacity.check_batch(1000, MANY, ImageSpec())


def test_answers_that_the_device_does_not_hold_are_one_line(gigabyte):
    capacity.check_cache(DecoderSpec(), Compute(), 1, 1000, DEVICE)
    with pytest.raises(UserError, match=r"writing 1000000000 tokens of 1 answers takes .* TB .*lower --max_tokens"):
        capacity.check_cache(DecoderSpec(), Compute(), 1, 10**9, DEVICE)


def test_rows_are_counted_without_a_list_of_them():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2}, jax.devices()[:4])
    for rows in (4, 24):
        assert sharding.local_row_count(mesh, rows) == len(sharding.local_rows(mesh, rows))
    assert sharding.local_row_count(mesh, 4 * 10**12) == 4 * 10**12


def test_epochs_that_nobody_waits_for_are_one_line(lengths_of, tmp_path):
    said = Document((Turn("document", (Text("words"),), True),), "x")
    config = command.parse([f"--config={ROOT / 'configs/base.py'}", "--config.data.max_epochs=a:1e12"], {}).config
    corpus = Corpus([lengths_of([said], name="a")], [1.0], [tmp_path])
    with pytest.raises(UserError, match=r"ask for .* examples, which nobody waits for: lower them"):
        make_plan(config, corpus, MANY)
