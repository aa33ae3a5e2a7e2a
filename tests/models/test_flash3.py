"""FlashAttention-3 as a backend: what it is given beside float64, by a stand-in; and that the real one lowers."""

from __future__ import annotations

import dataclasses
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE

import jaxmm
from jaxmm import recipe
from jaxmm.checks import attention as check_attention
from jaxmm.checks.attention import layouts
from jaxmm.checks.oracle import dense, mask_by_definition
from jaxmm.checks.row import NOT_HERE, RIGHT
from jaxmm.errors import UserError
from jaxmm.models import attention as attn
from jaxmm.models.kernels import device
from jaxmm.models.kernels.flash3 import PADDING, flash3_attention, offsets_of

T = 200


def by_offsets(q, k, v, offsets, longest, scale, is_causal):
    """What ``dew_flash_attn.flash_mha_varlen`` says it does, by its logits."""
    place = jnp.arange(q.shape[0])
    segment = jnp.searchsorted(offsets, place, side="right")
    seen = segment[:, None] == segment
    seen &= (place[:, None] >= place) | (not is_causal)
    group = q.shape[1] // k.shape[1]
    k, v = jnp.repeat(k, group, 1), jnp.repeat(v, group, 1)
    logits = jnp.where(seen, jnp.einsum("qhd,khd->hqk", q, k) * scale, -jnp.inf)
    return jnp.einsum("hqk,khd->qhd", jax.nn.softmax(logits), v)


