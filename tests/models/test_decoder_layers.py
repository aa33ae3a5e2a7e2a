"""Layers of several kinds: however they are cut into scans, each runs once, in its place, with its own parameters."""

from __future__ import annotations

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import plain, rows_of

from jaxmm.data.assemble import Assembler
from jaxmm.models.decoder_layers import places_in_stacks, runs_of
from jaxmm.models.decoder_spec import DecoderSpec
from jaxmm.models.multimodal import Compute, make_model
from jaxmm.models.recurrent import ConvolutionSpec
from jaxmm.models.routing import ExpertSpec
from jaxmm.models.tree import flat

C, A = "convolution", "attention"
MIXERS = (C, C, A, C, C, A, C, A, C, A, C)  # of LFM2: two patterns that repeat, and a last layer


@hypothesis.given(st.lists(st.sampled_from("abc"), max_size=24))
def test_runs_are_all_layers_in_order(kinds):
    runs, written = runs_of(kinds), []
    for run in runs:
        assert run.first == len(written)
        written += kinds[run.first : run.first + run.pattern] * run.repeats
    assert written == kinds


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [
        (["a"] * 8, [(0, 1, 8)]),
        (["d", "d", "d", "a"] * 12, [(0, 4, 12)]),
        (list(MIXERS), [(0, 3, 2), (6, 2, 2), (10, 1, 1)]),
        (["dense", *["moe"] * 5], [(0, 1, 1), (1, 1, 5)]),
        (list("abc"), [(0, 1, 1), (1, 1, 1), (2, 1, 1)]),
    ],
)
def test_a_pattern_that_repeats_is_one_run(kinds, wanted):
    assert [tuple(run) for run in runs_of(kinds)] == wanted


@pytest.fixture(scope="module")
def mixed(tiny):
    """The tiny model with MIXERS in its decoder, its parameters, and a packed row."""
    decoder = dataclasses.replace(
        tiny.spec.decoder, layers=len(MIXERS), mixers=MIXERS, qk_norm=True, convolution=ConvolutionSpec(32, 3)
    )
    spec = dataclasses.replace(tiny.spec, decoder=decoder)
    init, apply = make_model(spec)
    return spec, init(jax.random.key(0)), apply


def hidden(mixed, batch, **changes):
    compute = Compute(**changes)
    return jax.jit(lambda params, batch: mixed[2](params, batch, compute)[0])(mixed[1], batch)


@pytest.fixture(scope="module")
def batch(lengths_of):
    lengths = lengths_of([plain("some text"), plain("a few more words"), plain("!")])
    from test_cache import BUDGETS, IMAGE

    return Assembler([lengths], BUDGETS, IMAGE)(rows_of(lengths, [0, 1, 2])).batch


def test_parameters_lie_by_what_they_are(mixed):
    shapes = {path[2:]: x.shape for path, x in flat(mixed[1]).items() if path[:2] == ("decoder", "blocks")}
    assert shapes["attention", "query", "kernel"][0] == MIXERS.count(A)
    assert shapes["convolution", "out", "kernel"][0] == MIXERS.count(C)
    assert shapes["mlp", "up", "kernel"][0] == shapes["norm_mlp", "scale"][0] == len(MIXERS)
    assert places_in_stacks(mixed[0].decoder.mixers).tolist() == [0, 1, 0, 2, 3, 1, 4, 2, 5, 3, 6]


def test_scans_are_the_layers_one_by_one(mixed, batch):
    wanted = hidden(mixed, batch, unroll=99)
    for changes in ({"unroll": 1}, {"unroll": 3, "remat": "dots"}, {"unroll": 1, "remat": "full"}):
        np.testing.assert_allclose(hidden(mixed, batch, **changes), wanted, atol=5e-6, err_msg=str(changes))


def test_each_layer_has_its_own_parameters(mixed, batch):
    """Another number in one layer's stack changes what the model says, in every layer of every component."""
    _, params, apply = mixed
    run = jax.jit(lambda params: apply(params, batch, Compute(unroll=1))[0])
    slope = jax.jit(jax.grad(lambda params: jnp.square(apply(params, batch, Compute(unroll=1))[0]).sum()))(params)
    for path, x in flat(slope["decoder"]["blocks"]).items():
        assert (np.abs(np.asarray(x)).reshape(len(x), -1).max(1) > 0).all(), path
    assert np.isfinite(run(params)).all()


def test_layers_with_experts_have_their_places_and_loads_among_those_with_an_mlp(tiny, batch):
    """One of experts, a pattern of both that repeats, and a last one of experts."""
    decoder = dataclasses.replace(tiny.spec.decoder, layers=6, experts=ExpertSpec(3, 1, 12), dense_layers=(1, 3))
    init, apply = make_model(dataclasses.replace(tiny.spec, decoder=decoder))
    params = init(jax.random.key(0))
    shapes = {path[2:]: x.shape for path, x in flat(params).items() if path[:2] == ("decoder", "blocks")}
    assert (shapes["mlp", "up", "kernel"][0], shapes["experts", "router"][0]) == (2, 4)
    scanned, unrolled = (
        jax.jit(functools.partial(apply, method="routed"), static_argnums=2)(params, batch, Compute(unroll=unroll))
        for unroll in (1, 99)
    )
    np.testing.assert_allclose(scanned[0], unrolled[0], atol=5e-6)
    np.testing.assert_array_equal(scanned[2].chosen_E, unrolled[2].chosen_E)
    assert scanned[2].chosen_E.shape == (4, 3)
    assert (scanned[2].chosen_E.sum(1) == (batch.text.segments > 0).sum()).all()


def test_packed_documents_are_as_alone(mixed, batch):
    whole = hidden(mixed, batch)
    segments = np.asarray(batch.text.segments[0])
    for document in (1, 2, 3):
        here = np.flatnonzero(segments == document)
        alone = jax.tree.map(np.array, batch)
        text = alone.text._replace(
            **{
                name: np.zeros_like(getattr(alone.text, name)) for name in ("values", "positions", "segments")
            }
        )  # fmt: skip
        for name, x in text._asdict().items():
            x[0, : len(here)] = getattr(batch.text, name)[0, here] if name != "segments" else 1
        found = hidden(mixed, alone._replace(text=text))
        np.testing.assert_allclose(found[0, : len(here)], whole[0, here], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixers": (A,)}, "1 mixers are given for 4 layers"),
        ({"mixers": (A, "lstm", A, A)}, "mixer 'lstm' is not one of attention, global_attention, convolution"),
        ({"mixers": (A, C, A, A)}, "without each other"),
        ({"convolution": ConvolutionSpec(32, 3)}, "without each other"),
        ({"dense_layers": (0,)}, r"layers without experts \(0,\) are given, and no layer has experts"),
        ({"dense_layers": (0, 1, 2, 3), "experts": ExpertSpec(4, 2, 8)}, "and no layer has experts"),
        ({"dense_layers": (4,), "experts": ExpertSpec(4, 2, 8)}, "layer 4 without experts is no layer of 4"),
    ],
)
def test_layers_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DecoderSpec(**changes)
