"""Sizes that cannot be are refused before anything is made of them: no hang, no death by the system."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from jaxmm import capacity, sharding
from jaxmm.errors import UserError
from jaxmm.models.adapters import AdapterSpec
from jaxmm.models.compute import Compute
from jaxmm.models.decoder import DecoderSpec
from jaxmm.models.frozen import FrozenSpec
from jaxmm.models.multimodal import ModelSpec
from jaxmm.models.trainable import EVERYTHING, Trainable

DEVICE = jax.devices()[:1]


@pytest.fixture
def gigabyte(monkeypatch):
    monkeypatch.setattr(capacity, "host_memory", lambda: 10**9)


def test_a_model_that_no_device_holds_is_one_line(gigabyte):
    spec = ModelSpec(decoder=DecoderSpec(layers=100, width=2048, mlp=8192))
    mesh = sharding.make_mesh({"data": 1}, DEVICE)
    with pytest.raises(UserError, match=r"a model of 5.* parameters takes .* GB or more, and each device has 1 GB"):
        capacity.check_model(spec, EVERYTHING, mesh)
    capacity.check_model(ModelSpec(), EVERYTHING, mesh)
    half = ModelSpec(decoder=DecoderSpec(layers=1, width=1024, mlp=65536, vocab_size=128))  # 0.2 billion
    capacity.check_model(half, Trainable(("decoder",)), mesh)
    with pytest.raises(UserError, match=r"make it smaller, or raise config\.mesh\.fsdp"):
        capacity.check_model(half, EVERYTHING, mesh)


def test_frozen_weights_count_as_they_are_held(gigabyte):
    decoder = DecoderSpec(layers=1, width=1024, mlp=131072, vocab_size=128)  # 0.4 billion
    adapted = ModelSpec(decoder=decoder, adapter=AdapterSpec(("decoder",), rank=1))
    mesh, trainable = sharding.make_mesh({"data": 1}, DEVICE), Trainable(adapters=True)
    with pytest.raises(UserError, match=r"a model of 4.* parameters takes 1.6. GB or more"):
        capacity.check_model(adapted, trainable, mesh)
    for kind in ("bfloat16", "int8", "nf4"):
        capacity.check_model(dataclasses.replace(adapted, frozen=FrozenSpec(kind)), trainable, mesh)
    larger = dataclasses.replace(adapted, decoder=dataclasses.replace(decoder, mlp=262144))
    half = dataclasses.replace(larger, frozen=FrozenSpec("bfloat16"))
    with pytest.raises(UserError, match=r"a model of 8.* parameters takes 1.6. GB or more"):
        capacity.check_model(half, trainable, mesh)


def test_answers_that_the_device_does_not_hold_are_one_line(gigabyte):
    capacity.check_cache(DecoderSpec(), Compute(), 1, 1000, DEVICE)
    with pytest.raises(UserError, match=r"writing 1000000000 tokens of 1 answers takes .* TB .*lower --max_tokens"):
        capacity.check_cache(DecoderSpec(), Compute(), 1, 10**9, DEVICE)