@pytest.mark.parametrize("layout", ["one", "padded", "uneven"])
def test_masks_that_it_takes_equal_dense_attention(layout, monkeypatch):
    monkeypatch.setitem(sys.modules, "dew_flash_attn", types.SimpleNamespace(flash_mha_varlen=by_offsets))
    monkeypatch.setattr(device, "require", lambda *args: None)
    segments = layouts(T)[layout]
    halves = np.tile(np.arange(T) // 7, (2, 1))  # as of a tower's windows
    rng = np.random.default_rng(0)
    q, k, v, grad = (rng.normal(size=(2, T, heads, 8)).astype(np.float32) for heads in (4, 2, 2, 4))
    for mask, intervals, by_definition in (
        ("causal", attn.causal(segments), mask_by_definition(segments, causal=True)),
        ("runs", attn.bidirectional(segments), mask_by_definition(segments, causal=False)),
        ("runs", attn.bidirectional(segments, halves), mask_by_definition(segments, causal=False, keys=halves)),
    ):
        found = check_attention.forward_and_backward("flash3", 0.0, mask)(q, k, v, grad, *intervals)
        for each, wanted in zip(found, dense(q, k, v, by_definition, grad), strict=True):
            np.testing.assert_allclose(each, wanted, rtol=1e-4, atol=1e-5)
        assert not np.asarray(found[0])[segments == 0].any()


def test_the_proof_of_it_leaves_out_what_it_refuses(monkeypatch):
    monkeypatch.setitem(sys.modules, "dew_flash_attn", types.SimpleNamespace(flash_mha_varlen=by_offsets))
    monkeypatch.setattr(device, "require", lambda *args: None)
    monkeypatch.setattr(attn, "choose_backend", lambda *args: "flash3")
    monkeypatch.setattr(check_attention, "SMALL", 60)
    verdicts = {row.what.partition(",")[0]: row.verdict for row in check_attention.rows("flash3", "float32")}
    refused = {"window": NOT_HERE, "image blocks": NOT_HERE, "soft-cap": NOT_HERE}
    assert verdicts == dict.fromkeys((case.name.partition(",")[0] for case in check_attention.CASES), RIGHT) | refused


def test_a_model_that_it_does_not_take_is_refused_before_anything_is_compiled(tiny, monkeypatch):
    monkeypatch.setattr(device, "require", lambda *args: None)
    config = jaxmm.load_config("base", **{"compute.attention": "flash3"})

    def of(config=config, **decoder):
        model = dataclasses.replace(tiny.spec, decoder=dataclasses.replace(tiny.spec.decoder, **decoder))
        return recipe.read_compute(config, model, IMAGE, "gpu").attention

    assert of() == "flash3"
    for decoder, told in (
        ({"window": 8}, "attention: attention by 'flash3' takes causal masks"),
        ({"bidirectional_blocks": True}, "both ways, use 'fused'"),
        ({"attention_softcap": 2.0}, "no soft-cap"),
    ):
        with pytest.raises(UserError, match=told):
            of(**decoder)
    with pytest.raises(UserError, match=r"mesh\.context splits"):
        of(jaxmm.load_config("base", **{"compute.attention": "flash3", "mesh.context": 2}))
    monkeypatch.undo()
    with pytest.raises(UserError, match="heads of at most 128, not 256: use 'fused'"):
        of(jaxmm.load_config("base", **{"compute.attention": "hopper"}), head_dim=256)


def test_there_are_offsets_for_as_many_segments_as_positions_and_padding_is_cut():
    alone = np.arange(1, T + 1, dtype=np.int32)[None]
    offsets = jax.jit(lambda segments: offsets_of(attn.causal(segments)[0], segments > 0))
    np.testing.assert_array_equal(offsets(alone), np.arange(T + 1))
    segments = np.zeros((2, 3 * PADDING), np.int32)
    segments[0, :5], segments[0, 5:9] = 1, 2
    found = np.asarray(offsets(segments))
    begins = [0, 5, 9, *range(PADDING, 6 * PADDING, PADDING)]
    np.testing.assert_array_equal(found[: len(begins)], begins)
    assert (found[len(begins) :] == 6 * PADDING).all()
    assert found.shape == (6 * PADDING + 1,)


def test_what_it_does_not_take_is_refused_in_a_line(monkeypatch):
    monkeypatch.setattr(device, "require", lambda *args: None)
    q = jnp.zeros((1, 16, 2, 8), jnp.bfloat16)
    edge = jnp.zeros((1, 16), jnp.int32)
    for more, told in (
        ({"mask": "any"}, "takes causal masks, and segments that are seen whole: for windows"),
        ({"mask": "whole"}, "takes causal masks"),
        ({"mask": "causal", "softcap": 2.0}, "takes no soft-cap of logits: use 'fused'"),
    ):
        with pytest.raises(ValueError, match=told):
            flash3_attention(q, q, q, edge, edge, scale=1.0, **more)
    with pytest.raises(ValueError, match=r"whole rows, which config\.mesh\.context splits: use 'fused'"):
        flash3_attention(q[:, :8], q, q, edge[:, :8], edge[:, :8], scale=1.0, mask="causal")


@pytest.mark.flash3
@pytest.mark.parametrize("head", [64, 72, 128])
def test_it_lowers_for_cuda_forward_and_backward(head, monkeypatch):
    import dew_flash_attn

    assert "sm90" in dew_flash_attn.ARCHITECTURES
    monkeypatch.setattr(dew_flash_attn, "_hopper", lambda: True)
    q, k = (jax.ShapeDtypeStruct((2, 300, heads, head), jnp.bfloat16) for heads in (4, 2))
    edge = jax.ShapeDtypeStruct((2, 300), jnp.int32)

    def loss(q, k, v, start, end):
        return flash3_attention(q, k, v, start, end, scale=0.125, mask="causal").astype(jnp.float32).sum()

    step = jax.jit(jax.grad(jax.checkpoint(loss), argnums=(0, 1, 2))).trace(q, k, k, edge, edge)
    lowered = step.lower(lowering_platforms=("cuda",)).as_text()
    assert "@dew_flash3_mha_varlen_fwd" in lowered
    assert "@dew_flash3_mha_varlen_bwd" in lowered
    assert "tensor<601xi32>" in lowered, "an offset more than there are positions"
